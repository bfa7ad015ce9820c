//! How endpoints do: requests under way, how long they take, whether they are trusted; and which of two is asked.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambit_model::{
    balance::{self, Caller, Dice, Pick, Purpose},
    name::Uid,
    service::Service,
    snapshot::Endpoints as Known,
    workload::Workload,
};
use hashbrown::HashMap;

use super::health::{Health, Outcome};

/// How many endpoints are remembered before those that nobody asks are forgotten.
const MOST: usize = 16 * 1024;
/// How much one response counts in the average of response times: an eighth.
const SHARE: u64 = 8;

/// What is known of endpoints, by workload and port.
#[derive(Debug, Default)]
pub struct Endpoints(RwLock<HashMap<(Uid, u16), Arc<Doing>>>);

/// How one endpoint does.
#[derive(Debug, Default)]
pub struct Doing {
    active: AtomicUsize,
    /// The average time to the head of a response, in microseconds; peaks count at once, and fade.
    average: AtomicU64,
    health: Mutex<Health>,
}

/// A request that is under way at an endpoint.
#[derive(Debug)]
pub struct Underway(Arc<Doing>);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Doing {
    /// Counts a request until what is returned is dropped.
    pub fn begin(self: &Arc<Self>) -> Underway {
        self.active.fetch_add(1, Ordering::Relaxed);
        Underway(self.clone())
    }

    /// An outcome, after `took`, at `now`.
    pub fn ended(&self, outcome: Outcome, took: Duration, now: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let average = self.average.load(Ordering::Relaxed);
        let next = if took > average { took } else { average - average / SHARE + took / SHARE };
        self.average.store(next, Ordering::Relaxed);
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        *health = health.after(outcome, now);
    }

    /// How it is trusted.
    pub fn health(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests under way, and the average response time.
    pub fn load(&self) -> (usize, Duration) {
        let average = Duration::from_micros(self.average.load(Ordering::Relaxed));
        (self.active.load(Ordering::Relaxed), average)
    }

    /// What one more request is expected to wait for.
    fn cost(&self) -> u64 {
        let active = u64::try_from(self.active.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
        self.average.load(Ordering::Relaxed).max(1).saturating_mul(active.saturating_add(1))
    }
}

impl Endpoints {
    /// How `workload` does at `port`.
    pub fn of(&self, workload: &Workload, port: u16) -> Arc<Doing> {
        let key = (workload.uid.clone(), port);
        if let Some(doing) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return doing.clone();
        }
        self.0.write().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }

    /// All that are remembered.
    pub fn all(&self) -> Vec<((Uid, u16), Arc<Doing>)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(key, doing)| (key.clone(), doing.clone())).collect()
    }

    /// Forgets those at which nothing is under way, if there are many.
    pub fn sweep(&self) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() > MOST {
            all.retain(|_, doing| Arc::strong_count(doing) > 1);
        }
    }

    /// Chooses an endpoint of `service` for `port`: the one of two that are drawn at which a request waits for less
    /// (peak EWMA). Those that are not trusted are left out as long as there is another; `tried` in any case, for
    /// whoever was asked in vain is asked again only by another request.
    pub fn choose<'s>(
        &self,
        (service, port): (&Service, u16),
        known: &'s Known,
        caller: Caller<'_>,
        tried: &[Uid],
        now: Duration,
        dice: &mut dyn Dice,
    ) -> Option<(Pick<'s>, Arc<Doing>)> {
        let is_tried = |workload: &Workload| tried.contains(&workload.uid);
        let trusted_only = |workload: &Workload| is_tried(workload) || !self.trusts(workload, port, now);
        let mut draw = |excluded: &dyn Fn(&Workload) -> bool| {
            let pick = balance::pick(service, known, port, Purpose::Standard, caller, excluded, dice)?;
            let doing = self.of(&pick.endpoint.workload, port);
            Some((pick, doing))
        };
        let first = draw(&trusted_only).or_else(|| draw(&is_tried))?;
        if known.as_slice().len() < 2 {
            return Some(first);
        }
        match draw(&trusted_only) {
            Some(second) if second.1.cost() < first.1.cost() => Some(second),
            Some(_) | None => Some(first),
        }
    }

    fn trusts(&self, workload: &Workload, port: u16, now: Duration) -> bool {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&(workload.uid.clone(), port)).is_none_or(|doing| doing.health().is_trusted(now))
    }
}
