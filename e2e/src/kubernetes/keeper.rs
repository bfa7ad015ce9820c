//! The process that keeps a cluster: it brings it up, starts again what ends by itself, takes orders, and takes
//! everything down when it is told to, or when nobody uses the cluster any more. If it is killed, the kernel ends the
//! nodes and the control plane; what is left of names and files is removed by the next keeper, or by [`sweep`].

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ambit_lab::process::{self, Program};
use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::control_plane::ControlPlane;
use super::home::{CONTROL, Held, Home, NODES, address, pods};
use super::node::{self, Node};
use super::pki::Pki;
use super::{cgroup, forward, images, network};
use crate::wait::Stop;

/// How often the keeper looks after its daemons.
const ROUND: Duration = Duration::from_millis(100);
/// Whoever had the cluster brought up needs a moment to begin using it.
const FIRST_USE: Duration = Duration::from_secs(20);
const STEP_LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);
/// Whoever looks at the lock has it for a moment.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// Enough to see why, a dozen logs together.
const LAST_LINES: usize = 4;
/// A client says its order at once.
const ORDER_LIMIT: Duration = Duration::from_secs(10);

/// What a keeper is to keep, and how long.
#[derive(Debug, Clone)]
pub struct Keep {
    /// The cluster.
    pub home: Home,
    /// Where the programs of the cluster are.
    pub programs: PathBuf,
    /// Where the programs of this project are.
    pub binaries: PathBuf,
    /// Goes when nobody has used it for this long; without it, stays until it is told to go.
    pub idle: Option<Duration>,
}

/// What a keeper does when asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Ends the API server.
    StopApiServer,
    /// Starts it again; done when it serves.
    StartApiServer,
    /// Cuts the power of a node and boots it again; done when its daemons run.
    Reboot(String),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Done.
    Done,
    /// Not done, and why.
    Failed(String),
}

/// Keeps a cluster until its end; leaves nothing behind, whatever happened.
pub fn keep(keep: &Keep, stop: &Stop) -> anyhow::Result<()> {
    let home = &keep.home;
    // Others look, too, whether somebody holds it, for a moment.
    let lock = stop
        .until_every(PAUSE, LOCK_LIMIT, "our keeping", || Held::take(&home.lock()))
        .with_context(|| format!("cluster {} has a keeper already", home.name()))?;
    fs::write(home.lock(), std::process::id().to_string())?;
    sweep(home)?;
    let kept = Kept::up(keep, stop).with_context(|| last_words(home)).and_then(|mut kept| {
        fs::write(home.ready(), std::process::id().to_string())?;
        let served = kept.serve(keep.idle, stop);
        // Nobody begins to use what is about to go.
        let _ = fs::remove_file(home.ready());
        kept.down();
        served
    });
    let swept = sweep(home);
    let outcome = kept.and(swept);
    if outcome.is_ok() {
        let _ = fs::remove_file(home.log());
    }
    lock.remove();
    outcome
}

/// What its daemons said at last, before their logs go.
fn last_words(home: &Home) -> String {
    let logs = fs::read_dir(home.logs()).into_iter().flatten().filter_map(Result::ok);
    let mut told = String::from("the cluster does not come up; its daemons said at last:\n");
    for log in logs {
        let text = fs::read(log.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(LAST_LINES).collect();
        for line in lines.iter().rev() {
            told.push_str(&format!("{}: {line}\n", log.file_name().display()));
        }
    }
    told
}

/// The process that keeps a cluster, as far as is known.
pub fn of(home: &Home) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(home.lock()).ok()?.parse().ok()?;
    // The number may be another's by now.
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let ours = program.file_name()?.to_string_lossy().starts_with("ambit-cluster");
    ours.then(|| Pid::from_raw(pid))
}

/// Removes all that bears the cluster's name: processes, control groups, namespaces, files. Its keeper must be gone.
pub fn sweep(home: &Home) -> anyhow::Result<()> {
    cgroup::remove(Path::new(&home.cgroup()))?;
    let prefix = home.netns_prefix();
    let entries = fs::read_dir("/run/netns").into_iter().flatten().filter_map(Result::ok);
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(place) = name.strip_prefix(&prefix) else { continue };
        let netns = home.netns(place);
        for pid in netns.processes() {
            // Gone meanwhile is what we want.
            let _ = kill(pid, Signal::SIGKILL);
        }
        process::run(None, &Program::line(["ip", "netns", "del", &name]), STEP_LIMIT)?.ok()?;
    }
    if home.dir().exists() {
        fs::remove_dir_all(home.dir()).with_context(|| format!("cannot remove {}", home.dir().display()))?;
    }
    Ok(())
}

/// Gives an order to the keeper of a cluster.
pub fn order(home: &Home, order: &Order) -> anyhow::Result<()> {
    let mut stream =
        UnixStream::connect(home.orders()).with_context(|| format!("cluster {} is not up", home.name()))?;
    writeln!(stream, "{}", serde_json::to_string(order)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    match serde_json::from_str(&line).context("the keeper went away before it was done")? {
        Answer::Done => Ok(()),
        Answer::Failed(why) => bail!("{why}"),
    }
}

/// A cluster that is up.
struct Kept {
    home: Home,
    control: ControlPlane,
    nodes: Vec<Node>,
    orders: UnixListener,
}

impl Kept {
    fn up(keep: &Keep, stop: &Stop) -> anyhow::Result<Self> {
        let home = &keep.home;
        let begun = Instant::now();
        let told = |what: &str| super::tell(&format!("{:>5.1}s  {what}", begun.elapsed().as_secs_f32()));
        for dir in [home.dir(), home.logs(), home.share()] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        fs::write(home.lease(), "")?;
        let pki = Pki::make(home)?;
        network::make_control(home)?;
        let mut control = ControlPlane::new(home, &keep.programs, &pki)?;
        let mut nodes = NODES
            .into_iter()
            .map(|name| Node::prepare(name, home, &keep.programs, &pki))
            .collect::<anyhow::Result<Vec<_>>>()?;
        told("certificates and configuration are written");
        // Nodes boot and unpack their images while the API server starts.
        let archives = thread::scope(|scope| {
            let control = scope.spawn(|| control.start(stop));
            let archives = scope.spawn(|| archives(keep));
            for node in &mut nodes {
                node.boot(stop)?;
            }
            told("nodes are booted");
            let archives = archives.join().map_err(|_| anyhow::anyhow!("making images panicked"))??;
            import(home, &archives)?;
            told("images are there");
            control.join().map_err(|_| anyhow::anyhow!("the start of the control plane panicked"))??;
            anyhow::Ok(archives)
        })?;
        told(&format!("the control plane serves; {} images", archives.len()));
        let to = SocketAddr::new(address(CONTROL).into(), 6443);
        let at = forward::start(home.netns(CONTROL), to)?;
        pki.kubeconfig("admin", &format!("https://{at}"), &home.kubeconfig())?;
        for node in &mut nodes {
            node.join()?;
        }
        let kubectl = super::Kubectl::new(home, &keep.programs);
        kubectl.apply(include_str!("addons.yaml"))?;
        for name in NODES {
            stop.until_every(PAUSE, STEP_LIMIT, &format!("the registration of node {name}"), || {
                let patch = format!(r#"{{"spec":{{"podCIDR":"{0}","podCIDRs":["{0}"]}}}}"#, pods(name));
                Ok(kubectl.run(&["patch", "node", name, "--patch", &patch])?.status.success().then_some(()))
            })?;
        }
        told("nodes are registered");
        kubectl.ok(&["wait", "node", "--all", "--for=condition=Ready", "--timeout=120s"])?;
        told("nodes are ready");
        kubectl.ok(&[
            "--namespace=kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout=120s",
        ])?;
        told("names are answered: the cluster is up");
        let orders = UnixListener::bind(home.orders()).with_context(|| {
            format!(
                "cannot listen at {}; choose a shorter folder if it is longer than 107 bytes",
                home.orders().display()
            )
        })?;
        orders.set_nonblocking(true)?;
        Ok(Self { home: home.clone(), control, nodes, orders })
    }

    /// Looks after the cluster until it is to go.
    fn serve(&mut self, idle: Option<Duration>, stop: &Stop) -> anyhow::Result<()> {
        let mut used = Instant::now() + FIRST_USE;
        let mut lease = None;
        while !stop.asked() {
            match self.orders.accept() {
                Ok((stream, _)) => self.take_order(&stream, stop)?,
                // Nobody there.
                Err(_) => thread::park_timeout(ROUND),
            }
            self.control.tend()?;
            self.nodes.iter_mut().try_for_each(Node::tend)?;
            let Some(idle) = idle else { continue };
            match Held::take(&self.home.lease())? {
                None => used = Instant::now(),
                // Kept: whoever wants to begin now waits for the next cluster.
                Some(held) if Instant::now().saturating_duration_since(used) >= idle => {
                    lease = Some(held);
                    break;
                }
                Some(_) => {}
            }
        }
        if let Some(lease) = lease {
            lease.remove();
        }
        Ok(())
    }

    fn take_order(&mut self, stream: &UnixStream, stop: &Stop) -> anyhow::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(ORDER_LIMIT))?;
        let mut line = String::new();
        let read = BufReader::new(stream).read_line(&mut line);
        let done = read
            .map_err(anyhow::Error::from)
            .and_then(|_| Ok(serde_json::from_str(&line)?))
            .and_then(|order| self.obey(&order, stop));
        let answer = match done {
            Ok(()) => Answer::Done,
            Err(err) => Answer::Failed(format!("{err:#}")),
        };
        // Whoever asked may be gone: that is no reason to end the cluster.
        let mut stream = stream;
        let _ = writeln!(stream, "{}", serde_json::to_string(&answer)?);
        Ok(())
    }

    fn obey(&mut self, order: &Order, stop: &Stop) -> anyhow::Result<()> {
        match order {
            Order::StopApiServer => self.control.stop_api_server(),
            Order::StartApiServer => self.control.start_api_server(stop),
            Order::Reboot(name) => {
                let node = self.nodes.iter_mut().find(|node| node.name() == name.as_str());
                let node =
                    node.with_context(|| format!("there is no node {name:?}: take one of {NODES:?}"))?;
                node.cut()?;
                node.boot(stop)?;
                node.join()
            }
        }
    }

    fn down(mut self) {
        for node in &mut self.nodes {
            // What is left is swept.
            let _ = node.cut();
        }
    }
}

/// Makes the archives of the first images.
fn archives(keep: &Keep) -> anyhow::Result<Vec<Archive>> {
    let mut all = images::first(&keep.programs)?;
    all.push(images::app(&keep.binaries)?);
    all.iter().map(|image| Archive::make(&keep.home, image)).collect()
}

/// An image on its way to the nodes, in the folder that they share. Unpacked there, it is removed here.
pub(super) struct Archive {
    name: String,
    path: PathBuf,
}

impl Archive {
    /// Writes it.
    pub(super) fn make(home: &Home, image: &super::Image) -> anyhow::Result<Self> {
        let name = format!("{}.tar", image.file_name());
        let path = home.share().join(&name);
        image.write(&path)?;
        Ok(Self { name, path })
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // It goes with the cluster at the latest.
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives every node these images, nodes side by side.
pub(super) fn import(home: &Home, archives: &[Archive]) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let nodes = NODES.map(|node| {
            scope.spawn(move || archives.iter().try_for_each(|one| node::import(home, node, &one.name)))
        });
        nodes
            .into_iter()
            .try_for_each(|node| node.join().map_err(|_| anyhow::anyhow!("an import panicked"))?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_are_lines() {
        let order = Order::Reboot("n1".to_owned());
        let line = serde_json::to_string(&order).unwrap();
        assert_eq!(line, r#"{"reboot":"n1"}"#);
        assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
        assert_eq!(serde_json::to_string(&Answer::Done).unwrap(), r#""done""#);
    }
}
