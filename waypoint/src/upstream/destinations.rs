//! What is kept of the services whose use a DestinationRule governs: whose turn it is, which key finds which endpoint,
//! how much is under way.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use ambit_model::{
    name::{Label, ServiceKey, Uid},
    route::Drawn,
    service::Service,
    service_config::ServiceConfig,
    snapshot::{Endpoint, Endpoints as Known},
    traffic::{Compared, Connections, Maglev, Members, Subset, SuccessRate, TrafficPolicy, Window},
    workload::Health,
};
use hashbrown::HashMap;
use tokio::{sync::Notify, time::timeout};

use super::pool::Version;
use crate::refusal::Refusal;

/// How many destinations are kept before those at which nothing is under way are forgotten.
const MOST: usize = 4096;

/// How the endpoints of a service are to be used.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Of them, those of this subset; `None`: all.
    pub subset: Option<Subset>,
    /// By these rules; `None`: nobody said anything.
    pub policy: Option<Arc<TrafficPolicy>>,
}

impl Terms {
    /// What `config` says of a port and subset of `service`.
    pub fn find(
        config: &ServiceConfig,
        service: &ServiceKey,
        port: u16,
        subset: Option<&Label>,
    ) -> Result<Self, Refusal> {
        let traffic = config.traffic(service);
        let policy = traffic.and_then(|traffic| traffic.policy(subset, port)).cloned();
        let Some(name) = subset else { return Ok(Self { subset: None, policy }) };
        let unknown = || Refusal::NoSubset { service: service.to_string(), subset: name.to_string() };
        let subset = traffic.and_then(|traffic| traffic.subset(name)).ok_or_else(unknown)?;
        Ok(Self { subset: Some(subset.clone()), policy })
    }

    /// What is said of whom a route has drawn.
    pub fn of_drawn(config: &ServiceConfig, drawn: &Drawn<'_>) -> Result<Self, Refusal> {
        match drawn {
            Drawn::To { service, port, subset, .. } => Self::find(config, service, *port, *subset),
            Drawn::Invalid(_) | Drawn::Nobody => Ok(Self::default()),
        }
    }

    /// Whether `uid` may be asked.
    pub fn admit(&self, uid: &Uid) -> bool {
        self.subset.as_ref().is_none_or(|subset| subset.members.admit(uid))
    }

    /// How much is sent at once; `None`: nothing is said.
    pub fn connections(&self) -> Option<&Connections> {
        self.policy.as_ref().map(|policy| &policy.connections)
    }

    /// Whether a connection that is not looked into begins with a PROXY header.
    pub fn introduces(&self) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.introduces)
    }
}

/// What is kept of each.
#[derive(Debug, Default)]
pub struct Destinations(RwLock<HashMap<Kept, Arc<Destination>>>);

/// Service, port, subset.
type Kept = (ServiceKey, u16, Option<Label>);

/// What is kept of one.
#[derive(Debug, Default)]
pub struct Destination {
    turn: AtomicU64,
    table: Mutex<Option<Table>>,
    seen: Mutex<Option<Known>>,
    rates: Mutex<Window>,
    gate: Gate,
}

/// Which key finds which endpoint.
#[derive(Debug)]
struct Table {
    /// Of which it was made.
    of: Known,
    subset: Members,
    maglev: Arc<Maglev>,
}

/// How much is under way.
#[derive(Debug, Default)]
struct Gate {
    busy: AtomicU32,
    waiting: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
    freed: Notify,
}

impl Destinations {
    /// What is kept of a port of `service`, as far as `terms` say anything of it.
    pub fn of(&self, service: &Service, port: u16, terms: &Terms) -> Option<Arc<Destination>> {
        terms.policy.as_ref()?;
        let key = (service.key(), port, terms.subset.as_ref().map(|subset| subset.name.clone()));
        if let Some(known) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Some(known.clone());
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.retain(|_, destination| Arc::strong_count(destination) > 1);
        }
        Some(all.entry(key).or_default().clone())
    }
}

impl Destination {
    /// Whose turn it is.
    pub fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Which of the endpoints that `terms` admit a key finds. Made anew when they are others.
    pub fn table(&self, known: &Known, terms: &Terms) -> Arc<Maglev> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let members = || known.as_slice().iter().map(|one| &one.workload.uid).filter(|uid| terms.admit(uid));
        // A subset comes by another way than the endpoints, before them or after them.
        let subset = terms.subset.as_ref().map_or(&Members::All, |subset| &subset.members);
        let maglev = match &*table {
            Some(table) if table.of.is(known) && table.subset.is(subset) => return table.maglev.clone(),
            Some(table) if table.maglev.is_of(members()) => table.maglev.clone(),
            Some(_) | None => Arc::new(Maglev::new(members().cloned().collect())),
        };
        *table = Some(Table { of: known.clone(), subset: subset.clone(), maglev: maglev.clone() });
        maglev
    }

    /// Shows `meet` the healthy endpoints if they are others than before; `first`: they were never shown.
    pub fn meet(&self, known: &Known, mut meet: impl FnMut(&Endpoint, bool)) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.as_ref().is_some_and(|seen| seen.is(known)) {
            return;
        }
        let first = seen.is_none();
        let healthy = |endpoint: &&Endpoint| endpoint.workload.health == Health::Healthy;
        known.as_slice().iter().filter(healthy).for_each(|endpoint| meet(endpoint, first));
        *seen = Some(known.clone());
    }

    /// Counts what came of a request to `uid`; what an interval has shown, if one is over.
    pub fn rated(&self, uid: &Uid, went_well: bool, now: Duration, by: &SuccessRate) -> Option<Compared> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).count(uid, went_well, now, by)
    }

    /// Takes a place for one request or connection, as `limits` say; waits for one for no longer than `patience`.
    pub async fn enter(
        self: &Arc<Self>,
        limits: &Connections,
        what: What,
        patience: Duration,
    ) -> Result<Option<Place>, Refusal> {
        if !limits.are_counted() {
            return Ok(None);
        }
        let mut place = Place { at: self.clone(), request: false, busy: false, retry: false };
        let over = |what, limit: Option<u32>| {
            Err(Refusal::Overload {
                what,
                limit: limit.and_then(|l| usize::try_from(l).ok()).unwrap_or_default(),
            })
        };
        let gate = &self.gate;
        if what != What::Connection {
            place.request = take(&gate.requests, limits.requests);
            if !place.request {
                return over("requests to the service", limits.requests);
            }
        }
        // Requests share HTTP/2 connections.
        if what != What::Request(Version::Http2) {
            place.busy = take(&gate.busy, limits.most);
            if !place.busy {
                if !take(&gate.waiting, limits.waiting) {
                    return over("requests waiting for a connection", limits.waiting);
                }
                let _waits = Waits(gate);
                place.busy = timeout(patience, gate.room(limits.most)).await.is_ok();
                if !place.busy {
                    return over("connections to the service", limits.most);
                }
            }
        }
        Ok(Some(place))
    }

    /// Whether one more may be repeated; it counts until the place is let go of.
    pub fn repeat(self: &Arc<Self>, limits: &Connections) -> Option<Place> {
        let taken = take(&self.gate.retries, limits.retries);
        taken.then(|| Place { at: self.clone(), request: false, busy: false, retry: true })
    }
}

/// What takes a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A request.
    Request(Version),
    /// A connection that is not looked into.
    Connection,
}

impl Gate {
    async fn room(&self, most: Option<u32>) {
        loop {
            // Registered before the look, so that no place that becomes free in between is missed.
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if take(&self.busy, most) {
                return;
            }
            freed.await;
        }
    }
}

/// One more, if there are fewer than `most`.
fn take(count: &AtomicU32, most: Option<u32>) -> bool {
    let most = most.unwrap_or(u32::MAX);
    let more = |count: u32| count.checked_add(1).filter(|count| *count <= most);
    count.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
}

/// Waits for a place.
struct Waits<'g>(&'g Gate);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A place that is taken until it is dropped.
#[derive(Debug)]
pub struct Place {
    at: Arc<Destination>,
    request: bool,
    busy: bool,
    retry: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let gate = &self.at.gate;
        let counts = [(self.request, &gate.requests), (self.busy, &gate.busy), (self.retry, &gate.retries)];
        for (_, count) in counts.into_iter().filter(|(taken, _)| *taken) {
            count.fetch_sub(1, Ordering::AcqRel);
        }
        if self.busy {
            gate.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use ambit_model::{service::PortMap, workload::Workload};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn limits() -> Connections {
        Connections {
            most: Some(1),
            waiting: Some(1),
            requests: Some(3),
            retries: Some(1),
            ..Connections::default()
        }
    }

    fn what(refusal: Result<Option<Place>, Refusal>) -> &'static str {
        match refusal {
            Ok(Some(_)) => "taken",
            Ok(None) => "not counted",
            Err(Refusal::Overload { what, .. }) => what,
            Err(_) => "another",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_a_connection_and_no_more_than_may_wait() {
        let at = Arc::new(Destination::default());
        let limits = limits();
        let http1 = What::Request(Version::Http1);
        let first = at.enter(&limits, http1, LONG).await.expect("a place");
        let mut second = Box::pin(at.enter(&limits, http1, LONG));
        tokio::select! {
            biased;
            _ = &mut second => panic!("there is no connection for it"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(what(at.enter(&limits, http1, LONG).await), "requests waiting for a connection");
        drop(first);
        let second = second.await.expect("its turn");
        // It waits in vain, and then somebody else may wait.
        assert_eq!(what(at.enter(&limits, http1, LONG).await), "connections to the service");
        assert_eq!(what(at.enter(&limits, What::Connection, LONG).await), "connections to the service");
        drop(second);
        assert_eq!(what(at.enter(&limits, http1, LONG).await), "taken");
        let gate = &at.gate;
        let counts = [&gate.busy, &gate.waiting, &gate.requests].map(|count| count.load(Ordering::Acquire));
        assert_eq!(counts, [0, 0, 0], "whoever left is not counted any more");
    }

    #[tokio::test]
    async fn requests_are_counted_over_shared_connections() {
        let at = Arc::new(Destination::default());
        let limits = limits();
        let http2 = What::Request(Version::Http2);
        let mut places = Vec::new();
        for _ in 0..3 {
            places.push(at.enter(&limits, http2, LONG).await.expect("a place"));
        }
        assert_eq!(what(at.enter(&limits, http2, LONG).await), "requests to the service");
        places.pop();
        assert_eq!(what(at.enter(&limits, http2, LONG).await), "taken");
        assert_eq!(what(at.enter(&Connections::default(), http2, LONG).await), "not counted");
    }

    #[test]
    fn repetitions_are_counted() {
        let at = Arc::new(Destination::default());
        let first = at.repeat(&limits());
        assert!(first.is_some() && at.repeat(&limits()).is_none());
        drop(first);
        assert!(at.repeat(&limits()).is_some());
        assert!(at.repeat(&Connections::default()).is_some());
    }

    #[test]
    fn a_table_is_that_of_the_subset_that_is_told_now() {
        let pods = (0..4).map(|number| {
            let workload =
                Workload { uid: format!("c//Pod/shop/web-{number}").into(), ..Workload::default() };
            Endpoint { workload: Arc::new(workload), ports: PortMap::default() }
        });
        let known: Known = pods.collect();
        let of = |numbers: &[usize]| {
            let uids = numbers.iter().map(|number| format!("c//Pod/shop/web-{number}").into());
            Terms { subset: Some(Subset::new("v1".into(), uids.collect())), policy: None }
        };
        let at = Destination::default();
        let found = |terms: &Terms| {
            let mut found: Vec<_> = at.table(&known, terms).find(7).cloned().collect();
            found.sort_unstable();
            found.dedup();
            found
                .iter()
                .map(|uid| uid.as_str().rsplit('-').next().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(found(&of(&[0, 1])), ["0", "1"]);
        assert_eq!(found(&of(&[2])), ["2"], "the endpoints are the same, the subset is another");
        assert_eq!(found(&Terms::default()), ["0", "1", "2", "3"]);
        let (first, again) = (at.table(&known, &of(&[3])), at.table(&known, &of(&[3])));
        assert!(Arc::ptr_eq(&first, &again), "told again, it is not made again");
    }
}
