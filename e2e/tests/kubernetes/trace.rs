//! What a cluster leaves behind: nothing, whether it is taken down or its keeper is killed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ambit_e2e::kubernetes::home::Home;
use ambit_e2e::kubernetes::{Cluster, Options, impossible};
use ambit_e2e::wait::Stop;
use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
/// What a kubelet would set for the whole machine.
const SETTINGS: [&str; 4] =
    ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];

/// What a cluster of that name could leave on this machine, and what it could change for others.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    namespaces: BTreeSet<String>,
    groups: BTreeSet<String>,
    processes: BTreeSet<String>,
    files: BTreeSet<String>,
    devices: String,
    mounts: String,
    rules: String,
    settings: Vec<String>,
}

impl Machine {
    fn seen(options: &Options) -> anyhow::Result<Self> {
        let name = Home::new(&options.name, &options.root)?.cgroup();
        let said = |program: &str, args: &[&str]| -> anyhow::Result<String> {
            let output =
                Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        // A kubelet that sees the machine's groups makes its own at the top.
        let groups = said("find", &["/sys/fs/cgroup", "-name", &name, "-o", "-name", "kubepods"])?;
        let settings = SETTINGS.iter().map(|path| fs::read_to_string(Path::new("/proc/sys").join(path)));
        Ok(Self {
            namespaces: names(Path::new("/run/netns"))
                .into_iter()
                .filter(|one| one.starts_with(&name))
                .collect(),
            groups: groups
                .lines()
                .filter(|path| path.ends_with(&name) || !path.contains("/ambit-cluster-"))
                .map(str::to_owned)
                .collect(),
            processes: processes(&options.root.join(&options.name).to_string_lossy(), &name),
            files: names(&options.root).into_iter().filter(|file| file.starts_with(&options.name)).collect(),
            devices: said("ip", &["-brief", "link"])?,
            mounts: mounts()?,
            rules: said("nft", &["list", "ruleset"])?,
            settings: settings.collect::<Result<_, _>>()?,
        })
    }
}

/// Apart from those that stand for named network namespaces, which are looked at by name.
fn mounts() -> anyhow::Result<String> {
    let all = fs::read_to_string("/proc/self/mountinfo")?;
    let others = all.lines().filter(|line| !line.contains(" /run/netns/"));
    Ok(others.map(|line| format!("{line}\n")).collect())
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Processes that are in a control group of the cluster, or were told its folder. The dead, whom their parent has not
/// buried, have neither.
fn processes(folder: &str, group: &str) -> BTreeSet<String> {
    let own = std::process::id().to_string();
    let pids = names(Path::new("/proc")).into_iter().filter(|pid| pid.parse::<u32>().is_ok() && *pid != own);
    pids.filter_map(|pid| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let line = read("cmdline").replace('\0', " ");
        let ours = read("cgroup").contains(group) || line.contains(folder);
        (ours && !line.is_empty()).then_some(format!("{pid} {line}"))
    })
    .collect()
}

#[test]
fn a_cluster_leaves_nothing_behind() -> anyhow::Result<()> {
    if let Some(why) = impossible() {
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    let options = Options::found("trace")?;
    Cluster::take_down(&options)?;
    let before = Machine::seen(&options)?;
    let clean = |when: &str| -> anyhow::Result<()> {
        let after = Machine::seen(&options)?;
        ensure!(after == before, "{when}, something is left: {after:#?}; before: {before:#?}");
        Ok(())
    };

    let cluster = Cluster::up(&options)?;
    let there = Machine::seen(&options)?;
    ensure!(
        !there.namespaces.is_empty() && !there.groups.is_empty(),
        "nothing is seen of a cluster: {there:?}"
    );
    ensure!(there.processes.len() > 10 && !there.files.is_empty(), "nothing is seen of a cluster: {there:?}");
    let nodes: Vec<_> = there.processes.iter().filter(|line| line.contains("containerd-shim")).collect();
    ensure!(!nodes.is_empty(), "no container is in the cluster's control groups: {:?}", there.processes);
    ensure!(there.devices == before.devices, "the machine got devices: {}", there.devices);
    let machines: Vec<_> = there
        .groups
        .iter()
        .filter(|path| path.ends_with("kubepods") && !before.groups.contains(*path))
        .collect();
    ensure!(machines.is_empty(), "a kubelet works in the machine's own control groups: {machines:?}");
    ensure!(there.mounts == before.mounts, "the machine got mounts: {}", there.mounts);
    ensure!(there.rules == before.rules, "the machine got rules: {}", there.rules);
    ensure!(there.settings == before.settings, "the machine got settings: {:?}", there.settings);
    cluster.down()?;
    clean("after the end of a cluster")?;

    let cluster = Cluster::leave_up(&options)?;
    let keeper = fs::read_to_string(cluster.home().ready())?.parse().context("whose cluster is it?")?;
    kill(Pid::from_raw(keeper), Signal::SIGKILL)?;
    let group = cluster.home().cgroup();
    let folder = options.root.join(&options.name).to_string_lossy().into_owned();
    Stop::default().until_every(PAUSE, SOON, "the end of all processes with their keeper", || {
        Ok(processes(&folder, &group).is_empty().then_some(()))
    })?;
    drop(cluster);
    Cluster::take_down(&options)?;
    clean("after the keeper was killed")?;

    // A program that ends at once, in place of Kubernetes.
    let broken = tempfile::tempdir()?;
    let real = &options.programs;
    std::os::unix::fs::symlink(real.join("coredns"), broken.path().join("coredns"))?;
    fs::copy(real.join("pause"), broken.path().join("pause"))?;
    fs::copy("/bin/false", broken.path().join("kubernetes"))?;
    let err = Cluster::up(&Options { programs: broken.path().to_owned(), ..options.clone() });
    let err = format!("{:#}", err.err().context("a cluster came up without Kubernetes")?);
    ensure!(err.contains("the API server ended with exit status: 1"), "it says something else: {err}");
    clean("after a cluster that did not come up")
}
