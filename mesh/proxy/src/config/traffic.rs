//! How HTTP/2 and TCP are spoken, and where the own pages are.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use ambit_runtime::env::Env;
use ambit_wire::hbone::Settings as Hbone;
use socket2::{Socket, TcpKeepalive};

/// HTTP/2 knows no larger window (RFC 9113, 6.9.1).
const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// HTTP/2 knows no smaller and no larger frame limit (RFC 9113, 6.5.2).
const FRAMES: std::ops::RangeInclusive<u32> = 16_384..=16_777_215;

/// TCP's own check that the other side lives: `KEEPALIVE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How long a connection is quiet before the first probe.
    pub time: Duration,
    /// Between probes.
    pub interval: Duration,
    /// How many may go unanswered.
    pub retries: u32,
    /// Whether data that is not acknowledged ends the connection as soon: `USER_TIMEOUT_ENABLED`.
    pub user_timeout: bool,
}

/// The pages of the proxy itself, in its own namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// For the operator, on loopback only: `AMBIT_ADMIN_ADDR`.
    pub admin: SocketAddr,
    /// For Prometheus: `AMBIT_METRICS_ADDR`.
    pub metrics: SocketAddr,
    /// For the kubelet: `AMBIT_READINESS_ADDR`.
    pub readiness: SocketAddr,
}

/// HTTP/2 and the pool of tunnels: `HTTP2_*`, `POOL_*`.
pub fn hbone(env: &mut Env) -> Hbone {
    let default = Hbone::default();
    let mut window = |name: &str, default: u32| {
        let size: u32 = env.number(name).or(default);
        if !(1..=LARGEST_WINDOW).contains(&size) {
            env.reject(name, format!("is {size}; accepted: 1 to {LARGEST_WINDOW} bytes"));
        }
        size
    };
    let stream_window = window("HTTP2_STREAM_WINDOW_SIZE", default.stream_window);
    let connection_window = window("HTTP2_CONNECTION_WINDOW_SIZE", default.connection_window);
    let frame_size = env.number("HTTP2_FRAME_SIZE").or(default.frame_size);
    if !FRAMES.contains(&frame_size) {
        env.reject("HTTP2_FRAME_SIZE", format!("is {frame_size}; accepted: {FRAMES:?} bytes"));
    }
    let max_streams = env.number("POOL_MAX_STREAMS_PER_CONNECTION").or(default.max_streams);
    if max_streams == 0 {
        env.reject("POOL_MAX_STREAMS_PER_CONNECTION", "must be at least 1");
    }
    let idle_release = env.duration("POOL_UNUSED_RELEASE_TIMEOUT").or(default.idle_release);
    Hbone { stream_window, connection_window, frame_size, max_streams, idle_release, ..default }
}

impl Keepalive {
    /// Sets it on a socket.
    pub fn apply(&self, socket: &Socket) -> std::io::Result<()> {
        let settings =
            TcpKeepalive::new().with_time(self.time).with_interval(self.interval).with_retries(self.retries);
        socket.set_tcp_keepalive(&settings)?;
        if self.user_timeout {
            socket.set_tcp_user_timeout(Some(self.time + self.interval * self.retries))?;
        }
        Ok(())
    }

    /// `None` when `KEEPALIVE_ENABLED` is false.
    pub fn read(env: &mut Env) -> Option<Self> {
        let read = Self {
            time: env.duration("KEEPALIVE_TIME").or(Duration::from_secs(180)),
            interval: env.duration("KEEPALIVE_INTERVAL").or(Duration::from_secs(180)),
            retries: env.number("KEEPALIVE_RETRIES").or(9),
            user_timeout: env.flag("USER_TIMEOUT_ENABLED").or(false),
        };
        env.flag("KEEPALIVE_ENABLED").or(true).then_some(read)
    }
}

impl Pages {
    /// Reads where they are; ports by default are those of the mesh's configuration.
    pub fn read(env: &mut Env, admin: Option<u16>, metrics: Option<u16>, wildcard: IpAddr) -> Self {
        let mut at = |name: &str, ip: IpAddr, port: u16| env.number(name).or(SocketAddr::new(ip, port));
        Self {
            admin: at("AMBIT_ADMIN_ADDR", Ipv4Addr::LOCALHOST.into(), admin.unwrap_or(15000)),
            metrics: at("AMBIT_METRICS_ADDR", wildcard, metrics.unwrap_or(15020)),
            readiness: at("AMBIT_READINESS_ADDR", wildcard, 15021),
        }
    }
}
