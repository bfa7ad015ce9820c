//! The admin page: what this waypoint knows, does and waits for (protocols 10.3).

use std::{collections::BTreeMap, sync::Arc};

use ambit_model::{
    limit::{OnError, RateLimit},
    route::RouteTable,
    service_config::ServiceConfig,
    snapshot::Snapshot,
};
use ambit_proxy::dump::{CertificateState, Version, policy, service, sync, workload};
use ambit_runtime::{
    admin::{Method, Pages, Response},
    signal::Exit,
    telemetry::LogControl,
    version,
};
use ambit_wire::xds;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    accept::handed::Listen,
    config::Config,
    shared::Shared,
    upstream::{
        endpoints::Standing,
        health::{Health, Reason},
    },
};

/// What is shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The configuration.
    pub config: Config,
    /// What serves.
    pub shared: Arc<Shared>,
    /// The control plane, unless there is none.
    pub subscription: Option<xds::Handle>,
}

/// The pages.
pub fn pages(shown: Shown, logs: LogControl, exit: Exit) -> Pages {
    let subscription = shown.subscription.clone();
    let dump = move |_| match serde_json::to_vec_pretty(&dump(&shown)) {
        Ok(json) => Response::json(json),
        Err(error) => Response::text(format!("cannot be shown: {error}\n"))
            .with_status(StatusCode::INTERNAL_SERVER_ERROR),
    };
    let synced = move |_| Response::json(sync::state(subscription.as_ref()).to_string());
    let quit = move |_| {
        exit.ask();
        Response::text("shutdown now\n")
    };
    logs.pages(Pages::new("waypoint"))
        .page(Method::GET, "/config_dump", "everything that this waypoint knows, as JSON", dump)
        .page(Method::GET, "/debug/sync", "the state of the connection to the control plane", synced)
        .page(Method::POST, "/quitquitquit", "drain and exit", quit)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump {
    /// Services of this waypoint: what applies, and how their endpoints do.
    waypoint: Vec<Value>,
    endpoints: Vec<Value>,
    workloads: Value,
    services: Value,
    policies: Value,
    certificates: Vec<CertificateState>,
    config: Value,
    version: Version,
}

fn dump(shown: &Shown) -> Dump {
    let mesh = shown.shared.mesh.current();
    Dump {
        waypoint: configs(&mesh),
        endpoints: endpoints(&shown.shared),
        workloads: json!(workload::all(&mesh)),
        services: json!(service::all(&mesh)),
        policies: json!(policy::all(&mesh)),
        certificates: shown.shared.certificates.snapshot().into_iter().map(CertificateState::from).collect(),
        config: settings(&shown.config),
        version: Version {
            version: version::VERSION.to_owned(),
            git_revision: version::REVISION.map(str::to_owned),
            istio_version: shown.config.istio_version.clone(),
        },
    }
}

/// What the operator decided; no secret is among it.
fn settings(config: &Config) -> Value {
    let limits = config.limits;
    json!({
        "identity": config.identity.to_string(),
        "listen": config.listen.addresses().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "handedOverByZtunnel": matches!(config.listen, Listen::Handed { .. }),
        "network": config.own.network.as_str(),
        "threads": config.threads.get(),
        "drainSeconds": config.drain.as_secs(),
        "traces": config.telemetry.traces.as_ref().map(|(sampler, export)| json!({
            "collector": export.collector.address,
            "callersDecide": sampler.heeds_caller,
            "ratio": sampler.ratio.to_string(),
        })),
        "logs": config.telemetry.logs.as_ref().map(|export| json!({ "collector": export.collector.address })),
        "limits": {
            "handshakes": limits.handshakes,
            "connections": limits.connections,
            "handshakeSeconds": limits.handshake.as_secs(),
            "connectSeconds": limits.connect.as_secs(),
            "requestHeadersSeconds": limits.head.as_secs(),
            "streamIdleSeconds": limits.idle.as_secs(),
            "connectionAgeSeconds": limits.age.as_secs(),
        },
    })
}

/// By service.
fn configs(mesh: &Snapshot) -> Vec<Value> {
    let by_name: BTreeMap<_, _> = mesh.configs().map(|config| (config.key().to_string(), config)).collect();
    by_name.into_iter().map(|(name, config)| shown_config(&name, config)).collect()
}

fn shown_config(name: &str, config: &ServiceConfig) -> Value {
    let tables = config.tables().map(|(port, consumers, table)| {
        json!({ "port": port, "consumers": consumers.as_str(), "routes": shown_table(table) })
    });
    let streams = config.parts().stream.iter().map(|attached| {
        json!({
            "ports": attached.ports,
            "consumers": attached.consumers.as_str(),
            "route": attached.route.origin().key.as_str(),
            "serverNames": attached.route.server_names().collect::<Vec<_>>(),
        })
    });
    json!({
        "service": name,
        "broken": config.broken(),
        "http": tables.collect::<Vec<_>>(),
        "streams": streams.collect::<Vec<_>>(),
        "limits": config.limits().map(|(limit, _)| shown_limit(limit)).collect::<Vec<_>>(),
    })
}

/// One limit, as it is counted.
fn shown_limit(limit: &RateLimit) -> Value {
    let local = limit.local.iter().map(|local| {
        let rate = local.rate();
        json!({
            "requests": rate.requests(),
            "perMilliseconds": u64::try_from(rate.per().as_millis()).unwrap_or(u64::MAX),
            "burst": rate.burst(),
            "by": local.by().iter().map(|one| format!("{one:?}")).collect::<Vec<_>>(),
            "matches": local.matches().iter().map(|one| format!("{one:?}")).collect::<Vec<_>>(),
        })
    });
    let global = limit.global.as_ref().map(|global| {
        json!({
            "to": format!("{:?}", global.to()),
            "domain": global.domain(),
            "timeoutMilliseconds": u64::try_from(global.timeout().as_millis()).unwrap_or(u64::MAX),
            "failOpen": global.on_error() == OnError::Take,
            "descriptors": global.descriptors().len(),
        })
    });
    json!({
        "policy": limit.policy.to_string(),
        "scope": format!("{:?}", limit.scope),
        "local": local.collect::<Vec<_>>(),
        "global": global,
    })
}

/// Every match in the order in which it is tried.
fn shown_table(table: &RouteTable) -> Vec<Value> {
    let entries = table.entries().iter().map(|entry| {
        let backends = entry
            .rule
            .backends
            .iter()
            .map(|backend| json!({ "to": format!("{:?}", backend.to), "weight": backend.weight }));
        json!({
            "route": entry.origin.key.as_str(),
            "rule": entry.rule.name.as_ref().map(|name| name.as_str()),
            "match": format!("{:?}", entry.matched),
            "filters": entry.rule.filters.as_slice().len(),
            "backends": backends.collect::<Vec<_>>(),
        })
    });
    entries.collect()
}

fn endpoints(shared: &Shared) -> Vec<Value> {
    let now = shared.settings.started.elapsed();
    let mut all = shared.endpoints.all();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let shown = all.into_iter().map(|((uid, port, governed), doing)| {
        let (active, average) = doing.load();
        let (state, why, left) = match (doing.standing(now), doing.health()) {
            (Standing::Aside(why, left), _) => ("set aside", Some(why.word()), Some(left)),
            (Standing::Resting(left), _) => ("resting", None, Some(left)),
            (Standing::Ready, Health::Aside { why: Reason::Failures, .. }) => ("on trial", None, None),
            (Standing::Ready, Health::Aside { .. } | Health::Trusted { .. }) => ("trusted", None, None),
        };
        let left = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        json!({
            "workload": uid.as_str(),
            "port": port,
            "governedAs": governed.map(|service| service.to_string()),
            "health": state,
            "reason": why,
            "leftMilliseconds": left,
            "active": active,
            "averageMicroseconds": u64::try_from(average.as_micros()).unwrap_or(u64::MAX),
        })
    });
    shown.collect()
}
