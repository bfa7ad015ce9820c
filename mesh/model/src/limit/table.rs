//! The buckets of all local limits of one waypoint: bounded, whatever clients say.

use std::{fmt, sync::Arc, time::Duration};

use hashbrown::{HashMap, hash_map::Entry};

use super::{Attribute, Bucket, Key, LocalLimit, Rate, RateLimit, Scope};
use crate::name::{PolicyKey, ServiceKey};

/// What one limit is counted under. Two are the same as long as nothing changes that counts: so a limit goes on
/// counting when its policy, or anything else, is written anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Counter {
    policy: PolicyKey,
    place: usize,
    scope: Scope,
    service: Option<ServiceKey>,
    rate: Rate,
    by: Box<[Attribute]>,
}

impl Counter {
    pub(super) fn new(of: &RateLimit, place: usize, limit: &LocalLimit, service: Option<ServiceKey>) -> Self {
        Self {
            policy: of.policy.clone(),
            place,
            scope: of.scope.clone(),
            service,
            rate: limit.rate(),
            by: limit.by().into(),
        }
    }
}

/// `namespace/name local[0]`, as its author knows it.
impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} local[{}]", self.policy, self.place)
    }
}

/// One limit that counts a request, and with which others.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The limit.
    pub counter: Arc<Counter>,
    /// What the request is counted with.
    pub key: Key,
}

/// How many buckets there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of one limit.
    pub each: usize,
    /// Of all.
    pub all: usize,
}

/// Some 200 bytes each with its key: 25 MiB at most, of which no limit takes more than an eighth. As many clients may
/// be told apart in the time that a bucket takes to be full again.
impl Default for Bounds {
    fn default() -> Self {
        Self { each: 16 * 1024, all: 128 * 1024 }
    }
}

/// How often full buckets are looked for while there is no room: looking is long.
const AGAIN: Duration = Duration::from_secs(1);

/// The buckets.
#[derive(Debug, Default)]
pub struct Table {
    limits: HashMap<Arc<Counter>, Buckets>,
    count: usize,
    evicted: usize,
    bounds: Bounds,
    swept: Option<Duration>,
}

#[derive(Debug, Default)]
struct Buckets {
    own: HashMap<Key, Bucket>,
    /// Of all whose key found no room: they are counted together, so that nobody gets past a limit by calling itself
    /// ever anew.
    together: Option<Bucket>,
}

/// A request that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Of how many limits it was counted with others than its key's, for want of room.
    pub together: usize,
    /// How the limit stands that is nearest to its end; `None`: no limit counts it.
    pub nearest: Option<Standing>,
}

/// How a limit stands after a request was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many may come at once.
    pub limit: u32,
    /// How many may come now.
    pub remaining: u32,
    /// When as many as ever may, if that is known.
    pub reset: Option<Duration>,
}

impl Standing {
    /// Of two the one that is nearer to its end: with less room, or with as little for longer.
    pub fn nearer(self, other: Self) -> Self {
        let room = |one: &Self| (one.remaining, std::cmp::Reverse(one.reset));
        if room(&other) < room(&self) { other } else { self }
    }
}

/// A limit that has no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Which.
    pub counter: Arc<Counter>,
    /// How many may come at once.
    pub limit: u32,
    /// How many may come now.
    pub remaining: u32,
    /// When one may.
    pub wait: Duration,
    /// When as many as ever may.
    pub reset: Duration,
}

impl Table {
    /// Without a bucket yet.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// How many buckets there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes a token for a request of each limit that counts it, or of none: of several that have no room, the one that
    /// keeps it waiting longest says so.
    pub fn take(&mut self, lookups: &[Lookup], now: Duration) -> Result<Taken, Excess> {
        let mut worst: Option<Excess> = None;
        for lookup in lookups {
            let counter = &lookup.counter;
            let (bucket, _) = self.bucket(lookup, now);
            bucket.refill(&counter.rate, now);
            let wait = bucket.wait(&counter.rate);
            if !bucket.has_room(&counter.rate) && worst.as_ref().is_none_or(|worst| wait > worst.wait) {
                worst = Some(Excess {
                    counter: counter.clone(),
                    limit: counter.rate.burst(),
                    remaining: bucket.remaining(&counter.rate),
                    wait,
                    reset: bucket.until_full(&counter.rate),
                });
            }
        }
        if let Some(worst) = worst {
            return Err(worst);
        }
        let mut taken = Taken { together: 0, nearest: None };
        for lookup in lookups {
            let rate = &lookup.counter.rate;
            let (bucket, place) = self.bucket(lookup, now);
            bucket.take(rate);
            let (limit, remaining) = (rate.burst(), bucket.remaining(rate));
            let one = Standing { limit, remaining, reset: Some(bucket.until_full(rate)) };
            taken.nearest = Some(taken.nearest.map_or(one, |nearest| nearest.nearer(one)));
            taken.together += usize::from(place == Place::Together);
        }
        Ok(taken)
    }

    /// How many buckets were let go of since this was asked last.
    pub fn evicted(&mut self) -> usize {
        std::mem::take(&mut self.evicted)
    }

    /// Lets go of buckets that are full: a new one says the same.
    pub fn sweep(&mut self, now: Duration) {
        self.swept = Some(now);
        let before = self.count;
        self.limits.retain(|counter, buckets| {
            let is_full = |bucket: &mut Bucket| {
                bucket.refill(&counter.rate, now);
                bucket.is_full(&counter.rate)
            };
            buckets.own.retain(|_, bucket| !is_full(bucket));
            buckets.together = buckets.together.take_if(|bucket| !is_full(bucket));
            !buckets.own.is_empty() || buckets.together.is_some()
        });
        self.count = self.limits.values().map(Buckets::len).sum();
        self.evicted += before.saturating_sub(self.count);
    }

    fn bucket(&mut self, lookup: &Lookup, now: Duration) -> (&mut Bucket, Place) {
        if !self.has_room_for(lookup) && self.swept.is_none_or(|swept| now.saturating_sub(swept) >= AGAIN) {
            self.sweep(now);
        }
        let has_room = self.has_room_for(lookup);
        let rate = lookup.counter.rate;
        let buckets = self.limits.entry(lookup.counter.clone()).or_default();
        let count = &mut self.count;
        if !has_room {
            let together = buckets.together.get_or_insert_with(|| {
                *count += 1;
                Bucket::full(&rate, now)
            });
            return (together, Place::Together);
        }
        let bucket = match buckets.own.entry(lookup.key.clone()) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => {
                *count += 1;
                place.insert(Bucket::full(&rate, now))
            }
        };
        (bucket, Place::Own)
    }

    /// Whether a key has a bucket, or may get one.
    fn has_room_for(&self, lookup: &Lookup) -> bool {
        let buckets = self.limits.get(&lookup.counter);
        let own = buckets.map_or(0, |buckets| buckets.own.len());
        let is_there = buckets.is_some_and(|buckets| buckets.own.contains_key(&lookup.key));
        is_there || (own < self.bounds.each && self.count < self.bounds.all)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Own,
    Together,
}

impl Buckets {
    fn len(&self) -> usize {
        self.own.len() + usize::from(self.together.is_some())
    }
}
