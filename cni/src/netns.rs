//! Pods' network namespaces: finding them, holding them, and doing something inside.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use crate::pod::Pod;

/// How the agent learns which namespace is a pod's. The lab writes it into an annotation.
pub trait NetnsSource: Send + Sync {
    /// The file that stands for the pod's namespace, if it is known now.
    fn find(&self, pod: &Pod) -> Option<PathBuf>;
}

/// The annotation `ambit.io/netns`.
#[derive(Debug, Clone, Copy)]
pub struct Annotated;

impl NetnsSource for Annotated {
    fn find(&self, pod: &Pod) -> Option<PathBuf> {
        pod.netns.clone()
    }
}

/// A namespace that is held: it lives as long as this does, even when its pod is gone.
#[derive(Debug, Clone)]
pub struct Netns {
    file: Arc<OwnedFd>,
    id: NetnsId,
}

/// What tells namespaces apart. A path can come to mean another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

/// A namespace that cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// It is not there.
    #[error("cannot open network namespace {path}: {source}; has the pod ended?", path = path.display())]
    Open {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there and is not a namespace, or is the agent's own.
    #[error("{path} is not a pod's network namespace", path = path.display())]
    NotAPod {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be entered.
    #[error("cannot enter a pod's network namespace: {0}; the agent needs CAP_SYS_ADMIN")]
    Enter(#[source] io::Error),
    /// The thread that should enter it could not be started, or died.
    #[error("no thread could work in the pod's network namespace: {0}")]
    Thread(String),
}

impl Netns {
    /// Opens the namespace behind `path`. The agent's own is refused: rules meant for a pod would
    /// capture the node.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let open = |source| NetnsError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(open)?;
        let id = NetnsId::of(&file).map_err(open)?;
        let own = File::open("/proc/self/ns/net").and_then(|own| NetnsId::of(&own)).map_err(open)?;
        // Every namespace file lives on the one device of that filesystem.
        if id.device != own.device || id == own {
            return Err(NetnsError::NotAPod { path: path.to_owned() });
        }
        Ok(Self { file: Arc::new(file.into()), id })
    }

    /// Which one it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Its descriptor, to be sent to the tunnel.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.file)
    }

    /// Runs `work` inside, on a thread that ends with it. What it opens there, and the programs it
    /// starts, stay there.
    pub async fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetnsError> {
        let file = self.descriptor();
        let (done, result) = oneshot::channel();
        thread::Builder::new()
            .name("pod-netns".to_owned())
            .spawn(move || {
                let entered = setns(file.as_fd(), CloneFlags::CLONE_NEWNET);
                // Whoever waited may have given up; the work is done all the same.
                let _ = done.send(entered.map(|()| work()));
            })
            .map_err(|error| NetnsError::Thread(error.to_string()))?;
        match result.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(errno)) => Err(NetnsError::Enter(errno.into())),
            Err(_) => Err(NetnsError::Thread("it panicked".to_owned())),
        }
    }
}

impl NetnsId {
    /// The namespace that `path` means now.
    pub fn at(path: &Path) -> io::Result<Self> {
        let found = std::fs::metadata(path)?;
        Ok(Self { device: found.dev(), inode: found.ino() })
    }

    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { device: found.dev(), inode: found.ino() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pods_namespace_is_refused() {
        assert!(matches!(Netns::open(Path::new("/proc/self/ns/net")), Err(NetnsError::NotAPod { .. })));
        assert!(matches!(Netns::open(Path::new("/etc/hostname")), Err(NetnsError::NotAPod { .. })));
        let missing = Netns::open(Path::new("/run/netns/amb-none")).unwrap_err();
        assert!(missing.to_string().contains("/run/netns/amb-none"), "{missing}");
    }
}
