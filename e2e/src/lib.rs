//! The stories: real processes, real packets.
