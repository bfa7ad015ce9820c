//! Moves bytes both ways between two streams.
