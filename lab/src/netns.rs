//! One named network namespace: its path, work done inside it, and the processes that live in it.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{self, CommandError};

/// A network namespace known to `ip netns` by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Netns {
    name: String,
}

/// Work inside a namespace could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The namespace's file cannot be opened.
    #[error("cannot open namespace {path}: {source}; is the lab up (`ip netns list`)?", path = path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace cannot be entered.
    #[error("cannot enter namespace {name}: {source}; run as root")]
    Enter {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The thread that enters it cannot be started, or died.
    #[error("the thread working in namespace {name} failed: {reason}")]
    Thread {
        /// The namespace.
        name: String,
        /// What is known.
        reason: String,
    },
}

impl Netns {
    /// The namespace of that name, which may not exist (yet).
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Its name, as in `ip netns exec NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it; opening it gives the descriptor that a tunnel is handed.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs `work` in this namespace, on a thread of its own. Sockets opened there stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let path = self.path();
        let file = File::open(&path).map_err(|source| NetnsError::Open { path, source })?;
        let broken = |reason: String| NetnsError::Thread { name: self.name.clone(), reason };
        thread::scope(|scope| {
            thread::Builder::new()
                .name("lab-netns".to_owned())
                .spawn_scoped(scope, || {
                    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Enter {
                        name: self.name.clone(),
                        source: errno.into(),
                    })?;
                    Ok(work())
                })
                .map_err(|err| broken(err.to_string()))?
                .join()
                .map_err(|_| broken("it panicked".to_owned()))?
        })
    }

    /// A TCP connection made from this namespace, usable from outside it (an admin page, say).
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> Result<io::Result<TcpStream>, NetnsError> {
        self.inside(|| TcpStream::connect_timeout(&to, limit))
    }

    /// Runs `ip -batch` in this namespace, one command a line.
    pub(crate) fn ip(&self, batch: &str) -> Result<(), CommandError> {
        command::run(&["ip", "-n", &self.name, "-batch", "-"], batch).map(drop)
    }

    /// Whether `ip netns` knows it.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// The processes whose main thread lives in this namespace (never this process).
    pub fn processes(&self) -> Vec<Pid> {
        let Ok(own) = fs::metadata(self.path()).map(|file| (file.dev(), file.ino())) else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .map(Pid::from_raw)
            .filter(|pid| *pid != Pid::this())
            .filter(|pid| {
                // A process may end while we look: then it is in no namespace.
                fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|file| (file.dev(), file.ino()) == own)
            })
            .collect()
    }

    /// Ends every process that lives in this namespace.
    pub(crate) fn kill_all(&self) {
        for pid in self.processes() {
            // Gone meanwhile is what we want.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_not_there_is_named_with_its_remedy() {
        let err = Netns::named("amb-none").inside(|| ()).unwrap_err().to_string();
        assert!(err.contains("/run/netns/amb-none"), "{err}");
        assert!(err.contains("ip netns list"), "{err}");
    }
}
