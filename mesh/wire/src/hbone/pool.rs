//! Shares connections between all who call the same peer as the same workload (protocols 4.6).
//!
//! ```text
//! open ── a connection has room ──────────────────────────────▶ stream
//!   │                                                             ▲
//!   ├── none has, somebody dials ── waits for that dial ── again ─┤ (or the dial's error)
//!   └── none has, nobody dials ──── dials, publishes ─────────────┘
//! ```
//!
//! The map is locked for look-ups only, never across a dial. A connection that went quiet for long retires
//! itself (see [`super::client`]); what is left of it here is swept when somebody dials.

use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use ambit_model::identity::Identity;
use http::HeaderMap;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::{
    client::{Connect, Connection, OpenError, Reservation, Shared},
    stream::TunnelStream,
};

/// What two callers must have in common to share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// As whom we call.
    pub source: Identity,
    /// Whom we accept at the other end.
    pub expected: Arc<[Identity]>,
    /// Where the peer listens.
    pub to: SocketAddr,
    /// The address that we call from, when it is not the kernel's choice.
    pub from: Option<IpAddr>,
}

/// How many connections a peer gets.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// As soon as the least loaded connection carries this many streams, another is dialled...
    pub streams: usize,
    /// ...until there are this many. Beyond, further ones are made only when all are full.
    pub connections: usize,
}

impl Default for Spread {
    fn default() -> Self {
        // A second connection lets another of the peer's cores take part; more of them only spend memory
        // and make each write smaller.
        Self { streams: 16, connections: 2 }
    }
}

/// Why no stream was opened.
#[derive(Debug, thiserror::Error)]
pub enum PoolError<E> {
    /// There was no connection and none could be made. Shared by all who waited for it.
    #[error("{0}")]
    Dial(Arc<E>),
    /// There was a connection, and it did not yield a stream.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// The connections of one workload on one worker. Dropping it ends them all.
#[derive(Debug)]
pub struct Pool<E> {
    spread: Spread,
    slots: Mutex<Slots<E>>,
}

#[derive(Debug)]
struct Slots<E> {
    by_key: HashMap<Key, Slot<E>>,
    /// Connections that take no more streams from here but still carry some: ended with the pool.
    retired: Vec<(Key, Weak<Shared>)>,
    /// As soon as there are so many of them, those that have ended are forgotten.
    enough: usize,
}

#[derive(Debug)]
struct Slot<E> {
    connections: Vec<Connection>,
    dialling: Option<Outcome<E>>,
}

/// Where the one who dials tells the others how it went; closed without a word when it gave up.
type Outcome<E> = watch::Receiver<Option<Result<(), Arc<E>>>>;

/// Below so many connections that were adopted nobody looks which of them have ended.
const FEW: usize = 64;

/// How often a request that its peer had not looked at is tried on another connection.
const MAX_ATTEMPTS: usize = 4;

impl<E> Pool<E> {
    /// An empty pool.
    pub fn new(spread: Spread) -> Self {
        let slots = Slots { by_key: HashMap::new(), retired: Vec::new(), enough: FEW };
        Self { spread, slots: Mutex::new(slots) }
    }

    /// Opens a stream on a connection for `key`, made by `dial` if there is none with room.
    ///
    /// At most one dial per key is under way at any time; whoever else needs it waits for its result. A
    /// request that met a connection on its way out is tried again on another.
    pub async fn open<D, F>(
        &self,
        key: &Key,
        connect: Connect,
        dial: D,
    ) -> Result<(TunnelStream, HeaderMap), PoolError<E>>
    where
        D: Fn(Key) -> F,
        F: Future<Output = Result<Connection, E>>,
    {
        let mut attempts = 1;
        loop {
            let (connection, reservation) = self.connection(key, &dial).await?;
            match connection.open_reserved(reservation, connect.clone()).await {
                Err(OpenError::Unprocessed(_)) if attempts < MAX_ATTEMPTS => attempts += 1,
                result => return Ok(result?),
            }
        }
    }

    async fn connection<D, F>(&self, key: &Key, dial: &D) -> Result<(Connection, Reservation), PoolError<E>>
    where
        D: Fn(Key) -> F,
        F: Future<Output = Result<Connection, E>>,
    {
        loop {
            match self.step(key) {
                Step::Use(connection, reservation) => return Ok((connection, reservation)),
                Step::Wait(mut outcome) => {
                    let failed = match outcome.wait_for(Option::is_some).await {
                        Ok(told) => told.as_ref().and_then(|result| result.as_ref().err().cloned()),
                        // The one who dialled was cancelled; somebody else must.
                        Err(_) => None,
                    };
                    if let Some(error) = failed {
                        return Err(PoolError::Dial(error));
                    }
                }
                Step::Dial(tell) => {
                    let dialling = Dialling { pool: self, key, tell };
                    match dialling.done(dial(key.clone()).await) {
                        Ok(made) => return Ok(made),
                        // It may have been to spread the load only.
                        Err(error) => return self.any(key).ok_or(error),
                    }
                }
            }
        }
    }

    fn step(&self, key: &Key) -> Step<E> {
        let mut slots = self.lock();
        if !slots.by_key.contains_key(key) {
            slots.sweep();
        }
        let slot = slots.by_key.entry(key.clone()).or_insert_with(Slot::empty);
        slot.connections.retain_mut(Connection::is_open);
        let quietest = slot.connections.iter().min_by_key(|connection| connection.active());
        let spread = slot.connections.len() < self.spread.connections
            && quietest.is_some_and(|connection| connection.active() >= self.spread.streams);
        let alone = slot.dialling.as_ref().is_none_or(|outcome| outcome.has_changed().is_err());
        if !(spread && alone)
            && let Some((connection, reservation)) =
                quietest.and_then(|connection| Some((connection.clone(), connection.reserve()?)))
        {
            return Step::Use(connection, reservation);
        }
        match &slot.dialling {
            Some(outcome) if !alone => Step::Wait(outcome.clone()),
            _ => {
                let (tell, outcome) = watch::channel(None);
                slot.dialling = Some(outcome);
                Step::Dial(tell)
            }
        }
    }

    /// The quietest connection that has room.
    fn any(&self, key: &Key) -> Option<(Connection, Reservation)> {
        let mut slots = self.lock();
        let slot = slots.by_key.get_mut(key)?;
        slot.connections.retain_mut(Connection::is_open);
        let quietest = slot.connections.iter().min_by_key(|connection| connection.active())?;
        Some((quietest.clone(), quietest.reserve()?))
    }

    /// Makes connections that `stale` names take no more streams; those that are open go on, and the next
    /// request dials. For when the certificate that they were made with has been renewed.
    pub fn retire(&self, stale: impl Fn(&Key) -> bool) {
        let mut slots = self.lock();
        let Slots { by_key, retired, .. } = &mut *slots;
        for (key, slot) in by_key.iter_mut().filter(|(key, _)| stale(key)) {
            retired.extend(slot.connections.drain(..).map(|connection| (key.clone(), connection.retire())));
        }
        slots.sweep();
    }

    /// Has a connection that its caller keeps to himself ended as those here are: when it is revoked, and with the pool.
    pub fn adopt(&self, key: Key, connection: &Connection) {
        let mut slots = self.lock();
        if slots.retired.len() >= slots.enough {
            slots.sweep();
            // Looked at again when there are twice as many: each costs two looks, however many there are.
            slots.enough = slots.retired.len().saturating_mul(2).max(FEW);
        }
        slots.retired.push((key, connection.found_by()));
    }

    /// Ends connections, with all their streams, that `revoked` names: by whom they go to and the
    /// certificates that were shown.
    pub fn close_revoked(&self, revoked: impl Fn(&Key, &[CertificateDer<'static>]) -> bool) {
        let mut slots = self.lock();
        for (key, slot) in &slots.by_key {
            let doomed = |connection: &&Connection| revoked(key, connection.peer());
            slot.connections.iter().filter(doomed).for_each(Connection::close);
        }
        for (key, shared) in &slots.retired {
            if let Some(shared) = shared.upgrade().filter(|shared| revoked(key, shared.peer())) {
                shared.close();
            }
        }
        slots.sweep();
    }

    /// How many connections are open and take streams.
    pub fn len(&self) -> usize {
        let mut slots = self.lock();
        let connections = slots.by_key.values_mut().flat_map(|slot| &mut slot.connections);
        connections.map(Connection::is_open).filter(|&open| open).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Slots<E>> {
        // Nothing that runs under the lock leaves it half-changed.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> Drop for Pool<E> {
    fn drop(&mut self) {
        let slots = self.slots.get_mut().unwrap_or_else(PoisonError::into_inner);
        slots.by_key.values().flat_map(|slot| &slot.connections).for_each(Connection::close);
        slots.retired.iter().filter_map(|(_, shared)| shared.upgrade()).for_each(|shared| shared.close());
    }
}

impl<E> Slots<E> {
    /// Forgets what has ended.
    fn sweep(&mut self) {
        self.by_key.retain(|_, slot| {
            slot.connections.retain_mut(Connection::is_open);
            !slot.connections.is_empty() || slot.dialling.is_some()
        });
        self.retired.retain(|(_, shared)| shared.strong_count() > 0);
    }
}

impl<E> Slot<E> {
    fn empty() -> Self {
        Self { connections: Vec::new(), dialling: None }
    }
}

enum Step<E> {
    Use(Connection, Reservation),
    Wait(Outcome<E>),
    Dial(watch::Sender<Option<Result<(), Arc<E>>>>),
}

/// A dial under way. Dropped without [`Dialling::done`], it wakes the waiters and leaves no trace.
struct Dialling<'a, E> {
    pool: &'a Pool<E>,
    key: &'a Key,
    tell: watch::Sender<Option<Result<(), Arc<E>>>>,
}

impl<E> Dialling<'_, E> {
    /// Publishes the result. The one who dialled has the first place on the new connection, unless the
    /// connection has already ended.
    fn done(self, dialled: Result<Connection, E>) -> Result<(Connection, Reservation), PoolError<E>> {
        match dialled {
            Ok(connection) => {
                let reservation = connection.reserve();
                if let Some(slot) = self.pool.lock().by_key.get_mut(self.key) {
                    slot.connections.push(connection.clone());
                }
                self.tell.send_replace(Some(Ok(())));
                let reservation = reservation.ok_or(PoolError::Open(OpenError::Unprocessed(None)))?;
                Ok((connection, reservation))
            }
            Err(error) => {
                let error = Arc::new(error);
                self.tell.send_replace(Some(Err(Arc::clone(&error))));
                Err(PoolError::Dial(error))
            }
        }
    }
}

impl<E> Drop for Dialling<'_, E> {
    fn drop(&mut self) {
        if let Some(slot) = self.pool.lock().by_key.get_mut(self.key) {
            slot.dialling = None;
        }
    }
}
