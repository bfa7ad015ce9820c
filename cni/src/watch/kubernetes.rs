//! Watches the Kubernetes API: the pods of one node, and the labels of all namespaces.
//!
//! Two tasks keep what they hear on one [`Board`]. While the API server cannot be reached the board stays as
//! it is, and so do the pods.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ambit_runtime::{
    backoff::Backoff,
    ready::Pending,
    task::{self, Owned},
};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod as KubernetesPod};
use kube::{
    Api, Client, Resource,
    core::{PartialObjectMeta, Status},
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{LookupError, PodName};
use crate::{
    metrics::Metrics,
    pod::{Mode, Pod},
    roster::View,
};

/// Changes come in bursts (a deployment of twenty pods); one view covers them.
const BURST: Duration = Duration::from_millis(20);

/// Without a change the view is given all the same: whoever takes it in may have forgotten something meanwhile.
const RESYNC: Duration = Duration::from_secs(10);

/// The waits between attempts: short enough that an API server that restarts is not missed, long enough
/// that the agents of a thousand nodes do not keep it down.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LAST_WAIT: Duration = Duration::from_secs(15);
/// How long one watch lasts. Its end shows that the API server lives: one that died without a word is noticed five
/// seconds after it.
const WATCH_SECONDS: u32 = 60;
/// What the API server asks for in a `Retry-After` is done, up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Objects a page, where lists are not streamed: what is in memory twice at most.
const PAGE: u32 = 500;

/// What one question about one pod may take. Whoever asks holds up the start of a pod.
const ANSWER: Duration = Duration::from_secs(3);

/// The pods of one node and all namespaces, as the API server tells of them.
#[derive(Debug)]
pub struct Watch {
    board: Board,
    changed: watch::Receiver<Heard>,
    /// Stop when dropped.
    _tasks: [Owned; 2],
}

/// What both tasks write on.
#[derive(Debug, Clone)]
struct Board(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    heard: watch::Sender<Heard>,
}

/// What there is news of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Heard {
    changes: u64,
    pods: bool,
    namespaces: bool,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Arc<Pod>>,
    modes: BTreeMap<String, Mode>,
}

/// Finds one pod of this node.
#[derive(Clone)]
pub struct Lookup {
    client: Client,
    board: Board,
    node: String,
}

/// How the list comes at the start of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    /// As events of the watch: neither side ever holds all of it.
    Streamed,
    /// Page by page: an API server that does not know better, or is told not to stream.
    Paged,
}

/// What a task does with what it hears.
trait Hearer<K>: Send + 'static {
    /// What is kept of an object: objects are large, and there may be ten thousand.
    type Kept: Send;
    fn read(&self, object: &K) -> Option<Self::Kept>;
    fn apply(&mut self, kept: Self::Kept);
    fn delete(&mut self, object: &K);
    /// What was heard since the last list began is all there is.
    fn replace(&mut self, all: Vec<Self::Kept>);
}

impl Watch {
    /// Starts watching for `node`. `synced` is done when the first lists are there.
    pub fn start(client: &Client, node: &str, metrics: &Metrics, synced: [Pending; 2]) -> Self {
        let (heard, changed) = watch::channel(Heard::default());
        let board = Board(Arc::new(Inner { state: Mutex::default(), heard }));
        let [pods_synced, namespaces_synced] = synced;
        let of_node =
            watcher::Config::default().timeout(WATCH_SECONDS).fields(&format!("spec.nodeName={node}"));
        let pods = Follower {
            api: Api::<KubernetesPod>::all(client.clone()),
            config: of_node,
            kind: "pods",
            hearer: Pods(board.clone()),
            metrics: metrics.clone(),
            synced: pods_synced,
        };
        let namespaces = Follower {
            api: Api::<PartialObjectMeta<Namespace>>::all(client.clone()),
            config: watcher::Config::default().timeout(WATCH_SECONDS),
            kind: "namespaces",
            hearer: Namespaces(board.clone()),
            metrics: metrics.clone(),
            synced: namespaces_synced,
        };
        let tasks = [
            task::spawn("watch pods", pods.run()).owned(),
            task::spawn("watch namespaces", namespaces.run()).owned(),
        ];
        Self { board, changed, _tasks: tasks }
    }

    /// Finds pods that the watch has not told of yet.
    pub fn lookup(&self, client: Client, node: &str) -> Lookup {
        Lookup { client, board: self.board.clone(), node: node.to_owned() }
    }

    /// The view once both lists are there.
    pub async fn first(&mut self) -> View {
        // Its sender is on the board, which we hold.
        let _ = self.changed.wait_for(|heard| heard.pods && heard.namespaces).await;
        self.board.view()
    }

    /// The view after something has changed.
    pub async fn next(&mut self) -> View {
        if timeout(RESYNC, self.changed.changed()).await.is_ok() {
            sleep(BURST).await;
            self.changed.mark_unchanged();
        }
        self.board.view()
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, note: impl FnOnce(&mut Heard)) {
        self.0.heard.send_modify(|heard| {
            heard.changes = heard.changes.wrapping_add(1);
            note(heard);
        });
    }

    fn view(&self) -> View {
        let state = self.lock();
        View { pods: state.pods.values().cloned().collect(), namespaces: state.modes.clone() }
    }

    fn known(&self, name: &PodName) -> Option<Arc<Pod>> {
        let state = self.lock();
        state.pods.values().find(|pod| name.means(pod)).cloned()
    }
}

struct Pods(Board);

impl Hearer<KubernetesPod> for Pods {
    type Kept = Arc<Pod>;

    fn read(&self, object: &KubernetesPod) -> Option<Arc<Pod>> {
        match Pod::read(object) {
            Ok(pod) => Some(Arc::new(pod)),
            Err(error) => {
                let meta = &object.metadata;
                warn!(pod.namespace = ?meta.namespace, pod.name = ?meta.name, %error, "A pod cannot be read; its last good form stays");
                self.0.lock().pods.get(meta.uid.as_deref()?).cloned()
            }
        }
    }

    fn apply(&mut self, pod: Arc<Pod>) {
        let before = self.0.lock().pods.insert(pod.uid.clone(), Arc::clone(&pod));
        if before.as_ref() != Some(&pod) {
            self.0.changed(|_| {});
        }
    }

    fn delete(&mut self, object: &KubernetesPod) {
        if let Some(uid) = &object.metadata.uid {
            self.0.lock().pods.remove(uid);
            self.0.changed(|_| {});
        }
    }

    fn replace(&mut self, all: Vec<Arc<Pod>>) {
        self.0.lock().pods = all.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        self.0.changed(|heard| heard.pods = true);
    }
}

struct Namespaces(Board);

impl Hearer<PartialObjectMeta<Namespace>> for Namespaces {
    type Kept = (String, Mode);

    fn read(&self, object: &PartialObjectMeta<Namespace>) -> Option<(String, Mode)> {
        Some((object.metadata.name.clone()?, Mode::of(&object.metadata)))
    }

    fn apply(&mut self, (name, mode): (String, Mode)) {
        if self.0.lock().modes.insert(name, mode) != Some(mode) {
            self.0.changed(|_| {});
        }
    }

    fn delete(&mut self, object: &PartialObjectMeta<Namespace>) {
        if let Some(name) = &object.metadata.name {
            self.0.lock().modes.remove(name);
            self.0.changed(|_| {});
        }
    }

    fn replace(&mut self, all: Vec<(String, Mode)>) {
        self.0.lock().modes = all.into_iter().collect();
        self.0.changed(|heard| heard.namespaces = true);
    }
}

/// Follows one kind: its list, its watch, and again after every failure.
struct Follower<K: Resource, H> {
    api: Api<K>,
    config: watcher::Config,
    kind: &'static str,
    hearer: H,
    metrics: Metrics,
    synced: Pending,
}

impl<K, H> Follower<K, H>
where
    K: Resource + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
    H: Hearer<K>,
{
    async fn run(mut self) {
        let mut lists = Lists::Streamed;
        let mut backoff = Backoff::new(FIRST_WAIT, LAST_WAIT);
        let mut ill = false;
        loop {
            let config = match lists {
                Lists::Streamed => self.config.clone().streaming_lists(),
                Lists::Paged => self.config.clone().page_size(PAGE),
            };
            let mut events = std::pin::pin!(watcher(self.api.clone(), config));
            let mut listed = Vec::new();
            while let Some(event) = events.next().await {
                let error = match event {
                    Ok(event) => {
                        self.hear(event, &mut listed);
                        backoff.reset();
                        if std::mem::take(&mut ill) {
                            info!(kind = self.kind, "The API server answers again");
                        }
                        continue;
                    }
                    Err(error) => error,
                };
                let status = status_of(&error);
                match status.map(|status| status.code) {
                    Some(400 | 422) if lists == Lists::Streamed => {
                        debug!(kind = self.kind, %error, "Lists are not streamed here; they are read in pages");
                        lists = Lists::Paged;
                        break;
                    }
                    // The watch is too old. As an event the stream understands that; as the answer to a request it would
                    // ask the same again for ever.
                    Some(410) => {
                        sleep(backoff.next(rand::random())).await;
                        break;
                    }
                    Some(_) | None => {}
                }
                self.metrics.api_failed(self.kind);
                // Told once; tried again and again.
                if !std::mem::replace(&mut ill, true) {
                    let remedy = remedy(status);
                    warn!(kind = self.kind, error = %chain(&error), remedy, "The API server cannot be watched; pods stay as they are");
                }
                let asked = status.and_then(|status| status.details.as_ref());
                let asked =
                    Duration::from_secs(asked.map_or(0, |details| details.retry_after_seconds.into()));
                sleep(asked.min(LONGEST_WAIT).max(backoff.next(rand::random()))).await;
            }
        }
    }

    fn hear(&mut self, event: Event<K>, listed: &mut Vec<H::Kept>) {
        match event {
            Event::Apply(object) => {
                if let Some(kept) = self.hearer.read(&object) {
                    self.hearer.apply(kept);
                }
            }
            Event::Delete(object) => self.hearer.delete(&object),
            Event::Init => listed.clear(),
            Event::InitApply(object) => listed.extend(self.hearer.read(&object)),
            Event::InitDone => {
                self.hearer.replace(std::mem::take(listed));
                self.synced.done();
            }
        }
    }
}

impl Lookup {
    /// The pod, and what its namespace says: from the watch if it has told of them, else from the API server.
    pub async fn find(&self, name: &PodName) -> Result<(Arc<Pod>, Mode), LookupError> {
        let pod = match self.board.known(name) {
            Some(pod) => pod,
            None => self.ask(name).await?,
        };
        let known = self.board.lock().modes.get(&pod.namespace).copied();
        let mode = match known {
            Some(mode) => mode,
            None => {
                let api = Api::<PartialObjectMeta<Namespace>>::all(self.client.clone());
                let found = answered(api.get_opt(&pod.namespace)).await?;
                found.map_or(Mode::Unsaid, |object| Mode::of(&object.metadata))
            }
        };
        Ok((pod, mode))
    }

    async fn ask(&self, name: &PodName) -> Result<Arc<Pod>, LookupError> {
        let api = Api::<KubernetesPod>::namespaced(self.client.clone(), &name.namespace);
        let object = answered(api.get_opt(&name.name)).await?.ok_or(LookupError::NoPod)?;
        let pod = Pod::read(&object).map_err(|error| LookupError::Unreadable(error.to_string()))?;
        if !name.means(&pod) {
            return Err(LookupError::Replaced);
        }
        match &pod.node {
            Some(node) if *node == self.node => Ok(Arc::new(pod)),
            other => Err(LookupError::OtherNode(other.clone().unwrap_or_default())),
        }
    }
}

async fn answered<T>(question: impl Future<Output = kube::Result<T>>) -> Result<T, LookupError> {
    let unreadable =
        |said: String| LookupError::Unreadable(format!("the API server cannot be asked: {said}"));
    match timeout(ANSWER, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(unreadable(chain(&error))),
        Err(_) => Err(unreadable(format!("no answer within {ANSWER:?}"))),
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").field("node", &self.node).finish_non_exhaustive()
    }
}

/// What the API server said, or else the error with its causes: the outermost alone seldom tells.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(status) = status_of(error) {
        return format!("{} (status {})", status.message, status.code);
    }
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

fn remedy(status: Option<&Status>) -> &'static str {
    match status.map(|status| status.code) {
        Some(401) => "is the agent's service account token mounted and fresh?",
        Some(403) => "the agent's ClusterRole must allow list and watch of pods and namespaces",
        Some(_) => "it is tried again",
        None => "is the API server up, and reachable from this node? It is tried again",
    }
}

/// What the API server said, if it was it that said no.
fn status_of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Status> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(watcher::Error::WatchError(status)) = error.downcast_ref() {
            return Some(status);
        }
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            return Some(status);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::json;

    fn board() -> Board {
        Board(Arc::new(Inner { state: Mutex::default(), heard: watch::Sender::new(Heard::default()) }))
    }

    fn object(uid: &str) -> KubernetesPod {
        serde_json::from_value(json!({
            "metadata": {"uid": uid, "name": uid, "namespace": "shop"}, "spec": {"nodeName": "n1", "containers": []},
        }))
        .unwrap()
    }

    fn uids(board: &Board) -> Vec<String> {
        board.view().pods.iter().map(|pod| pod.uid.clone()).collect()
    }

    fn apply(pods: &mut Pods, object: &KubernetesPod) {
        let kept = pods.read(object).unwrap();
        pods.apply(kept);
    }

    #[test]
    fn a_list_replaces_what_was_known() {
        let board = board();
        let mut pods = Pods(board.clone());
        apply(&mut pods, &object("a"));
        apply(&mut pods, &object("b"));
        pods.delete(&object("a"));
        assert_eq!(uids(&board), ["b"]);
        let all = pods.read(&object("c")).into_iter().collect();
        pods.replace(all);
        assert_eq!(uids(&board), ["c"]);
    }

    #[test]
    fn what_changes_nothing_is_no_change() {
        let board = board();
        let mut pods = Pods(board.clone());
        apply(&mut pods, &object("a"));
        let before = *board.0.heard.borrow();
        apply(&mut pods, &object("a"));
        assert_eq!(*board.0.heard.borrow(), before);
    }

    #[test]
    fn a_pod_that_can_be_read_no_longer_stays_as_it_was() {
        let board = board();
        let mut pods = Pods(board.clone());
        let mut broken = object("a");
        apply(&mut pods, &broken);
        broken.status = serde_json::from_value(json!({"podIP": "nonsense"})).unwrap();
        apply(&mut pods, &broken);
        let all = pods.read(&broken).into_iter().collect();
        pods.replace(all);
        assert_eq!(uids(&board), ["a"]);
        broken.metadata.uid = Some("b".into());
        assert!(pods.read(&broken).is_none(), "it never had a good form");
    }

    #[test]
    fn a_pod_is_meant_by_its_uid_as_kubelet_knows_it() {
        let name = |uid: Option<&str>| PodName {
            namespace: "shop".into(),
            name: "a".into(),
            kubelet_uid: uid.map(str::to_owned),
        };
        let image = Pod { kubelet_uid: "file".into(), ..pod("a") };
        for (uid, means) in [(None, true), (Some("a"), true), (Some("file"), true), (Some("other"), false)] {
            assert_eq!(name(uid).means(&image), means, "{uid:?}");
        }
    }
}
