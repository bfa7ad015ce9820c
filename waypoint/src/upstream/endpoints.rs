//! How endpoints do: requests under way, how long they take, whether they are trusted; and which of two is asked.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambit_model::{
    balance::{self, Dice, Pick, Wanted},
    name::{ServiceKey, Uid},
    snapshot::Endpoints as OfService,
    traffic::{Algorithm, Outliers},
    workload::Workload,
};
use hashbrown::HashMap;

use super::{
    destinations::{Destination, Place, Terms},
    health::{Health, Reason},
};

/// How many endpoints are remembered before those that nobody asks are forgotten.
const MOST: usize = 16 * 1024;
/// How much one response counts in the average of response times: an eighth.
const SHARE: u64 = 8;
/// How many slots of a table are looked at for one whose endpoint may be asked: about as many as there are, where nearly
/// all are set aside.
const PROBES: usize = 4096;
/// How often another endpoint is drawn in place of one that is new: of ten that are old and one that is new, the new one
/// is hardly ever drawn so often.
const REDRAWS: usize = 3;

/// What an endpoint is wanted for, and by which rules.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Of which service, by whom.
    pub wanted: Wanted<'a>,
    /// By which rules.
    pub terms: &'a Terms,
    /// What is kept of the service; `None`: it has no rules.
    pub kept: Option<&'a Arc<Destination>>,
    /// What ties the request to an endpoint.
    pub affinity: &'a Affinity,
    /// Who was asked in vain.
    pub tried: &'a [Uid],
    /// Since the process started.
    pub now: Duration,
}

/// What ties a request to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// The hash of what it has in common with others.
    pub key: Option<u64>,
    /// The endpoint of its session.
    pub session: Option<Uid>,
}

impl Question<'_> {
    /// Who may not be asked, whatever its health. One on another network that names no gateway is out of reach.
    fn is_out(&self, workload: &Workload) -> bool {
        let is_beyond = workload.network != *self.wanted.caller.network && workload.network_gateway.is_none();
        is_beyond || self.tried.contains(&workload.uid) || !self.terms.admit(&workload.uid)
    }

    /// As what it is known. Rules of a service judge by what it does there alone.
    fn key(&self, uid: &Uid) -> Known {
        let governed = self.terms.policy.is_some().then(|| self.wanted.service.key());
        (uid.clone(), self.wanted.port, governed)
    }
}

/// What is known of endpoints.
#[derive(Debug, Default)]
pub struct Endpoints {
    all: RwLock<HashMap<Known, Arc<Doing>>>,
    /// Held by whoever counts those that are set aside, until it has set aside one more.
    floor: Mutex<()>,
}

/// Workload and port; and the service, where rules of its own judge them.
type Known = (Uid, u16, Option<ServiceKey>);

/// How one endpoint does.
#[derive(Debug, Default)]
pub struct Doing {
    active: AtomicUsize,
    /// The average time to the head of a response, in microseconds; peaks count at once, and fade.
    average: AtomicU64,
    health: Mutex<Health>,
    /// Until when it is passed over, in microseconds since the process started.
    rests: AtomicU64,
    /// When it was seen first, since the process started; `None`: it was there before, or nobody asked.
    born: Option<Duration>,
}

/// Whether an endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Ready,
    /// It asked to be passed over, for this time from now on: it is asked if all others are, or are set aside.
    Resting(Duration),
    /// It is set aside, for this time from now on: it is asked if all others are.
    Aside(Reason, Duration),
}

/// A request that is under way at an endpoint.
#[derive(Debug)]
pub struct Underway {
    at: Arc<Doing>,
    place: Option<Place>,
}

impl Underway {
    /// Gives back its place at the service.
    pub fn yielded(&mut self) -> Option<Place> {
        self.place.take()
    }

    /// Holds a place at the service, too.
    pub fn hold(&mut self, place: Option<Place>) {
        self.place = place;
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.at.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Doing {
    /// Counts a request until what is returned is dropped.
    pub fn begin(self: &Arc<Self>) -> Underway {
        self.active.fetch_add(1, Ordering::Relaxed);
        Underway { at: self.clone(), place: None }
    }

    /// A response came after so long, or none did.
    pub fn took(&self, took: Duration) {
        let took = micros(took);
        let average = self.average.load(Ordering::Relaxed);
        let next = if took > average { took } else { average - average / SHARE + took / SHARE };
        self.average.store(next, Ordering::Relaxed);
    }

    /// It asks to be passed over for so long. Whether it was not before.
    pub fn rest(&self, now: Duration, rest: Duration) -> bool {
        let until = micros(now.saturating_add(rest));
        self.rests.fetch_max(until, Ordering::Relaxed) <= micros(now)
    }

    /// Whether it is asked.
    pub fn standing(&self, now: Duration) -> Standing {
        match self.health() {
            Health::Aside { until, why, .. } if now < until => {
                return Standing::Aside(why, until.saturating_sub(now));
            }
            Health::Aside { .. } | Health::Trusted { .. } => {}
        }
        let left = Duration::from_micros(self.rests.load(Ordering::Relaxed)).saturating_sub(now);
        if left.is_zero() { Standing::Ready } else { Standing::Resting(left) }
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

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Endpoints {
    /// How `workload` does at `port`.
    pub fn of(&self, workload: &Workload, port: u16) -> Arc<Doing> {
        self.born((workload.uid.clone(), port, None), None)
    }

    /// How `uid` does, which may be asked by `question`; `None`: nothing is known of it.
    pub fn known(&self, question: &Question<'_>, uid: &Uid) -> Option<Arc<Doing>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(&question.key(uid)).cloned()
    }

    /// How one does; if nothing was known of it, it was `born` then.
    fn born(&self, key: Known, born: Option<Duration>) -> Arc<Doing> {
        if let Some(doing) = self.all.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return doing.clone();
        }
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.entry(key).or_insert_with(|| Arc::new(Doing { born, ..Doing::default() })).clone()
    }

    /// All that are remembered.
    pub fn all(&self) -> Vec<(Known, Arc<Doing>)> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(key, doing)| (key.clone(), doing.clone())).collect()
    }

    /// Forgets those at which nothing is under way, if there are many.
    pub fn sweep(&self) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() > MOST {
            all.retain(|_, doing| Arc::strong_count(doing) > 1);
        }
    }

    /// Chooses an endpoint. Those that rest or are not trusted are left out as long as there is another, and those that rest
    /// come first then; those that were tried are in any case, for whoever was asked in vain is asked again only by
    /// another request. Who is tied to an endpoint stays there while it rests: it may be another client that is told to
    /// come later, and moving costs the endpoint's knowledge of its clients.
    pub fn choose<'s>(
        &self,
        question: &Question<'_>,
        known: &'s OfService,
        dice: &mut dyn Dice,
    ) -> Option<(Pick<'s>, Arc<Doing>)> {
        let Question { wanted, terms, kept, affinity, now, .. } = question;
        let balancing = terms.policy.as_ref().map(|policy| &policy.balancing);
        let warmup = balancing.and_then(|balancing| balancing.warmup.as_ref());
        if let (Some(_), Some(kept)) = (warmup, kept) {
            let born = |first: bool| (!first).then_some(*now);
            kept.meet(known, |endpoint, first| {
                self.born(question.key(&endpoint.workload.uid), born(first));
            });
        }
        let is_out = |workload: &Workload| question.is_out(workload);
        let is_aside = |workload: &Workload| {
            is_out(workload) || matches!(self.standing(question, workload), Standing::Aside(..))
        };
        let is_busy =
            |workload: &Workload| is_out(workload) || self.standing(question, workload) != Standing::Ready;
        let levels: [&dyn Fn(&Workload) -> bool; 3] = [&is_busy, &is_aside, &is_out];
        let doing = |pick: Pick<'s>| {
            let doing = self.born(question.key(&pick.endpoint.workload.uid), None);
            (pick, doing)
        };
        let here = |uid: &Uid, excluded: &dyn Fn(&Workload) -> bool| {
            let endpoint = known.get(uid).filter(|endpoint| !excluded(&endpoint.workload))?;
            wanted.eligible(endpoint).map(doing)
        };
        if let Some(found) = affinity.session.as_ref().and_then(|uid| here(uid, &is_aside)) {
            return Some(found);
        }
        let draw = |dice: &mut dyn Dice, excluded: &dyn Fn(&Workload) -> bool| {
            balance::pick(wanted, known, excluded, dice).map(doing)
        };
        let one = |dice: &mut dyn Dice| levels.into_iter().find_map(|excluded| draw(dice, excluded));
        let algorithm = balancing.map_or(&Algorithm::LeastRequest, |balancing| &balancing.algorithm);
        let pick = |dice: &mut dyn Dice| match (algorithm, kept) {
            (Algorithm::RoundRobin, Some(kept)) => {
                let mut turn = || kept.turn();
                let next = |excluded| balance::pick_in_turn(wanted, known, excluded, &mut turn);
                levels.into_iter().find_map(next).map(doing)
            }
            (Algorithm::Hash(_), Some(kept)) => {
                let by_key = affinity.key.and_then(|key| {
                    let table = kept.table(known, terms);
                    let find = |excluded: &dyn Fn(&Workload) -> bool| {
                        table.find(key).take(PROBES).find_map(|uid| here(uid, excluded))
                    };
                    find(&is_aside).or_else(|| find(&is_out))
                });
                by_key.or_else(|| one(dice))
            }
            (Algorithm::Random | Algorithm::RoundRobin | Algorithm::Hash(_), _) => one(dice),
            (Algorithm::LeastRequest, _) => levels.into_iter().find_map(|excluded| {
                let first = draw(dice, excluded)?;
                if known.as_slice().len() < 2 {
                    return Some(first);
                }
                match draw(dice, excluded) {
                    Some(second) if second.1.cost() < first.1.cost() => Some(second),
                    Some(_) | None => Some(first),
                }
            }),
        };
        let Some(warmup) = warmup else { return pick(dice) };
        // Whoever is new is passed over by chance; if all are, it makes no difference.
        let mut found = pick(dice)?;
        for _ in 0..REDRAWS {
            let age = found.1.born.map(|born| question.now.saturating_sub(born));
            if age.is_none_or(|age| warmup.admits(age, dice)) {
                break;
            }
            found = pick(dice)?;
        }
        Some(found)
    }

    /// Moves how an endpoint is trusted by `step`, which is told whether it may be set aside; why it was, if it was. Of all
    /// that are to be set aside one is after the other, so that each is counted when the next asks whether it `may_be`.
    pub fn step(
        &self,
        doing: &Doing,
        now: Duration,
        step: impl Fn(Health, bool) -> Health,
        may_be: impl FnOnce() -> bool,
    ) -> Option<Reason> {
        let held = || doing.health.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut health = held();
            let next = step(*health, true);
            if next.is_trusted(now) || !health.is_trusted(now) {
                *health = next;
                return None;
            }
        }
        let _floor = self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked while its own lock is free, since the answer looks at all endpoints, this one among them.
        let may_be = may_be();
        let mut health = held();
        let before = *health;
        *health = step(before, may_be);
        match *health {
            Health::Aside { why, .. } if before.is_trusted(now) && !health.is_trusted(now) => Some(why),
            Health::Aside { .. } | Health::Trusted { .. } => None,
        }
    }

    /// Whether `outliers` admit that one more endpoint is set aside of those that may be asked.
    pub fn admit_one_more(&self, question: &Question<'_>, known: &OfService, outliers: &Outliers) -> bool {
        if outliers.most_percent >= 100 {
            return true;
        }
        let endpoints = || known.as_slice().iter().map(|endpoint| &endpoint.workload);
        let admitted = || endpoints().filter(|workload| question.terms.admit(&workload.uid));
        let is_aside =
            |workload: &&Arc<Workload>| matches!(self.standing(question, workload), Standing::Aside(..));
        outliers.admit_one_more(admitted().filter(is_aside).count(), admitted().count())
    }

    /// Whether `doing` may be passed over: with it, at least half of those that may be asked are not. Else a single client
    /// that is told to come later could have all others meet at one endpoint.
    pub fn admit_one_more_resting(&self, question: &Question<'_>, known: &OfService, doing: &Doing) -> bool {
        if doing.standing(question.now) != Standing::Ready {
            return true;
        }
        let (mut all, mut ready) = (0_usize, 0_usize);
        for endpoint in known.as_slice().iter().filter(|one| question.terms.admit(&one.workload.uid)) {
            all += 1;
            ready += usize::from(self.standing(question, &endpoint.workload) == Standing::Ready);
        }
        ready.saturating_sub(1) * 2 >= all
    }

    fn standing(&self, question: &Question<'_>, workload: &Workload) -> Standing {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&question.key(&workload.uid)).map_or(Standing::Ready, |doing| doing.standing(question.now))
    }
}

#[cfg(test)]
mod tests;
