//! Sockets as the tunnel wants them: marked, shared, transparent.
//!
//! Every function here makes its socket in the network namespace of the calling thread; whoever
//! wants it in a pod's namespace calls through [`Netns::enter`](crate::pods::netns::Netns::enter).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use ambit_model::address::canonical;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::Keepalive;

/// How many connections may wait to be accepted. The kernel caps it at `net.core.somaxconn`, 4096 by
/// default; during a burst a short queue would drop what a moment later could be served.
const BACKLOG: i32 = 4096;

/// What all sockets of the tunnel have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The mark by which redirection rules recognise the tunnel's own packets (protocols 8.1).
    pub mark: Option<u32>,
    /// When a silent peer is probed, and given up.
    pub keepalive: Option<Keepalive>,
    /// Whether listeners may share their port with another tunnel process (`INPOD_PORT_REUSE`).
    pub reuse_port: bool,
}

/// Whose address a socket bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Its own namespace's.
    Own,
    /// This one, which need not exist here (`IP_TRANSPARENT`, protocols 5.8), and this port, or 0 for one that
    /// the kernel chooses when connecting.
    Of(IpAddr, u16),
}

/// Ports for sockets that bear a client's address: below those that clients' own kernels choose from by default.
/// The client's own connection to the same port of the pod passes through the same connection tracking, which
/// cannot tell it from ours if both come from the same port: one is refused, the other reset.
pub const BORROWED_PORTS: std::ops::RangeInclusive<u16> = 10_000..=32_767;

/// How far the other end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// In the same pod: nothing between the two can be congested. An algorithm that paces what it sends (a
    /// node may have BBR for its default) would only halve the speed, at twice the cost.
    Pod,
    /// Anywhere: as the node's operator has it.
    Network,
}

/// The algorithm of connections that meet no network. Every kernel has it, and lets anybody choose it.
const WITHOUT_PACING: &[u8] = b"reno";

/// A TCP listener at `address`; accepted sockets inherit its mark, `TCP_NODELAY`, keepalive and algorithm.
pub fn listen(
    address: SocketAddr,
    options: &Options,
    transparent: bool,
    from: Reach,
) -> io::Result<std::net::TcpListener> {
    let socket = tcp(address, options, from)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.reuse_port)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if transparent {
        set_transparent(&socket)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A TCP socket on its way to `to`: not connected yet, bound if `source` says so.
pub fn outgoing(
    to: SocketAddr,
    source: Source,
    options: &Options,
    reach: Reach,
) -> io::Result<tokio::net::TcpSocket> {
    let socket = tcp(to, options, reach)?;
    if let Source::Of(ip, port) = source {
        set_transparent(&socket)?;
        socket.set_freebind_v4(true)?;
        if port == 0 {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
        } else {
            // Others may have it too, as long as they are connected elsewhere.
            socket.set_reuse_address(true)?;
        }
        socket.bind(&SocketAddr::new(ip, port).into())?;
    }
    Ok(tokio::net::TcpSocket::from_std_stream(socket.into()))
}

/// A UDP socket at `address`.
pub fn udp(address: SocketAddr, options: &Options) -> io::Result<std::net::UdpSocket> {
    let kind = Type::DGRAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    // Port 0 is a query's own socket, which must not share its port with anybody.
    socket.set_reuse_port(options.reuse_port && address.port() != 0)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Where `stream` was going before it was redirected: `SO_ORIGINAL_DST`, else its local address
/// (protocols 5.2).
pub fn original_destination(stream: &tokio::net::TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let local = canonical(stream.local_addr()?);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    Ok(original.ok().and_then(|address| address.as_socket()).map_or(local, canonical))
}

/// Whether this thread's network namespace lets sockets bear foreign addresses.
pub fn can_be_transparent() -> bool {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
        .and_then(|socket| set_transparent(&socket))
        .is_ok()
}

fn tcp(address: SocketAddr, options: &Options, reach: Reach) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    match reach {
        // A kernel that has it not has only a slower default.
        Reach::Pod => drop(socket.set_tcp_congestion(WITHOUT_PACING)),
        Reach::Network => {}
    }
    if let Some(keepalive) = &options.keepalive {
        keepalive.apply(&socket)?;
    }
    Ok(socket)
}

/// Linux keeps one flag for both families, and lets it be set at the IPv4 level on any socket.
fn set_transparent(socket: &Socket) -> io::Result<()> {
    socket.set_ip_transparent_v4(true)
}
