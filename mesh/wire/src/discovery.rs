//! What the mesh knows here and now, kept up to date over xDS.
//!
//! [`Mesh`] is what decisions are made on: [`current`](Mesh::current) is one immutable snapshot.
//! [`Discovery`] is the xDS [`Handler`] that replaces it, one response at a time, so that a
//! response is seen whole or not at all. A policy that cannot be decoded never disappears, nor does what
//! applies to a service at its waypoint: the last good version stays, and where there is none a denial
//! takes its place.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_model::{
    answer::{Answer, Asked, Missing},
    authz::Policy,
    name::Node,
    service_config::ServiceConfig,
    snapshot::{Removal, Snapshot, Update},
    workload::Tunnel,
};
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::{sync::watch, time::timeout};

use crate::{
    codec::{self, Interner, InvalidResource},
    xds::{Handler, Received, Rejected, Update as Response, client::DemandError},
};

/// How many facts one decision may ask for before it is given up: a service, its waypoint, the
/// waypoint's network gateway, an endpoint of each, and then some.
const MAX_QUESTIONS: usize = 8;

/// How long one fact is waited for (protocols 5.3, step 3 uses the same bound for the own workload).
const FACT_TIMEOUT: Duration = Duration::from_secs(5);

/// The mesh as it is known to this process. Cheap to clone; all clones see the same.
#[derive(Clone, Debug)]
pub struct Mesh {
    current: Arc<ArcSwap<Snapshot>>,
    changed: watch::Receiver<u64>,
    demand: Option<Demand>,
}

/// Asks the control plane for a resource by name. Resolves when it has answered, if only that there is
/// no such thing; an error is no answer.
#[derive(Clone)]
pub struct Demand(Arc<dyn Fn(String) -> Answered + Send + Sync>);

/// Whether the control plane answered.
type Answered = BoxFuture<'static, Result<(), DemandError>>;

impl Demand {
    /// Asks through `ask`.
    pub fn new(
        ask: impl Fn(String) -> BoxFuture<'static, Result<(), DemandError>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(ask))
    }
}

impl std::fmt::Debug for Demand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Demand")
    }
}

/// Why a decision could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// The control plane did not say in time.
    #[error("the control plane did not answer for {0} within {FACT_TIMEOUT:?}")]
    Unanswered(String),
    /// One fact led to another too often.
    #[error("still undecided after {MAX_QUESTIONS} questions to the control plane, the last for {0}")]
    Endless(String),
}

impl Mesh {
    /// A mesh of which nothing is known, and what fills it. `node` limits which workloads are found
    /// by name (protocols 5.1).
    pub fn new(node: Option<Node>) -> (Self, Discovery) {
        let current = Arc::new(ArcSwap::from_pointee(Snapshot::empty(node)));
        let (announce, changed) = watch::channel(0);
        let writer = Writer { current: current.clone(), announce, turn: Arc::default() };
        let discovery = Discovery { writer, names: Interner::default(), tunnels: Tunnels::Here };
        (Self { current, changed, demand: None }, discovery)
    }

    /// The same mesh, which asks for what it does not know (`XDS_ON_DEMAND`).
    #[must_use]
    pub fn on_demand(self, demand: Demand) -> Self {
        Self { demand: Some(demand), ..self }
    }

    /// The snapshot of this moment. Take one per decision.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Resolves whenever there is a new snapshot; its value counts them.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Decides by `f` on the current snapshot. When `f` lacks a fact it is asked for, and `f` is
    /// called again with what came. At once, without waiting, unless something must be asked.
    pub async fn decide<T>(&self, f: impl Fn(&Snapshot, &Asked) -> Answer<T>) -> Result<T, Undecided> {
        let Some(demand) = &self.demand else {
            return match f(&self.current(), &Asked::Everything) {
                Answer::Known(answer) => Ok(answer),
                Answer::Need(missing) => Err(Undecided::Unanswered(missing.resource_name())),
            };
        };
        let mut asked: Vec<Missing> = Vec::new();
        loop {
            let missing = match f(&self.current(), &Asked::These(asked.clone())) {
                Answer::Known(answer) => return Ok(answer),
                Answer::Need(missing) => missing,
            };
            let name = missing.resource_name();
            if asked.len() >= MAX_QUESTIONS {
                return Err(Undecided::Endless(name));
            }
            // Without an answer nothing is known: what is not known to be absent must not be treated so.
            match timeout(FACT_TIMEOUT, (demand.0)(name.clone())).await {
                Ok(Ok(())) => asked.push(missing),
                Ok(Err(_)) | Err(_) => return Err(Undecided::Unanswered(name)),
            }
        }
    }

    /// Waits until `f` finds something, at most `limit`.
    pub async fn wait_for<T>(&self, limit: Duration, f: impl Fn(&Snapshot) -> Option<T>) -> Option<T> {
        if let Some(found) = f(&self.current()) {
            return Some(found);
        }
        let mut changed = self.changed.clone();
        timeout(limit, async move {
            loop {
                // Subscribed before looking: a change in between is seen as a change.
                changed.borrow_and_update();
                if let Some(found) = f(&self.current()) {
                    return Some(found);
                }
                changed.changed().await.ok()?;
            }
        })
        .await
        .ok()
        .flatten()
    }
}

/// Replaces the snapshot. Clones replace the same one, each in its turn.
#[derive(Clone, Debug)]
pub struct Writer {
    current: Arc<ArcSwap<Snapshot>>,
    announce: watch::Sender<u64>,
    turn: Arc<Mutex<()>>,
}

impl Writer {
    /// Replaces the snapshot by one with these changes, and tells everybody.
    pub fn apply(&self, removals: &[Removal], updates: impl IntoIterator<Item = Update>) {
        // It guards no value that a panic could leave half-changed.
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.current.load().apply(removals, updates);
        self.current.store(Arc::new(next));
        drop(turn);
        self.announce.send_modify(|version| *version += 1);
    }
}

/// Turns responses into snapshots.
#[derive(Debug)]
pub struct Discovery {
    writer: Writer,
    names: Interner,
    tunnels: Tunnels,
}

/// Who opens the tunnels that lead to workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tunnels {
    /// This process.
    Here,
    /// Somebody around it, who takes plain connections on their way.
    Around,
}

impl Discovery {
    /// The means to change the mesh from elsewhere, too.
    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// The same for a process whose own connections a ztunnel captures: to it no workload has a tunnel, nor a gateway that
    /// leads to it, since opening those is the affair of that ztunnel.
    #[must_use]
    pub fn behind_ztunnel(self) -> Self {
        Self { tunnels: Tunnels::Around, ..self }
    }

    /// As this process is to see it.
    fn seen(&self, mut update: Update) -> Update {
        match (&mut update, self.tunnels) {
            (Update::Workload(workload), Tunnels::Around) => {
                let workload = Arc::make_mut(workload);
                workload.tunnel = Tunnel::None;
                workload.network_gateway = None;
            }
            (Update::Workload(_), Tunnels::Here)
            | (Update::Service(_) | Update::Policy(_) | Update::Config(_), _) => {}
        }
        update
    }

    fn decode(
        &mut self,
        kind: Kind,
        received: Received,
    ) -> Result<Update, (InvalidResource, Option<Update>)> {
        let Received { name, body, .. } = received;
        let missing = || InvalidResource::Message("the resource has no body".to_owned());
        match kind {
            Kind::Address => {
                let update = body.ok_or_else(missing);
                update
                    .and_then(|body| codec::decode_address(body, &mut self.names))
                    .map_err(|error| (error, None))
            }
            Kind::Authorization => {
                let Some(body) = body else {
                    let denial = codec::policy_key(&name)
                        .map(|key| Policy::undecodable(key, None, missing().to_string()));
                    return Err((missing(), denial.map(policy)));
                };
                let read = codec::decode_authorization(&name, body, &mut self.names);
                read.map(policy).map_err(|(error, denial)| (error, denial.map(|denial| policy(*denial))))
            }
            Kind::ServiceConfig => {
                let read = body.ok_or_else(missing);
                let read = read.and_then(|body| codec::decode_service_config(body, &mut self.names));
                let read = read.and_then(|config| named(&name, config)).inspect(warn_of_denials);
                read.map(config).map_err(|error| {
                    let broken = codec::service_config_key(&name)
                        .map(|key| ServiceConfig::undecodable(key, &error.to_string()));
                    (error, broken.map(config))
                })
            }
        }
    }

    /// What holds while a resource cannot be decoded: the last version that could, else `denial`.
    fn stand_in(&self, denial: Update) -> Option<Update> {
        let known = self.writer.current.load();
        let has_good = match &denial {
            Update::Policy(policy) => known.policy(&policy.key).is_some_and(|known| known.broken().is_none()),
            Update::Config(config) => {
                known.config(config.key()).is_some_and(|known| known.broken().is_none())
            }
            // Of these nothing is denied by what stands for them; what was known stays.
            Update::Workload(_) | Update::Service(_) => true,
        };
        (!has_good).then_some(denial)
    }
}

fn policy(policy: Policy) -> Update {
    Update::Policy(Arc::new(policy))
}

fn config(config: ServiceConfig) -> Update {
    Update::Config(Arc::new(config))
}

/// A policy that is not understood denies, and the rest of what applies is taken; so nobody else says it.
fn warn_of_denials(config: &ServiceConfig) {
    for policy in config.policies() {
        if let Some(reason) = policy.broken() {
            tracing::warn!(
                service = %config.key(), policy = %policy.key, error = %reason,
                "Denies all requests by a policy that could not be understood"
            );
        }
    }
}

/// What is stored under one name must be removable under that name.
fn named(name: &str, config: ServiceConfig) -> Result<ServiceConfig, InvalidResource> {
    if codec::service_config_key(name).as_ref() == Some(config.key()) {
        return Ok(config);
    }
    Err(InvalidResource::Message(format!(
        "{} is not the service of the resource's name {name:?}",
        config.key()
    )))
}

/// The types that are understood.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Address,
    Authorization,
    ServiceConfig,
}

impl Kind {
    fn of(type_url: &str) -> Option<Self> {
        match type_url {
            codec::ADDRESS => Some(Self::Address),
            codec::AUTHORIZATION => Some(Self::Authorization),
            codec::SERVICE_CONFIG => Some(Self::ServiceConfig),
            _ => None,
        }
    }

    /// `None`: nothing was ever known by such a name.
    fn removal(self, name: String) -> Option<Removal> {
        match self {
            Self::Address => Some(Removal::Address(name)),
            Self::Authorization => codec::policy_key(&name).map(Removal::Policy),
            Self::ServiceConfig => codec::service_config_key(&name).map(Removal::Config),
        }
    }
}

impl Handler for Discovery {
    fn apply(&mut self, response: Response) -> Vec<Rejected> {
        let type_url = response.type_url;
        let Some(kind) = Kind::of(&type_url) else {
            tracing::warn!(xds.type_url = %type_url, "Ignored a response of a type that was not asked for");
            return Vec::new();
        };
        let mut rejected = Vec::new();
        let mut updates = Vec::with_capacity(response.upserts.len());
        for received in response.upserts {
            let name = received.name.clone();
            match self.decode(kind, received) {
                Ok(update) => updates.push(self.seen(update)),
                Err((error, denial)) => {
                    let reason = error.to_string();
                    tracing::warn!(
                        xds.type_url = %type_url, xds.resource = %name, error = %reason,
                        "Refused a resource; what was known of it before stays in force"
                    );
                    updates.extend(denial.and_then(|denial| self.stand_in(denial)));
                    rejected.push(Rejected { name, reason });
                }
            }
        }
        let removals: Vec<_> = response.removed.into_iter().filter_map(|name| kind.removal(name)).collect();
        self.writer.apply(&removals, updates);
        rejected
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use ambit_model::{name::ServiceKey, service_config::Parts, workload::Workload};
    use bytes::Bytes;
    use futures_util::FutureExt as _;

    use super::*;

    /// A decision that needs one fact and passes when that is known to be absent.
    fn needs_one(_: &Snapshot, asked: &Asked) -> Answer<&'static str> {
        let missing = Missing::Workload("w".into());
        asked.yet(|| missing).map_or(Answer::Known("absent"), Answer::Need)
    }

    fn asking(answer: Result<(), DemandError>) -> (Mesh, Arc<Mutex<Vec<String>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = told.clone();
        let demand = Demand::new(move |name| {
            heard.lock().expect("not poisoned").push(name);
            async move { answer }.boxed()
        });
        (Mesh::new(None).0.on_demand(demand), told)
    }

    fn workload(uid: &str) -> Update {
        Update::Workload(Arc::new(Workload { uid: uid.into(), ..Workload::default() }))
    }

    fn response(upserts: Vec<Received>, removed: &[&str]) -> Response {
        let removed = removed.iter().map(ToString::to_string).collect();
        Response { type_url: codec::SERVICE_CONFIG.to_owned(), upserts, removed }
    }

    fn told(discovery: &mut Discovery, name: &str, body: Option<Bytes>) -> Vec<Rejected> {
        let (aliases, version) = (Vec::new(), String::new());
        let received = Received { name: name.to_owned(), aliases, version, body };
        discovery.apply(response(vec![received], &[]))
    }

    #[test]
    fn a_service_whose_configuration_is_not_understood_is_denied_or_stays_as_it_was() {
        let (mesh, mut discovery) = Mesh::new(None);
        let (key, name) = (ServiceKey::new("shop", "web.test"), "shop/gate/shop/web.test");
        let broken = |mesh: &Mesh| mesh.current().config(&key).map(|config| config.broken().is_some());
        let good = || Some(codec::encode_service_config(&ServiceConfig::new(key.clone(), Parts::default())));
        let strange = || Some(Bytes::from_static(b"strange"));

        for body in [strange(), None] {
            assert_eq!(told(&mut discovery, name, body).len(), 1);
            assert_eq!(broken(&mesh), Some(true));
        }
        assert!(told(&mut discovery, name, good()).is_empty());
        assert_eq!(broken(&mesh), Some(false));
        assert_eq!(told(&mut discovery, name, strange()).len(), 1);
        assert_eq!(broken(&mesh), Some(false), "the last good version stays");

        discovery.apply(response(Vec::new(), &[name]));
        assert_eq!(broken(&mesh), None);
    }

    #[test]
    fn behind_a_ztunnel_no_workload_has_a_tunnel() {
        let pod = ambit_fixtures::mesh::pod("shop/web").at("10.0.0.1").build();
        assert_eq!(pod.tunnel, Tunnel::Hbone);
        for (around, expected) in [(false, Tunnel::Hbone), (true, Tunnel::None)] {
            let (mesh, discovery) = Mesh::new(None);
            let mut discovery = if around { discovery.behind_ztunnel() } else { discovery };
            let (aliases, version) = (Vec::new(), String::new());
            let (name, body) = (pod.uid.to_string(), Some(codec::encode_workload(&pod)));
            let received = Received { name, aliases, version, body };
            let told = Response { type_url: codec::ADDRESS.into(), ..response(vec![received], &[]) };
            assert!(discovery.apply(told).is_empty());
            assert_eq!(mesh.current().workload(&pod.uid).map(|known| known.tunnel), Some(expected));
        }
    }

    #[test]
    fn a_configuration_is_known_by_the_name_of_its_resource() {
        let (mesh, mut discovery) = Mesh::new(None);
        let (web, api) = (ServiceKey::new("shop", "web.test"), ServiceKey::new("shop", "api.test"));
        let body = || Some(codec::encode_service_config(&ServiceConfig::new(web.clone(), Parts::default())));
        let rejected = told(&mut discovery, "shop/gate/shop/api.test", body());
        assert!(rejected.iter().all(|one| one.reason.contains("shop/web.test")), "{rejected:?}");
        assert_eq!(mesh.current().config(&web).map(drop), None);
        assert!(mesh.current().config(&api).is_some_and(|config| config.broken().is_some()));
        assert_eq!(told(&mut discovery, "web.test", body()).len(), 1);
        assert_eq!(mesh.current().config(&web).map(drop), None);
    }

    /// Each change wakes who waits, and finds a new wait (protocols 12, line 22).
    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_is_found_after_any_number_of_other_changes() {
        let (mesh, discovery) = Mesh::new(None);
        let writer = discovery.writer();
        let limit = Duration::from_secs(5);
        let wanted = |snapshot: &Snapshot| snapshot.workload(&"wanted".into()).map(|found| found.uid.clone());
        let telling = async {
            for other in 0..20 {
                writer.apply(&[], [workload(&other.to_string())]);
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(limit / 2).await;
            writer.apply(&[], [workload("wanted")]);
        };
        let (found, ()) = tokio::join!(mesh.wait_for(limit, wanted), telling);
        assert_eq!(found, Some("wanted".into()));
        assert_eq!(mesh.wait_for(limit, |_| None::<()>).await, None, "and not for ever");
    }

    #[tokio::test]
    async fn what_the_control_plane_says_is_absent_is_absent() {
        let (mesh, asked) = asking(Ok(()));
        assert_eq!(mesh.decide(needs_one).await, Ok("absent"));
        assert_eq!(*asked.lock().expect("not poisoned"), ["w"]);
    }

    #[tokio::test]
    async fn a_fact_that_nobody_answers_for_is_not_absent() {
        for error in [DemandError::Timeout, DemandError::Busy, DemandError::Stopped] {
            let (mesh, _) = asking(Err(error));
            assert_eq!(mesh.decide(needs_one).await, Err(Undecided::Unanswered("w".into())), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_plane_that_stalls_is_not_waited_for_for_ever() {
        let mesh = Mesh::new(None).0.on_demand(Demand::new(|_| std::future::pending().boxed()));
        assert_eq!(mesh.decide(needs_one).await, Err(Undecided::Unanswered("w".into())));
    }

    #[tokio::test]
    async fn one_fact_that_leads_to_another_ends_somewhere() {
        let (mesh, _) = asking(Ok(()));
        let endless = |_: &Snapshot, asked: &Asked| match asked {
            Asked::These(known) => Answer::<()>::Need(Missing::Workload(known.len().to_string().into())),
            Asked::Everything => Answer::Known(()),
        };
        assert!(matches!(mesh.decide(endless).await, Err(Undecided::Endless(_))));
    }
}
