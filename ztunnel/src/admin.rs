//! The admin page: what this tunnel knows, does and waits for (protocols 10.3).

use std::{collections::BTreeMap, sync::Arc};

use ambit_model::{name::Uid, snapshot::Snapshot};
use ambit_proxy::dump::sync;
use ambit_runtime::{
    admin::{Method, Pages, Response},
    signal::Exit,
    telemetry::LogControl,
    version,
};
use ambit_wire::xds;
use http::StatusCode;

use crate::{
    config::Config,
    connections::Open,
    dump::{
        self, Around, CertificateState, ConnectionShown, Listening, OpenConnections, PodInfo, PodState,
        Travels, Version,
    },
    metrics::Direction,
    pods::{Pod, follow::Served},
    tunnel::Tunnel,
};

/// What is shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The configuration.
    pub config: Config,
    /// What carries traffic.
    pub tunnel: Arc<Tunnel>,
    /// Who is served.
    pub served: Arc<Served>,
    /// The control plane, unless there is none.
    pub subscription: Option<xds::Handle>,
}

/// The pages.
pub fn pages(shown: Shown, logs: LogControl, exit: Exit) -> Pages {
    let subscription = shown.subscription.clone();
    let dump = move |_| match dump::dump(&shown.tunnel.mesh.current(), &around(&shown)) {
        Ok(json) => Response::json(json),
        Err(error) => Response::text(format!("cannot be shown: {error}\n"))
            .with_status(StatusCode::INTERNAL_SERVER_ERROR),
    };
    let synced = move |_| Response::json(sync::state(subscription.as_ref()).to_string());
    let quit = move |_| {
        exit.ask();
        Response::text("shutdown now\n")
    };
    let pages = logs
        .pages(Pages::new("ztunnel"))
        .page(Method::GET, "/config_dump", "everything that this tunnel knows, as JSON", dump)
        .page(Method::GET, "/debug/sync", "the state of the connection to the control plane", synced)
        .page(Method::POST, "/quitquitquit", "drain and exit", quit);
    PROFILES.iter().fold(pages, |pages, path| {
        pages.page(Method::GET, path, "not built in; says how to get a profile", |_| no_profiler())
    })
}

/// Where the reference has profiles (protocols 10.3).
const PROFILES: [&str; 3] = ["/debug/pprof/profile", "/debug/pprof/heap", "/debug/pprof/heap/profiling"];

/// Profilers outside see the kernel's part too, which is most of what a tunnel costs, and need no room on every node.
fn no_profiler() -> Response {
    let process = std::process::id();
    Response::text(format!(
        "This tunnel has no profiler inside. On its node:\n  perf record -g -p {process} -- sleep 10   # CPU\n  \
         heaptrack -p {process}                     # memory\n"
    ))
    .with_status(StatusCode::NOT_IMPLEMENTED)
}

fn around(shown: &Shown) -> Around {
    let mesh = shown.tunnel.mesh.current();
    let served = shown.tunnel.locals.all();
    let up = served.iter().map(|pod| (key_of(pod, &mesh), pod_state(pod)));
    let pending = shown.served.pending().into_iter().map(|(uid, info)| {
        let info = PodInfo {
            name: info.name.into(),
            namespace: info.namespace.into(),
            service_account: info.service_account.into(),
        };
        let connections = OpenConnections::default();
        (Uid::from(uid), PodState { state: Listening::Pending, connections, info })
    });
    Around {
        config: dump::settings(&shown.config),
        static_config: dump::no_static_config(),
        version: Version {
            version: version::VERSION.to_owned(),
            git_revision: version::REVISION.map(str::to_owned),
            istio_version: shown.config.istio_version.clone(),
        },
        certificates: shown.tunnel.certificates.snapshot().into_iter().map(CertificateState::from).collect(),
        pods: pending.chain(up).collect::<BTreeMap<_, _>>(),
    }
}

/// The key of the pod's workload, or the node agent's while that is not known.
fn key_of(pod: &Pod, mesh: &Snapshot) -> Uid {
    pod.workload_in(mesh).map_or_else(|| Uid::from(pod.uid.as_str()), |workload| workload.uid.clone())
}

fn pod_state(pod: &Arc<Pod>) -> PodState {
    let list =
        |direction| pod.connections.list(direction).iter().map(|open| connection(direction, open)).collect();
    PodState {
        state: Listening::Up,
        connections: OpenConnections {
            inbound: list(Direction::Inbound),
            outbound: list(Direction::Outbound),
        },
        info: PodInfo {
            name: pod.name.name.clone(),
            namespace: pod.name.namespace.clone(),
            service_account: pod.name.service_account.clone(),
        },
    }
}

fn connection(direction: Direction, open: &Open) -> ConnectionShown {
    let (actual, protocol) = match (direction, open.onward.get()) {
        (Direction::Outbound, Some((to, travels))) => (*to, *travels),
        (Direction::Outbound, None) => (open.destination, Travels::Plain),
        (Direction::Inbound, _) if open.peer.is_some() => (open.destination, Travels::Tunnel),
        (Direction::Inbound, _) => (open.destination, Travels::Plain),
    };
    ConnectionShown {
        src: open.source.to_string(),
        original_dst: match direction {
            Direction::Outbound => Some(open.destination.to_string()),
            Direction::Inbound => None,
        },
        actual_dst: actual.to_string(),
        protocol,
    }
}
