//! What the mesh knows here and now, kept up to date over xDS.
//!
//! [`Mesh`] is what decisions are made on: [`current`](Mesh::current) is one immutable snapshot.
//! [`Discovery`] is the xDS [`Handler`] that replaces it, one response at a time, so that a
//! response is seen whole or not at all. A policy that cannot be decoded never disappears: the last
//! good version stays, and where there is none a denial takes its place.

use std::{sync::Arc, time::Duration};

use ambit_model::{
    answer::{Answer, Asked, Missing},
    authz::{Content, Policy},
    name::Node,
    snapshot::{Removal, Snapshot, Update},
};
use arc_swap::ArcSwap;
use tokio::{sync::watch, time::timeout};

use crate::{
    codec::{self, Interner, InvalidResource},
    xds::{Handler, Received, Rejected, Update as Response},
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

/// Asks the control plane for a resource by name and resolves when it answered.
#[derive(Clone)]
pub struct Demand(Arc<dyn Fn(String) -> futures_util::future::BoxFuture<'static, ()> + Send + Sync>);

impl Demand {
    /// Asks through `ask`.
    pub fn new(
        ask: impl Fn(String) -> futures_util::future::BoxFuture<'static, ()> + Send + Sync + 'static,
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
        let discovery = Discovery { current: current.clone(), announce, names: Interner::default() };
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
            if timeout(FACT_TIMEOUT, (demand.0)(name.clone())).await.is_err() {
                return Err(Undecided::Unanswered(name));
            }
            asked.push(missing);
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

/// Turns responses into snapshots.
#[derive(Debug)]
pub struct Discovery {
    current: Arc<ArcSwap<Snapshot>>,
    announce: watch::Sender<u64>,
    names: Interner,
}

impl Discovery {
    /// Replaces the snapshot by one with these changes, and tells everybody.
    pub fn apply(&mut self, removals: &[Removal], updates: impl IntoIterator<Item = Update>) {
        let next = self.current.load().apply(removals, updates);
        self.current.store(Arc::new(next));
        self.announce.send_modify(|version| *version += 1);
    }

    fn decode(
        &mut self,
        type_url: &str,
        received: Received,
    ) -> Result<Update, (InvalidResource, Option<Policy>)> {
        let Some(body) = received.body else {
            let missing = InvalidResource::Message("the resource has no body".to_owned());
            let policy = codec::policy_key(&received.name).filter(|_| type_url == codec::AUTHORIZATION);
            let denial = policy.map(|key| Policy::undecodable(key, None, missing.to_string()));
            return Err((missing, denial));
        };
        if type_url == codec::AUTHORIZATION {
            let policy = codec::decode_authorization(&received.name, body, &mut self.names)?;
            Ok(Update::Policy(Arc::new(policy)))
        } else {
            codec::decode_address(body, &mut self.names).map_err(|error| (error, None))
        }
    }

    /// What is enforced while a policy cannot be decoded: the last version that could, else a denial.
    fn stand_in(&self, denial: Policy) -> Option<Policy> {
        match self.current.load().policy(&denial.key).map(|known| &known.content) {
            Some(Content::Rules { .. }) => None,
            Some(Content::Undecodable { .. }) | None => Some(denial),
        }
    }
}

impl Handler for Discovery {
    fn apply(&mut self, response: Response) -> Vec<Rejected> {
        let type_url = response.type_url;
        if type_url != codec::ADDRESS && type_url != codec::AUTHORIZATION {
            tracing::warn!(xds.type_url = %type_url, "Ignored a response of a type that was not asked for");
            return Vec::new();
        }
        let mut rejected = Vec::new();
        let mut updates = Vec::with_capacity(response.upserts.len());
        for received in response.upserts {
            let name = received.name.clone();
            match self.decode(&type_url, received) {
                Ok(update) => updates.push(update),
                Err((error, denial)) => {
                    let reason = error.to_string();
                    tracing::warn!(
                        xds.type_url = %type_url, xds.resource = %name, error = %reason,
                        "Refused a resource; what was known of it before stays in force"
                    );
                    let stand_in = denial.and_then(|denial| self.stand_in(denial));
                    updates.extend(stand_in.map(|policy| Update::Policy(Arc::new(policy))));
                    rejected.push(Rejected { name, reason });
                }
            }
        }
        let removal = |name: String| {
            if type_url == codec::AUTHORIZATION {
                codec::policy_key(&name).map(Removal::Policy)
            } else {
                Some(Removal::Address(name))
            }
        };
        let removals: Vec<_> = response.removed.into_iter().filter_map(removal).collect();
        Self::apply(self, &removals, updates);
        rejected
    }
}
