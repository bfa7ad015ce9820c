//! The L7 proxy of a namespace. Its rooms are furnished by the waypoint work; nothing runs here yet.
