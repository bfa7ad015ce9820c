//! The place where tunnels are compared: two nodes, three pods for each mesh, their tunnels, the applications.
//!
//! Nothing is shared between the meshes but the machine, so what is not measured lies idle.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use ambit_lab::{Pod, Process};
use anyhow::Context as _;

use crate::{
    envoy,
    ground::{Ground, OURS, READY},
    load::Outcome,
    plane,
    rounds::Mesh,
    run::Settings,
    serve,
    world::World,
};

/// Where the control plane with thousands of workloads listens.
const LARGE_PORT: u16 = 15112;
/// What is configured besides the pods that are there.
const LARGE: (u32, u32) = (10_000, 1_000);

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

impl Size {
    /// Where the control plane listens that tells so much.
    fn port(self) -> u16 {
        match self {
            Self::Small => plane::PORT,
            Self::Large => LARGE_PORT,
        }
    }
}

/// Everything. Fields are dropped in order: processes before their network.
#[derive(Debug)]
pub struct Stage {
    ztunnels: Vec<Process>,
    envoys: Vec<Process>,
    servers: Vec<(Mesh, Place, Process)>,
    with_envoy: bool,
    ground: Ground,
}

impl Stage {
    /// Builds it all and waits until every tunnel is ready.
    pub fn build(settings: &Settings) -> anyhow::Result<Self> {
        let mut stage = Self {
            ztunnels: Vec::new(),
            envoys: Vec::new(),
            servers: Vec::new(),
            with_envoy: settings.envoy.is_some(),
            ground: Ground::build("bench", settings)?,
        };
        for mesh in [Mesh::Direct, Mesh::Ambit, Mesh::Envoy] {
            for (name, node) in [("client", "node-a"), ("near", "node-a"), ("far", "node-b")] {
                stage.ground.add_pod(mesh.word(), name, node)?;
            }
        }
        stage.ground.capture()?;
        stage.serve_plane()?;
        stage.serve_pods()?;
        stage.start(Mesh::Ambit)?;
        if let Some(envoy) = &settings.envoy {
            stage.ground.bring_envoy(envoy)?;
            stage.write_envoys()?;
            stage.start(Mesh::Envoy)?;
        }
        Ok(stage)
    }

    /// Whether someone asked to end.
    pub fn is_interrupted(&self) -> bool {
        self.ground.is_interrupted()
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

    /// The same of both meshes, between two nodes.
    pub fn all_tunnels(&self) -> [Vec<i32>; 2] {
        [Mesh::Ambit, Mesh::Envoy].map(|mesh| self.tunnels(mesh, Place::TwoNodes))
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
        let port = if kind == "bulk" { serve::SINK } else { serve::HTTP };
        self.ground.load(&self.pod(mesh, "client")?, kind, self.entrance(mesh, place, port)?, args, limit)
    }

    /// Opens connections that stay until the answer is dropped.
    pub fn hold(&self, mesh: Mesh, connections: usize, bytes: usize) -> anyhow::Result<Process> {
        let to = self.entrance(mesh, Place::TwoNodes, serve::HTTP)?;
        let args = ["--bytes".to_owned(), bytes.to_string()];
        self.ground.hold(&self.pod(mesh, "client")?, to, connections, &args)
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
        let node = self.ground.lab().nodes().first().context("no node")?.clone();
        let before = Instant::now();
        let process = self.ground.start_ztunnel(0, size.port())?;
        self.ground.wait_ready(OURS, node.netns(), &process)?;
        let time = before.elapsed();
        let seen = look(process.pid())?;
        drop(process);
        Ok((time, seen))
    }

    /// Where the client calls to reach a port of the server at `place`.
    fn entrance(&self, mesh: Mesh, place: Place, port: u16) -> anyhow::Result<SocketAddr> {
        Ok(match mesh {
            Mesh::Direct | Mesh::Ambit => SocketAddr::new(self.ground.ip(mesh.word(), place.server())?, port),
            Mesh::Envoy => SocketAddr::from((Ipv4Addr::LOCALHOST, place.envoy_port(port))),
        })
    }

    fn pod(&self, mesh: Mesh, name: &str) -> anyhow::Result<Pod> {
        self.ground.pod(mesh.word(), name)
    }

    fn serve_plane(&self) -> anyhow::Result<()> {
        let reals = self.ground.reals();
        let (workloads, services) = LARGE;
        self.ground.serve_plane(plane::PORT, &World::default().with(&reals), &[])?;
        self.ground.serve_plane(LARGE_PORT, &World::of(workloads, services).with(&reals), &[])
    }

    fn serve_pods(&mut self) -> anyhow::Result<()> {
        for mesh in [Mesh::Direct, Mesh::Ambit, Mesh::Envoy] {
            for place in Place::ALL {
                let program = self.ground.own_program().arg("serve");
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
            Mesh::Ambit => self.ztunnels = self.ground.start_ztunnels(Size::Small.port())?,
            Mesh::Envoy => {
                for name in ["client", "near", "far"] {
                    let process = self.ground.start_envoy(&self.pod(mesh, name)?)?;
                    self.envoys.push(process);
                }
            }
        }
        Ok(())
    }

    fn write_envoys(&self) -> anyhow::Result<()> {
        let namespace = Mesh::Envoy.word();
        let ports = [serve::HTTP, serve::SINK];
        let mut targets = Vec::new();
        for place in Place::ALL {
            let ip = self.ground.ip(namespace, place.server())?;
            let applications = ports.map(|port| SocketAddr::new(ip, port));
            let files = self.ground.envoy_files(namespace, place.server())?;
            self.ground.write_envoy(place.server(), &envoy::server(&applications, &files))?;
            targets.extend(applications.map(|application| envoy::Target {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, place.envoy_port(application.port()))),
                application,
            }));
        }
        let files = self.ground.envoy_files(namespace, "client")?;
        self.ground.write_envoy("client", &envoy::client(&targets, &files))
    }
}
