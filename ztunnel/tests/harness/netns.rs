//! The node and its pods as network namespaces on one bridge, in both IP families.

use std::{
    fs::File,
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
};

use ambit_cni::{
    netns::Netns,
    redirect::{
        apply,
        rules::{Capture, Redirect},
    },
};
use nix::sched::{CloneFlags, setns};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

use super::SOON;

pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const HBONE: u16 = 15008;

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// A namespace by name, removed when this is dropped.
struct Named(String);

impl Named {
    fn make(role: char) -> Self {
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let name = format!("amb{role}{}x{number}", std::process::id());
        ip(&["netns", "add", &name], "");
        Self(name)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

/// The node: a bridge that its pods are on, and the loopback of whatever runs there.
pub struct NodeNet {
    name: Named,
    pods: AtomicU8,
}

impl NodeNet {
    pub fn make() -> Self {
        let name = Named::make('n');
        let bridge = "link set lo up\n\
            link add br0 type bridge\n\
            addr add 10.77.0.1/24 dev br0\n\
            addr add fd77::1/64 dev br0 nodad\n\
            link set br0 up\n\
            route add unreachable 10.96.0.0/16\n\
            route add unreachable 10.200.0.0/16\n";
        ip(&["-n", &name.0, "-batch", "-"], bridge);
        Self { name, pods: AtomicU8::new(10) }
    }

    /// Moves this thread in for good: whatever it opens and starts from now on is on the node.
    pub fn stay(&self) {
        setns(File::open(self.name.path()).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        // What nobody here owns is refused at once, not left to time out.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    }

    /// A new namespace on the bridge.
    pub fn pod(&self) -> PodNet {
        let host = self.pods.fetch_add(1, Ordering::Relaxed);
        let (v4, v6) = (Ipv4Addr::new(10, 77, 0, host), format!("fd77::{host:x}").parse().unwrap());
        self.pod_at(v4, v6)
    }

    /// A new namespace with these addresses, which may have been another's.
    pub fn pod_at(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> PodNet {
        let name = Named::make('p');
        let device = format!("v{}", WORLDS.fetch_add(1, Ordering::Relaxed));
        let node = &self.name.0;
        // Neighbours that know an address go on finding whoever has it next.
        let host = v4.octets()[3];
        let inside = format!(
            "link set lo up\n\
             link add eth0 address 02:77:0:0:0:{host:x} type veth peer name {device} netns {node}\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 10.77.0.1\n\
             route add default via fd77::1\n"
        );
        ip(&["-n", &name.0, "-batch", "-"], &inside);
        ip(&["-n", node, "-batch", "-"], &format!("link set {device} master br0\nlink set {device} up\n"));
        let file = Arc::new(OwnedFd::from(File::open(name.path()).unwrap()));
        PodNet { v4, v6, file, device, node: node.clone(), name: Some(name) }
    }
}

/// A pod's namespace.
pub struct PodNet {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// What stands for it at the tunnel.
    pub file: Arc<OwnedFd>,
    device: String,
    node: String,
    name: Option<Named>,
}

impl PodNet {
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v4.into(), port)
    }

    pub fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v6.into(), port)
    }

    pub fn path(&self) -> PathBuf {
        self.name.as_ref().expect("not removed").path()
    }

    /// Takes its wire away, as when its sandbox ends. The namespace lives as long as someone holds it.
    pub fn unplug(&self) {
        ip(&["-n", &self.node, "link", "del", &self.device], "");
    }

    /// Redirects its traffic to the tunnel, by the rules of the node agent.
    pub async fn redirect(&self) {
        let redirect = Redirect {
            dns: Capture::On,
            inbound: Capture::On,
            virtual_interfaces: Vec::new(),
            probes: Default::default(),
        };
        let netns = Netns::open(&self.path()).unwrap();
        apply::apply(&netns, redirect, Capture::On).await.unwrap();
    }

    /// Does something in there, on this thread, which comes back.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        setns(&*self.file, CloneFlags::CLONE_NEWNET).unwrap();
        let done = catch_unwind(AssertUnwindSafe(work));
        setns(home, CloneFlags::CLONE_NEWNET).unwrap();
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// A listener on all of its addresses.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.listen_at(SocketAddr::from(([0u16; 8], port)))
    }

    pub fn listen_at(&self, at: SocketAddr) -> TcpListener {
        self.inside(|| {
            let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(at).unwrap();
            socket.listen(1024).unwrap()
        })
    }

    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.inside(|| if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })?;
        match timeout(SOON, socket.connect(to)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    pub fn udp(&self) -> UdpSocket {
        self.inside(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            UdpSocket::from_std(socket).unwrap()
        })
    }
}

/// Runs `ip`, which must succeed.
fn ip(arguments: &[&str], input: &str) {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`ip` is installed (iproute2)");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?} <<< {input}: {said}");
}
