//! The node agent: captures pods and feeds the tunnel.
