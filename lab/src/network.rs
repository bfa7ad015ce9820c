//! The lab's network: makes the namespaces of nodes and pods and all that joins them, and removes them again.
//!
//! Nothing but named namespaces (and their files below `/etc/netns`) appears on the host: every device is made
//! inside them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::address::{self, Family, MAX_NODES, MAX_PODS_PER_NODE, NodeIndex};
use crate::command::{self, CommandError};
use crate::link::{BRIDGE, Link, Netem};
use crate::netns::{Netns, NetnsError};
use crate::node::Node;
use crate::pod::{Pod, PodName};
use crate::services;

/// Where labs keep their locks and, by default, their logs.
const STATE: &str = "/run/ambit-lab";
/// What `ip netns exec` lays over `/etc`.
const NETNS_ETC: &str = "/etc/netns";
/// Every namespace of every lab begins so.
const PREFIX: &str = "amb";

/// A cluster's network on this machine. Clones are the same lab; the last one dropped takes the lab down.
#[derive(Debug, Clone)]
pub struct Lab {
    inner: Arc<Inner>,
}

/// What a lab is to look like.
#[derive(Debug, Clone)]
pub struct Topology {
    /// The nodes' names; one or more.
    pub nodes: Vec<String>,
    /// The IP families.
    pub family: Family,
    /// The devices' MTU.
    pub mtu: u16,
    /// What the wire does to packets.
    pub netem: Option<Netem>,
    /// Where logs go; with `None`, to a directory that is removed with the lab.
    pub logs: Option<PathBuf>,
}

/// A pod to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPod {
    /// Its name.
    pub name: PodName,
    /// Its node's name.
    pub node: String,
}

/// Why a lab, or a part of it, could not be made or found.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A name that cannot be part of a namespace's name.
    #[error("{what} name {name:?} cannot be used: take 1 to 63 of {allowed}")]
    Name {
        /// What it would name.
        what: &'static str,
        /// The name.
        name: String,
        /// The characters it may have.
        allowed: &'static str,
    },
    /// Someone holds the lab of that name.
    #[error("lab {name} is in use by process {owner}; end that process, or choose another name")]
    Busy {
        /// The lab.
        name: String,
        /// Its process, as its lock says.
        owner: String,
    },
    /// The topology cannot be built.
    #[error("a lab has 1 to {MAX_NODES} nodes with different names; asked for: {0:?}")]
    Nodes(Vec<String>),
    /// No node of that name.
    #[error("lab {lab} has no node {node}; its nodes: {nodes}")]
    NoNode {
        /// The lab.
        lab: String,
        /// The missing node.
        node: String,
        /// Those it has.
        nodes: String,
    },
    /// No pod of that name.
    #[error("lab {lab} has no pod {pod}; is it in the directory, and has it been started?")]
    NoPod {
        /// The lab.
        lab: String,
        /// The missing pod.
        pod: PodName,
    },
    /// A pod of that name, or a node or pod whose namespace would be called the same, is there already.
    #[error(
        "lab {lab} has the namespace of pod {pod} already; remove what is there, or name the pod otherwise"
    )]
    PodExists {
        /// The lab.
        lab: String,
        /// The pod.
        pod: PodName,
    },
    /// A node's addresses are used up.
    #[error("node {node} has no address left: it holds {MAX_PODS_PER_NODE} pods; use more nodes")]
    Full {
        /// The node.
        node: String,
    },
    /// A file of the lab could not be used.
    #[error("cannot use {path}: {source}; run as root", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A network command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A node's rules could not be applied.
    #[error(transparent)]
    Rules(#[from] services::ApplyError),
}

impl Default for Topology {
    /// Two nodes, `node-a` and `node-b`, dual stack.
    fn default() -> Self {
        Self {
            nodes: vec!["node-a".to_owned(), "node-b".to_owned()],
            family: Family::Dual,
            mtu: 1500,
            netem: None,
            logs: None,
        }
    }
}

impl Lab {
    /// A lab with the default [`Topology`].
    pub fn create(name: &str) -> Result<Self, LabError> {
        Self::build(name, &Topology::default())
    }

    /// A lab as described. What an earlier lab of that name left behind is removed first.
    pub fn build(name: &str, topology: &Topology) -> Result<Self, LabError> {
        let lock = Lock::take(name)?;
        sweep_locked(name)?;
        let inner = Inner::plan(name, topology, lock)?;
        // From here on, dropping `inner` removes what has been made.
        inner.make_nodes(topology)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Removes what a lab of that name left behind when its process died. Refuses while it is alive.
    pub fn sweep(name: &str) -> Result<(), LabError> {
        let lock = Lock::take(name)?;
        sweep_locked(name)?;
        drop(lock);
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its IP families.
    pub fn family(&self) -> Family {
        self.inner.family
    }

    /// Where its logs are.
    pub fn logs(&self) -> &Path {
        &self.inner.logs
    }

    /// Its nodes, as ordered in the topology.
    pub fn nodes(&self) -> &[Node] {
        &self.inner.nodes
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node, LabError> {
        self.inner.node(name)
    }

    /// The pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod, LabError> {
        let name = PodName::new(namespace, name);
        let pod = self.inner.pods().by_name.get(&name).cloned();
        pod.ok_or_else(|| LabError::NoPod { lab: self.inner.name.clone(), pod: name })
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Pod> {
        self.inner.pods().by_name.values().cloned().collect()
    }

    /// Makes one pod.
    pub fn add_pod(&self, namespace: &str, name: &str, node: &str) -> Result<Pod, LabError> {
        let name = PodName::new(namespace, name);
        let new = NewPod { name: name.clone(), node: node.to_owned() };
        let made = self.add_pods(&[new])?.pop();
        made.ok_or_else(|| LabError::NoPod { lab: self.inner.name.clone(), pod: name })
    }

    /// Makes pods: all of them, or none.
    pub fn add_pods(&self, new: &[NewPod]) -> Result<Vec<Pod>, LabError> {
        let pods = self.inner.admit(new)?;
        self.inner.make_pods(&pods).inspect_err(|_| {
            for pod in &pods {
                self.inner.unmake_pod(pod);
            }
        })?;
        Ok(pods)
    }

    /// Removes a pod with all that runs in it.
    pub fn remove_pod(&self, name: &PodName) -> Result<(), LabError> {
        let pod = self.pod(&name.namespace, &name.name)?;
        self.inner.unmake_pod(&pod);
        Ok(())
    }

    /// The namespace of a node of the lab of that name, for whoever is not its owner.
    pub fn node_netns(lab: &str, node: &str) -> Netns {
        Netns::named(format!("{PREFIX}-{lab}-{node}"))
    }

    /// The namespace of a pod of the lab of that name, for whoever is not its owner.
    pub fn pod_netns(lab: &str, pod: &PodName) -> Netns {
        Netns::named(format!("{PREFIX}-{lab}-{}-{}", pod.namespace, pod.name))
    }
}

#[derive(Debug)]
struct Inner {
    name: String,
    family: Family,
    mtu: u16,
    logs: PathBuf,
    keep_logs: bool,
    nodes: Vec<Node>,
    wire: Netns,
    pods: Mutex<Pods>,
    /// Released after `Drop` has removed everything.
    _lock: Lock,
}

#[derive(Debug, Default)]
struct Pods {
    by_name: BTreeMap<PodName, Pod>,
    /// The last host number given out, by node.
    last: BTreeMap<String, u8>,
}

impl Inner {
    fn plan(name: &str, topology: &Topology, lock: Lock) -> Result<Self, LabError> {
        let names = &topology.nodes;
        let different: BTreeSet<_> = names.iter().collect();
        if names.is_empty() || names.len() > MAX_NODES || different.len() != names.len() {
            return Err(LabError::Nodes(names.clone()));
        }
        let logs = topology.logs.clone().unwrap_or_else(|| Path::new(STATE).join(name));
        fs::create_dir_all(&logs).map_err(|source| LabError::File { path: logs.clone(), source })?;
        let index = |place: usize| u8::try_from(place).map_or(NodeIndex(0), NodeIndex);
        let nodes = names
            .iter()
            .enumerate()
            .map(|(place, node)| {
                check("node", node, DNS_NAME)?;
                let netns = Lab::node_netns(name, node);
                let neighbour = if place == 0 { 1 } else { 0 };
                let beyond = match names.len() {
                    1 => Vec::new(),
                    _ => index(neighbour).wire(topology.family),
                };
                Ok(Node {
                    name: node.clone(),
                    link: Link::new(netns.clone(), beyond.first().copied()),
                    netns,
                    index: index(place),
                    ips: index(place).wire(topology.family),
                    logs: logs.clone(),
                })
            })
            .collect::<Result<_, LabError>>()?;
        Ok(Self {
            name: name.to_owned(),
            family: topology.family,
            mtu: topology.mtu,
            logs,
            keep_logs: topology.logs.is_some(),
            nodes,
            wire: Netns::named(format!("{PREFIX}-{name}-wire")),
            pods: Mutex::default(),
            _lock: lock,
        })
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, name: &str) -> Result<&Node, LabError> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| LabError::NoNode {
            lab: self.name.clone(),
            node: name.to_owned(),
            nodes: self.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    fn make_nodes(&self, topology: &Topology) -> Result<(), LabError> {
        let wire = (self.nodes.len() > 2).then_some(&self.wire);
        self.add_namespaces(self.nodes.iter().map(|node| &node.netns).chain(wire))?;
        self.host_ip(&self.wiring())?;
        let on_wire = self.nodes.len() > 1;
        if self.nodes.len() > 2 {
            let ports = (0..self.nodes.len()).map(|place| format!("link set n{place} master {BRIDGE} up"));
            self.wire.ip(&ports.chain([format!("link set {BRIDGE} up")]).collect::<Vec<_>>().join("\n"))?;
        }
        for node in &self.nodes {
            self.give_resolver(
                &node.netns,
                &format!("nameserver {}\n", self.nameservers().join("\nnameserver ")),
            )?;
            let others: Vec<_> = self.nodes.iter().filter(|other| other.name != node.name).collect();
            node.netns.ip(&node.set_up(self.family, on_wire, &others))?;
            services::apply(&node.netns, &services::ruleset(&[]))?;
            if let (Some(netem), true) = (topology.netem, on_wire) {
                node.link.disturb(netem)?;
            }
        }
        Ok(())
    }

    /// Namespaces with their settings, which devices take over when they are made: so before any device.
    fn add_namespaces<'a>(&self, all: impl Iterator<Item = &'a Netns> + Clone) -> Result<(), LabError> {
        let batch: Vec<_> = all.clone().map(|netns| format!("netns add {}", netns.name())).collect();
        self.host_ip(&batch.join("\n"))?;
        all.into_iter().try_for_each(|netns| self.settle(netns))
    }

    /// The devices between nodes. Their numbers are chosen to differ: the kernel takes a device whose peer bears its
    /// own number for a physical one, and may let its link come up only a second later.
    fn wiring(&self) -> String {
        let mtu = self.mtu;
        match self.nodes.as_slice() {
            [] | [_] => String::new(),
            [a, b] => format!(
                "link add eth0 index 101 mtu {mtu} netns {} type veth peer name eth0 index 102 mtu {mtu} netns {}",
                a.netns.name(),
                b.netns.name()
            ),
            nodes => {
                let wire = self.wire.name();
                let mut batch = vec![format!("link add {BRIDGE} netns {wire} mtu {mtu} type bridge")];
                batch.extend(nodes.iter().enumerate().map(|(place, node)| {
                    let node = node.netns.name();
                    format!("link add eth0 index 101 mtu {mtu} netns {node} type veth peer name n{place} mtu {mtu} netns {wire}")
                }));
                batch.join("\n")
            }
        }
    }

    fn host_ip(&self, batch: &str) -> Result<(), LabError> {
        Ok(command::run(&["ip", "-batch", "-"], batch).map(drop)?)
    }

    /// Reserves names and addresses.
    fn admit(&self, new: &[NewPod]) -> Result<Vec<Pod>, LabError> {
        let mut pods = self.pods();
        let mut admitted = Vec::new();
        for NewPod { name, node } in new {
            check("namespace", &name.namespace, DNS_NAME)?;
            check("pod", &name.name, DNS_NAME)?;
            let node = self.node(node)?;
            let known = pods.by_name.values().chain(&admitted);
            // `a-b/c` and `a/b-c` would be one namespace.
            let netns = Lab::pod_netns(&self.name, name);
            let of_node =
                self.nodes.iter().map(|node| &node.netns).chain([&self.wire]).any(|taken| *taken == netns);
            if of_node || known.clone().any(|pod| pod.netns == netns) {
                return Err(LabError::PodExists { lab: self.name.clone(), pod: name.clone() });
            }
            let taken = known.filter(|pod| pod.node.name == node.name).map(|pod| pod.host).collect();
            let last = pods.last.get(&node.name).copied();
            let host =
                address::next_pod(last, &taken).ok_or_else(|| LabError::Full { node: node.name.clone() })?;
            pods.last.insert(node.name.clone(), host);
            admitted.push(Pod {
                name: name.clone(),
                netns,
                ips: node.index.pod(host, self.family),
                node: node.clone(),
                host,
                logs: self.logs.clone(),
            });
        }
        pods.by_name.extend(admitted.iter().map(|pod| (pod.name.clone(), pod.clone())));
        Ok(admitted)
    }

    fn make_pods(&self, pods: &[Pod]) -> Result<(), LabError> {
        self.add_namespaces(pods.iter().map(|pod| &pod.netns))?;
        let mtu = self.mtu;
        let joined = pods.iter().map(|pod| {
            format!(
                "link add eth0 index 100 mtu {mtu} netns {name} type veth peer name {device} index {number} mtu {mtu} netns {node}",
                name = pod.netns.name(),
                device = pod.node_device(),
                number = 1000 + u32::from(pod.host),
                node = pod.node.netns.name(),
            )
        });
        self.host_ip(&joined.collect::<Vec<_>>().join("\n"))?;
        for pod in pods {
            self.give_resolver(&pod.netns, &self.resolver(&pod.name.namespace))?;
            pod.netns.ip(&pod.set_up(self.family))?;
        }
        for node in &self.nodes {
            let theirs = pods.iter().filter(|pod| pod.node.name == node.name);
            let batch: Vec<_> = theirs.map(|pod| pod.set_up_node(self.family)).collect();
            if !batch.is_empty() {
                node.netns.ip(&batch.join("\n"))?;
            }
        }
        Ok(())
    }

    /// Removes whatever of a pod is there.
    fn unmake_pod(&self, pod: &Pod) {
        self.pods().by_name.remove(&pod.name);
        // A tunnel may hold the namespace open for a while: its device goes now all the same.
        if let Err(err) = pod.node.netns.ip(&format!("link del {}", pod.node_device())) {
            tracing::debug!(pod = %pod.name, error = %err, "Pod had no device on its node");
        }
        remove(&pod.netns);
    }

    /// The kernel's settings of a namespace, before it has addresses.
    fn settle(&self, netns: &Netns) -> Result<(), LabError> {
        let mut settings = vec![
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ];
        if self.family.v6() {
            settings.extend([
                ("net/ipv6/conf/all/disable_ipv6", "0"),
                ("net/ipv6/conf/default/disable_ipv6", "0"),
                // Link-local addresses are usable at once: nobody else is on these links.
                ("net/ipv6/conf/all/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv6/conf/all/forwarding", "1"),
            ]);
        } else {
            settings.push(("net/ipv6/conf/all/disable_ipv6", "1"));
            settings.push(("net/ipv6/conf/default/disable_ipv6", "1"));
        }
        let only_v4 = !self.family.v6();
        netns.inside(|| {
            for (name, value) in settings {
                let path = Path::new("/proc/sys").join(name);
                match fs::write(&path, value) {
                    // A kernel without IPv6 needs no switching off.
                    Err(err) if only_v4 && err.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(LabError::File { path, source }),
                    Ok(()) => {}
                }
            }
            Ok(())
        })?
    }

    fn nameservers(&self) -> Vec<String> {
        address::dns(self.family).iter().map(IpAddr::to_string).collect()
    }

    /// A pod's `resolv.conf`, as a kubelet writes it.
    fn resolver(&self, namespace: &str) -> String {
        format!(
            "nameserver {}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
            self.nameservers().join("\nnameserver ")
        )
    }

    fn give_resolver(&self, netns: &Netns, text: &str) -> Result<(), LabError> {
        let dir = Path::new(NETNS_ETC).join(netns.name());
        let path = dir.join("resolv.conf");
        fs::create_dir_all(&dir)
            .and_then(|()| fs::write(&path, text))
            .map_err(|source| LabError::File { path, source })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let pods = std::mem::take(&mut self.pods().by_name);
        let nodes = self.nodes.iter().map(|node| &node.netns);
        for netns in pods.values().map(|pod| &pod.netns).chain(nodes).chain([&self.wire]) {
            remove(netns);
        }
        if !self.keep_logs {
            let _ = fs::remove_dir_all(&self.logs);
        }
    }
}

/// Removes a namespace, its processes and its files. What is not there is as it should be.
fn remove(netns: &Netns) {
    if netns.exists() {
        netns.kill_all();
        if let Err(err) = command::run(&["ip", "netns", "del", netns.name()], "") {
            tracing::warn!(netns = netns.name(), error = %err, "Namespace could not be removed");
        }
    }
    let _ = fs::remove_dir_all(Path::new(NETNS_ETC).join(netns.name()));
}

/// Removes all that bears the lab's name.
fn sweep_locked(lab: &str) -> Result<(), LabError> {
    let ours = format!("{PREFIX}-{lab}-");
    for dir in ["/run/netns", NETNS_ETC] {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(LabError::File { path: dir.into(), source }),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        for name in names.filter(|name| name.starts_with(&ours)) {
            remove(&Netns::named(name));
        }
    }
    // Logs that were to go with it; those kept elsewhere are their keeper's.
    let _ = fs::remove_dir_all(Path::new(STATE).join(lab));
    Ok(())
}

const DNS_NAME: &str = "a-z, 0-9, '-' and '.'";
/// No '-': `amb-a-…` must not be a part of lab `a` and of lab `a-b` alike.
const LAB_NAME: &str = "a-z and 0-9";

fn check(what: &'static str, name: &str, allowed: &'static str) -> Result<(), LabError> {
    let extra = if allowed == DNS_NAME { "-." } else { "" };
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || extra.contains(c);
    if (1..=63).contains(&name.len()) && name.chars().all(fits) && !name.starts_with(['-', '.']) {
        Ok(())
    } else {
        Err(LabError::Name { what, name: name.to_owned(), allowed })
    }
}

/// One process at a time may own a lab of a name. The kernel releases it when the owner dies.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _held: Flock<File>,
}

impl Lock {
    fn take(lab: &str) -> Result<Self, LabError> {
        check("lab", lab, LAB_NAME)?;
        let path = Path::new(STATE).join(format!("{lab}.lock"));
        let unusable = |source| LabError::File { path: path.clone(), source };
        loop {
            fs::create_dir_all(STATE).map_err(unusable)?;
            let file = match OpenOptions::new().create(true).truncate(false).write(true).open(&path) {
                // The directory is removed with the last lab in it.
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(unusable)?,
            };
            let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
                if errno == Errno::EWOULDBLOCK {
                    let owner = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
                    LabError::Busy { name: lab.to_owned(), owner }
                } else {
                    unusable(errno.into())
                }
            })?;
            // Its last owner may have removed the file between our opening and locking it.
            let mine = held.metadata().map_err(unusable)?.ino();
            if fs::metadata(&path).is_ok_and(|file| file.ino() == mine) {
                fs::write(&path, std::process::id().to_string()).map_err(unusable)?;
                return Ok(Self { path, _held: held });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // Stays while other labs have their locks in it.
        let _ = fs::remove_dir(STATE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_confuse_two_labs_are_refused() {
        assert!(check("lab", "demo2", LAB_NAME).is_ok());
        for bad in ["", "a-b", "Demo", "a/b", "..", "a b"] {
            assert!(check("lab", bad, LAB_NAME).is_err(), "{bad:?}");
        }
        assert!(check("pod", "web-1", DNS_NAME).is_ok());
        assert!(check("pod", "../../etc", DNS_NAME).is_err());
    }
}
