//! What the authority counts beside the requests at its desk.

use std::{
    fmt::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use tokio::sync::watch;

use super::{
    Desk, Signer,
    distribute::Told,
    in_force::{Fingerprint, InForce, first_end},
    keeping,
    rotation::Stage,
};

/// Everything that is read when metrics are. What a controller without Kubernetes has not, it does not show.
#[derive(Debug)]
pub struct Figures {
    /// What is in force.
    pub in_force: watch::Receiver<Arc<InForce>>,
    /// Who signs.
    pub desk: Desk,
    /// The Secrets.
    pub kept: Option<Arc<keeping::Counts>>,
    /// What namespaces are told.
    pub told: Option<Arc<Told>>,
}

impl Collector for Figures {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.authority(&mut to)?;
        self.secrets(&mut to)?;
        self.distribution(&mut to)?;
        self.cert_manager(&mut to)
    }
}

impl Figures {
    fn authority(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let in_force = Arc::clone(&self.in_force.borrow());
        let ends = first_end(in_force.bundle()).unwrap_or(in_force.expires());
        let ends = ConstGauge::new(ends.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        let help = "When the first of the trusted roots ends, in seconds since 1970";
        ends.encode(to.encode_descriptor(
            "citadel_server_root_cert_expiry_timestamp",
            help,
            None,
            MetricType::Gauge,
        )?)?;
        let roots = Fingerprint::all(in_force.bundle()).map_or(0, |roots| roots.len());
        gauge(to, "ambit_ca_trusted_roots", "Roots that the mesh is told to trust", roots)?;
        let help = "1 for the stage in which the rotation of the root is";
        let mut family = to.encode_descriptor("ambit_ca_rotation_stage", help, None, MetricType::Gauge)?;
        for stage in [Stage::Steady, Stage::Prepared, Stage::Active] {
            let is = u64::from(in_force.rotation.stage() == stage);
            ConstGauge::new(is).encode(family.encode_family(&[("stage", stage.word())])?)?;
        }
        let help = "1 while the Secrets say something that cannot be used";
        gauge(to, "ambit_ca_secret_problem", help, usize::from(in_force.problem.is_some()))?;
        let help = "Certificates that this replica signed and that are not over";
        let mut family =
            to.encode_descriptor("ambit_ca_certificates_in_use", help, None, MetricType::Gauge)?;
        for (root, in_use) in self.desk.issued().in_use(SystemTime::now()) {
            ConstGauge::new(in_use.count).encode(family.encode_family(&[("signer", root.to_string())])?)?;
        }
        Ok(())
    }

    fn secrets(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(counts) = &self.kept else { return Ok(()) };
        let help = "Times that a changed Secret could not be used";
        counter(to, "ambit_ca_secret_rejections", help, &counts.rejected)?;
        let help = "Steps of root rotations that this replica took";
        counter(to, "ambit_ca_rotation_steps", help, &counts.steps)?;
        let help = "Steps of root rotations that this replica refused";
        counter(to, "ambit_ca_rotation_refusals", help, &counts.refusals)?;
        let help = "Writes to the Secret with the root that failed";
        counter(to, "ambit_ca_secret_write_failures", help, &counts.failures)
    }

    fn distribution(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(told) = &self.told else { return Ok(()) };
        let both = [("istio-ca-root-cert", &told.roots), ("istio-ca-crl", &told.lists)];
        let help = "ConfigMaps written to tell namespaces whom to trust";
        let counts = both.map(|(name, counts)| (name, &counts.writes));
        labelled(to, "ambit_ca_distribution_writes", help, "config_map", &counts)?;
        let help = "ConfigMaps that could not be written";
        let counts = both.map(|(name, counts)| (name, &counts.failures));
        labelled(to, "ambit_ca_distribution_failures", help, "config_map", &counts)?;
        let waiting = told.roots.waiting.load(Relaxed).saturating_add(told.lists.waiting.load(Relaxed));
        let help = "Namespaces that wait to be told whom to trust";
        gauge(to, "ambit_ca_distribution_waiting", help, usize::try_from(waiting).unwrap_or(usize::MAX))
    }

    fn cert_manager(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let Signer::CertManager(cert_manager) = self.desk.signer() else { return Ok(()) };
        let counts = cert_manager.counts();
        let counts = [
            ("signed", &counts.signed),
            ("refused", &counts.refused),
            ("unanswered", &counts.unanswered),
            ("unusable", &counts.unusable),
        ];
        let help = "Certificates that cert-manager was asked for, by what became of them";
        labelled(to, "ambit_ca_cert_manager_requests", help, "outcome", &counts)
    }
}

fn counter(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, count: &AtomicU64) -> Result<(), Error> {
    let count = ConstCounter::new(count.load(Relaxed));
    count.encode(to.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, count: usize) -> Result<(), Error> {
    let count = ConstGauge::new(u64::try_from(count).unwrap_or(u64::MAX));
    count.encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn labelled(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    counts: &[(&'static str, &AtomicU64)],
) -> Result<(), Error> {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in counts {
        let count = ConstCounter::new(count.load(Relaxed));
        count.encode(family.encode_family(&[(label, *value)])?)?;
    }
    Ok(())
}
