//! HBONE: HTTP/2 CONNECT in mutual TLS (protocols section 4).
//!
//! [`headers`] is pure; [`client`] opens streams on one connection, [`pool`] shares connections between
//! callers, [`server`] accepts them, and both sides meet in [`stream::TunnelStream`]. Everything here works
//! over any [`Transport`]; who the peer is was settled by TLS below.

use std::time::Duration;

pub mod client;
pub mod headers;
mod keepalive;
pub mod pool;
pub mod server;
pub mod stream;
mod transport;

pub use client::{Connect, Connection, OpenError, SecureError, connect, secure};
pub use pool::{Key, Pool};
pub use server::{Incoming, serve};
pub use stream::TunnelStream;
pub use transport::Transport;

/// How both sides speak HTTP/2 (protocols 4.5).
#[derive(Clone, Debug)]
pub struct Settings {
    /// How much one stream may have under way: `HTTP2_STREAM_WINDOW_SIZE`.
    pub stream_window: u32,
    /// How much all streams together may have under way: `HTTP2_CONNECTION_WINDOW_SIZE`. Four stream
    /// windows at least: with fewer, streams that nobody reads stop the one that somebody does.
    pub connection_window: u32,
    /// The largest frame that we accept: `HTTP2_FRAME_SIZE`.
    pub frame_size: u32,
    /// How much of a stream waits in memory for the socket before its source is asked to wait.
    /// Never seen on the wire.
    pub send_buffer: usize,
    /// How long a quiet or busy connection goes without a PING.
    pub ping_interval: Duration,
    /// How long a PING may stay unanswered.
    pub ping_timeout: Duration,
    /// How many streams we open on one connection: `POOL_MAX_STREAMS_PER_CONNECTION`.
    pub max_streams: u16,
    /// How long a connection without streams is kept: `POOL_UNUSED_RELEASE_TIMEOUT`.
    pub idle_release: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        const MIB: u32 = 1024 * 1024;
        Self {
            stream_window: 4 * MIB,
            connection_window: 16 * MIB,
            frame_size: MIB,
            // Two of the largest pieces that the copier hands over, and a little: one on its way out, one next.
            send_buffer: 400 * 1024,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            max_streams: 100,
            idle_release: Duration::from_secs(300),
        }
    }
}

impl Settings {
    /// The connection window that is used: never less than four stream windows.
    fn roomy_connection_window(&self) -> u32 {
        /// HTTP/2 has no larger window.
        const LIMIT: u32 = (1 << 31) - 1;
        self.connection_window.max(self.stream_window.saturating_mul(4)).min(LIMIT)
    }

    /// The frame size that is used: HTTP/2 allows no other.
    fn legal_frame_size(&self) -> u32 {
        self.frame_size.clamp(16 * 1024, (1 << 24) - 1)
    }
}

#[cfg(test)]
mod tests;
