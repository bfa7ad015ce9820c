//! Node agent and tunnel: pods and their network namespaces over a SEQPACKET socket.
