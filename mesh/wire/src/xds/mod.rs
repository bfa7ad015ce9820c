//! Delta xDS: both ends of one stream.
