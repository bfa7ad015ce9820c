//! Tunnels that only subscribe: each with a token of its own, noting what it hears and when.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ambit_wire::codec::{ADDRESS, AUTHORIZATION};
use ambit_wire::xds::{self, ClientMetrics, Handler, Mode, Rejected, Update};
use futures_util::{StreamExt as _, TryStreamExt as _, future, stream};
use kube::Client;
use tokio::task::JoinSet;

use super::objects::{self, Change, Shape, place_of};
use crate::controller::{channel, tunnel_of};

const AT_ONCE: usize = 16;
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// How tunnels subscribe.
#[derive(Clone, Debug)]
pub struct Way {
    /// To everything, or to what they ask for.
    pub mode: Mode,
    /// How many services each asks for.
    pub called: usize,
    /// The cluster.
    pub shape: Shape,
}

impl Way {
    /// The services that a node's pods call.
    fn services_of(&self, node: usize) -> BTreeSet<usize> {
        (0..self.called).map(|n| (node * 37 + n * 101) % self.shape.services).collect()
    }
}

/// All tunnels.
pub struct Tunnels {
    all: Vec<Tunnel>,
    running: JoinSet<()>,
}

/// One of them.
struct Tunnel {
    node: usize,
    handle: xds::Handle,
    notes: Arc<Mutex<Notes>>,
    asked: BTreeSet<usize>,
    mode: Mode,
}

/// What one heard.
#[derive(Debug, Default)]
pub struct Notes {
    /// When it first heard of each pod.
    pub pods: HashMap<String, Instant>,
    /// Resources that it was told, removals included.
    pub resources: usize,
    /// Bytes of these.
    pub bytes: usize,
    /// Pods that it was told and that do not concern it.
    pub strange: Vec<String>,
}

struct Ear {
    notes: Arc<Mutex<Notes>>,
    node: usize,
    asked: BTreeSet<usize>,
    mode: Mode,
}

impl Handler for Ear {
    fn apply(&mut self, update: Update) -> Vec<Rejected> {
        let now = Instant::now();
        let mut notes = locked(&self.notes);
        notes.resources += update.upserts.len() + update.removed.len();
        for resource in &update.upserts {
            notes.bytes += resource.body.as_ref().map_or(0, |body| body.len());
            if let Some(place) = place_of(&resource.name) {
                let concerns = self.mode == Mode::Wildcard
                    || place.node == self.node
                    || self.asked.contains(&place.service);
                if !concerns {
                    notes.strange.push(resource.name.clone());
                }
                notes.pods.entry(resource.name.clone()).or_insert(now);
            }
        }
        Vec::new()
    }
}

impl Tunnels {
    /// Connects the tunnels of all nodes.
    pub async fn connect(client: &Client, address: String, roots: &str, way: Way) -> anyhow::Result<Self> {
        let tokens = stream::iter(0..way.shape.nodes).map(|node| objects::token(client, node));
        let tokens: Vec<String> = tokens.buffered(AT_ONCE).try_collect().await?;
        let (mut all, mut running) = (Vec::new(), JoinSet::new());
        for (node, token) in tokens.into_iter().enumerate() {
            let connect = channel(address.clone(), roots, token)?;
            let asked = match way.mode {
                Mode::Wildcard => BTreeSet::new(),
                Mode::OnDemand => way.services_of(node),
            };
            let notes = Arc::new(Mutex::new(Notes::default()));
            let ear = Ear { notes: Arc::clone(&notes), node, asked: asked.clone(), mode: way.mode };
            let types = [(ADDRESS, way.mode), (AUTHORIZATION, Mode::Wildcard)];
            let metrics = Arc::new(ClientMetrics::default());
            let (subscription, handle) = xds::Client::new(&tunnel_of(node), types, connect, ear, metrics);
            running.spawn(subscription.run(std::future::pending()));
            all.push(Tunnel { node, handle, notes, asked, mode: way.mode });
        }
        Ok(Self { all, running })
    }

    /// Completes when every tunnel knows what it must know.
    pub async fn synced(&self) {
        future::join_all(self.all.iter().map(|tunnel| async {
            tunnel.handle.synced().await;
            for service in &tunnel.asked {
                // One that is not answered in time shows as changes that are not heard.
                let _ = tunnel.handle.demand(ADDRESS, &objects::service_key(*service), ASK_LIMIT).await;
            }
        }))
        .await;
    }

    /// Forgets what was heard so far.
    pub fn forget(&self) {
        self.all.iter().for_each(|tunnel| *locked(&tunnel.notes) = Notes::default());
    }

    /// Whether everybody has heard what concerns it.
    pub fn heard_all(&self, changes: &[Change]) -> bool {
        self.all.iter().all(|tunnel| {
            let notes = locked(&tunnel.notes);
            changes
                .iter()
                .filter(|change| tunnel.is_concerned(change))
                .all(|change| notes.pods.contains_key(&change.uid))
        })
    }

    /// For each tunnel and change that concerns it: how long it took to hear of it; none if it never did.
    pub fn delays(&self, changes: &[Change]) -> Vec<Option<Duration>> {
        let delays = self.all.iter().flat_map(|tunnel| {
            let notes = locked(&tunnel.notes);
            let concerning = changes.iter().filter(|change| tunnel.is_concerned(change));
            concerning
                .map(|change| notes.pods.get(&change.uid).map(|at| at.saturating_duration_since(change.at)))
                .collect::<Vec<_>>()
        });
        delays.collect()
    }

    /// Resources, bytes, and pods that did not concern who was told them, of all tunnels together.
    pub fn totals(&self) -> (usize, usize, usize) {
        self.all.iter().fold((0, 0, 0), |(resources, bytes, strange), tunnel| {
            let notes = locked(&tunnel.notes);
            (resources + notes.resources, bytes + notes.bytes, strange + notes.strange.len())
        })
    }

    /// Ends all of them.
    pub async fn disconnect(mut self) {
        self.running.shutdown().await;
    }
}

impl Tunnel {
    fn is_concerned(&self, change: &Change) -> bool {
        self.mode == Mode::Wildcard
            || change.place.node == self.node
            || self.asked.contains(&change.place.service)
    }
}

fn locked(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}
