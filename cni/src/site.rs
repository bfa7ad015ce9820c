//! Where an agent runs: over a directory, or in Kubernetes. What differs between the two is here.

use std::{path::Path, sync::Arc, time::Duration};

use ambit_api::directory::Directory;
use ambit_runtime::ready::Ready;
use kube::Client;
use tracing::warn;

use crate::{
    annotate::Annotations,
    app::StartError,
    config::{Config, Source},
    events::Events,
    farewell::Own,
    metrics::Metrics,
    netns::{self, NetnsId, Sandboxes},
    redirect::apply,
    watch::{Lookup, Watch, directory, kubernetes},
};

/// How long a connection to the API server may take: it is near, or it is not there.
const CONNECT: Duration = Duration::from_secs(5);

/// What one of the two provides.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) watch: Watch,
    pub(crate) lookup: Lookup,
    pub(crate) annotations: Annotations,
    pub(crate) events: Events,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) cluster: Option<Cluster>,
}

/// The cluster, where there is one.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// The agent's own DaemonSet, if it was told of one.
    pub(crate) own: Option<Own>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Site {
    pub(crate) async fn open(config: &Config, ready: &Ready, metrics: &Metrics) -> Result<Self, StartError> {
        match &config.source {
            Source::Directory(path) => Self::directory(config, path),
            Source::Kubernetes => Self::kubernetes(config, ready, metrics).await,
        }
    }

    fn directory(config: &Config, path: &Path) -> Result<Self, StartError> {
        let directory = Arc::new(Directory::open(path)?);
        Ok(Self {
            watch: Watch::Directory(directory::Watch::start(Arc::clone(&directory), &config.node)?),
            lookup: Lookup::Directory(directory::Lookup::new(Arc::clone(&directory), &config.node)),
            annotations: Annotations::directory(directory, &config.node),
            events: Events::off(),
            sandboxes: Sandboxes::new(netns::Annotations::Believed),
            cluster: None,
        })
    }

    /// Nothing is asked here: an API server that cannot be reached is waited for, not died of.
    async fn kubernetes(config: &Config, ready: &Ready, metrics: &Metrics) -> Result<Self, StartError> {
        let client = client().await?;
        let synced =
            ["pods", "namespaces"].map(|kind| ready.task(format!("the API server's list of {kind}")));
        let watch = kubernetes::Watch::start(&client, &config.node, metrics, synced);
        let own = config.own_daemonset().map(|(namespace, name)| Own::new(client.clone(), namespace, name));
        if !is_nodes_network(&config.host_proc) {
            warn!(proc = %config.host_proc.display(), "The agent is not in the node's network, so kubelet's probes cannot be marked; its pod needs hostNetwork: true");
        }
        if !apply::can_change_settings(&config.host_proc) {
            warn!(proc = %config.host_proc.display(), "Connections that are waiting while a tunnel is replaced may be reset; the agent's pod needs the node's /proc/sys/net, writable, under --host-proc");
        }
        Ok(Self {
            lookup: Lookup::Kubernetes(watch.lookup(client.clone(), &config.node)),
            watch: Watch::Kubernetes(watch),
            annotations: Annotations::kubernetes(client.clone()),
            events: Events::kubernetes(client.clone(), &config.node, metrics),
            sandboxes: Sandboxes::new(netns::Annotations::Ignored),
            cluster: Some(Cluster { client, own }),
        })
    }
}

async fn client() -> Result<Client, StartError> {
    let unknown =
        |error: &(dyn std::error::Error + 'static)| StartError::Kubernetes(kubernetes::chain(error));
    let mut cluster = kube::Config::infer().await.map_err(|error| unknown(&error))?;
    cluster.connect_timeout = Some(CONNECT);
    // Whoever asks tries again by its own clock, and says so.
    cluster.default_retry = false;
    Client::try_from(cluster).map_err(|error| unknown(&error))
}

fn is_nodes_network(proc: &Path) -> bool {
    let node = NetnsId::at(&proc.join("1/ns/net"));
    let own = NetnsId::at(Path::new("/proc/self/ns/net"));
    // What cannot be compared is not complained about.
    node.ok().is_none_or(|node| own.is_ok_and(|own| own == node))
}
