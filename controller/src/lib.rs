//! The control plane and certificate authority.
