//! HBONE: HTTP/2 CONNECT in mutual TLS.
