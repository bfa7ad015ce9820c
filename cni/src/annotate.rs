//! Writes onto pods how far they are: the annotation that tells the control plane to use HBONE.

use std::{
    collections::BTreeMap,
    fmt, fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_api::{
    directory::{Directory, DirectoryError, ObjectKey, STATUS_FOLDER},
    labels,
};
use k8s_openapi::api::core::v1::Pod as KubernetesPod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{pod::Redirection, roster::Member, watch::kubernetes::chain};

/// What one write may take. It is tried again by whoever wants it.
const LIMIT: Duration = Duration::from_secs(5);

/// This agent's hand.
#[derive(Debug, Clone)]
pub enum Annotations {
    /// In the directory.
    Directory(Overlays),
    /// In the Kubernetes API.
    Kubernetes(Patches),
}

/// Writes through the API server.
#[derive(Clone)]
pub struct Patches(Client);

/// Writes into the directory.
#[derive(Debug, Clone)]
pub struct Overlays {
    directory: Arc<Directory>,
    writer: Arc<str>,
    /// The UID of the pod for which each overlay was last written. A pod and its successor of the same
    /// name share one, and the one that leaves late must not take the other's word back.
    owners: Arc<Mutex<BTreeMap<ObjectKey, String>>>,
}

/// Why nothing could be written.
#[derive(Debug, thiserror::Error)]
pub enum AnnotateError {
    /// The directory refused.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The task that wrote died.
    #[error("the task that writes annotations died")]
    Died,
    /// The API server refused.
    #[error("the API server refused: {0}")]
    Refused(String),
    /// It did not answer.
    #[error("the API server did not answer within {LIMIT:?}")]
    Silent,
}

impl Annotations {
    /// In the directory, as the agent of `node`.
    pub fn directory(directory: Arc<Directory>, node: &str) -> Self {
        Self::Directory(Overlays::new(directory, node))
    }

    /// Through the API server.
    pub fn kubernetes(client: Client) -> Self {
        Self::Kubernetes(Patches(client))
    }

    /// Writes the pod's state, or takes it away.
    pub async fn write(&self, member: &Member, state: Redirection) -> Result<(), AnnotateError> {
        match self {
            Self::Directory(overlays) => overlays.write(member, state).await,
            Self::Kubernetes(patches) => patches.write(member, state).await,
        }
    }

    /// Takes away what this agent wrote about pods that are not there any more. In Kubernetes it went with
    /// them.
    pub fn forget_absent(&self, present: impl Fn(&ObjectKey) -> bool) -> Result<(), AnnotateError> {
        match self {
            Self::Directory(overlays) => overlays.forget_absent(present),
            Self::Kubernetes(_) => Ok(()),
        }
    }
}

impl Patches {
    /// A patch of the pod's status may change its annotations too, and needs less of a permission than one
    /// of the pod.
    async fn write(&self, member: &Member, state: Redirection) -> Result<(), AnnotateError> {
        let api = Api::<KubernetesPod>::namespaced(self.0.clone(), &member.namespace);
        let patch = Patch::Merge(patch(&member.uid, state));
        let parameters = PatchParams::default();
        match timeout(LIMIT, api.patch_status(&member.name, &parameters, &patch)).await {
            Ok(Ok(_)) => Ok(()),
            // There is nothing to write on.
            Ok(Err(kube::Error::Api(status))) if is_gone(status.code, &status.message) => Ok(()),
            Ok(Err(error)) => Err(AnnotateError::Refused(chain(&error))),
            Err(_) => Err(AnnotateError::Silent),
        }
    }
}

/// Whether the pod is not there any more, or another has its name. Other conflicts are tried again.
fn is_gone(code: u16, message: &str) -> bool {
    match code {
        404 => true,
        409 => message.contains("UID in precondition"),
        422 => message.contains("metadata.uid"),
        _ => false,
    }
}

/// The UID is no change; it makes the API server refuse to write on another pod of the same name.
fn patch(uid: &str, state: Redirection) -> Value {
    json!({"metadata": {"uid": uid, "annotations": {labels::REDIRECTION: state.word()}}})
}

impl fmt::Debug for Patches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Patches")
    }
}

impl Overlays {
    /// Writes as the agent of `node`.
    pub fn new(directory: Arc<Directory>, node: &str) -> Self {
        Self { directory, writer: format!("agent-{node}").into(), owners: Arc::default() }
    }

    /// Writes the pod's state, or takes it away.
    pub async fn write(&self, member: &Member, state: Redirection) -> Result<(), AnnotateError> {
        let key = ObjectKey::new("Pod", &member.namespace, &member.name);
        let uid = member.uid.clone();
        let hand = self.clone();
        let write = move || hand.put(key, uid, state);
        Ok(tokio::task::spawn_blocking(write).await.map_err(|_| AnnotateError::Died)??)
    }

    fn put(&self, key: ObjectKey, uid: String, state: Redirection) -> Result<(), DirectoryError> {
        // Held while writing: the file and its owner change together.
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(word) = state.word() else {
            if owners.get(&key).is_some_and(|owner| *owner != uid) {
                return Ok(());
            }
            owners.remove(&key);
            return self.directory.unpatch(&self.writer, &key);
        };
        let overlay = json!({"metadata": {"annotations": {labels::REDIRECTION: word}}});
        self.directory.patch(&self.writer, &key, &overlay)?;
        owners.insert(key, uid);
        Ok(())
    }

    /// Takes away what this agent wrote about pods that are not there any more, so that a pod which gets
    /// one's name later does not start with it.
    pub fn forget_absent(&self, present: impl Fn(&ObjectKey) -> bool) -> Result<(), AnnotateError> {
        let folder = self.directory.path().join(STATUS_FOLDER).join(&*self.writer);
        // No folder: nothing was ever written.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let parts = name.to_str().and_then(|name| name.strip_prefix("Pod.")?.strip_suffix(".yaml"));
            let Some((namespace, name)) = parts.and_then(|rest| rest.split_once('.')) else { continue };
            let key = ObjectKey::new("Pod", namespace, name);
            if !present(&key) {
                self.directory.unpatch(&self.writer, &key)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pod::tests::pod,
        redirect::Capture,
        roster::{Change, Roster, View},
    };

    fn member() -> Member {
        let view = View {
            pods: vec![Arc::new(pod("a"))],
            namespaces: [("shop".to_owned(), crate::pod::Mode::Ambient)].into(),
        };
        let rules = crate::enroll::Rules {
            excluded: Default::default(),
            dns: Capture::On,
            probes: Default::default(),
        };
        match Roster::default().reconcile(&view, &rules, &|_| None).changes.remove(0) {
            Change::Join { member, .. } | Change::Leave { member, .. } => member,
        }
    }

    #[test]
    fn a_patch_names_the_pod_it_is_meant_for() {
        let value = patch("u1", Redirection::Unsaid);
        assert_eq!(value, json!({"metadata": {"uid": "u1", "annotations": {labels::REDIRECTION: null}}}));
        assert_eq!(
            patch("u1", Redirection::Enabled)["metadata"]["annotations"][labels::REDIRECTION],
            "enabled"
        );
    }

    #[test]
    fn a_conflict_about_anything_but_the_uid_is_tried_again() {
        let uid = "Operation cannot be fulfilled on pods \"a\": Precondition failed: UID in precondition: x, UID in object meta: y";
        for (code, message, gone) in [
            (404, "pods \"a\" not found", true),
            (409, uid, true),
            (409, "the object has been modified; please apply your changes to the latest version", false),
            (422, "Pod \"a\" is invalid: metadata.uid: Invalid value: \"x\": field is immutable", true),
            (422, "something else", false),
            (403, "pods \"a\" is forbidden", false),
        ] {
            assert_eq!(is_gone(code, message), gone, "{code} {message}");
        }
    }

    #[tokio::test]
    async fn what_is_written_is_seen_on_the_pod_and_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\n";
        fs::write(dir.path().join("a.yaml"), pod).unwrap();
        let directory = Arc::new(Directory::open(dir.path()).unwrap());
        let annotations = Overlays::new(Arc::clone(&directory), "n1");
        let seen = || {
            directory.load().unwrap().objects[0].value["metadata"]["annotations"][labels::REDIRECTION].clone()
        };

        annotations.write(&member(), Redirection::Pending).await.unwrap();
        assert_eq!(seen(), "pending");
        annotations.write(&member(), Redirection::Enabled).await.unwrap();
        assert_eq!(seen(), "enabled");
        annotations.forget_absent(|key| key.name == "a").unwrap();
        assert_eq!(seen(), "enabled");
        annotations.write(&member(), Redirection::Unsaid).await.unwrap();
        assert!(seen().is_null());
    }

    #[tokio::test]
    async fn a_pod_that_leaves_late_does_not_take_back_its_namesakes_word() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Arc::new(Directory::open(dir.path()).unwrap());
        let annotations = Overlays::new(directory, "n1");
        let (old, new) = (member(), Member { uid: "b".into(), ..member() });
        annotations.write(&old, Redirection::Enabled).await.unwrap();
        annotations.write(&new, Redirection::Enabled).await.unwrap();
        annotations.write(&old, Redirection::Unsaid).await.unwrap();
        let file = dir.path().join("status/agent-n1/Pod.shop.a.yaml");
        assert!(file.exists());
        annotations.write(&new, Redirection::Unsaid).await.unwrap();
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn a_pod_that_is_gone_leaves_no_word_for_its_namesake() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Arc::new(Directory::open(dir.path()).unwrap());
        let annotations = Overlays::new(directory, "n1");
        annotations.write(&member(), Redirection::Enabled).await.unwrap();
        let file = dir.path().join("status/agent-n1/Pod.shop.a.yaml");
        assert!(file.exists());
        annotations.forget_absent(|_| false).unwrap();
        assert!(!file.exists());
    }
}
