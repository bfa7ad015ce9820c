//! The node agent: captures pods and feeds the tunnel.
pub mod command;
pub mod enroll;
pub mod netns;
pub mod pod;
pub mod redirect;
pub mod roster;
