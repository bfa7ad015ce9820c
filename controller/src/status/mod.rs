//! Tells users what became of their objects: conditions (protocols 11.7), written by the leader with server-side apply;
//! those of routes and limits, which share a list with other controllers' ([`parents`]), where nobody wrote meanwhile.
//!
//! Level-triggered: each round compares what objects should carry ([`board`]) with what they carry and writes some of
//! the difference, so nothing is lost when a write fails, the leader changes or the API server is away. What objects
//! carry is read from them when this controller begins to lead, and again from time to time.
//!
//! A mistake that keeps an object from being understood is told on the object, too, where Istio's kinds have room
//! for it: policies in their own condition, others as `ambit.io/Understood=False`. Events would be lost after an hour.

mod api;
mod board;
mod parents;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_api::directory::Problem;
use ambit_runtime::backoff::Backoff;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, Error};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::counter::ConstCounter};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use self::{
    api::{Served, look},
    board::{Holds, Slot, Wanted, Write, complaints, differences, uid_of, wanted},
};
use crate::{
    cluster::object::{Key, Kind},
    engine::View,
    metrics::{each, gauge},
    translate::status,
};

/// Rounds begin at least this far apart: what changes twice in between is written once.
const ROUND: Duration = Duration::from_secs(1);
/// Writes in one round, so also each second. A thousand services that a label binds to a waypoint are told within a
/// minute, and the API server hardly notices: it serves hundreds of writes a second.
const WRITES: usize = 20;
/// Objects that are judged under one look at the cluster; the engine waits for no more than that.
const CHUNK: usize = 500;
/// Others may change what objects carry, so all of them are looked at again this often. Ten thousand are twenty pages.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// A kind that the API server did not serve is looked for again this often while there is something to write of it.
const LOOK_FOR_KIND: Duration = Duration::from_secs(60);
/// One request. The client may try again within it.
const REQUEST: Duration = Duration::from_secs(10);
/// All of a look.
const LOOK: Duration = Duration::from_secs(120);
/// The waits after a failure of one write, which may be for ever: no permission, an object that refuses it.
const REST: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// The waits after a failure of the API server, which comes back.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the writer reads.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The objects.
    pub view: View,
    /// Whether all of them are known: before, nothing is written and nothing taken away.
    pub synced: watch::Receiver<bool>,
    /// Changes whenever the objects may have.
    pub changed: watch::Receiver<u64>,
    /// What could not be read of the objects.
    pub problems: watch::Receiver<Vec<Problem>>,
    /// Whether this controller leads.
    pub leader: watch::Receiver<bool>,
}

/// Writes conditions while this controller leads, until `stop` completes.
pub async fn run(client: Client, mut inputs: Inputs, counts: Counts, stop: impl Future<Output = ()> + Send) {
    let work = async {
        loop {
            until(&mut inputs.synced, true).await;
            until(&mut inputs.leader, true).await;
            let mut leader = inputs.leader.clone();
            let mut writer = Writer::new(client.clone(), inputs.clone(), counts.clone());
            tokio::select! {
                () = until(&mut leader, false) => {}
                never = writer.run() => match never {},
            }
            counts.pending(0);
        }
    };
    tokio::select! {
        () = stop => {}
        () = work => {}
    }
}

/// Completes when a flag is so. Never, if nobody sets it any more.
pub(crate) async fn until(flag: &mut watch::Receiver<bool>, wanted: bool) {
    if flag.wait_for(|now| *now == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Completes when a value changes. Never, if nobody sets it any more.
pub(crate) async fn changed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Writes conditions, once.
struct Writer {
    client: Client,
    inputs: Inputs,
    counts: Counts,
    served: BTreeMap<Kind, Served>,
    holds: BTreeMap<Slot, Holds>,
    /// Writes that failed, and when they are tried again.
    resting: BTreeMap<Slot, (Instant, Backoff)>,
    looked: Instant,
    pause: Backoff,
}

/// What is left after a round.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// More than fitted in.
    More,
    /// What is tried again then.
    Until(Instant),
    /// Nothing to do.
    Nothing,
}

impl Writer {
    fn new(client: Client, inputs: Inputs, counts: Counts) -> Self {
        Self {
            client,
            inputs,
            counts,
            served: BTreeMap::new(),
            holds: BTreeMap::new(),
            resting: BTreeMap::new(),
            looked: Instant::now(),
            pause: Backoff::new(PAUSE.0, PAUSE.1),
        }
    }

    async fn run(&mut self) -> Infallible {
        self.look().await;
        loop {
            let began = Instant::now();
            let left = self.round().await;
            sleep_until(began + ROUND).await;
            let look_again = self.looked + LOOK_AGAIN;
            match left {
                Left::More => {}
                Left::Until(due) => self.changes(due.min(look_again)).await,
                Left::Nothing => self.changes(look_again).await,
            }
            if Instant::now() >= look_again {
                self.look().await;
            }
        }
    }

    /// Waits for a change, until `due` at most.
    async fn changes(&mut self, due: Instant) {
        tokio::select! {
            () = changed(&mut self.inputs.changed) => {}
            () = changed(&mut self.inputs.problems) => {}
            () = sleep_until(due) => {}
        }
    }

    /// Finds out what objects carry; tries until it succeeds.
    async fn look(&mut self) {
        loop {
            let error = match timeout(LOOK, look(&self.client)).await {
                Ok(Ok((served, holds))) => {
                    info!(
                        conditions.of = holds.len(),
                        kinds = served.len(),
                        "Conditions of objects are known"
                    );
                    (self.served, self.holds) = (served, holds);
                    self.looked = Instant::now();
                    self.pause.reset();
                    return;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            let wait = self.pause.next(rand::random());
            warn!(error, retry.after = ?wait, "Objects cannot be listed to find out what they carry");
            sleep(wait).await;
        }
    }

    async fn round(&mut self) -> Left {
        self.inputs.changed.mark_unchanged();
        self.inputs.problems.mark_unchanged();
        let writes = self.due();
        let mut pending = writes.len();
        self.counts.pending(pending);
        let now = Instant::now();
        let mut later: Option<Instant> = None;
        let (mut written, mut unserved) = (0, false);
        for write in writes {
            let Some(served) = self.served.get(&write.slot.key.kind).cloned() else {
                unserved = true;
                continue;
            };
            if let Some((until, _)) = self.resting.get(&write.slot).filter(|(until, _)| *until > now) {
                later = Some(later.map_or(*until, |earlier| earlier.min(*until)));
                continue;
            }
            if written == WRITES {
                return Left::More;
            }
            written += 1;
            let slot = write.slot.clone();
            let outcome = timeout(REQUEST, served.write(&self.client, &write)).await;
            if let Some(pause) = self.took(write, outcome.ok()) {
                sleep(pause).await;
                return Left::More;
            }
            match self.resting.get(&slot) {
                Some((until, _)) => later = Some(later.map_or(*until, |earlier| earlier.min(*until))),
                None => {
                    pending = pending.saturating_sub(1);
                    self.counts.pending(pending);
                }
            }
        }
        if unserved {
            let due = self.looked + LOOK_FOR_KIND;
            if due <= now {
                self.look().await;
                return Left::More;
            }
            later = Some(later.map_or(due, |earlier| earlier.min(due)));
        }
        later.map_or(Left::Nothing, Left::Until)
    }

    /// What has to be written.
    fn due(&mut self) -> Vec<Write> {
        let complaints = complaints(&self.inputs.problems.borrow());
        let mut keys: Vec<Key> = status::keys(&self.inputs.view.read()).collect();
        let known: std::collections::BTreeSet<&Key> = keys.iter().collect();
        let unknown: Vec<Key> = complaints.keys().filter(|key| !known.contains(key)).cloned().collect();
        keys.extend(unknown);
        let mut all: BTreeMap<Slot, Wanted> = BTreeMap::new();
        for chunk in keys.chunks(CHUNK) {
            all.extend(wanted(&self.inputs.view.read(), chunk, &complaints));
        }
        {
            // Who is gone took its conditions along.
            let cluster = self.inputs.view.read();
            let there = |key: &Key| uid_of(&cluster, key).is_some() || complaints.contains_key(key);
            self.holds.retain(|slot, _| there(&slot.key));
        }
        let writes = differences(&all, &self.holds, Timestamp::now());
        let open: std::collections::BTreeSet<&Slot> = writes.iter().map(|write| &write.slot).collect();
        self.resting.retain(|slot, _| open.contains(slot));
        writes
    }

    /// Takes note of what came of a write. If the API server needs rest, how long.
    fn took(&mut self, write: Write, outcome: Option<Result<(), Error>>) -> Option<Duration> {
        let Write { slot, holds } = write;
        let (word, error) = match outcome {
            Some(Ok(())) => {
                debug!(object = %slot.key, manager = slot.manager.word(), "Conditions written");
                self.counts.wrote(slot.key.kind, "written");
                self.resting.remove(&slot);
                self.pause.reset();
                if holds.conditions.is_empty() {
                    self.holds.remove(&slot);
                } else {
                    self.holds.insert(slot, holds);
                }
                return None;
            }
            Some(Err(error)) => (outcome_of(&error), error),
            None => (Outcome::Away, Error::Service("no answer in time".into())),
        };
        self.counts.wrote(slot.key.kind, word.word());
        // A write that fails is not tried first again: what is wrong may be wrong with this object alone.
        let (_, mut backoff) =
            self.resting.remove(&slot).unwrap_or_else(|| (Instant::now(), Backoff::new(REST.0, REST.1)));
        let rest = backoff.next(rand::random());
        let object = slot.key.clone();
        if word == Outcome::Gone {
            self.holds.remove(&slot);
        }
        self.resting.insert(slot, (Instant::now() + rest, backoff));
        match word {
            Outcome::Away => {
                let pause = self.pause.next(rand::random()).max(asked_for(&error));
                warn!(object = %object, %error, retry.after = ?pause, "Conditions wait for the API server");
                Some(pause)
            }
            Outcome::Refused => {
                warn!(object = %object, %error, retry.after = ?rest, "Conditions were not written");
                None
            }
            Outcome::Gone | Outcome::Conflict => {
                debug!(object = %object, %error, retry.after = ?rest, "Conditions were not written");
                None
            }
        }
    }
}

/// How long the API server asks to be left alone.
fn asked_for(error: &Error) -> Duration {
    let details = if let Error::Api(status) = error { status.details.as_ref() } else { None };
    let seconds = details.map_or(0, |details| details.retry_after_seconds);
    Duration::from_secs(seconds.into()).min(PAUSE.1)
}

/// Why a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// There is no such object any more, or its kind has no status.
    Gone,
    /// Another object has its name now, or another writer was faster.
    Conflict,
    /// It would be refused again.
    Refused,
    /// The API server cannot, now.
    Away,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Conflict => "conflict",
            Self::Refused => "refused",
            Self::Away => "away",
        }
    }
}

fn outcome_of(error: &Error) -> Outcome {
    if matches!(error, Error::BuildRequest(_) | Error::SerdeError(_)) {
        return Outcome::Refused;
    }
    let Error::Api(status) = error else { return Outcome::Away };
    match status.code {
        404 => Outcome::Gone,
        409 => Outcome::Conflict,
        429 => Outcome::Away,
        400..=499 => Outcome::Refused,
        _ => Outcome::Away,
    }
}

/// How writing goes. Cheap to clone; a [`Collector`] of its figures.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Mutex<Tally>>);

#[derive(Debug, Default)]
struct Tally {
    writes: BTreeMap<(Kind, &'static str), u64>,
    pending: usize,
}

impl Counts {
    fn wrote(&self, kind: Kind, outcome: &'static str) {
        let mut tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *tally.writes.entry((kind, outcome)).or_default() += 1;
    }

    fn pending(&self, pending: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pending = pending;
    }
}

impl Collector for Counts {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let writes = tally.writes.iter().map(|((kind, outcome), count)| {
            ([("kind", kind.word()), ("outcome", *outcome)], ConstCounter::new(*count))
        });
        each(&mut to, "ambit_status_writes", "Writes of conditions, by what came of them", writes)?;
        gauge(&mut to, "ambit_status_pending", "Objects whose conditions wait to be written", tally.pending)
    }
}
