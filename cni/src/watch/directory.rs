//! Watches the directory: every change becomes a whole new [`View`] of this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use ambit_api::directory::{Directory, DirectoryError, Document, Loaded, ObjectKey};
use k8s_openapi::api::core::v1::{Namespace, Pod as KubernetesPod};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{LookupError, PodName};
use crate::{
    pod::{Mode, Pod},
    roster::View,
};

/// Changes come in bursts (a file is written, renamed, its folder touched); one reading covers them.
const BURST: Duration = Duration::from_millis(20);

/// Without a sign of change the directory is read all the same: signs get lost on some file systems.
const RESYNC: Duration = Duration::from_secs(10);

/// The directory of one mesh, as seen from one node.
#[derive(Debug)]
pub struct Watch {
    directory: Arc<Directory>,
    reader: Option<Reader>,
    changed: mpsc::Receiver<()>,
    /// Stops watching when dropped.
    _watcher: RecommendedWatcher,
}

/// Finds one pod of one node in the directory.
#[derive(Debug, Clone)]
pub struct Lookup {
    directory: Arc<Directory>,
    node: String,
}

impl Lookup {
    /// For pods of `node`.
    pub fn new(directory: Arc<Directory>, node: &str) -> Self {
        Self { directory, node: node.to_owned() }
    }

    /// The pod, and what its namespace says.
    pub async fn find(&self, name: &PodName) -> Result<(Arc<Pod>, Mode), LookupError> {
        let directory = Arc::clone(&self.directory);
        let mut reader = Reader::new(&self.node);
        let reading = tokio::task::spawn_blocking(move || directory.load().map(|loaded| reader.view(loaded)));
        let unreadable = |error: &dyn std::fmt::Display| LookupError::Unreadable(error.to_string());
        let view = reading.await.map_err(|error| unreadable(&error))?.map_err(|error| unreadable(&error))?;
        let pod = view.pods.iter().find(|pod| name.means(pod)).cloned().ok_or(LookupError::NoPod)?;
        let mode = view.namespaces.get(&pod.namespace).copied().unwrap_or_default();
        Ok((pod, mode))
    }
}

/// Turns documents into a view. Pure but for its memory: a document that can be read no longer keeps
/// its last good meaning.
#[derive(Debug)]
pub struct Reader {
    node: String,
    pods: BTreeMap<ObjectKey, Arc<Pod>>,
    modes: BTreeMap<String, Mode>,
    complaints: BTreeSet<String>,
}

/// Why the directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The system refuses.
    #[error("cannot watch {path}: {source}; is fs.inotify.max_user_watches reached?", path = path.display())]
    Notify {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// It cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The task that read it died.
    #[error("the task that reads the directory died")]
    Died,
}

impl Watch {
    /// Starts watching for `node`.
    pub fn start(directory: Arc<Directory>, node: &str) -> Result<Self, WatchError> {
        let (sign, changed) = mpsc::channel(1);
        let failed = |path: &Path, source| WatchError::Notify { path: path.to_owned(), source };
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is seen too, as access: it is no change.
            let changes = |event: &notify::Event| match event.kind {
                EventKind::Access(_) => false,
                EventKind::Any
                | EventKind::Create(_)
                | EventKind::Modify(_)
                | EventKind::Remove(_)
                | EventKind::Other => true,
            };
            if event.as_ref().map_or(true, changes) {
                // Full: a sign is waiting already.
                let _ = sign.try_send(());
            }
        })
        .map_err(|error| failed(directory.path(), error))?;
        watcher
            .watch(directory.path(), RecursiveMode::Recursive)
            .map_err(|error| failed(directory.path(), error))?;
        Ok(Self { directory, reader: Some(Reader::new(node)), changed, _watcher: watcher })
    }

    /// The view now.
    pub async fn read(&mut self) -> Result<View, WatchError> {
        let directory = Arc::clone(&self.directory);
        let mut reader = self.reader.take().ok_or(WatchError::Died)?;
        let reading = tokio::task::spawn_blocking(move || {
            let view = directory.load().map(|loaded| reader.view(loaded));
            (reader, view)
        });
        let (reader, view) = reading.await.map_err(|_| WatchError::Died)?;
        self.reader = Some(reader);
        Ok(view?)
    }

    /// Completes when it is time to read again.
    pub async fn changed(&mut self) {
        if let Ok(Some(())) = timeout(RESYNC, self.changed.recv()).await {
            sleep(BURST).await;
            while self.changed.try_recv().is_ok() {}
        }
    }
}

impl Reader {
    /// Reads for `node`.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            pods: BTreeMap::new(),
            modes: BTreeMap::new(),
            complaints: BTreeSet::new(),
        }
    }

    /// This node's pods, and what namespaces say.
    pub fn view(&mut self, loaded: Loaded) -> View {
        let mut complaints: BTreeSet<String> = loaded.problems.iter().map(ToString::to_string).collect();
        let mut pods = BTreeMap::new();
        let mut modes = BTreeMap::new();
        for document in &loaded.objects {
            match (document.api_version.as_str(), document.kind.as_str()) {
                ("v1", "Pod") => {
                    let key = document.key();
                    let pod = read_pod(document).map(Arc::new).or_else(|complaint| {
                        complaints.insert(complaint);
                        self.pods.get(&key).cloned().ok_or(())
                    });
                    if let Ok(pod) = pod {
                        pods.insert(key, pod);
                    }
                }
                ("v1", "Namespace") => {
                    let mode = document.parse::<Namespace>().map(|object| Mode::of(&object.metadata));
                    let mode = mode.or_else(|error| {
                        complaints.insert(complaint(document, &error.to_string()));
                        self.modes.get(&document.name).copied().ok_or(())
                    });
                    if let Ok(mode) = mode {
                        modes.insert(document.name.clone(), mode);
                    }
                }
                _ => {}
            }
        }
        for new in complaints.difference(&self.complaints) {
            warn!(problem = %new, "An object of the directory cannot be read; its last good form stays");
        }
        self.complaints = complaints;
        self.pods = pods;
        self.modes = modes;
        let here = |pod: &&Arc<Pod>| pod.node.as_deref() == Some(self.node.as_str());
        View { pods: self.pods.values().filter(here).cloned().collect(), namespaces: self.modes.clone() }
    }
}

fn read_pod(document: &Document) -> Result<Pod, String> {
    let object: KubernetesPod = document.parse().map_err(|error| complaint(document, &error.to_string()))?;
    let mut pod = Pod::read(&object).map_err(|error| {
        debug!(pod = %document.key(), %error, "A pod says too little yet");
        complaint(document, &error.to_string())
    })?;
    pod.namespace.clone_from(&document.namespace);
    Ok(pod)
}

fn complaint(document: &Document, what: &str) -> String {
    format!("{}:{}: {}: {what}", document.file.display(), document.line, document.key())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PODS: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: here, namespace: shop, uid: u1}
spec: {nodeName: n1, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: there, namespace: shop, uid: u2}
spec: {nodeName: n2, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: nowhere, namespace: shop, uid: u3}
---
apiVersion: example.org/v1
kind: Pod
metadata: {name: other, namespace: shop, uid: u4}
";

    fn names(view: &View) -> Vec<&str> {
        view.pods.iter().map(|pod| pod.name.as_str()).collect()
    }

    #[tokio::test]
    async fn only_pods_of_this_node_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("all.yaml"), PODS).unwrap();
        let directory = Arc::new(Directory::open(dir.path()).unwrap());
        let mut watch = Watch::start(directory, "n1").unwrap();
        let view = watch.read().await.unwrap();
        assert_eq!(names(&view), ["here"]);
        assert_eq!(view.namespaces, [("shop".to_owned(), Mode::Ambient)].into());
    }

    #[tokio::test]
    async fn a_change_is_noticed_and_reading_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("all.yaml");
        fs::write(&file, PODS).unwrap();
        let directory = Arc::new(Directory::open(dir.path()).unwrap());
        let mut watch = Watch::start(directory, "n1").unwrap();
        watch.read().await.unwrap();
        let soon = Duration::from_secs(5);
        assert!(timeout(Duration::from_millis(200), watch.changed()).await.is_err(), "nothing changed");
        fs::write(&file, PODS.replace("nodeName: n2", "nodeName: n1")).unwrap();
        timeout(soon, watch.changed()).await.unwrap();
        assert_eq!(names(&watch.read().await.unwrap()), ["here", "there"]);
    }

    #[test]
    fn a_pod_that_can_be_read_no_longer_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("all.yaml");
        let directory = Directory::open(dir.path()).unwrap();
        let mut reader = Reader::new("n1");
        for text in [PODS.to_owned(), PODS.replace("nodeName: n1", "nodeName: [n1]")] {
            fs::write(&file, text).unwrap();
            assert_eq!(names(&reader.view(directory.load().unwrap())), ["here"]);
        }
        fs::write(&file, PODS.replace("name: here", "name: gone")).unwrap();
        assert_eq!(names(&reader.view(directory.load().unwrap())), ["gone"]);
    }
}
