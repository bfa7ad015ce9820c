//! What there is on this node: every change becomes a whole new [`View`].
//!
//! Two sources give the same view: a directory of YAML, and the Kubernetes API.

pub mod directory;
pub mod kubernetes;

use std::sync::Arc;

use tracing::warn;

use crate::{
    pod::{Mode, Pod},
    roster::View,
};

/// A source that is being watched.
#[derive(Debug)]
pub enum Watch {
    /// A directory.
    Directory(directory::Watch),
    /// The Kubernetes API.
    Kubernetes(kubernetes::Watch),
}

/// Finds one pod, whenever it is asked for. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// In a directory.
    Directory(directory::Lookup),
    /// In the Kubernetes API.
    Kubernetes(kubernetes::Lookup),
}

/// A pod as the node's runtime names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID as kubelet knows it, where the runtime passes it on.
    pub kubelet_uid: Option<String>,
}

/// Why a pod is not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// There is none.
    #[error("there is no such pod")]
    NoPod,
    /// There is one of that name, with another UID.
    #[error("there is another pod of that name now")]
    Replaced,
    /// It is another node's.
    #[error("it belongs to node {0:?}; is the agent's --node the name that this node is registered by?")]
    OtherNode(String),
    /// The source cannot be read.
    #[error("{0}")]
    Unreadable(String),
}

impl Watch {
    /// The first view. Until there is one there is nothing to do but to wait.
    pub async fn first(&mut self) -> View {
        match self {
            Self::Directory(watch) => loop {
                match watch.read().await {
                    Ok(view) => return view,
                    Err(error) => warn!(%error, "The directory cannot be read"),
                }
                watch.changed().await;
            },
            Self::Kubernetes(watch) => watch.first().await,
        }
    }

    /// The next view, when something has changed or might have.
    pub async fn next(&mut self) -> View {
        match self {
            Self::Directory(watch) => loop {
                watch.changed().await;
                match watch.read().await {
                    Ok(view) => return view,
                    Err(error) => warn!(%error, "The directory cannot be read; pods stay as they are"),
                }
            },
            Self::Kubernetes(watch) => watch.next().await,
        }
    }
}

impl Lookup {
    /// The pod, and what its namespace says.
    pub async fn find(&self, name: &PodName) -> Result<(Arc<Pod>, Mode), LookupError> {
        match self {
            Self::Directory(lookup) => lookup.find(name).await,
            Self::Kubernetes(lookup) => lookup.find(name).await,
        }
    }
}

impl PodName {
    /// Whether it means this pod. The name alone does not suffice: a pod and its successor may share it.
    pub fn means(&self, pod: &Pod) -> bool {
        pod.namespace == self.namespace
            && pod.name == self.name
            && self.kubelet_uid.as_ref().is_none_or(|uid| *uid == pod.kubelet_uid || *uid == pod.uid)
    }
}
