//! What the agent counts.

use ambit_runtime::metrics::Registry;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge},
};

use crate::{
    ledger::{Ledger, STATES},
    roster::Leave,
};

/// The agent's counters. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    joined: Counter,
    left: Family<How, Counter>,
    failed: Family<Step, Counter>,
    repaired: Counter,
    host_repaired: Counter,
    arrivals: Family<Outcome, Counter>,
    reinstalled: Counter,
    events: Family<Outcome, Counter>,
    api_failed: Family<Kind, Counter>,
    unproven: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct How {
    how: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

impl Metrics {
    /// Registers everything; `tunnels` counts the tunnels that are connected.
    pub fn register(
        &self,
        registry: &mut Registry,
        ledger: &Ledger,
        tunnels: impl Fn() -> usize + Send + Sync + 'static,
    ) {
        registry.register("ambit_agent_pods_enrolled", "Enrolments that were completed", self.joined.clone());
        registry.register("ambit_agent_pods_left", "Pods that were taken out", self.left.clone());
        let help = "Steps of enrolments that failed and were tried again";
        registry.register("ambit_agent_enrolment_failures", help, self.failed.clone());
        let help = "Pods whose rules were found changed and put back";
        registry.register("ambit_agent_rules_repaired", help, self.repaired.clone());
        let help = "Times that the node's own rules for kubelet's probes were found changed and put back";
        registry.register("ambit_agent_host_rules_repaired", help, self.host_repaired.clone());
        let help = "Pods that the plugin announced, by what became of them";
        registry.register("ambit_agent_arrivals", help, self.arrivals.clone());
        let help =
            "Times that the plugin was put back into the runtime's configuration after another changed it";
        registry.register("ambit_agent_plugin_reinstalled", help, self.reinstalled.clone());
        let help = "Kubernetes Events about pods that are not enrolled";
        registry.register("ambit_agent_events", help, self.events.clone());
        let help = "Failures of watching the API server";
        registry.register("ambit_agent_api_failures", help, self.api_failed.clone());
        let help = "Pods that a probe from the node did not reach as it should";
        registry.register("ambit_agent_probes_blocked", help, self.unproven.clone());
        registry.collect(Now { ledger: ledger.clone(), tunnels: Box::new(tunnels) });
    }

    /// A pod was enrolled.
    pub fn joined(&self) {
        self.joined.inc();
    }

    /// A pod was taken out.
    pub fn left(&self, how: Leave) {
        let how = match how {
            Leave::LivesOn => "lives_on",
            Leave::Gone => "gone",
        };
        self.left.get_or_create(&How { how }).inc();
    }

    /// A step failed.
    pub fn failed(&self, step: &'static str) {
        self.failed.get_or_create(&Step { step }).inc();
    }

    /// A pod that the plugin announced was captured, left outside, refused, or could not be judged.
    pub fn arrival(&self, outcome: &'static str) {
        self.arrivals.get_or_create(&Outcome { outcome }).inc();
    }

    /// The plugin was put back into the runtime's configuration.
    pub fn reinstalled(&self) {
        self.reinstalled.inc();
    }

    /// An Event was written, dropped, or failed.
    pub fn event(&self, outcome: &'static str) {
        self.events.get_or_create(&Outcome { outcome }).inc();
    }

    /// Watching a kind failed.
    pub fn api_failed(&self, kind: &'static str) {
        self.api_failed.get_or_create(&Kind { kind }).inc();
    }

    /// A probe did not reach a pod.
    pub fn unproven(&self) {
        self.unproven.inc();
    }

    /// The node's own rules were put back.
    pub fn host_repaired(&self) {
        self.host_repaired.inc();
    }

    /// Rules were put back.
    pub fn repaired(&self) {
        self.repaired.inc();
    }
}

/// What is counted when it is asked for.
struct Now {
    ledger: Ledger,
    tunnels: Box<dyn Fn() -> usize + Send + Sync>,
}

impl std::fmt::Debug for Now {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Now")
    }
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let tunnels = gauge((self.tunnels)());
        let metric = encoder.encode_descriptor(
            "ambit_agent_tunnels_connected",
            "Tunnels that are connected",
            None,
            tunnels.metric_type(),
        )?;
        tunnels.encode(metric)?;
        let mut family = encoder.encode_descriptor(
            "ambit_agent_pods",
            "Pods of this node by state",
            None,
            tunnels.metric_type(),
        )?;
        for state in STATES {
            let count = gauge(self.ledger.count(state));
            count.encode(family.encode_family(&[("state", state.word())])?)?;
        }
        Ok(())
    }
}

fn gauge(count: usize) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX))
}
