//! What exists, at which version, and what each subscriber is to be sent next. Pure.
//!
//! [`Ledger`] holds every published resource once, encoded, for all subscribers. Each change gets the
//! next number of its type's log; a name appears in the log only once, at its latest change. A
//! [`Subscriber`] to everything is therefore one number, however many resources there are, and what it
//! lacks is the tail of the log: many changes in a row reach a slow subscriber as one response.
//!
//! A resource may have an owner. It exists for nobody else: whoever else asks for it is told that it is
//! absent, and is not told when it goes.
//!
//! One response of a type is on its way to a subscriber at a time; the next follows its ACK or NACK.
//! That bounds what is buffered for a subscriber that does not read, makes the nonce of an answer
//! unambiguous, and costs one round trip per push. (A rejected resource is not sent again until it
//! changes or the subscriber reconnects.)

mod named;
mod shelf;
mod subscriber;
mod view;

use bytes::Bytes;

use shelf::Shelf;
pub use subscriber::Progress;
pub(super) use subscriber::{Heard, Subscriber};
pub(super) use view::Viewer;

/// A resource as it is published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Unique in its type.
    pub name: String,
    /// Compared after a reconnect; empty means "always send again".
    pub version: String,
    /// Other names that an on-demand subscriber may use for it.
    pub aliases: Vec<String>,
    /// The serialized message.
    pub body: Bytes,
    /// Names of resources whose on-demand subscribers get this one as well: for a workload, its
    /// services.
    pub follows: Vec<String>,
    /// The node whose on-demand subscribers get it unasked: for a workload, its own. May be empty.
    pub node: String,
    /// Who alone is told that it exists: the subscriber with this `namespace/service account`. Empty:
    /// everybody.
    pub owner: String,
}

/// A published resource, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its type.
    pub type_url: String,
    /// Its name.
    pub name: String,
    /// What subscribers tell after a reconnect; empty means "always send again".
    pub version: String,
    /// Who alone is told of it, or empty.
    pub owner: String,
    /// Its other names.
    pub aliases: Vec<String>,
    /// How many bytes it takes on the wire.
    pub bytes: usize,
    /// The number of the change that made it so.
    pub change: u64,
}

/// Published under a type that this ledger was not made for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("type {0:?} is not served here; add it where the server is built")]
pub struct UnknownType(pub String);

/// Everything published, of every type.
#[derive(Debug)]
pub struct Ledger {
    /// In the order in which the types are pushed to a subscriber.
    shelves: Vec<Shelf>,
    /// Until the first full load, nothing is answered: an empty answer would make every subscriber
    /// that reconnects drop what it holds.
    open: bool,
    limits: Limits,
}

/// How much a response and the memory of removals may grow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A response is split beyond this size. Tunnels accept 200 MiB and take their first full
    /// response as the sign that they know the mesh, so it is split only when it must be.
    pub response: usize,
    /// How many removals are remembered. A subscriber further behind is disconnected, and told on
    /// its return what no longer exists.
    pub removals: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { response: 128 * 1024 * 1024, removals: 100_000 }
    }
}

impl Ledger {
    /// An empty ledger of these types, not open yet.
    pub fn new(types: impl IntoIterator<Item = impl Into<String>>, limits: Limits) -> Self {
        let shelves = types.into_iter().map(|url| Shelf::new(url.into())).collect();
        Self { shelves, open: false, limits }
    }

    /// Applies one batch: removals, then upserts. True if anything changed.
    pub fn update(
        &mut self,
        type_url: &str,
        upserts: Vec<Resource>,
        removals: &[String],
    ) -> Result<bool, UnknownType> {
        let Some(shelf) = self.shelves.iter_mut().find(|shelf| shelf.type_url() == type_url) else {
            return Err(UnknownType(type_url.to_owned()));
        };
        let before = shelf.latest();
        for name in removals {
            shelf.remove(name);
        }
        for resource in upserts {
            shelf.put(resource);
        }
        shelf.forget_removals_beyond(self.limits.removals);
        Ok(shelf.latest() != before)
    }

    /// The first full load is in: from now on subscribers are answered.
    pub fn open(&mut self) {
        self.open = true;
    }

    /// Whether subscribers are answered.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Each type, how many resources it has and the number of its latest change.
    pub fn contents(&self) -> impl Iterator<Item = (&str, usize, u64)> {
        self.shelves.iter().map(|shelf| (shelf.type_url(), shelf.len(), shelf.latest()))
    }

    /// Every published resource, by type and name.
    pub fn listing(&self) -> Vec<Listed> {
        self.shelves.iter().flat_map(Shelf::listing).collect()
    }

    fn shelves(&self) -> &[Shelf] {
        &self.shelves
    }
}

#[cfg(test)]
mod tests;
