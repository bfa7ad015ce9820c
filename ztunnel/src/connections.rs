//! Who is open now: the connections of one pod, for the admin page, for limits and for policy.
//!
//! A change of policy does not wake every connection to judge itself: one sweep judges them all and
//! wakes those that lost their right. A thousand idle connections stay asleep.

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll},
};

use ambit_model::{
    authz::{self, Action, By, Facts, Verdict},
    identity::Identity,
    name::PolicyKey,
    snapshot::Snapshot,
    workload::Workload,
};
use futures_util::task::AtomicWaker;
use hashbrown::HashMap;
use pin_project_lite::pin_project;
use tokio::sync::Notify;

use crate::{
    dump::Travels,
    metrics::Direction,
    refusal::{Denial, Refusal},
};

/// The open connections of one pod.
#[derive(Debug)]
pub struct Connections {
    open: Mutex<Registry>,
    limit: usize,
    /// Told when the last one ends.
    none: Notify,
}

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    inbound: HashMap<u64, Arc<Open>>,
    outbound: HashMap<u64, Arc<Open>>,
}

impl Registry {
    fn of(&mut self, direction: Direction) -> &mut HashMap<u64, Arc<Open>> {
        match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        }
    }
}

/// One open connection.
#[derive(Debug)]
pub struct Open {
    /// Who connects.
    pub source: SocketAddr,
    /// To what: for incoming connections the application, for outgoing ones the original destination.
    pub destination: SocketAddr,
    /// The identity of the peer that was proven, if any.
    pub peer: Option<Identity>,
    /// Where it was carried to and how, once that is known.
    pub onward: OnceLock<(SocketAddr, Travels)>,
    /// Boxed: few connections are ended from here, and all keep room for it.
    ended: OnceLock<Box<Refusal>>,
    waker: AtomicWaker,
}

impl Open {
    fn end(&self, refusal: Refusal) {
        if self.ended.set(Box::new(refusal)).is_ok() {
            self.waker.wake();
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            peer: self.peer.as_ref(),
            source: self.source.ip(),
            destination: self.destination,
            seen: None,
        }
    }
}

impl Connections {
    /// No connection is open, and at most `limit` will be in either direction.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), limit, none: Notify::new() })
    }

    /// Registers a connection until the registration is dropped.
    pub fn register(
        self: &Arc<Self>,
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
        peer: Option<Identity>,
    ) -> Result<Registration, Refusal> {
        let (onward, ended, waker) = (OnceLock::new(), OnceLock::new(), AtomicWaker::new());
        let open = Arc::new(Open { source, destination, peer, onward, ended, waker });
        let mut registry = self.registry();
        registry.next += 1;
        let id = registry.next;
        let all = registry.of(direction);
        if all.len() >= self.limit {
            return Err(Refusal::Overload { what: "connections of this pod", limit: self.limit });
        }
        all.insert(id, open.clone());
        drop(registry);
        Ok(Registration { connections: self.clone(), direction, id, open })
    }

    /// Judges every incoming connection again, and ends those that may no longer be.
    pub fn judge(&self, mesh: &Snapshot, workload: &Workload) {
        let open: Vec<_> = self.registry().inbound.values().cloned().collect();
        for connection in open {
            match authz::check(mesh.policies_on(workload), &connection.facts()) {
                Verdict::Allow(_) => {}
                Verdict::Deny(by) => connection.end(Refusal::NoLongerAllowed(Denial(by))),
            }
        }
    }

    /// Ends everything that is open.
    pub fn end_all(&self, refusal: &Refusal) {
        let mut registry = self.registry();
        let registry = &mut *registry;
        let all = registry.inbound.values().chain(registry.outbound.values());
        all.for_each(|connection| connection.end(refusal.clone()));
    }

    /// Ends what is open by virtue of the pod's own identity: what came with a proven peer, and what
    /// went out in a tunnel.
    pub fn end_identified(&self, refusal: &Refusal) {
        let registry = self.registry();
        let tunnelled = |open: &&Arc<Open>| match open.onward.get() {
            Some((_, Travels::Tunnel | Travels::TunnelInTunnel)) => true,
            Some((_, Travels::Plain)) | None => false,
        };
        let came = registry.inbound.values().filter(|open| open.peer.is_some());
        let went = registry.outbound.values().filter(tunnelled);
        came.chain(went).for_each(|open| open.end(refusal.clone()));
    }

    /// Resolves when none is open.
    pub async fn until_none(&self) {
        loop {
            let mut none = pin!(self.none.notified());
            // Before looking, so that what ends in between is heard.
            none.as_mut().enable();
            if self.counts() == (0, 0) {
                return;
            }
            none.await;
        }
    }

    /// The connections that are open in one direction.
    pub fn list(&self, direction: Direction) -> Vec<Arc<Open>> {
        self.registry().of(direction).values().cloned().collect()
    }

    /// How many connections are open, incoming and outgoing.
    pub fn counts(&self) -> (usize, usize) {
        let registry = self.registry();
        (registry.inbound.len(), registry.outbound.len())
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the open ones; dropping it takes the connection out.
#[derive(Debug)]
pub struct Registration {
    connections: Arc<Connections>,
    direction: Direction,
    id: u64,
    open: Arc<Open>,
}

impl Registration {
    /// Notes where the connection is carried to, for whoever looks.
    pub fn carried(&self, to: SocketAddr, travels: Travels) {
        // Carried once: a second note would be about something else.
        let _ = self.open.onward.set((to, travels));
    }

    /// Ready when the connection must end, with the reason.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<Refusal> {
        self.open.waker.register(cx.waker());
        self.open.ended.get().map_or(Poll::Pending, |refusal| Poll::Ready(Refusal::clone(refusal)))
    }

    /// Judges the connection by the policies on `workload`.
    pub fn judge(&self, mesh: &Snapshot, workload: &Workload) -> Result<By, Refusal> {
        match authz::check(mesh.policies_on(workload), &self.open.facts()) {
            Verdict::Allow(by) => Ok(by),
            Verdict::Deny(by) => Err(Refusal::Denied(Denial(by))),
        }
    }

    /// The dry-run policies that match, with what they would have done.
    pub fn dry_run<'m>(&self, mesh: &'m Snapshot, workload: &'m Workload) -> Vec<(&'m PolicyKey, Action)> {
        authz::dry_run(mesh.policies_on(workload), &self.open.facts()).collect()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut registry = self.connections.registry();
        registry.of(self.direction).remove(&self.id);
        if registry.inbound.is_empty() && registry.outbound.is_empty() {
            self.connections.none.notify_waiters();
        }
    }
}

/// Runs `work` until it is done or the connection must end.
pub fn until_ended<F: Future>(registration: &Registration, work: F) -> UntilEnded<'_, F> {
    UntilEnded { registration, work }
}

pin_project! {
    /// See [`until_ended`]. Hand-written, as an `async` function would keep room for the work twice, and a
    /// connection's task should be small.
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct UntilEnded<'a, F> {
        registration: &'a Registration,
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for UntilEnded<'_, F> {
    type Output = Result<F::Output, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(refusal) = this.registration.poll_ended(cx) {
            return Poll::Ready(Err(refusal));
        }
        this.work.poll(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use ambit_fixtures::mesh::{pod, snapshot};
    use ambit_model::{
        authz::{Action, Content, Policy, Rule, Scope},
        name::PolicyKey,
        snapshot::Update,
    };

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn deny_all(key: &str, scope: Scope) -> Update {
        let content = Content::Rules { action: Action::Deny, rules: vec![Rule::default()], dry_run: false };
        Update::Policy(Arc::new(Policy { key: PolicyKey::parse(key).expect("a key"), scope, content }))
    }

    #[tokio::test]
    async fn a_selector_policy_newly_attached_ends_an_open_connection() {
        let web = pod("shop/web").at("10.0.0.1");
        let mesh = snapshot([web.clone()], []).apply(&[], [deny_all("shop/new", Scope::WorkloadSelector)]);
        let all = Connections::new(10);
        let registration = all
            .register(Direction::Inbound, address("10.0.0.9:1"), address("10.0.0.1:80"), None)
            .expect("room");
        assert!(registration.judge(&mesh, &web.clone().build()).is_ok(), "not attached yet");
        let attached = web.policies(&["shop/new"]).build();
        all.judge(&mesh, &attached);
        let refusal = std::future::poll_fn(|cx| registration.poll_ended(cx)).await;
        assert_eq!(
            refusal.to_string(),
            "connection closed due to policy change: explicitly denied by: shop/new"
        );
    }

    #[tokio::test]
    async fn a_policy_that_comes_between_registration_and_check_is_not_lost() {
        let web = pod("shop/web").at("10.0.0.1").build();
        let mesh = snapshot([], []).apply(&[], [deny_all("shop/all", Scope::Namespace)]);
        let all = Connections::new(10);
        let registration = all
            .register(Direction::Inbound, address("10.0.0.9:1"), address("10.0.0.1:80"), None)
            .expect("room");
        all.judge(&mesh, &web);
        let work = std::future::pending::<()>();
        assert!(matches!(until_ended(&registration, work).await, Err(Refusal::NoLongerAllowed(_))));
    }

    #[test]
    fn a_revoked_identity_ends_what_bears_it_and_nothing_else() {
        let all = Connections::new(10);
        let peer = Identity::new("td", "shop", "client");
        let open = |direction, peer| {
            all.register(direction, address("10.0.0.9:1"), address("10.0.0.1:80"), peer).expect("room")
        };
        let (plain_in, proven_in) = (open(Direction::Inbound, None), open(Direction::Inbound, Some(peer)));
        let (plain_out, tunnel_out) = (open(Direction::Outbound, None), open(Direction::Outbound, None));
        plain_out.carried(address("192.0.2.1:80"), Travels::Plain);
        tunnel_out.carried(address("10.0.0.7:15008"), Travels::Tunnel);
        all.end_identified(&Refusal::Revoked("spiffe://td/ns/shop/sa/web".into()));
        let ended = |one: &Registration| one.open.ended.get().is_some();
        assert!(ended(&proven_in) && ended(&tunnel_out));
        assert!(!ended(&plain_in) && !ended(&plain_out));
    }

    #[tokio::test]
    async fn the_end_of_the_last_connection_is_heard() {
        let all = Connections::new(10);
        all.until_none().await;
        let open = |direction| all.register(direction, address("10.0.0.9:1"), address("10.0.0.1:80"), None);
        let (first, last) =
            (open(Direction::Inbound).expect("room"), open(Direction::Outbound).expect("room"));
        let mut none = pin!(all.until_none());
        let mut waits =
            async || std::future::poll_fn(|cx| Poll::Ready(none.as_mut().poll(cx).is_pending())).await;
        assert!(waits().await);
        drop(first);
        assert!(waits().await);
        drop(last);
        none.await;
    }

    #[test]
    fn a_pod_cannot_hold_more_connections_than_its_limit() {
        let all = Connections::new(1);
        let open = |direction| all.register(direction, address("10.0.0.9:1"), address("10.0.0.1:80"), None);
        let first = open(Direction::Inbound).expect("room");
        assert!(matches!(open(Direction::Inbound), Err(Refusal::Overload { .. })));
        let _other_direction = open(Direction::Outbound).expect("room");
        drop(first);
        assert!(open(Direction::Inbound).is_ok());
    }
}
