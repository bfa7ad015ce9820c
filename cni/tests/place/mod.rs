//! A pod and a node as two network namespaces with a link between them, and what one does in them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use ambit_cni::netns::Netns;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Nothing here takes longer, unless it never happens.
pub const SOON: Duration = Duration::from_secs(5);

/// Long enough for a packet to arrive that should not.
pub const NEVER: Duration = Duration::from_millis(200);

/// The addresses of the pod and the node, in one family.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    pub pod: IpAddr,
    pub node: IpAddr,
}

/// Both families.
pub fn families() -> [Ends; 2] {
    [("10.99.0.2", "10.99.0.1"), ("fd99::2", "fd99::1")]
        .map(|(pod, node)| Ends { pod: pod.parse().unwrap(), node: node.parse().unwrap() })
}

/// The two namespaces, removed when this is dropped.
pub struct Place {
    pub pod: String,
    pub node: String,
}

/// Whether namespaces can be made; says loudly when a test is skipped for it.
pub fn allowed() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: this test makes network namespaces, for which it must run as root");
    }
    root
}

impl Place {
    pub fn make() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{}x{number}", std::process::id());
        let place = Self { pod: format!("ambp{tag}"), node: format!("ambn{tag}") };
        let (pod, node) = (&place.pod, &place.node);
        for script in [
            format!("netns add {pod}"),
            format!("netns add {node}"),
            format!("-n {pod} link add eth0 type veth peer name veth0 netns {node}"),
            format!("-n {pod} link set lo up"),
            format!("-n {node} link set lo up"),
            format!("-n {pod} addr add 10.99.0.2/24 dev eth0"),
            format!("-n {pod} addr add fd99::2/64 dev eth0 nodad"),
            format!("-n {node} addr add 10.99.0.1/24 dev veth0"),
            format!("-n {node} addr add fd99::1/64 dev veth0 nodad"),
            format!("-n {pod} link set eth0 up"),
            format!("-n {node} link set veth0 up"),
            format!("-n {pod} route add default via 10.99.0.1"),
            format!("-n {pod} -6 route add default via fd99::1"),
        ] {
            let words: Vec<&str> = script.split(' ').collect();
            run("ip", &words);
        }
        // Strict source checks, as many distributions have them: redirection must not depend on their absence.
        place.in_pod(|| {
            for scope in ["all", "default", "eth0", "lo"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "1").unwrap();
            }
        });
        place
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.pod)
    }

    pub fn netns(&self) -> Netns {
        Netns::open(&self.path()).unwrap()
    }

    pub fn in_pod<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.pod, work)
    }

    pub fn in_node<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.node, work)
    }

    /// What a program says in the pod.
    pub fn pod_says(&self, program: &str, arguments: &[&str]) -> String {
        self.in_pod(|| run(program, arguments))
    }

    /// Whether anything of the agent is left in the pod.
    pub fn is_clean(&self) -> bool {
        let rules = self.pod_says("ip", &["rule"]) + &self.pod_says("ip", &["-6", "rule"]);
        let routes = self.pod_says("ip", &["route", "show", "table", "all"])
            + &self.pod_says("ip", &["-6", "route", "show", "table", "all"]);
        self.pod_says("nft", &["list", "tables"]).trim().is_empty()
            && !rules.contains("32764")
            && !routes.contains("table 100")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in [&self.pod, &self.node] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    thread::scope(|scope| {
        let there = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    // Looking at a table of routes that was never used is an error to `ip`.
    assert!(output.status.success() || err.contains("FIB table"), "{program} {arguments:?}: {err}");
    String::from_utf8(output.stdout).unwrap()
}

/// Everyone's address of a family, with a port.
pub fn any(family: IpAddr, port: u16) -> SocketAddr {
    match family {
        IpAddr::V4(_) => ([0; 4], port).into(),
        IpAddr::V6(_) => ([0_u16; 8], port).into(),
    }
}

/// A listener that waits for nobody longer than [`SOON`].
pub fn listen(at: SocketAddr) -> Listening {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    if at.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.bind(&at.into()).unwrap();
    socket.listen(16).unwrap();
    let listener: TcpListener = socket.into();
    listener.set_nonblocking(true).unwrap();
    Listening(listener)
}

pub struct Listening(TcpListener);

impl Listening {
    pub fn accept(&self) -> TcpStream {
        let end = Instant::now() + SOON;
        loop {
            match self.0.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    limit(&stream);
                    return stream;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < end => {
                    thread::park_timeout(Duration::from_millis(2));
                }
                Err(error) => panic!("nobody came: {error}"),
            }
        }
    }

    pub fn nobody_came(&self) -> bool {
        self.0.accept().is_err()
    }
}

fn limit(stream: &TcpStream) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
}

pub fn dial(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, SOON).unwrap_or_else(|error| panic!("{to}: {error}"));
    limit(&stream);
    stream
}

/// Dials as the tunnel does: with its mark, and from another's address if one is given.
pub fn dial_marked(to: SocketAddr, from: Option<IpAddr>) -> TcpStream {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_mark(0x539).unwrap();
    if let Some(from) = from {
        // The option of IPv4 sets the one flag that both families look at.
        socket.set_ip_transparent_v4(true).unwrap();
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0))).unwrap();
    }
    socket.connect_timeout(&to.into(), SOON).unwrap_or_else(|error| panic!("{to}: {error}"));
    let stream = socket.into();
    limit(&stream);
    stream
}

/// Where a redirected connection was going.
pub fn original(stream: &TcpStream) -> SocketAddr {
    let socket = socket2::SockRef::from(stream);
    let address = match stream.local_addr().unwrap() {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    address.unwrap().as_socket().unwrap()
}

/// Bytes go over and come back.
pub fn exchange(a: &mut TcpStream, b: &mut TcpStream) {
    for word in [b"ping", b"pong"] {
        let mut heard = [0; 4];
        a.write_all(word).unwrap();
        b.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, word);
        b.write_all(word).unwrap();
        a.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, word);
    }
}

pub fn udp(at: SocketAddr, mark: Option<u32>) -> UdpSocket {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP)).unwrap();
    if at.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    if let Some(mark) = mark {
        socket.set_mark(mark).unwrap();
    }
    socket.bind(&at.into()).unwrap();
    let socket: UdpSocket = socket.into();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// A question arrives and its answer comes back from where the question went.
pub fn ask(client: &UdpSocket, to: SocketAddr, server: &UdpSocket) {
    client.send_to(b"question", to).unwrap();
    let mut heard = [0; 16];
    let (len, from) = server.recv_from(&mut heard).unwrap();
    assert_eq!(&heard[..len], b"question");
    server.send_to(b"answer", from).unwrap();
    let (len, from) = client.recv_from(&mut heard).unwrap();
    assert_eq!((&heard[..len], from), (&b"answer"[..], to));
}
