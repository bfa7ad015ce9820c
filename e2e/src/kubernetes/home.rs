//! The names and places of one cluster, all made from its own name: clusters side by side share none.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ambit_lab::netns::Netns;
use anyhow::{Context as _, ensure};
use nix::fcntl::{Flock, FlockArg};

/// The nodes of every cluster.
pub const NODES: [&str; 2] = ["n1", "n2"];
/// Where the control plane lives, beside the nodes.
pub const CONTROL: &str = "ctl";

/// Where everything of one cluster is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    name: String,
    root: PathBuf,
}

impl Home {
    /// The cluster of that name, its files in a folder of that name below `root`.
    pub fn new(name: &str, root: &Path) -> anyhow::Result<Self> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        ensure!(
            (1..=20).contains(&name.len()) && name.chars().all(fits),
            "cluster name {name:?} cannot be used: take 1 to 20 of a-z and 0-9"
        );
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("cannot find {}", root.display()))?;
        Ok(Self { name: name.to_owned(), root })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of all clusters.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its own folder: gone when the cluster is.
    pub fn dir(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// What its keeper says.
    pub fn log(&self) -> PathBuf {
        self.root.join(format!("{}.log", self.name))
    }

    /// Held by its keeper for as long as there is anything of the cluster.
    pub fn lock(&self) -> PathBuf {
        self.root.join(format!("{}.lock", self.name))
    }

    /// Held by whoever uses the cluster: one at a time, so that stories do not disturb one another.
    pub fn lease(&self) -> PathBuf {
        self.dir().join("lease")
    }

    /// There when the cluster is ready.
    pub fn ready(&self) -> PathBuf {
        self.dir().join("ready")
    }

    /// Where its keeper takes orders.
    pub fn orders(&self) -> PathBuf {
        self.dir().join("orders")
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.dir().join("pki")
    }

    /// The configuration of its administrator, for this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// What the daemons say, a file each.
    pub fn logs(&self) -> PathBuf {
        self.dir().join("logs")
    }

    /// Every request of the mesh's own accounts, as the API server writes it down, a line each.
    pub fn audit(&self) -> PathBuf {
        self.logs().join("audit.log")
    }

    /// Image archives; the nodes see it as `/share`.
    pub fn share(&self) -> PathBuf {
        self.dir().join("share")
    }

    /// What a node sees as `/`, kept while it reboots.
    pub fn disk(&self, node: &str) -> PathBuf {
        self.dir().join(node)
    }

    /// Where the process id of a node's first process is written.
    pub fn init(&self, node: &str) -> PathBuf {
        self.dir().join(format!("{node}.pid"))
    }

    /// What all network namespaces of this cluster, and no others, begin with: a cluster's name has no `-`.
    pub fn netns_prefix(&self) -> String {
        format!("{}-", self.cgroup())
    }

    /// The network namespace of a node, or of the control plane.
    pub fn netns(&self, place: &str) -> Netns {
        Netns::named(format!("{}{place}", self.netns_prefix()))
    }

    /// The control group, in every hierarchy, below that of whoever brings it up.
    pub fn cgroup(&self) -> String {
        format!("ambit-cluster-{}", self.name)
    }
}

/// The address of a node, or of the control plane, on the wire between them. Every cluster has the same addresses:
/// its network namespaces are its own.
pub fn address(place: &str) -> Ipv4Addr {
    Ipv4Addr::new(10, 89, 0, 10 + number(place))
}

/// The third byte of a node's pods' addresses, and the last of the node's own; zero for the control plane.
pub fn number(place: &str) -> u8 {
    place.trim_start_matches('n').parse().unwrap_or(0)
}

/// The addresses of a node's pods.
pub fn pods(node: &str) -> String {
    format!("10.244.{}.0/24", number(node))
}

/// A locked file; unlocked by the kernel when its owner dies.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    _file: Flock<File>,
}

impl Held {
    /// Locks a file unless someone else has it. A file that is removed meanwhile is none: its lock means nothing.
    pub fn take(path: &Path) -> anyhow::Result<Option<Self>> {
        let unusable = || format!("cannot lock {}", path.display());
        let file = match OpenOptions::new().create(true).truncate(false).write(true).open(path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err).with_context(unusable),
        };
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno).with_context(unusable),
        };
        let own = file.metadata().with_context(unusable)?.ino();
        let there = fs::metadata(path).is_ok_and(|now| now.ino() == own);
        Ok(there.then(|| Self { path: path.to_owned(), _file: file }))
    }

    /// Removes the file, too: whoever waits for it will make a new one.
    pub fn remove(self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clusters_share_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["a", "a1"].map(|name| Home::new(name, dir.path()).unwrap());
        assert!(!other.netns("n1").name().starts_with(&one.netns_prefix()));
        assert!(Home::new("a-b", dir.path()).is_err());
        assert!(Home::new("", dir.path()).is_err());
    }

    #[test]
    fn addresses_follow_from_the_node() {
        assert_eq!(address("n2").to_string(), "10.89.0.12");
        assert_eq!(address(CONTROL).to_string(), "10.89.0.10");
        assert_eq!(pods("n1"), "10.244.1.0/24");
    }

    #[test]
    fn a_lock_has_one_holder_and_a_removed_file_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Held::take(&path).unwrap().unwrap();
        assert!(Held::take(&path).unwrap().is_none());
        held.remove();
        assert!(!path.exists());
        assert!(Held::take(&path).unwrap().is_some());
    }
}
