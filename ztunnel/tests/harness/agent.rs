//! A node agent: the real ZDS server, without anything else of an agent.

use std::path::PathBuf;

use ambit_wire::{
    spawn::Spawner,
    zds::{
        AddError, PodInfo,
        server::{self, Handle},
    },
};
use tokio::sync::oneshot;

use super::{Pod, until_true};

/// A ZDS server that lives until it is dropped.
pub struct Agent {
    pub handle: Handle,
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
}

impl Agent {
    pub fn start(path: PathBuf) -> Self {
        let runtime = tokio::runtime::Handle::current();
        let spawner = Spawner::new(move |_, task| drop(runtime.spawn(task)));
        let (server, handle) = server::bind(&path, spawner).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::runtime::Handle::current().spawn(server.serve(async { drop(stopped.await) }));
        Self { handle, path, stop: Some(stop) }
    }

    /// Tells the latest tunnel of a pod, and every later one.
    pub async fn enrol(&self, pod: &Pod) -> Result<(), AddError> {
        self.handle.add(&pod.uid, info(pod), Some(pod.net.file.clone())).await
    }

    /// Only lists it: the tunnel keeps what it has.
    pub async fn keep(&self, pod: &Pod) {
        self.handle.add(&pod.uid, info(pod), None).await.unwrap();
    }

    pub async fn remove(&self, pod: &Pod) {
        self.handle.remove(&pod.uid).await;
    }

    pub async fn until_connected(&self, tunnels: usize) {
        until_true(&format!("{tunnels} tunnels are connected"), async || self.handle.connected() == tunnels)
            .await;
    }

    /// Goes away, as when the agent is restarted; what it knew is forgotten.
    pub async fn stop(mut self) -> PathBuf {
        self.stop.take();
        self.until_connected(0).await;
        self.path.clone()
    }
}

pub fn info(pod: &Pod) -> PodInfo {
    PodInfo { name: pod.name.clone(), namespace: "default".to_owned(), service_account: pod.name.clone() }
}
