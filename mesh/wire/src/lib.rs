//! How mesh processes speak: TLS, certificates, HBONE, xDS, ZDS.
//!
//! Layers: `tls` ← `cert` ← {`ca`, `hbone`, `debug_token`}; `tls` ← `xds`; `discovery` = `xds` + `codec`;
//! `tls` ← `otlp`; `unary` ← {`ext_authz`, `limiter`}; `copy`, `proxy_protocol` and `zds` stand alone. This crate alone knows protobuf.

pub mod ca;
pub mod cert;
pub mod channel;
pub mod codec;
pub mod copy;
pub mod debug_token;
pub mod discovery;
pub mod ext_authz;
pub mod hbone;
pub mod limiter;
pub mod otlp;
pub mod proxy_protocol;
pub mod spawn;
pub mod tls;
pub mod unary;
pub mod xds;
pub mod zds;
