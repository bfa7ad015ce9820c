//! PROXY protocol version 2: one header, written once.
