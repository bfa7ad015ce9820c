//! Tells every namespace whom to trust: `istio-ca-root-cert` with all trusted roots, and `istio-ca-crl` with the
//! revocation lists of a plugged-in authority. The leader alone writes.
//!
//! What there is is read first and compared, so a start writes nothing where nothing is missing. A ConfigMap that was
//! edited or deleted is mended; one that another control plane manages is left alone if it holds our roots, and where
//! somebody undoes what we write, the next write waits longer each time ([`board`]). Namespaces that end are left in
//! peace.

mod board;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ambit_api::labels::{CONFIG, MANAGED_BY, MANAGED_BY_AMBIT};
use futures_util::{Stream, StreamExt as _, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    runtime::watcher::{self, Event},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};

use self::board::{Board, Change, Task, Wanted};
use super::{in_force::InForce, keeping::told, watching};

/// Writes under way at once: ten thousand namespaces are told within a minute or two, and the API server has others to
/// serve.
const AT_ONCE: usize = 8;
/// A write that hangs must not hold up others.
const WRITE_LIMIT: Duration = Duration::from_secs(15);

/// What every namespace is told, and under which key.
pub(super) const ROOTS: (&str, &str) = ("istio-ca-root-cert", "root-cert.pem");

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// ConfigMaps that were written.
    pub writes: AtomicU64,
    /// Writes that failed.
    pub failures: AtomicU64,
    /// Namespaces that wait to be written to.
    pub waiting: AtomicU64,
}

/// The same, for each thing that is told.
#[derive(Debug, Default)]
pub struct Told {
    /// `istio-ca-root-cert`.
    pub roots: Counts,
    /// `istio-ca-crl`.
    pub lists: Counts,
}

/// What is told.
#[derive(Clone, Copy, Debug)]
enum Article {
    Roots,
    Lists,
}

impl Article {
    /// What is to be told of it now. `None`: nothing; what was told stays.
    fn wanted(self, in_force: &InForce) -> Option<Wanted> {
        match self {
            Self::Roots => {
                Some(Wanted { config_map: ROOTS.0, key: ROOTS.1, text: in_force.bundle().to_owned() })
            }
            Self::Lists => in_force.lists.clone().map(|text| Wanted {
                config_map: "istio-ca-crl",
                key: "ca-crl.pem",
                text,
            }),
        }
    }
}

/// Tells every namespace what is in force, while this replica is the `leader`, until `stop`.
pub async fn run(
    client: Client,
    in_force: watch::Receiver<Arc<InForce>>,
    leader: watch::Receiver<bool>,
    told: Arc<Told>,
    stop: impl Future<Output = ()> + Send,
) {
    let both = async {
        tokio::join!(
            tell(&client, Article::Roots, in_force.clone(), leader.clone(), &told.roots),
            tell(&client, Article::Lists, in_force.clone(), leader.clone(), &told.lists),
        )
    };
    tokio::select! {
        () = stop => {}
        _ = both => std::future::pending().await,
    }
}

async fn tell(
    client: &Client,
    article: Article,
    mut in_force: watch::Receiver<Arc<InForce>>,
    mut leader: watch::Receiver<bool>,
    counts: &Counts,
) {
    loop {
        if leader.wait_for(|leads| *leads).await.is_err() {
            // Without a leader's voice nobody leads.
            return std::future::pending().await;
        }
        let found = in_force.wait_for(|in_force| article.wanted(in_force).is_some()).await;
        let Some(wanted) = found.ok().and_then(|in_force| article.wanted(&in_force)) else {
            return std::future::pending().await;
        };
        tokio::select! {
            () = lead(client, article, wanted, in_force.clone(), counts) => {}
            _ = leader.wait_for(|leads| !*leads) => debug!(?article, "Not the leader any more, telling nobody"),
        }
        counts.waiting.store(0, Relaxed);
    }
}

async fn lead(
    client: &Client,
    article: Article,
    wanted: Wanted,
    mut in_force: watch::Receiver<Arc<InForce>>,
    counts: &Counts,
) {
    let name = wanted.config_map;
    let mut namespaces = pin!(namespaces(client));
    let mut maps = pin!(config_maps(client, name));
    let mut board = Board::new(wanted);
    let mut writes = FuturesUnordered::new();
    let mut was_idle = true;
    loop {
        while writes.len() < AT_ONCE {
            let Some((namespace, task)) = board.next(Instant::now().into_std()) else { break };
            let wanted = board.wanted().clone();
            writes.push(async move {
                let written = timeout(WRITE_LIMIT, write(client, &namespace, task, &wanted)).await;
                let written = written.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                (namespace, written)
            });
        }
        counts.waiting.store(u64::try_from(board.waiting()).unwrap_or(u64::MAX), Relaxed);
        if was_idle != writes.is_empty() {
            was_idle = writes.is_empty();
            if was_idle {
                info!(
                    config_map.name = name,
                    writes = counts.writes.load(Relaxed),
                    "Every namespace is told"
                );
            } else {
                info!(config_map.name = name, waiting = board.waiting(), "Telling namespaces");
            }
        }
        let wake = board.wake();
        tokio::select! {
            Some((namespace, written)) = writes.next() => {
                match &written {
                    Ok(()) => counts.writes.fetch_add(1, Relaxed),
                    Err(error) => {
                        warn!(namespace, config_map.name = name, error, "ConfigMap not written, trying again later");
                        counts.failures.fetch_add(1, Relaxed)
                    }
                };
                board.done(&namespace, written.is_ok(), Instant::now().into_std());
            }
            Some(change) = namespaces.next() => match change {
                Ok(change) => board.namespace(change),
                Err(error) => warn!(%error, "Namespaces not followed for now"),
            },
            Some(change) = maps.next() => match change {
                Ok(change) => board.config_map(change),
                Err(error) => warn!(config_map.name = name, %error, "ConfigMaps not followed for now"),
            },
            Ok(()) = in_force.changed() => {
                let wanted = article.wanted(&in_force.borrow_and_update());
                // A list that is not there any more was told for good: what was revoked stays revoked.
                if let Some(wanted) = wanted {
                    board.want(wanted);
                }
            }
            () = async { match wake { Some(at) => tokio::time::sleep_until(at.into()).await, None => std::future::pending().await } } => {}
        }
    }
}

async fn write(client: &Client, namespace: &str, task: Task, wanted: &Wanted) -> Result<(), String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let labels = [(CONFIG, "true"), (MANAGED_BY, MANAGED_BY_AMBIT)];
    let written = match task {
        Task::Create => {
            let mut map = ConfigMap::default();
            map.metadata.name = Some(wanted.config_map.to_owned());
            map.metadata.labels =
                Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
            map.data = Some([(wanted.key.to_owned(), wanted.text.clone())].into());
            maps.create(&PostParams::default(), &map).await
        }
        Task::Mend => {
            let change = json!({
                "metadata": { "labels": std::collections::BTreeMap::from(labels) },
                "data": { wanted.key: wanted.text },
            });
            maps.patch(wanted.config_map, &PatchParams::default(), &Patch::Merge(change)).await
        }
    };
    match written {
        Ok(_) => Ok(()),
        // Somebody made it, deleted it, or ends the namespace: we hear of that, and look again.
        Err(kube::Error::Api(status)) if status.code == 409 || status.is_not_found() || ends(&status) => {
            Ok(())
        }
        Err(error) => Err(told(&error)),
    }
}

fn ends(status: &kube::core::Status) -> bool {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

fn namespaces(client: &Client) -> impl Stream<Item = Result<Change<String>, watcher::Error>> + use<> {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    watching::objects(api, watcher::Config::default().any_semantic()).map(|event| {
        event.map(|event| match event {
            Event::Init => Change::Begin,
            Event::InitApply(namespace) => match living(namespace) {
                Ok(name) => Change::Listed(name),
                Err(name) => Change::Gone(name),
            },
            Event::InitDone => Change::End,
            Event::Apply(namespace) => match living(namespace) {
                Ok(name) => Change::Set(name),
                Err(name) => Change::Gone(name),
            },
            Event::Delete(namespace) => Change::Gone(namespace.metadata.name.unwrap_or_default()),
        })
    })
}

/// The name of a namespace; as an error if it ends.
fn living(namespace: PartialObjectMeta<Namespace>) -> Result<String, String> {
    let metadata = namespace.metadata;
    let name = metadata.name.unwrap_or_default();
    if metadata.deletion_timestamp.is_some() { Err(name) } else { Ok(name) }
}

fn config_maps(
    client: &Client,
    name: &str,
) -> impl Stream<Item = Result<Change<(String, ConfigMap)>, watcher::Error>> + use<> {
    let api: Api<ConfigMap> = Api::all(client.clone());
    let config = watcher::Config::default().any_semantic().fields(&format!("metadata.name={name}"));
    watching::objects(api, config).map(|event| {
        let placed = |map: ConfigMap| (map.metadata.namespace.clone().unwrap_or_default(), map);
        event.map(|event| match event {
            Event::Init => Change::Begin,
            Event::InitApply(map) => Change::Listed(placed(map)),
            Event::InitDone => Change::End,
            Event::Apply(map) => Change::Set(placed(map)),
            Event::Delete(map) => Change::Gone(placed(map).0),
        })
    })
}
