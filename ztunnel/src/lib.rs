//! The node's L4 tunnel.
