//! What the supervisor of a playground writes down, and where: the other commands know it from there alone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// Below it, a directory for each playground.
const RUN: &str = "/run/ambit";

/// Which playground.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct Place {
    /// Which playground, if there are several on this machine: a-z and 0-9.
    #[arg(long = "playground", env = "AMBIT_PLAYGROUND", value_name = "NAME", default_value = "playground", value_parser = name, help_heading = "Whom to ask")]
    pub(crate) name: String,
}

/// A playground, as its supervisor last saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    /// The lab's name, from which namespaces are called.
    pub(crate) lab: String,
    /// The supervisor.
    pub(crate) pid: u32,
    /// Since when it is up, RFC 3339.
    pub(crate) since: String,
    /// The YAML.
    pub(crate) directory: PathBuf,
    /// The logs.
    pub(crate) logs: PathBuf,
    /// The programs.
    pub(crate) binaries: PathBuf,
    pub(crate) nodes: Vec<Node>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) components: Vec<Component>,
    /// What is wrong with the YAML.
    pub(crate) problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) netns: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) netns: String,
    pub(crate) phase: String,
    pub(crate) ready: bool,
    pub(crate) restarts: u32,
}

/// What a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Controller,
    Agent,
    Ztunnel,
}

impl Kind {
    /// As it is called.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Agent => "agent",
            Self::Ztunnel => "ztunnel",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Component {
    pub(crate) kind: Kind,
    pub(crate) node: String,
    /// None while it waits to be started again.
    pub(crate) pid: Option<i32>,
    /// When it was last started, RFC 3339.
    pub(crate) since: String,
    /// How often it ended by itself.
    pub(crate) restarts: u32,
    pub(crate) version: Option<String>,
    pub(crate) admin: String,
    pub(crate) readiness: String,
    pub(crate) metrics: String,
    pub(crate) log: PathBuf,
}

/// Held by the supervisor as long as it lives; the kernel lets go of it whatever happens.
#[derive(Debug)]
pub(crate) struct Hold {
    _file: Flock<File>,
}

impl Place {
    /// Everything that a playground has on disk, but perhaps its YAML.
    pub(crate) fn root(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    /// The YAML, unless the user keeps it elsewhere.
    pub(crate) fn own_directory(&self) -> PathBuf {
        self.root().join("config")
    }

    /// The supervisor's log.
    pub(crate) fn supervisor_log(&self) -> PathBuf {
        self.root().join("logs").join("supervisor.log")
    }

    fn lock(&self) -> PathBuf {
        self.root().join("lock")
    }

    fn file(&self) -> PathBuf {
        self.root().join("state.json")
    }

    /// The process that supervises it, if one does.
    pub(crate) fn supervisor(&self) -> anyhow::Result<Option<i32>> {
        let path = self.lock();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}; run as root", path.display()));
            }
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(None),
            Err((_, Errno::EWOULDBLOCK)) => {
                let text = fs::read_to_string(&path).unwrap_or_default();
                Ok(text.trim().parse().ok())
            }
            Err((_, errno)) => Err(errno).with_context(|| format!("cannot look at {}", path.display())),
        }
    }

    /// Becomes the supervisor.
    pub(crate) fn hold(&self) -> anyhow::Result<Hold> {
        let path = self.lock();
        let unusable = || format!("cannot use {}; run as root", path.display());
        fs::create_dir_all(self.root()).with_context(unusable)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        match Flock::lock(file.with_context(unusable)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => {
                fs::write(&path, std::process::id().to_string()).with_context(unusable)?;
                Ok(Hold { _file: file })
            }
            Err((_, Errno::EWOULDBLOCK)) => bail!("{}", self.is_up()),
            Err((_, errno)) => Err(errno).with_context(unusable),
        }
    }

    /// For whoever wants to bring up what is up.
    pub(crate) fn is_up(&self) -> String {
        format!(
            "playground {:?} is up already; look with `ambit playground status`, or end it with `ambit playground down`",
            self.name
        )
    }

    /// What the supervisor last wrote. Fails when there is no supervisor.
    pub(crate) fn state(&self) -> anyhow::Result<State> {
        let path = self.file();
        let down = || format!("playground {:?} is not up; bring it up: sudo ambit playground up", self.name);
        if self.supervisor().with_context(down)?.is_none() {
            bail!("{}", down());
        }
        let text = fs::read_to_string(&path).with_context(|| {
            format!("playground {:?} is still being brought up; wait a moment", self.name)
        })?;
        serde_json::from_str(&text).with_context(|| {
            format!("{} was written by another version; `ambit playground down`, then `up`", path.display())
        })
    }

    /// What a supervisor that is gone wrote last.
    pub(crate) fn last_state(&self) -> Option<State> {
        serde_json::from_str(&fs::read_to_string(self.file()).ok()?).ok()
    }

    /// Writes it down, for the other commands.
    pub(crate) fn write(&self, state: &State) -> anyhow::Result<()> {
        let path = self.file();
        // Renamed into place: a reader sees the old state or the new one.
        let next = path.with_extension("next");
        let text = serde_json::to_string_pretty(state)?;
        fs::write(&next, text)
            .and_then(|()| fs::rename(&next, &path))
            .with_context(|| format!("cannot write {}; is the disk full?", path.display()))
    }
}

fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if (1..=32).contains(&text.len()) && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("take 1 to 32 of a-z and 0-9".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_part_of_paths_and_namespaces() {
        assert!(name("play2").is_ok());
        for bad in ["", "a-b", "../x", "A"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_playground_that_is_not_up_says_how_to_bring_it_up() {
        let place = Place { name: "nosuchplayground".to_owned() };
        assert_eq!(place.supervisor().unwrap(), None);
        let err = place.state().unwrap_err().to_string();
        assert!(err.contains("ambit playground up"), "{err}");
    }
}
