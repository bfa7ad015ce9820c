//! Control groups of a cluster: one for each node, below the group of whoever brings the cluster up, in every hierarchy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::Stop;

const ROOT: &str = "/sys/fs/cgroup";
/// Killed processes are gone at once, unless the kernel is busy with their memory.
const EMPTY_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// How this machine's control groups are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// Version 1: one mount for each of these controllers (or sets of them).
    Separate(Vec<String>),
    /// Version 2: one for all.
    Unified,
}

impl Layout {
    /// That of this machine.
    pub(super) fn found() -> anyhow::Result<Self> {
        if Path::new(ROOT).join("cgroup.controllers").exists() {
            return Ok(Self::Unified);
        }
        let entries = fs::read_dir(ROOT).context("this machine has no control groups")?;
        let mut names: Vec<_> = entries
            .filter_map(Result::ok)
            // `cpu` may be a link to `cpu,cpuacct`; and `unified` is version 2 without controllers.
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter(|entry| entry.path().join("tasks").exists())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        ensure!(
            names.iter().any(|name| name == "memory"),
            "no control group of memory below {ROOT}: kubelets need it"
        );
        Ok(Self::Separate(names))
    }

    /// The word with which a node's first steps are told of it.
    pub(super) fn word(&self) -> String {
        match self {
            Self::Separate(names) => names.join(" "),
            Self::Unified => "unified".to_owned(),
        }
    }

    /// Makes the group `path` and returns its folders, one for each hierarchy.
    pub(super) fn make(&self, path: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let own = fs::read_to_string("/proc/self/cgroup").context("which control group is ours?")?;
        let made = match self {
            // Only a group without processes may hand controllers on, which ours is not: the root is excepted.
            Self::Unified => vec![make_unified(path)?],
            Self::Separate(names) => names
                .iter()
                .map(|name| {
                    let hierarchy = Path::new(ROOT).join(name);
                    make_separate(&hierarchy.join(own_group(&own, name)), path)
                })
                .collect::<anyhow::Result<_>>()?,
        };
        Ok(made)
    }
}

/// The group of a process in one hierarchy, as `/proc/PID/cgroup` tells it.
fn own_group<'a>(told: &'a str, hierarchy: &str) -> &'a str {
    let group = told.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        let here = controllers.trim_start_matches("name=") == hierarchy;
        here.then(|| group.trim_start_matches('/'))
    });
    group.unwrap_or_default()
}

fn make_separate(below: &Path, path: &Path) -> anyhow::Result<PathBuf> {
    let mut at = below.to_owned();
    for part in path {
        let above = at.clone();
        at.push(part);
        make_dir(&at)?;
        // A new group of this kind is empty, and no process may enter it so.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if at.join(file).exists() {
                let value = fs::read_to_string(above.join(file))?;
                fs::write(at.join(file), value.trim())
                    .with_context(|| format!("cannot write {file} of {}", at.display()))?;
            }
        }
    }
    Ok(at)
}

fn make_unified(path: &Path) -> anyhow::Result<PathBuf> {
    let mut at = PathBuf::from(ROOT);
    for part in path {
        let controllers = fs::read_to_string(at.join("cgroup.controllers"))?;
        let all: Vec<_> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
        fs::write(at.join("cgroup.subtree_control"), all.join(" "))
            .with_context(|| format!("cannot hand controllers on from {}", at.display()))?;
        at.push(part);
        make_dir(&at)?;
    }
    Ok(at)
}

fn make_dir(path: &Path) -> anyhow::Result<()> {
    match fs::create_dir(path) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
            Err(err).with_context(|| format!("cannot make the control group {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// All groups of that name, wherever they are, with those below them: the deepest first.
pub(super) fn named(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new(ROOT), name, false, &mut found);
    found
}

fn walk(dir: &Path, name: &str, inside: bool, found: &mut Vec<PathBuf>) {
    // Groups come and go while we look.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let inside = inside || entry.file_name() == name;
            walk(&entry.path(), name, inside, found);
            if inside {
                found.push(entry.path());
            }
        }
    }
}

/// Ends every process in the group `path`, wherever it is, and in those below it; and removes them.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    let name = path.iter().next().and_then(|part| part.to_str()).unwrap_or_default();
    let what = format!("the end of the control groups {}", path.display());
    Stop::default().until_every(PAUSE, EMPTY_LIMIT, &what, || {
        let mut groups = named(name);
        groups.retain(|group| group.ancestors().any(|above| above.ends_with(path)));
        for group in &groups {
            let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            for pid in processes.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
                // Gone meanwhile is what we want.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            // Fails while a process in it is dying: then the next round does it.
            let _ = fs::remove_dir(group);
        }
        Ok(groups.is_empty().then_some(()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_its_group_in_each_hierarchy() {
        let told = "9:name=systemd:/init\n4:memory:/a/b\n3:cpu,cpuacct:/\n0::/\n";
        assert_eq!(own_group(told, "memory"), "a/b");
        assert_eq!(own_group(told, "systemd"), "init");
        assert_eq!(own_group(told, "cpu,cpuacct"), "");
        assert_eq!(own_group(told, "pids"), "");
    }
}
