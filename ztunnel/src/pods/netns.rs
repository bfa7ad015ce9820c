//! A pod's network namespace, and making sockets in it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::stat::fstat,
};

/// A network namespace, held open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    pod: Arc<OwnedFd>,
    home: Arc<OwnedFd>,
    id: NetnsId,
}

/// What tells two network namespaces apart: the device and inode of their file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Netns {
    /// The namespace that `pod` refers to; `home` is where threads come back to.
    pub fn new(pod: OwnedFd, home: &Home) -> io::Result<Self> {
        let status = fstat(&pod)?;
        let id = NetnsId { device: status.st_dev, inode: status.st_ino };
        Ok(Self { pod: Arc::new(pod), home: home.0.clone(), id })
    }

    /// The namespace of the process itself (dedicated mode).
    pub fn own(home: &Home) -> io::Result<Self> {
        Self::new(home.0.try_clone()?, home)
    }

    /// Which namespace it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `work` on this thread inside the namespace. `work` must not await, and cannot: a thread
    /// that kept the namespace would make everybody's sockets there.
    /// When the thread cannot come back the process ends: nothing would be where it should be.
    pub fn enter<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        setns(self.pod.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let done = work();
        if let Err(error) = setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET) {
            tracing::error!(error = %error, "Cannot leave a pod's network namespace; ending the process");
            std::process::abort();
        }
        done
    }
}

/// The namespace in which the process was started.
#[derive(Clone, Debug)]
pub struct Home(Arc<OwnedFd>);

impl Home {
    /// Of the calling thread, which must not be inside a pod's namespace.
    pub fn of_this_thread() -> io::Result<Self> {
        Ok(Self(Arc::new(File::open("/proc/thread-self/ns/net")?.into())))
    }
}

/// Whether IPv6 can be used in the namespace of the calling thread: some pods have it disabled on
/// `lo` although the node has it (protocols 12, line 13).
pub fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/thread-self/net/if_inet6").is_ok_and(|interfaces| {
        interfaces.lines().any(|line| line.split_whitespace().next_back() == Some("lo"))
    })
}
