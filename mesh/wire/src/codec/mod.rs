//! Protobuf to model and back; whatever cannot be decoded is named.
