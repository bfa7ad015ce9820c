//! One stream's place in the ledger: what it asked, was sent, and answered.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ambit_proto::discovery::{ControlPlane, DeltaDiscoveryRequest};
use bytes::Bytes;

use super::{
    Ledger,
    named::Named,
    shelf::Entry,
    view::{View, Viewer},
};
use crate::xds::message::Response;

/// How many names one on-demand subscriber may ask for: more than a node's tunnel can talk to, few
/// enough that one subscriber cannot fill the controller's memory.
const NAMES: usize = 200_000;

/// One stream.
#[derive(Debug)]
pub(in crate::xds) struct Subscriber {
    viewer: Viewer,
    /// At most one for each shelf, in the order of the shelves.
    subscriptions: Vec<Subscription>,
    nonces: u64,
}

/// One type on one stream.
#[derive(Debug)]
struct Subscription {
    shelf: usize,
    scope: Scope,
    /// Changes up to this one were sent.
    position: u64,
    /// The response on its way.
    in_flight: Option<InFlight>,
    /// Whether a first response was sent.
    answered: bool,
    /// Changes up to this one were acknowledged.
    acked: u64,
    /// Everything that existed when it came was not sent and acknowledged yet.
    starting: bool,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    position: u64,
}

#[derive(Debug)]
enum Scope {
    Everything(Option<CatchUp>),
    Named(Box<Named>),
}

/// A subscriber to everything that has not been sent what existed when it came.
#[derive(Debug)]
struct CatchUp {
    /// The latest change at that time.
    upto: u64,
    /// Held already, as they were at that time.
    skip: HashSet<Arc<str>>,
    /// Held, but gone at that time.
    removed: Vec<String>,
}

/// What one response tells.
#[derive(Debug)]
pub(super) struct Changes {
    /// Encoded, to be applied after the removals.
    pub(super) resources: Vec<Bytes>,
    /// Names.
    pub(super) removed: Vec<String>,
}

/// What a request was.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::xds) enum Heard {
    /// A subscription or a change of one.
    Asked,
    /// The last response was taken.
    Acked,
    /// Parts of the last response were rejected.
    Nacked(String),
    /// An answer to a response that is not the last; ignored.
    Stale,
    /// A type that is not served; ignored.
    UnknownType,
}

/// Why a stream ends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::xds) enum Refused {
    #[error("more than {NAMES} names subscribed on one stream")]
    TooManyNames,
}

/// The subscriber stands before the oldest remembered removal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too far behind to be told every removal; reconnect with initial_resource_versions")]
pub(in crate::xds) struct Lagging;

/// How far a subscriber is, for one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The type.
    pub type_url: String,
    /// Whether it gets everything.
    pub wildcard: bool,
    /// Changes up to this one were sent.
    pub sent: u64,
    /// Changes up to this one were acknowledged (or rejected).
    pub acked: u64,
    /// The latest change.
    pub latest: u64,
    /// A response waits for its ACK.
    pub waiting: bool,
    /// The first response was sent and answered, and nothing happened since.
    pub synced: bool,
}

impl Subscriber {
    pub(in crate::xds) fn new(viewer: Viewer) -> Self {
        Self { viewer, subscriptions: Vec::new(), nonces: 0 }
    }

    /// Takes in one request.
    pub(in crate::xds) fn request(
        &mut self,
        ledger: &Ledger,
        request: DeltaDiscoveryRequest,
    ) -> Result<Heard, Refused> {
        let shelves = ledger.shelves().iter().enumerate();
        let Some((at, shelf)) = shelves.into_iter().find(|(_, s)| s.type_url() == request.type_url) else {
            return Ok(Heard::UnknownType);
        };
        let shelf = View::new(shelf, &self.viewer);
        match self.subscriptions.binary_search_by_key(&at, |s| s.shelf) {
            Err(place) => {
                let subscription = Subscription::new(at, shelf, request)?;
                self.subscriptions.insert(place, subscription);
                Ok(Heard::Asked)
            }
            Ok(place) => match self.subscriptions.get_mut(place) {
                Some(subscription) => subscription.request(shelf, request),
                None => Ok(Heard::Stale),
            },
        }
    }

    /// The next response, if there is one to send. Types come in the ledger's order.
    pub(in crate::xds) fn next(&mut self, ledger: &Ledger) -> Result<Option<Response>, Lagging> {
        if !ledger.is_open() {
            return Ok(None);
        }
        for subscription in &mut self.subscriptions {
            let Some(shelf) = ledger.shelves().get(subscription.shelf) else { continue };
            let Some(Changes { resources, removed }) =
                subscription.next(View::new(shelf, &self.viewer), ledger.limits.response)?
            else {
                continue;
            };
            self.nonces += 1;
            let nonce = format!("{}-{}", subscription.position, self.nonces);
            let position = subscription.position;
            subscription.in_flight = Some(InFlight { nonce: nonce.clone(), position });
            return Ok(Some(Response {
                system_version_info: position.to_string(),
                resources,
                type_url: shelf.type_url().to_owned(),
                nonce,
                removed_resources: removed,
                control_plane: Some(ControlPlane { identifier: "ambit".to_owned() }),
            }));
        }
        Ok(None)
    }

    /// Whether a first full response is to be sent or still unanswered: the expensive moment.
    pub(in crate::xds) fn is_starting(&self) -> bool {
        self.subscriptions.iter().any(|s| s.starting)
    }

    /// Whether a response is on its way.
    pub(in crate::xds) fn is_waiting(&self) -> bool {
        self.subscriptions.iter().any(|s| s.in_flight.is_some())
    }

    /// How far it is, for each type.
    pub(in crate::xds) fn progress(&self, ledger: &Ledger) -> Vec<Progress> {
        let each = self.subscriptions.iter();
        each.filter_map(|s| ledger.shelves().get(s.shelf).map(|shelf| s.progress(shelf))).collect()
    }
}

impl Subscription {
    fn new(at: usize, shelf: View<'_>, request: DeltaDiscoveryRequest) -> Result<Self, Refused> {
        let subscribes = &request.resource_names_subscribe;
        let star = |names: &[String]| names.iter().any(|name| name == "*");
        let all = (subscribes.is_empty() || star(subscribes)) && !star(&request.resource_names_unsubscribe);
        let scope = if all {
            Scope::Everything(Some(CatchUp::from_versions(shelf, request.initial_resource_versions)))
        } else {
            if request.initial_resource_versions.len() + subscribes.len() > NAMES {
                return Err(Refused::TooManyNames);
            }
            let mut named = Named::new(shelf, request.initial_resource_versions);
            subscribes.iter().filter(|name| *name != "*").for_each(|name| named.ask(name));
            Scope::Named(Box::new(named))
        };
        let position = if all { 0 } else { shelf.latest() };
        Ok(Self { shelf: at, scope, position, in_flight: None, answered: false, acked: 0, starting: all })
    }

    fn request(&mut self, shelf: View<'_>, request: DeltaDiscoveryRequest) -> Result<Heard, Refused> {
        let heard = if request.response_nonce.is_empty() {
            Heard::Asked
        } else {
            match self.in_flight.take_if(|sent| sent.nonce == request.response_nonce) {
                None => return Ok(Heard::Stale),
                Some(sent) => {
                    self.acked = sent.position;
                    self.starting &= matches!(self.scope, Scope::Everything(Some(_)));
                    request.error_detail.map_or(Heard::Acked, |detail| Heard::Nacked(detail.message))
                }
            }
        };
        self.change(shelf, &request.resource_names_subscribe, &request.resource_names_unsubscribe)?;
        Ok(heard)
    }

    /// A subscription may grow and shrink, also between everything and some.
    fn change(
        &mut self,
        shelf: View<'_>,
        subscribe: &[String],
        unsubscribe: &[String],
    ) -> Result<(), Refused> {
        for name in subscribe {
            match (&mut self.scope, name.as_str()) {
                (Scope::Everything(_), _) => {}
                (Scope::Named(named), "*") => {
                    let skip = named.up_to_date(shelf);
                    let catch_up = CatchUp { upto: shelf.latest(), skip, removed: Vec::new() };
                    self.scope = Scope::Everything(Some(catch_up));
                    self.position = 0;
                    self.starting = true;
                }
                (Scope::Named(named), name) => {
                    if named.size() >= NAMES {
                        return Err(Refused::TooManyNames);
                    }
                    named.ask(name);
                }
            }
        }
        for name in unsubscribe {
            match (&mut self.scope, name.as_str()) {
                (Scope::Everything(_), "*") => {
                    self.scope = Scope::Named(Box::new(Named::new(shelf, [])));
                    self.position = shelf.latest();
                    self.starting = false;
                }
                (Scope::Everything(_), _) => {}
                (Scope::Named(named), name) => named.give_up(name),
            }
        }
        Ok(())
    }

    fn next(&mut self, shelf: View<'_>, limit: usize) -> Result<Option<Changes>, Lagging> {
        if self.in_flight.is_some() {
            return Ok(None);
        }
        let known = match &self.scope {
            Scope::Everything(Some(catch_up)) => self.position.max(catch_up.upto),
            Scope::Everything(None) | Scope::Named(_) => self.position,
        };
        if known < shelf.floor() {
            return Err(Lagging);
        }
        let changes = match &mut self.scope {
            Scope::Named(named) => {
                named.absorb(shelf, self.position);
                self.position = shelf.latest();
                named.take(shelf, limit)
            }
            Scope::Everything(catch_up) => tail(shelf, &mut self.position, catch_up, limit),
        };
        // The first response of a wildcard type is sent even when it is empty: tunnels wait for it.
        let wanted = !self.answered && matches!(self.scope, Scope::Everything(_));
        if changes.resources.is_empty() && changes.removed.is_empty() && !wanted {
            return Ok(None);
        }
        self.answered = true;
        Ok(Some(changes))
    }

    fn progress(&self, shelf: &super::shelf::Shelf) -> Progress {
        let waiting = self.in_flight.is_some();
        let wildcard = matches!(self.scope, Scope::Everything(_));
        Progress {
            type_url: shelf.type_url().to_owned(),
            wildcard,
            sent: self.position,
            acked: self.acked,
            latest: shelf.latest(),
            waiting,
            synced: !waiting && self.position == shelf.latest() && (self.answered || !wildcard),
        }
    }
}

impl CatchUp {
    fn from_versions(shelf: View<'_>, held: HashMap<String, String>) -> Self {
        let mut catch_up = Self { upto: shelf.latest(), skip: HashSet::new(), removed: Vec::new() };
        for (name, version) in held {
            match shelf.find(&name) {
                None => catch_up.removed.push(name),
                Some(entry) if !version.is_empty() && entry.version == version => {
                    catch_up.skip.insert(entry.name.clone());
                }
                Some(_) => {}
            }
        }
        catch_up
    }

    /// At that time it was held as it still is.
    fn skips(&self, entry: &Entry) -> bool {
        entry.change <= self.upto && self.skip.contains(&entry.name)
    }
}

/// The log after `position`, as far as fits; moves the position there.
fn tail(shelf: View<'_>, position: &mut u64, catch_up: &mut Option<CatchUp>, limit: usize) -> Changes {
    let start = *position;
    let (mut resources, mut size) = (Vec::new(), 0);
    let mut reached = shelf.latest();
    for entry in shelf.changes_after(start) {
        if size >= limit {
            reached = entry.change - 1;
            break;
        }
        if catch_up.as_ref().is_some_and(|c| c.skips(entry)) {
            continue;
        }
        size += entry.sealed.len();
        resources.push(entry.sealed.clone());
    }
    // What was removed before it came was listed when it came.
    let from = catch_up.as_ref().map_or(start, |c| start.max(c.upto));
    let mut removed: Vec<String> =
        shelf.removals_between(from, reached).map(|name| name.to_string()).collect();
    if let Some(c) = catch_up {
        removed.extend(std::mem::take(&mut c.removed).into_iter().filter(|name| shelf.find(name).is_none()));
    }
    // Gone when it came, back, and gone again; or gone as its owner's, then as everybody's.
    removed.sort_unstable();
    removed.dedup();
    *position = reached;
    catch_up.take_if(|c| reached >= c.upto);
    Changes { resources, removed }
}
