//! The certificate authority over gRPC: turns a CSR into a chain.
