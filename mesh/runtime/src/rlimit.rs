//! Room for many connections: raises the soft limit of open files to the hard one.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What the limit of open files was, and is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// The soft limit that the process was started with.
    pub before: u64,
    /// The soft limit now.
    pub now: u64,
}

/// The limit could not be read or raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot raise the limit of open files: {0}; set it from outside (ulimit -n, LimitNOFILE=)")]
pub struct RaiseError(#[from] Errno);

/// Raises the soft limit of open files to the hard limit. A proxy has two sockets for each connection.
pub fn raise_open_files() -> Result<OpenFiles, RaiseError> {
    let (before, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if before < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(OpenFiles { before, now: hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(256), hard).unwrap();
        let raised = raise_open_files().unwrap();
        assert_eq!(raised, OpenFiles { before: hard.min(256), now: hard });
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
