//! Certificates: what one is, how one is requested, renewed and kept.
