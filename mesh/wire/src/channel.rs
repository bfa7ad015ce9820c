//! gRPC channels to the control plane: address, roots, token, extra headers.
