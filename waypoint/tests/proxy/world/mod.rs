//! The real waypoint as a process, in a network namespace of its own, between doubles that follow the protocols: a
//! control plane, a certificate authority, tunnels of clients, applications.

mod app;
mod authorizer;
mod client;
mod ends;
mod limiter;
mod process;

use std::{future::Future, sync::Arc, time::Duration};

use ambit_fixtures::{
    ca::{Mood, ServedCa, TestCa},
    control_plane::{Settings, TestControlPlane},
    mesh::{PodBuilder, ServiceBuilder, pod, service},
};
use ambit_model::{
    identity::Identity,
    name::ServiceKey,
    route::{Backend, Destination, Filters, Origin, Route, RouteKey, Rule},
    service::AppProtocol,
    service_config::{Attached, Parts, ServiceConfig},
};
use ambit_wire::{codec, xds::server::Caller};
use tempfile::TempDir;
use tokio::time::timeout;

pub use self::{app::*, authorizer::*, client::*, ends::*, limiter::*, process::*};

/// Nothing takes longer on a busy machine, unless it never happens.
pub const SOON: Duration = Duration::from_secs(20);
/// A whole test, world and all.
const A_TEST: Duration = Duration::from_secs(120);
/// Where the waypoint accepts tunnels.
pub const WAYPOINT: &str = "127.0.0.9:15008";
/// The service of most tests, at port 80.
pub const WEB: &str = "10.1.0.1:80";

/// Runs a test in a world of its own. Says so loudly when it cannot.
pub fn world<T: Future<Output = ()>>(test: impl FnOnce(World) -> T + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: this test makes a network namespace, for which it must run as root");
        return;
    }
    let thread = std::thread::Builder::new().name("world".to_owned()).spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.expect("ip").success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::build().await;
            timeout(A_TEST, test(world)).await.expect("the test ends in time");
        });
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// The doubles. The waypoint is started by the test, when everything is as it wants it.
pub struct World {
    pub ca: TestCa,
    pub plane: TestControlPlane,
    served_ca: ServedCa,
    dir: TempDir,
}

/// Who the waypoint is.
pub fn gate() -> Identity {
    Identity::new("cluster.local", "shop", "gate")
}

/// Who the client is.
pub fn client_identity() -> Identity {
    Identity::new("cluster.local", "shop", "client")
}

impl World {
    async fn build() -> Self {
        let dir = tempfile::Builder::new().prefix("amb-way").tempdir().unwrap();
        let ca = TestCa::new();
        let caller = Caller {
            name: "gate".into(),
            namespace: "shop".into(),
            service_account: "gate".into(),
            node: None,
        };
        let settings = Settings {
            tls: Some(ca.clone()),
            caller,
            token: Some("token".to_owned()),
            ..Settings::default()
        };
        let plane = settings.start().await;
        let served_ca = ca.serve().await;
        // It signs for whoever the credentials say it is.
        served_ca.set_mood(Mood::WrongIdentity(gate()));
        std::fs::write(dir.path().join("root.pem"), ca.root_pem()).unwrap();
        let world = Self { ca, plane, served_ca, dir };
        world.publish([gate_pod(), client_pod()], [gate_service()]);
        world
    }

    /// Publishes workloads and services.
    pub fn publish(
        &self,
        pods: impl IntoIterator<Item = PodBuilder>,
        services: impl IntoIterator<Item = ServiceBuilder>,
    ) {
        let services = services.into_iter().map(|service| {
            let service = service.build();
            (service.key().to_string(), codec::encode_service(&service))
        });
        let services: Vec<_> = services.collect();
        let pods = pods.into_iter().map(|pod| {
            let pod = pod.build();
            (pod.uid.to_string(), codec::encode_workload(&pod))
        });
        self.plane.publish(codec::ADDRESS, services.into_iter().chain(pods));
    }

    /// Publishes what applies to a service.
    pub fn configure(&self, service: &str, parts: Parts) {
        let config = ServiceConfig::new(key(service), parts);
        let name = codec::service_config_name("shop", "gate", config.key());
        self.plane.publish(codec::SERVICE_CONFIG, [(name, codec::encode_service_config(&config))]);
    }

    /// A service `shop/web` at [`WEB`], which carries HTTP, with an application behind it; and nothing special applies.
    pub async fn web(&self) -> App {
        let app = App::start("127.0.0.2:8080").await;
        self.publish(
            [pod("shop/web-1").at("127.0.0.2").plain().behind("shop/web", &[(80, 8080)])],
            [http_service("shop/web", "10.1.0.1")],
        );
        self.configure("shop/web", Parts::default());
        app
    }

    /// Publishes routes of `shop/web`, for all clients.
    pub fn route(&self, rules: Vec<Rule>) {
        self.configure("shop/web", parts(rules));
    }

    /// Starts the waypoint and waits until it is ready.
    pub async fn start(&self) -> Waypoint {
        self.start_with(&[]).await
    }

    /// The same, with further environment.
    pub async fn start_with(&self, extra: &[(&str, &str)]) -> Waypoint {
        let waypoint = self.spawn_with(extra);
        waypoint.until_ready().await;
        waypoint
    }

    /// Starts the waypoint, which may well end at once.
    pub fn spawn_with(&self, extra: &[(&str, &str)]) -> Waypoint {
        let root = self.dir.path().join("root.pem").into_os_string().into_string().unwrap();
        let mut env = vec![
            ("XDS_ADDRESS".to_owned(), format!("https://localhost:{}", self.plane.address().port())),
            ("CA_ADDRESS".to_owned(), format!("https://localhost:{}", self.served_ca.address().port())),
            ("XDS_ROOT_CA".to_owned(), root.clone()),
            ("CA_ROOT_CA".to_owned(), root),
            ("AUTH_TOKEN".to_owned(), "token".to_owned()),
            ("POD_NAME".to_owned(), "gate-1".to_owned()),
            ("POD_NAMESPACE".to_owned(), "shop".to_owned()),
            ("SERVICE_ACCOUNT".to_owned(), "gate".to_owned()),
            ("TRUST_DOMAIN".to_owned(), "cluster.local".to_owned()),
            ("INSTANCE_IP".to_owned(), "127.0.0.9".to_owned()),
            ("AMBIT_HBONE_ADDR".to_owned(), WAYPOINT.to_owned()),
            ("WAYPOINT_WORKER_THREADS".to_owned(), "2".to_owned()),
            ("IPV6_ENABLED".to_owned(), "false".to_owned()),
            ("RUST_LOG".to_owned(), "info".to_owned()),
        ];
        env.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Waypoint::start(self.dir.path(), env)
    }

    /// A path of this world's own.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A tunnel of the client to the waypoint.
    pub async fn tunnel(&self) -> Tunnel {
        Tunnel::open(self.ca.certificate(&client_identity()), Arc::from([gate()])).await
    }
}

/// The key of a service.
pub fn key(text: &str) -> ServiceKey {
    ServiceKey::parse(text).unwrap()
}

/// An instance of the waypoint itself.
fn gate_pod() -> PodBuilder {
    pod("shop/gate-1").at("127.0.0.9").account("gate").behind("shop/gate", &[(15008, 15008)])
}

fn gate_service() -> ServiceBuilder {
    service("shop/gate").vip("10.1.0.9").ports(&[(15008, 15008)])
}

fn client_pod() -> PodBuilder {
    pod("shop/client").at("127.0.0.1").account("client")
}

/// A service whose port 80 carries HTTP/1.1 to port 8080.
pub fn http_service(name: &str, vip: &str) -> ServiceBuilder {
    service(name).vip(vip).ports(&[(80, 8080)]).waypoint("shop/gate").with(|service| {
        service.app_protocols = [(80, AppProtocol::Http11)].into();
    })
}

/// These rules, for all clients of port 80.
pub fn parts(rules: Vec<Rule>) -> Parts {
    let origin = Origin { created: 1, key: RouteKey::new("shop", "route") };
    let route = Route::new(origin, rules).unwrap();
    Parts { http: vec![Attached { ports: [80].into(), consumers: "".into(), route }], ..Parts::default() }
}

/// To port 80 of a service.
pub fn to(service: &str, weight: u32) -> Backend {
    let to = Destination::Service { service: key(service), port: 80, subset: None };
    Backend { to, weight, filters: Filters::default() }
}

/// Waits until `found` finds something.
pub async fn until<T>(what: &str, found: impl AsyncFn() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, looking).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}
