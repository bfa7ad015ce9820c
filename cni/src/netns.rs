//! Pods' network namespaces: finding them, holding them, and doing something inside.

use std::{
    collections::BTreeMap,
    fmt,
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

/// How the agent knows a pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsAt {
    /// By a file that stands for it. The file may come to stand for another.
    File(PathBuf),
    /// It is held: there is nothing to look for.
    Held(Netns),
}

/// The namespaces of pods, as far as they are known.
#[derive(Debug)]
pub struct Sandboxes {
    held: BTreeMap<String, Netns>,
    annotations: Annotations,
}

/// Whether the annotation `ambit.io/netns` is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Annotations {
    /// It is: whoever writes pods runs them too, as the lab does.
    Believed,
    /// It is not: whoever may create a pod could name another's namespace.
    Ignored,
}

impl Sandboxes {
    /// None known yet.
    pub fn new(annotations: Annotations) -> Self {
        Self { held: BTreeMap::new(), annotations }
    }

    /// Where the pod's namespace is, if that is known now.
    pub fn find(&self, pod: &Pod) -> Option<NetnsAt> {
        match (self.held.get(&pod.uid), self.annotations) {
            (Some(netns), _) => Some(NetnsAt::Held(netns.clone())),
            (None, Annotations::Believed) => pod.netns.clone().map(NetnsAt::File),
            (None, Annotations::Ignored) => None,
        }
    }

    /// Whether pods that run already have to be looked for: nobody names their namespaces.
    pub fn has_to_look(&self) -> bool {
        self.annotations == Annotations::Ignored
    }

    /// The pod's namespace is this one, whatever was known before.
    pub fn learn(&mut self, uid: &str, netns: Netns) {
        self.held.insert(uid.to_owned(), netns);
    }

    /// The pod has no namespace any more.
    pub fn forget(&mut self, uid: &str) {
        self.held.remove(uid);
    }

    /// Lets go of everyone else's.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.held.retain(|uid, _| wanted(uid));
    }
}

impl fmt::Display for NetnsAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Held(netns) => write!(f, "net:[{}]", netns.id.inode),
        }
    }
}

/// A namespace that is held: it lives as long as this does, even when its pod is gone.
#[derive(Debug, Clone)]
pub struct Netns {
    file: Arc<OwnedFd>,
    id: NetnsId,
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Netns {}

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
