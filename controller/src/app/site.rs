//! Where a controller runs: over a directory, or in Kubernetes. What differs between the two is here, and nowhere else.

use std::sync::Arc;

use ambit_api::directory::{Directory, Problem};
use ambit_runtime::metrics::Registry;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::{StartError, parts::Parts, signing::Signing};
use crate::{
    callers::Callers,
    config::{Config, Source},
    engine::View,
    gateways::Hand,
    nodes::Nodes,
    reviewer::Reviewer,
    source::{Event, directory, kubernetes},
};

/// Where objects and callers come from.
pub(super) enum Site {
    /// A directory of YAML; nodes have tokens in files.
    Directory { directory: Directory, nodes: Arc<Nodes> },
    /// The API server; it vouches for callers.
    Kubernetes { client: Client, watches: kubernetes::Counts },
}

impl Site {
    /// Opens what must be there at the start.
    pub(super) async fn open(config: &Config) -> Result<Self, StartError> {
        match &config.source {
            Source::Directory(path) => {
                let directory = Directory::open(path)?;
                let tokens = config.access.tokens.as_ref().ok_or(StartError::NoTokens)?;
                let nodes = Nodes::open(tokens, config.access.tunnel_identity(&config.mesh))?;
                if nodes.is_empty() {
                    warn!(tokens.path = %tokens.display(), "No node has a token yet, so nobody can connect");
                }
                Ok(Self::Directory { directory, nodes: Arc::new(nodes) })
            }
            Source::Kubernetes => {
                let client = client().await.map_err(StartError::kubernetes)?;
                Ok(Self::Kubernetes { client, watches: kubernetes::Counts::default() })
            }
        }
    }

    /// Who knows callers.
    pub(super) fn callers(&self, config: &Config, cluster: &View) -> Result<Callers, StartError> {
        match self {
            Self::Directory { nodes, .. } => Ok(Callers::Tokens(Arc::clone(nodes))),
            Self::Kubernetes { client, .. } => {
                let trust_domain = config.mesh.trust_domain.as_str().into();
                let audiences = config.access.audiences.clone();
                let reviewer = Reviewer::new(client.clone(), audiences, trust_domain, cluster.clone())?;
                Ok(Callers::Kubernetes(reviewer))
            }
        }
    }

    /// What signs.
    pub(super) async fn signing(&self, config: &Config) -> Result<Signing, StartError> {
        match self {
            Self::Directory { .. } => Signing::from_files(config).await,
            Self::Kubernetes { client, .. } => Signing::from_secrets(client, config).await,
        }
    }

    /// The nodes that have a token in a file, where nodes have.
    pub(super) fn nodes(&self) -> Option<Arc<Nodes>> {
        match self {
            Self::Directory { nodes, .. } => Some(Arc::clone(nodes)),
            Self::Kubernetes { .. } => None,
        }
    }

    /// Starts the part that tells of objects.
    pub(super) fn tell(
        self,
        parts: &Parts,
        events: mpsc::Sender<Event>,
        problems: watch::Sender<Vec<Problem>>,
    ) {
        match self {
            Self::Directory { directory, .. } => {
                parts.start("source", |stop| directory::run_telling(directory, events, problems, stop));
            }
            Self::Kubernetes { client, watches } => {
                parts.start("source", |stop| kubernetes::run(client, events, problems, watches, stop));
            }
        }
    }

    /// How asking the API server goes, where it is asked.
    pub(super) fn collect(&self, callers: &Callers, registry: &mut Registry) {
        if let (Self::Kubernetes { watches, .. }, Callers::Kubernetes(reviewer)) = (self, callers) {
            registry.collect(watches.clone());
            registry.collect(reviewer.clone());
        }
    }

    /// Who writes waypoints here.
    pub(super) fn hand(&self) -> Result<Hand, StartError> {
        match self {
            // One of its own: reading is remembered by who reads.
            Self::Directory { directory, .. } => Ok(Hand::directory(directory.path())?),
            Self::Kubernetes { client, .. } => Ok(Hand::kubernetes(client.clone())),
        }
    }

    /// The API server, where there is one.
    pub(super) fn client(&self) -> Option<Client> {
        match self {
            Self::Directory { .. } => None,
            Self::Kubernetes { client, .. } => Some(client.clone()),
        }
    }
}

async fn client() -> Result<Client, kube::Error> {
    let mut cluster = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
    // Whoever asks tries again by its own clock, and says so.
    cluster.default_retry = false;
    Client::try_from(cluster)
}
