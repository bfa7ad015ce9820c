//! Everything that the tunnel counts (protocols 10.1), and our own figures, named `ambit_…`.
//!
//! Names and labels are a contract with dashboards and alerts: a change here breaks somebody's.

mod dns;
mod held;
mod policies;

use std::sync::Arc;

use ambit_model::{authz::Action, name::PolicyKey, workload::Workload};
use ambit_proxy::metrics::XdsShown;
use ambit_runtime::metrics::Registry;
use ambit_wire::xds::ClientMetrics;
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

pub use self::dns::{Dns, DnsLabels, DnsSeries, Protocol};
use self::policies::DryRuns;
use crate::refusal::Refusal;
pub use ambit_proxy::metrics::{AllTraffic, AppIs, Ends, Labels, Peer, Traffic};
pub use held::Held;

/// Everything that the tunnel counts.
#[derive(Debug)]
pub struct Metrics {
    /// Connections and bytes.
    pub traffic: Arc<AllTraffic>,
    /// The DNS proxy.
    pub dns: Arc<Dns>,
    /// The pods that are served.
    pub pods: Pods,
    /// The pool of tunnels.
    pub pool: Pool,
    /// Connections that were delivered to a pod of the same node without a tunnel.
    pub same_node: Counter,
    /// Connections for which another endpoint was tried because the first could not be reached.
    pub retries: Counter,
    sockets: Family<[(&'static str, &'static str); 1], Gauge>,
    crl_rejections: Family<[(&'static str, &'static str); 1], Counter>,
    crl_untracked: Family<[(&'static str, &'static str); 1], Counter>,
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    overload: Family<[(&'static str, &'static str); 1], Counter>,
    dry_runs: Arc<DryRuns>,
    on_demand_dns: Arc<dns::OnDemand>,
}

/// What the outside is told about this build.
#[derive(Clone, Debug)]
pub struct Build {
    /// `ISTIO_META_ISTIO_VERSION`, or our own version.
    pub tag: String,
}

/// Which end of a connection the local pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It comes to the pod.
    Inbound,
    /// The pod opened it.
    Outbound,
}

impl Direction {
    /// The label `reporter`.
    pub fn reporter(self) -> &'static str {
        match self {
            Self::Inbound => "destination",
            Self::Outbound => "source",
        }
    }

    /// The word in the access log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Pods that are served or are about to be.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    /// Those that are served.
    pub active: Gauge,
    /// Those that could not be started yet.
    pub pending: Gauge,
    /// Starts so far.
    pub started: Counter,
    /// Ends so far.
    pub stopped: Counter,
}

/// The pool of tunnels to other nodes, all pods together.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Tunnels dialled so far.
    pub dials: Counter,
    /// Those of them that failed.
    pub dial_failures: Counter,
}

impl Metrics {
    /// All figures at zero, shown by `registry`. The client of the control plane keeps its own.
    pub fn register(registry: &mut Registry, build: &Build, xds: Arc<ClientMetrics>) -> Arc<Self> {
        let metrics = Self::new();
        metrics.show(registry);
        let info = Family::<[(&'static str, String); 2], Gauge>::default();
        info.get_or_create(&[("component", "ztunnel".to_owned()), ("tag", build.tag.clone())]).set(1);
        registry.register("istio_build", "The build of this component", info);
        registry.collect(XdsShown(xds));
        Arc::new(metrics)
    }

    /// All figures at zero, shown nowhere.
    pub fn new() -> Self {
        Self {
            traffic: Arc::new(AllTraffic::told_by(&REPORTERS)),
            dns: Arc::default(),
            pods: Pods::default(),
            pool: Pool::default(),
            same_node: Counter::default(),
            retries: Counter::default(),
            sockets: Family::default(),
            crl_rejections: Family::default(),
            crl_untracked: Family::default(),
            refused: Family::default(),
            overload: Family::default(),
            dry_runs: Arc::default(),
            on_demand_dns: Arc::default(),
        }
    }

    fn show(&self, registry: &mut Registry) {
        registry.collect(self.traffic.clone());
        registry.collect(self.dns.clone());
        registry.collect(self.dry_runs.clone());
        registry.collect(self.on_demand_dns.clone());
        let mut show = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        show("workload_manager_proxies_started", "Pods whose proxy was started", &self.pods.started);
        show("workload_manager_proxies_stopped", "Pods whose proxy was stopped", &self.pods.stopped);
        show("ambit_pool_dials", "Tunnels dialled", &self.pool.dials);
        show("ambit_pool_dial_failures", "Tunnels that could not be made", &self.pool.dial_failures);
        show("ambit_same_node_connections", "Connections delivered within the node", &self.same_node);
        show("ambit_endpoint_retries", "Connections tried on another endpoint", &self.retries);
        let mut show = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        show("workload_manager_active_proxy_count", "Pods that are served", &self.pods.active);
        show("workload_manager_pending_proxy_count", "Pods that wait to be served", &self.pods.pending);
        registry.register("istio_tcp_sockets_open", "Sockets of connections", self.sockets.clone());
        let help = "Connections refused because a certificate is revoked";
        registry.register("istio_crl_policy_rejections", help, self.crl_rejections.clone());
        let help = "Connections that could not be watched for revocation";
        registry.register("istio_crl_untracked_connections", help, self.crl_untracked.clone());
        let help = "Connections that were refused or failed, by reason";
        registry.register("ambit_connections_refused", help, self.refused.clone());
        let help = "Requests turned away because a limit was reached";
        registry.register("ambit_overload_rejections", help, self.overload.clone());
    }

    /// Counts a socket as open until what is returned is dropped.
    pub fn socket(&self, direction: Direction) -> OpenSocket {
        let gauge = self.sockets.get_or_create(&reporter(direction)).clone();
        gauge.inc();
        OpenSocket(gauge)
    }

    /// A certificate on the revocation list was refused.
    pub fn revoked(&self, direction: Direction) {
        self.crl_rejections.get_or_create(&reporter(direction)).inc();
    }

    /// A connection is not watched for revocation.
    pub fn untracked(&self, direction: Direction) {
        self.crl_untracked.get_or_create(&reporter(direction)).inc();
    }

    /// A connection was refused or failed.
    pub fn refused(&self, refusal: &Refusal) {
        self.refused.get_or_create(&[("reason", refusal.word())]).inc();
        if let Refusal::Overload { what, .. } = refusal {
            self.overload.get_or_create(&[("limit", what)]).inc();
        }
    }

    /// A dry-run policy matched a connection, and would have done `action`.
    pub fn dry_run(&self, policy: &PolicyKey, action: Action) {
        self.dry_runs.matched(policy, action);
    }

    /// The host name of `destination` was resolved for a connection of `source`.
    pub fn resolved_on_demand(&self, source: Option<&Arc<Workload>>, destination: &Workload) {
        self.on_demand_dns.resolved(source, &destination.hostname);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Who tells.
const REPORTERS: [&str; 2] = ["source", "destination"];

fn reporter(direction: Direction) -> [(&'static str, &'static str); 1] {
    [("reporter", direction.reporter())]
}

/// A socket that is counted as open.
#[derive(Debug)]
pub struct OpenSocket(Gauge);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ambit_runtime::metrics::Format;

    use super::*;

    #[test]
    fn every_name_of_the_protocol_is_shown_with_its_labels() {
        let mut registry = Registry::new();
        let xds = Arc::default();
        let metrics = Metrics::register(&mut registry, &Build { tag: "1.30".to_owned() }, xds);
        let open = metrics.socket(Direction::Inbound);
        drop(metrics.socket(Direction::Outbound));
        metrics.revoked(Direction::Inbound);
        metrics.untracked(Direction::Outbound);
        metrics.refused(&Refusal::Overload { what: "handshakes", limit: 1 });
        metrics.pods.active.set(4);
        metrics.pods.started.inc();
        let client = Arc::new(Workload {
            canonical_name: "web".into(),
            canonical_revision: "v1".into(),
            ..Workload::default()
        });
        metrics.dns.request("A", Protocol::Udp, Some(&client)).forwarded(Duration::from_millis(5), false);
        metrics.resolved_on_demand(
            Some(&client),
            &Workload { hostname: "x.example".into(), ..Workload::default() },
        );
        let text = registry.share().render(Format::Prometheus);
        let dns = "request_query_type=\"A\",request_protocol=\"udp\",source_canonical_service=\"web\",\
            source_canonical_revision=\"v1\"";
        let bucket = |le: &str, count: u64| {
            format!("istio_dns_upstream_request_duration_seconds_bucket{{le=\"{le}\",{dns}}} {count}")
        };
        for line in [
            "istio_build{component=\"ztunnel\",tag=\"1.30\"} 1",
            "istio_tcp_sockets_open{reporter=\"destination\"} 1",
            "istio_tcp_sockets_open{reporter=\"source\"} 0",
            "istio_crl_policy_rejections_total{reporter=\"destination\"} 1",
            "istio_crl_untracked_connections_total{reporter=\"source\"} 1",
            "istio_xds_connection_terminations_total{reason=\"Reconnect\"} 0",
            "# TYPE istio_xds_message_total counter",
            "# TYPE istio_xds_message_bytes_total counter",
            "workload_manager_active_proxy_count 4",
            "workload_manager_pending_proxy_count 0",
            "workload_manager_proxies_started_total 1",
            "workload_manager_proxies_stopped_total 0",
            "ambit_connections_refused_total{reason=\"overload\"} 1",
            "ambit_overload_rejections_total{limit=\"handshakes\"} 1",
            "ambit_pool_dials_total 0",
            &format!("istio_dns_requests_total{{{dns}}} 1"),
            &format!("istio_dns_upstream_requests_total{{{dns}}} 1"),
            &format!("istio_dns_upstream_failures_total{{{dns}}} 1"),
            &bucket("0.001", 0),
            &bucket("0.01", 1),
            &bucket("5.0", 1),
            "istio_on_demand_dns_total{source_workload=\"unknown\",source_canonical_service=\"web\",\
             source_canonical_revision=\"v1\",source_workload_namespace=\"unknown\",\
             source_principal=\"spiffe://cluster.local/ns//sa/\",source_app=\"web\",source_version=\"v1\",\
             source_cluster=\"unknown\",hostname=\"x.example\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is missing in {text}");
        }
        drop(open);
    }
}
