//! What the mesh knows and decides. No I/O, no clock, no protobuf, no Kubernetes.
