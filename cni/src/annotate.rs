//! Writes onto pods how far they are: the annotation that tells the control plane to use HBONE.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use ambit_api::{
    directory::{Directory, DirectoryError, ObjectKey, STATUS_FOLDER},
    labels,
};
use serde_json::json;

use crate::{pod::Redirection, roster::Member};

/// This agent's hand in the directory.
#[derive(Debug, Clone)]
pub struct Annotations {
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
}

impl Annotations {
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
        let rules = crate::enroll::Rules { excluded: Default::default(), dns: Capture::On };
        match Roster::default().reconcile(&view, &rules, &|_| None).changes.remove(0) {
            Change::Join { member, .. } | Change::Leave { member, .. } => member,
        }
    }

    #[tokio::test]
    async fn what_is_written_is_seen_on_the_pod_and_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\n";
        fs::write(dir.path().join("a.yaml"), pod).unwrap();
        let directory = Arc::new(Directory::open(dir.path()).unwrap());
        let annotations = Annotations::new(Arc::clone(&directory), "n1");
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
        let annotations = Annotations::new(directory, "n1");
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
        let annotations = Annotations::new(directory, "n1");
        annotations.write(&member(), Redirection::Enabled).await.unwrap();
        let file = dir.path().join("status/agent-n1/Pod.shop.a.yaml");
        assert!(file.exists());
        annotations.forget_absent(|_| false).unwrap();
        assert!(!file.exists());
    }
}
