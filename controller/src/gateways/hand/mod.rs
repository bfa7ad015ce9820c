//! Where waypoints are written: to an API server, or into a directory. What differs between the two is here.

mod directory;
mod kubernetes;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use ambit_api::directory::DirectoryError;
use kube::Client;
use serde_json::Value;

use super::manifest::Manifest;
use crate::cluster::object::{Gateway, GatewayClass, Name};

/// One request. The next attempt has a better chance.
const REQUEST: Duration = Duration::from_secs(10);

/// Whoever writes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hand(Place);

#[derive(Clone, Debug)]
enum Place {
    Kubernetes(kubernetes::Hand),
    Directory(directory::Hand),
}

impl Hand {
    /// Writes to the API server.
    pub fn kubernetes(client: Client) -> Self {
        Self(Place::Kubernetes(kubernetes::Hand::new(client)))
    }

    /// Writes into the directory at `path`.
    pub fn directory(path: impl Into<PathBuf>) -> Result<Self, DirectoryError> {
        directory::Hand::open(path.into()).map(|hand| Self(Place::Directory(hand)))
    }

    /// Whether classes are objects that are made if they are missing.
    pub(super) fn has_classes(&self) -> bool {
        matches!(self.0, Place::Kubernetes(_))
    }

    /// The texts of a ConfigMap, if it is there.
    pub(super) async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<BTreeMap<String, String>>, Failure> {
        match &self.0 {
            Place::Kubernetes(hand) => hand.config_map(namespace, name).await,
            Place::Directory(hand) => hand.config_map(namespace, name).await,
        }
    }

    /// The status that a gateway has.
    pub(super) async fn status(&self, gateway: &Gateway) -> Result<Value, Failure> {
        match &self.0 {
            Place::Kubernetes(hand) => hand.status(gateway).await,
            Place::Directory(hand) => hand.status(&gateway.meta.name).await,
        }
    }

    /// Makes objects so, and takes away what is ours and not among them. What is somebody else's is left alone, and its
    /// kind returned; an account may be anybody's.
    pub(super) async fn make(
        &self,
        gateway: &Gateway,
        wanted: &[Manifest],
    ) -> Result<Vec<&'static str>, Failure> {
        match &self.0 {
            Place::Kubernetes(hand) => hand.make(gateway, wanted).await,
            Place::Directory(hand) => hand.make(&gateway.meta.name, wanted).await,
        }
    }

    /// Takes away what was made for a gateway.
    pub(super) async fn unmake(&self, gateway: &Name) -> Result<(), Failure> {
        match &self.0 {
            Place::Kubernetes(hand) => hand.unmake(gateway).await,
            Place::Directory(hand) => hand.unmake(gateway).await,
        }
    }

    /// Takes away what was made for others than these, where nobody else does.
    pub(super) async fn sweep(&self, kept: &BTreeSet<&Name>) -> Result<(), Failure> {
        match &self.0 {
            Place::Kubernetes(_) => Ok(()),
            Place::Directory(hand) => hand.sweep(kept).await,
        }
    }

    /// Writes a gateway's status.
    pub(super) async fn tell(&self, gateway: &Gateway, status: &Value) -> Result<(), Failure> {
        match &self.0 {
            Place::Kubernetes(hand) => hand.tell(gateway, status).await,
            Place::Directory(hand) => hand.tell(&gateway.meta.name, status).await,
        }
    }

    /// Makes a class of ours.
    pub(super) async fn make_class(&self, name: &str) -> Result<(), Failure> {
        match &self.0 {
            Place::Kubernetes(hand) => hand.make_class(name).await,
            Place::Directory(_) => Ok(()),
        }
    }

    /// Says on a class that it is served.
    pub(super) async fn accept_class(&self, class: &GatewayClass) -> Result<(), Failure> {
        match &self.0 {
            Place::Kubernetes(hand) => hand.accept_class(class).await,
            Place::Directory(_) => Ok(()),
        }
    }
}

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The API server says no, or nothing.
    #[error("{}", told(.0))]
    Kubernetes(#[source] Box<kube::Error>),
    /// No answer.
    #[error("the API server gave no answer within {REQUEST:?}")]
    Late,
    /// The directory cannot be written.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The process ends.
    #[error("the controller is ending")]
    Ending,
}

impl Failure {
    /// Whether nothing else can be written now, either.
    pub(super) fn is_away(&self) -> bool {
        match self {
            Self::Kubernetes(error) => {
                if let kube::Error::Api(status) = &**error {
                    return status.code == 429 || status.code >= 500;
                }
                !matches!(&**error, kube::Error::BuildRequest(_) | kube::Error::SerdeError(_))
            }
            Self::Late | Self::Ending => true,
            Self::Directory(_) => false,
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Self::Kubernetes(Box::new(error))
    }
}

/// In the API server's own words, if it has any.
fn told(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error { status.message.clone() } else { error.to_string() }
}
