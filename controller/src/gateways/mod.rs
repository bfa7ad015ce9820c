//! Makes and keeps the waypoints that Gateways ask for, and says on each Gateway how it is (protocols 11.3).
//!
//! Level-triggered: each round compares what ought to be ([`manifest`], [`status`]) with what was last written, and
//! writes the difference; from time to time everything is written again, whatever became of it meanwhile. Whether it is
//! written to an API server or into a directory is the affair of the [`Hand`] alone.

pub mod hand;
pub mod manifest;
pub mod overlay;
pub mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ambit_api::gateway::{WAYPOINT_CLASSES, WAYPOINT_CONTROLLER};
use ambit_model::name::Label;
use ambit_runtime::backoff::Backoff;
use k8s_openapi::jiff::Timestamp;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{info, warn};

pub use self::hand::{Failure, Hand};
use self::{
    manifest::{Form, Manifest},
    overlay::Overlays,
    status::Outcome,
};
use crate::{
    cluster::{
        Cluster,
        object::{Gateway, Name},
    },
    engine::View,
    metrics::{counter, gauge},
    status::{changed, until},
    translate::waypoint::{is_ours, wishes_of},
};

/// Rounds begin at least this far apart: what changes twice in between is written once.
const ROUND: Duration = Duration::from_millis(500);
/// Others may change what was made, so all of it is written again this often. Five objects of a hundred gateways are two
/// writes a second on average.
const WRITE_AGAIN: Duration = Duration::from_secs(300);
/// Nobody tells of changed parameters, so they are read this often.
const READ_AGAIN: Duration = Duration::from_secs(10);
/// The waits after a failure of one gateway, which may be for ever: an overlay that the API server refuses.
const REST: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// The waits after a failure of the API server, which comes back.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the loop reads.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The objects.
    pub view: View,
    /// Whether all of them are known: before, nothing is made and nothing taken away.
    pub synced: watch::Receiver<bool>,
    /// Changes whenever the objects may have.
    pub changed: watch::Receiver<u64>,
    /// Whether this controller leads.
    pub leader: watch::Receiver<bool>,
}

/// Keeps waypoints while this controller leads, until `stop` completes.
pub async fn run(
    hand: Hand,
    form: Form,
    mut inputs: Inputs,
    counts: Counts,
    stop: impl Future<Output = ()> + Send,
) {
    let work = async {
        loop {
            until(&mut inputs.synced, true).await;
            until(&mut inputs.leader, true).await;
            let mut leader = inputs.leader.clone();
            let mut keeper = Keeper::new(hand.clone(), form.clone(), inputs.clone(), counts.clone());
            tokio::select! {
                () = until(&mut leader, false) => {}
                never = keeper.run() => match never {},
            }
            counts.stand(0, 0);
        }
    };
    tokio::select! {
        () = stop => {}
        () = work => {}
    }
}

struct Keeper {
    hand: Hand,
    form: Form,
    inputs: Inputs,
    counts: Counts,
    kept: BTreeMap<Name, Kept>,
    classes: Rest,
    /// Classes that were told that they are accepted: their uid and generation.
    told: BTreeMap<Name, (Label, Option<i64>)>,
    pause: Backoff,
}

/// What is known of a gateway that is kept.
struct Kept {
    uid: Label,
    parameters: Parameters,
    /// What was last made, how it looked then, and when.
    made: Option<(Vec<Manifest>, Seen, Instant)>,
    outcome: Outcome,
    /// The status that it has; not known before it was looked at.
    told: Option<Value>,
    rest: Rest,
}

/// Until when something that failed is left alone, longer each time.
struct Rest {
    until: Option<Instant>,
    backoff: Backoff,
}

impl Rest {
    fn new() -> Self {
        Self { until: None, backoff: Backoff::new(REST.0, REST.1) }
    }

    fn is_due(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }

    fn failed(&mut self) -> Duration {
        let rest = self.backoff.next(rand::random());
        self.until = Some(Instant::now() + rest);
        rest
    }

    fn done(&mut self) {
        self.until = None;
        self.backoff.reset();
    }
}

/// What there is of what was made, as far as it is heard of: what vanishes is made again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    service: bool,
    instances: usize,
}

/// What the user lays over what is made.
#[derive(Default)]
struct Parameters {
    /// What it last said; nothing if it never was understood.
    overlays: Option<Overlays>,
    mistake: Option<String>,
    /// From which ConfigMap, and when.
    read: Option<(String, Instant)>,
}

impl Kept {
    fn new(uid: Label) -> Self {
        Self {
            uid,
            parameters: Parameters::default(),
            made: None,
            outcome: Outcome::default(),
            told: None,
            rest: Rest::new(),
        }
    }
}

impl Keeper {
    fn new(hand: Hand, form: Form, inputs: Inputs, counts: Counts) -> Self {
        let pause = Backoff::new(PAUSE.0, PAUSE.1);
        let (kept, told) = (BTreeMap::new(), BTreeMap::new());
        Self { hand, form, inputs, counts, kept, classes: Rest::new(), told, pause }
    }

    async fn run(&mut self) -> Infallible {
        loop {
            let began = Instant::now();
            self.inputs.changed.mark_unchanged();
            let due = match self.round().await {
                Ok(due) => {
                    self.pause.reset();
                    due
                }
                Err(error) => {
                    self.counts.failed();
                    let pause = self.pause.next(rand::random());
                    warn!(%error, retry.after = ?pause, "Gateways wait");
                    sleep(pause).await;
                    continue;
                }
            };
            sleep_until(began + ROUND).await;
            tokio::select! {
                () = changed(&mut self.inputs.changed) => {}
                () = sleep_until(due) => {}
            }
        }
    }

    /// Writes what is missing. Returns when to look again at the latest; fails if nothing can be written at all now.
    async fn round(&mut self) -> Result<Instant, Failure> {
        let mut due = Instant::now() + WRITE_AGAIN;
        if self.classes.is_due() {
            match self.keep_classes().await {
                Ok(()) => self.classes.done(),
                Err(error) if error.is_away() => return Err(error),
                // Gateways of the classes that are there are kept all the same.
                Err(error) => {
                    self.counts.failed();
                    let rest = self.classes.failed();
                    warn!(%error, retry.after = ?rest, "Classes of gateways are not as they should be");
                }
            }
        }
        due = self.classes.until.map_or(due, |until| due.min(until));
        let gateways = wanted(&self.inputs.view.read(), self.hand.has_classes());
        self.leave_others(&gateways).await?;
        let now = Instant::now();
        let mut programmed = 0;
        for gateway in &gateways {
            let name = &gateway.meta.name;
            let mut kept = match self.kept.remove(name) {
                Some(kept) if kept.uid == gateway.meta.uid => kept,
                Some(_) | None => Kept::new(gateway.meta.uid.clone()),
            };
            let outcome = if kept.rest.is_due() { self.keep(gateway, &mut kept).await } else { Ok(()) };
            if gateway.infrastructure.parameters_ref.is_some() {
                due = due.min(now + READ_AGAIN);
            }
            let away = match outcome {
                Ok(()) => None,
                Err(error) if error.is_away() => Some(error),
                Err(error) => {
                    self.counts.failed();
                    let rest = kept.rest.failed();
                    warn!(gateway = %name, %error, retry.after = ?rest, "Gateway is not kept as it should be");
                    None
                }
            };
            due = kept.rest.until.map_or(due, |until| due.min(until));
            programmed += usize::from(kept.told.as_ref().is_some_and(is_programmed));
            self.kept.insert(name.clone(), kept);
            if let Some(error) = away {
                return Err(error);
            }
        }
        self.counts.stand(gateways.len(), programmed);
        Ok(due)
    }

    /// Makes what is missing of one gateway, and tells it how it is.
    async fn keep(&self, gateway: &Gateway, kept: &mut Kept) -> Result<(), Failure> {
        let now = Instant::now();
        let old = kept.made.as_ref().is_none_or(|(_, _, when)| *when + WRITE_AGAIN <= now);
        if old || kept.told.is_none() {
            kept.told = Some(self.hand.status(gateway).await?);
        }
        self.read_parameters(gateway, &mut kept.parameters).await?;
        kept.outcome.parameters.clone_from(&kept.parameters.mistake);
        let mut failure = None;
        if let Some(overlays) = &kept.parameters.overlays {
            let (wanted, seen) = {
                let cluster = self.inputs.view.read();
                let wishes = wishes_of(&cluster, gateway);
                let network = cluster.network();
                let wanted = manifest::desired(gateway, wishes, overlays, network.as_str(), &self.form);
                (wanted, seen(&cluster, gateway))
            };
            let same = kept.made.as_ref().is_some_and(|(made, was, _)| *made == wanted && *was == seen);
            if old || !same {
                match self.hand.make(gateway, &wanted).await {
                    Ok(foreign) => {
                        kept.outcome.foreign = foreign;
                        kept.outcome.failure = None;
                        if !kept.made.as_ref().is_some_and(|(made, _, _)| *made == wanted) {
                            info!(gateway = %gateway.meta.name, objects = wanted.len(), "Waypoint made");
                        }
                        kept.made = Some((wanted, seen, now));
                    }
                    Err(error) => {
                        kept.made = None;
                        kept.outcome.failure = Some(error.to_string());
                        failure = Some(error);
                    }
                }
            }
        }
        let before = kept.told.take().unwrap_or_default();
        let status = status::of(&self.inputs.view.read(), gateway, &kept.outcome, &before, Timestamp::now());
        if status != before {
            self.hand.tell(gateway, &status).await?;
        }
        kept.told = Some(status);
        match failure {
            Some(failure) => Err(failure),
            None => {
                kept.rest.done();
                Ok(())
            }
        }
    }

    async fn read_parameters(&self, gateway: &Gateway, parameters: &mut Parameters) -> Result<(), Failure> {
        let Some(reference) = &gateway.infrastructure.parameters_ref else {
            *parameters = Parameters { overlays: Some(Overlays::default()), ..Parameters::default() };
            return Ok(());
        };
        let now = Instant::now();
        let fresh = |(name, when): &(String, Instant)| *name == reference.name && *when + READ_AGAIN > now;
        if parameters.read.as_ref().is_some_and(fresh) {
            return Ok(());
        }
        let found = if !reference.group.is_empty() || reference.kind != "ConfigMap" {
            Err(format!("{} {:?} holds no parameters; name a ConfigMap", reference.kind, reference.name))
        } else {
            match self.hand.config_map(gateway.meta.name.namespace.as_str(), &reference.name).await? {
                Some(data) => Overlays::read(&data),
                None => Err(format!("there is no ConfigMap {:?} in this namespace", reference.name)),
            }
        };
        parameters.read = Some((reference.name.clone(), now));
        match found {
            Ok(overlays) => (parameters.overlays, parameters.mistake) = (Some(overlays), None),
            Err(mistake) => parameters.mistake = Some(mistake),
        }
        Ok(())
    }

    /// Takes away what was made for gateways that are no longer ours.
    async fn leave_others(&mut self, gateways: &[Arc<Gateway>]) -> Result<(), Failure> {
        let names: BTreeSet<_> = gateways.iter().map(|gateway| &gateway.meta.name).collect();
        let left: Vec<_> = self.kept.keys().filter(|name| !names.contains(name)).cloned().collect();
        for name in left {
            // In Kubernetes what has no owner any more goes by itself.
            if self.inputs.view.read().gateways.get(&name).is_some() {
                self.hand.unmake(&name).await?;
            }
            info!(gateway = %name, "Waypoint is not kept any more");
            self.kept.remove(&name);
        }
        self.hand.sweep(&names).await
    }

    /// Makes the classes that are missing, and accepts those that name us.
    async fn keep_classes(&mut self) -> Result<(), Failure> {
        if !self.hand.has_classes() {
            return Ok(());
        }
        let (missing, ours) = {
            let cluster = self.inputs.view.read();
            let there = |class: &&str| cluster.gateway_classes.get(&Name::new("", *class)).is_some();
            let missing: Vec<_> = WAYPOINT_CLASSES.into_iter().filter(|class| !there(class)).collect();
            let ours = cluster.gateway_classes.iter().map(|(_, class)| Arc::clone(class));
            (missing, ours.filter(|class| class.controller == WAYPOINT_CONTROLLER).collect::<Vec<_>>())
        };
        for class in missing {
            self.hand.make_class(class).await?;
        }
        for class in ours {
            let now = (class.meta.uid.clone(), class.meta.generation);
            if self.told.get(&class.meta.name) != Some(&now) {
                self.hand.accept_class(&class).await?;
                self.told.insert(class.meta.name.clone(), now);
            }
        }
        Ok(())
    }
}

/// The gateways whose instances are ours to make. Where there are class objects, nothing is done before it is known whom
/// a class names.
fn wanted(cluster: &Cluster, by_class_alone: bool) -> Vec<Arc<Gateway>> {
    let known = |gateway: &Gateway| {
        !by_class_alone || cluster.gateway_classes.get(&Name::new("", gateway.class.clone())).is_some()
    };
    let all = cluster.gateways.iter().map(|(_, gateway)| gateway);
    // Who names addresses has instances already.
    let ours =
        all.filter(|gateway| is_ours(cluster, gateway) && known(gateway) && !gateway.has_own_addresses);
    ours.cloned().collect()
}

fn seen(cluster: &Cluster, gateway: &Gateway) -> Seen {
    Seen {
        service: cluster.services.get(&gateway.meta.name).is_some(),
        instances: cluster.instances_of(&gateway.meta.name).count(),
    }
}

fn is_programmed(status: &Value) -> bool {
    let conditions = status.get("conditions").and_then(Value::as_array);
    let is = |one: &Value, field: &str, value: &str| one.get(field).and_then(Value::as_str) == Some(value);
    conditions.into_iter().flatten().any(|one| is(one, "type", "Programmed") && is(one, "status", "True"))
}

/// How keeping goes. Cheap to clone; a [`Collector`] of its figures.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Tally>);

#[derive(Debug, Default)]
struct Tally {
    /// How many are kept, and how many of them are programmed.
    stand: Mutex<(usize, usize)>,
    failures: AtomicU64,
}

impl Counts {
    fn stand(&self, kept: usize, programmed: usize) {
        *self.0.stand.lock().unwrap_or_else(PoisonError::into_inner) = (kept, programmed);
    }

    fn failed(&self) {
        self.0.failures.fetch_add(1, Relaxed);
    }
}

impl Collector for Counts {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (kept, programmed) = *self.0.stand.lock().unwrap_or_else(PoisonError::into_inner);
        gauge(&mut to, "ambit_waypoints", "Gateways whose instances this controller makes", kept)?;
        gauge(
            &mut to,
            "ambit_waypoints_programmed",
            "Those of them that have an instance ready",
            programmed,
        )?;
        let help = "Times that a Gateway could not be kept as it should be";
        counter(&mut to, "ambit_waypoint_failures", help, self.0.failures.load(Relaxed))
    }
}
