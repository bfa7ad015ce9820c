//! The place where waypoints are compared: a client on one node, an application on the other, our tunnels for both, and
//! a service for each waypoint in between.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ambit_fixtures::mesh::{pod, service};
use ambit_lab::{Pod, Process, Program};
use ambit_model::{
    authz::{self, Action, Clause, Content, PathMatch, Policy, RequestMatch, Scope},
    name::{PolicyKey, ServiceKey},
    route::{Backend, Destination, Filters, Match, Origin, Path, Route, RouteKey, Rule, Text},
    service::AppProtocol,
    service_config::{Attached, Parts, ServiceConfig},
};
use anyhow::{Context as _, ensure};

use super::envoy;
use crate::{
    ground::{Ground, IN_THE_MESH, OURS, READY},
    plane,
    rounds::Mesh,
    run::Settings,
    serve,
    world::{Configured, World},
};

/// The namespace of the waypoints.
const NAMESPACE: &str = "gates";
/// Where the control plane of our waypoint listens; another for each number of routes.
const PORTS: u16 = 15_200;
/// The ports of a service, and those of the application behind them: HTTP/1.1, HTTP/2.
pub(super) const PORTS_OF_SERVICE: [(u16, u16); 2] = [(80, serve::HTTP), (81, serve::HTTP2)];
/// An HTTPRoute has so many rules.
const RULES: usize = 16;
/// What every route asks for beside its path.
pub(super) const HEADER: (&str, &str) = ("x-bench", "yes");

/// How many routes a service may have.
pub(super) const ROUTES: [usize; 3] = [1, 100, 5_000];

/// What the path of a request for route `number` begins with.
pub(super) fn below(number: usize) -> String {
    format!("/r{number}")
}

/// What a load speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC, unary calls.
    Grpc,
}

/// Everything. Fields are dropped in order: processes before their network.
#[derive(Debug)]
pub(super) struct Stage {
    waypoint: Option<(Mesh, Process)>,
    _tunnels: Vec<Process>,
    server: Process,
    program: std::path::PathBuf,
    ground: Ground,
}

impl Stage {
    /// Builds it all but the waypoints, and waits until every tunnel is ready.
    pub(super) fn build(settings: &Settings) -> anyhow::Result<Self> {
        ensure!(settings.waypoint.exists(), "{} is not there; build it first", settings.waypoint.display());
        let ground = Ground::build("way", settings)?;
        ground.add_pod(IN_THE_MESH, "client", "node-a")?;
        let web = ground.add_pod(IN_THE_MESH, "web", "node-b")?;
        let ours = ground.add_pod(NAMESPACE, Mesh::Ambit.word(), "node-b")?;
        ground.add_pod(NAMESPACE, Mesh::Envoy.word(), "node-b")?;
        ground.capture()?;
        ground.serve_plane(plane::PORT, &world(&ground, None)?, &[])?;
        for (port, routes) in (PORTS..).zip(ROUTES) {
            ground.serve_plane(port, &world(&ground, Some(routes))?, &[&ours])?;
        }
        let server = web.spawn("serve", &ground.own_program().arg("serve"))?;
        server.wait_until_said("serving", READY)?;
        if let Some(envoy) = &settings.envoy {
            ground.bring_envoy(envoy)?;
        }
        let tunnels = ground.start_ztunnels(plane::PORT)?;
        let program = std::path::absolute(&settings.waypoint)?;
        Ok(Self { waypoint: None, _tunnels: tunnels, server, program, ground })
    }

    /// Starts the waypoint of `mesh` in place of the one there, with so many routes.
    pub(super) fn start(&mut self, mesh: Mesh, routes: usize) -> anyhow::Result<()> {
        self.waypoint = None;
        self.waypoint = match mesh {
            Mesh::Direct => None,
            Mesh::Ambit => Some((mesh, self.start_ours(routes)?)),
            Mesh::Envoy => Some((mesh, self.start_envoy(routes)?)),
        };
        Ok(())
    }

    /// The process of the waypoint, if there is one.
    pub(super) fn waypoint(&self) -> Option<i32> {
        self.waypoint.as_ref().map(|(_, process)| process.pid())
    }

    /// The process of the application.
    pub(super) fn server(&self) -> i32 {
        self.server.pid()
    }

    /// Who makes the traffic.
    pub(super) fn client(&self) -> anyhow::Result<Pod> {
        self.ground.pod(IN_THE_MESH, "client")
    }

    /// What it stands on.
    pub(super) fn ground(&self) -> &Ground {
        &self.ground
    }

    fn start_ours(&self, routes: usize) -> anyhow::Result<Process> {
        let pod = self.ground.pod(NAMESPACE, Mesh::Ambit.word())?;
        let found = (PORTS..).zip(ROUTES).find(|(_, of)| *of == routes);
        let (port, _) = found.context("no control plane for so many routes")?;
        let control = format!("https://127.0.0.1:{port}");
        let root = self.ground.plane().root();
        let ip = pod.ips().first().context("a pod without address")?;
        let program = Program::new(&self.program)
            .dir(self.ground.directory())
            .env("POD_NAME", "gate-1")
            .env("POD_NAMESPACE", NAMESPACE)
            .env("SERVICE_ACCOUNT", Mesh::Ambit.word())
            .env("TRUST_DOMAIN", "cluster.local")
            .env("INSTANCE_IP", ip.to_string())
            .env("XDS_ADDRESS", &control)
            .env("XDS_ROOT_CA", root)
            .env("CA_ADDRESS", &control)
            .env("CA_ROOT_CA", root)
            .env("AUTH_TOKEN", format!("{NAMESPACE}/{}", Mesh::Ambit.word()))
            .env("IPV6_ENABLED", "false")
            .env("WAYPOINT_WORKER_THREADS", "2");
        let process = pod.spawn("waypoint", &program)?;
        self.ground.wait_ready(OURS, pod.netns(), &process)?;
        Ok(process)
    }

    fn start_envoy(&self, routes: usize) -> anyhow::Result<Process> {
        let name = Mesh::Envoy.word();
        let pod = self.ground.pod(NAMESPACE, name)?;
        let files = self.ground.envoy_files(NAMESPACE, name)?;
        let application = self.ground.ip(IN_THE_MESH, "web")?;
        self.ground.write_envoy(name, &envoy::waypoint(application, routes, &files))?;
        self.ground.start_envoy(&pod)
    }
}

/// Where the client calls the service that is behind the waypoint of `mesh`.
pub(super) fn entrance(mesh: Mesh, protocol: Protocol) -> SocketAddr {
    let [(http1, _), (http2, _)] = PORTS_OF_SERVICE;
    SocketAddr::new(vip(mesh), if protocol == Protocol::Http1 { http1 } else { http2 })
}

fn vip(mesh: Mesh) -> IpAddr {
    let last = match mesh {
        Mesh::Direct => 1,
        Mesh::Ambit => 2,
        Mesh::Envoy => 3,
    };
    Ipv4Addr::new(10, 224, 0, last).into()
}

/// Three services before one application: behind no waypoint, behind ours, behind Envoy. With routes, as our waypoint is
/// told it; without, as the tunnels are.
fn world(ground: &Ground, routes: Option<usize>) -> anyhow::Result<World> {
    let meshes = [Mesh::Direct, Mesh::Ambit, Mesh::Envoy];
    let host = |mesh: Mesh| format!("{IN_THE_MESH}/{}.{IN_THE_MESH}.svc.cluster.local", mesh.word());
    let mut world = World::default();
    for real in ground.reals() {
        let mut built = pod(&format!("{}/{}", real.namespace, real.name))
            .at(&real.ip.to_string())
            .on(&real.node)
            .account(&real.name);
        if real.name == "web" {
            built = meshes.iter().fold(built, |built, mesh| built.behind(&host(*mesh), &PORTS_OF_SERVICE));
        }
        world.workloads.push(built.build());
    }
    for mesh in meshes {
        let [(http1, _), (http2, _)] = PORTS_OF_SERVICE;
        let protocols = [(http1, AppProtocol::Http11), (http2, AppProtocol::Http2)];
        let built = service(&host(mesh))
            .vip(&vip(mesh).to_string())
            .ports(&PORTS_OF_SERVICE)
            .with(|service| service.app_protocols = protocols.into());
        if mesh == Mesh::Direct {
            world.services.push(built.build());
            continue;
        }
        let ip = ground.ip(NAMESPACE, mesh.word())?.to_string();
        world.services.push(built.waypoint(&ip).build());
        let gate = pod(&format!("{NAMESPACE}/{}", mesh.word())).at(&ip).account(mesh.word());
        world.workloads.push(gate.on("node-b").build());
    }
    if let Some(routes) = routes {
        let key = ServiceKey::parse(&host(Mesh::Ambit)).context("no key of a service")?;
        let each_port = PORTS_OF_SERVICE.map(|(port, _)| http_routes(&key, port, routes));
        let http = each_port.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
        let parts = Parts { http, policies: vec![policy().into()], ..Parts::default() };
        world.configs.push(Configured {
            namespace: NAMESPACE.to_owned(),
            name: Mesh::Ambit.word().to_owned(),
            config: ServiceConfig::new(key, parts),
        });
    }
    Ok(world)
}

/// So many routes, of which each wants a path and a header.
fn http_routes(to: &ServiceKey, port: u16, routes: usize) -> anyhow::Result<Vec<Attached<Route>>> {
    let rule = |number: usize| {
        let path = Path::prefix(&below(number))?;
        let header = Match::path(path).header(HEADER.0.parse()?, Text::exact(HEADER.1));
        let to = Destination::Service { service: to.clone(), port, subset: None };
        let backend = Backend { to, weight: 1, filters: Filters::default() };
        anyhow::Ok(Rule { matches: vec![header], backends: vec![backend], ..Rule::default() })
    };
    let numbers: Vec<_> = (0..routes).collect();
    let route = |(at, numbers): (usize, &[usize])| {
        let rules = numbers.iter().copied().map(rule).collect::<Result<Vec<_>, _>>()?;
        let origin = Origin { created: 1, key: RouteKey::new(IN_THE_MESH, format!("route-{port}-{at}")) };
        let route = Route::new(origin, rules)?;
        anyhow::Ok(Attached { ports: [port].into(), consumers: "".into(), route })
    };
    numbers.chunks(RULES).enumerate().map(route).collect()
}

/// Who calls may get and post, and nothing else.
fn policy() -> Policy {
    let request = RequestMatch {
        methods: ["GET", "POST"].map(|method| authz::Text::Exact(method.into())).into(),
        paths: vec![PathMatch::Text(authz::Text::Prefix("/".into()))],
        ..RequestMatch::default()
    };
    let get = authz::Match { request: Some(Box::new(request)), ..authz::Match::default() };
    let rule = authz::Rule { clauses: vec![Clause { matches: vec![get] }] };
    Policy {
        key: PolicyKey::new(IN_THE_MESH, "get-and-post"),
        scope: Scope::WorkloadSelector,
        content: Content::Rules { action: Action::Allow, rules: vec![rule], dry_run: false },
    }
}
