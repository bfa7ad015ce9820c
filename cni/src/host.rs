//! Kubelet's probes: marks them in the node's own namespace, so that pods let them through.
//!
//! A probe and a client of a `NodePort` look alike to a pod: both come from the node. So connections of
//! kubelet to an enrolled pod get a source address that means "probe", and the pod's rules know it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use ipnet::IpNet;
use nix::unistd::geteuid;
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::{sleep, timeout},
};
use tracing::warn;

use crate::{
    command::{self, CommandError},
    metrics::Metrics,
    netns::{Netns, NetnsError},
    redirect::ProbeAddresses,
    scan,
};

/// The table in the node's namespace.
pub const TABLE: &str = "ambit-probes";

/// Programs that are kubelet, or hold it in themselves.
const KUBELETS: [&str; 5] = ["kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent"];

/// How often the node's table is read back; it costs one process. Until then probes of pods in mode STRICT may fail, and
/// kubelet gives up on a pod after three of them, ten seconds apart.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long a connection from the node to one of its pods may take.
const NEAR: Duration = Duration::from_secs(1);

/// The rule and its set, kept in step with the pods.
#[derive(Debug)]
pub struct Probes {
    /// Kubelet's user; without one there is nobody whose probes could be told apart.
    prober: Option<u32>,
    addresses: ProbeAddresses,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    set: ProbeSet,
    /// The table as we have made it; nothing while it is a former agent's.
    applied: String,
    /// The same as the kernel lists it. Nothing: it could not be read, and is made anew.
    listing: Option<String>,
}

/// How the table was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    AsMade,
    Mended,
}

/// The addresses of enrolled pods. Pure.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ProbeSet {
    owners: BTreeMap<IpAddr, String>,
}

impl Probes {
    /// For probes of the user `prober`. Takes over what a former agent left: until pods have been looked
    /// at again, their probes must not fail.
    pub async fn open(prober: Option<u32>, addresses: ProbeAddresses) -> Result<Self, HostError> {
        let set = match prober {
            Some(_) => on_node(left_behind).await?,
            None => ProbeSet::default(),
        };
        Ok(Self { prober, addresses, kept: Mutex::new(Kept { set, ..Kept::default() }) })
    }

    /// The pod's probes are let through, at these addresses and no others.
    pub async fn admit(&self, uid: &str, ips: &[IpAddr]) -> Result<(), HostError> {
        self.change(|set| set.assign(uid, ips)).await
    }

    /// The pod's are not any more. An address that is another pod's by now stays.
    pub async fn forget(&self, uid: &str) -> Result<(), HostError> {
        self.change(|set| set.assign(uid, &[])).await
    }

    /// Nobody's are but theirs.
    pub async fn retain(&self, uids: BTreeSet<String>) -> Result<(), HostError> {
        self.change(|set| set.owners.retain(|_, owner| uids.contains(owner))).await
    }

    /// Takes table and set away.
    pub async fn remove(&self) -> Result<(), HostError> {
        if self.prober.is_none() {
            return Ok(());
        }
        *self.kept.lock().await = Kept::default();
        on_node(|| command::demand("nft", &["-f", "-"], &removal()).map(drop)).await
    }

    async fn change(&self, edit: impl FnOnce(&mut ProbeSet)) -> Result<(), HostError> {
        let Some(prober) = self.prober else { return Ok(()) };
        let mut kept = self.kept.lock().await;
        let mut after = kept.set.clone();
        edit(&mut after);
        let ruleset = after.ruleset(prober, self.addresses);
        if kept.applied != ruleset {
            let listing = make(ruleset.clone()).await?;
            *kept = Kept { set: after, applied: ruleset, listing };
        }
        Ok(())
    }

    /// Looks after the table for ever: whoever else changes the node's rules may take it away.
    pub async fn watch_over(&self, metrics: &Metrics) {
        loop {
            sleep(LOOK_EVERY).await;
            match self.mend().await {
                Ok(Standing::AsMade) => {}
                Ok(Standing::Mended) => {
                    warn!(
                        nft.table = TABLE,
                        "Someone else changed the node's rules for kubelet's probes; they are put back"
                    );
                    metrics.host_repaired();
                }
                Err(error) => warn!(%error, "The node's rules for kubelet's probes are not looked after"),
            }
        }
    }

    /// Makes the table anew if it is not as we made it.
    async fn mend(&self) -> Result<Standing, HostError> {
        let mut kept = self.kept.lock().await;
        if kept.applied.is_empty() {
            return Ok(Standing::AsMade);
        }
        if kept.listing.is_some() && on_node(list).await? == kept.listing {
            return Ok(Standing::AsMade);
        }
        kept.listing = make(kept.applied.clone()).await?;
        Ok(Standing::Mended)
    }

    /// Connects to the pod as kubelet does, and sees whether it arrives as a probe. We can play kubelet only if we
    /// are the same user; else nothing is known, and nothing said.
    pub async fn prove(&self, netns: &Netns, ips: &[IpAddr]) -> Result<(), Unproven> {
        if self.prober != Some(geteuid().as_raw()) {
            return Ok(());
        }
        for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
            if let Some(ip) = ips.iter().copied().find(family) {
                self.probe(netns, ip).await?;
            }
        }
        Ok(())
    }

    async fn probe(&self, netns: &Netns, ip: IpAddr) -> Result<(), Unproven> {
        let expected = self.addresses.of(ip);
        let listener = netns.inside(move || std::net::TcpListener::bind((ip, 0))).await?;
        let listener = listener.and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        });
        let listener = listener.map_err(Unproven::Listen)?;
        let to = listener.local_addr().map_err(Unproven::Listen)?;
        let _dialled = match timeout(NEAR, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Unproven::Unreachable { ip, why: error.to_string() }),
            Err(_) => return Err(Unproven::Unreachable { ip, why: format!("no answer within {NEAR:?}") }),
        };
        match timeout(NEAR, listener.accept()).await {
            Ok(Ok((_, from))) if from.ip().to_canonical() == expected => Ok(()),
            Ok(Ok((_, from))) => Err(Unproven::Translated { ip, expected, seen: from.ip() }),
            Ok(Err(error)) => Err(Unproven::Listen(error)),
            Err(_) => Err(Unproven::Captured { ip }),
        }
    }
}

/// Why kubelet's probes may not reach a pod.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    /// The test itself failed.
    #[error("the test of the pod's probes could not listen in the pod: {0}")]
    Listen(#[source] std::io::Error),
    /// The same.
    #[error("the test of the pod's probes could not enter the pod: {0}")]
    Enter(#[from] NetnsError),
    /// Nothing arrives.
    #[error(
        "a connection from the node does not reach the pod at {ip}: {why}; does a NetworkPolicy or the cluster's network \
         forbid the node to reach its pods?"
    )]
    Unreachable {
        /// Where to.
        ip: IpAddr,
        /// Why.
        why: String,
    },
    /// It arrives as something else.
    #[error(
        "a probe of the pod at {ip} comes from {seen} instead of {expected}: another program's rules translate it before \
         ours; see `nft list ruleset` on the node for a chain of hook postrouting before ours"
    )]
    Translated {
        /// Where to.
        ip: IpAddr,
        /// Where from it should come.
        expected: IpAddr,
        /// Where from it comes.
        seen: IpAddr,
    },
    /// It does not arrive at its port.
    #[error(
        "a probe of the pod at {ip} is taken for traffic and captured: the node does not mark it; does the agent run in the \
         node's network (hostNetwork), and does another program's rule stand before ours?"
    )]
    Captured {
        /// Where to.
        ip: IpAddr,
    },
}

/// An address for probes that is somebody's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the address for probes, {0}, is an address of this node: whoever has it would pass all pods by unseen; choose another \
     with --probe-address or --probe-address-v6"
)]
pub struct Taken(pub IpAddr);

/// Whether the addresses that mean "probe" are free on this node: none of its own, and, which is only worth a
/// warning, in no network that it has a route of its own to.
pub async fn look_around(addresses: ProbeAddresses) -> Result<Vec<String>, Taken> {
    let all = [IpAddr::from(addresses.v4), IpAddr::from(addresses.v6)];
    let looked = tokio::task::spawn_blocking(move || {
        let own = scan::addresses();
        if let Some(taken) = all.into_iter().find(|ip| own.contains(ip)) {
            return Err(Taken(taken));
        }
        let listed = ["-4", "-6"]
            .map(|family| command::run("ip", &[family, "-j", "route", "show", "table", "all"], ""));
        let listed = listed.into_iter().flatten().map(|output| output.out);
        Ok(listed
            .flat_map(|listing| {
                all.into_iter().filter_map(move |ip| covering(&listing, ip)).collect::<Vec<_>>()
            })
            .collect())
    });
    looked.await.unwrap_or(Ok(Vec::new()))
}

/// The network that a route of its own leads to and that the address is in. Wide networks are nobody's in
/// particular.
fn covering(listing: &str, ip: IpAddr) -> Option<String> {
    let listing: Value = serde_json::from_str(listing).ok()?;
    let narrow = if ip.is_ipv4() { 20 } else { 64 };
    let mut destinations = listing.as_array()?.iter().filter_map(|route| route.get("dst")?.as_str());
    destinations.find_map(|text| {
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
        (net.prefix_len() >= narrow && net.contains(&ip))
            .then(|| format!("{ip} is in {text}, to which this node has a route"))
    })
}

/// Why the node's rules could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `nft` failed.
    #[error("cannot change the node's own rules: {0}")]
    Command(#[from] CommandError),
    /// The task that ran it died.
    #[error("the task that changes the node's own rules died")]
    Died,
}

impl ProbeSet {
    /// The pod owns exactly these addresses, even those that were another's: an address has one owner,
    /// the one that came last.
    fn assign(&mut self, uid: &str, ips: &[IpAddr]) {
        self.owners.retain(|ip, owner| owner != uid || ips.contains(ip));
        for ip in ips {
            self.owners.insert(*ip, uid.to_owned());
        }
    }

    /// The whole table, in the place of the old one. Its chain is before `srcnat`, where other CNIs stand with
    /// rules for everything: who translates first decides (protocols 12, line 41).
    fn ruleset(&self, prober: u32, addresses: ProbeAddresses) -> String {
        let ProbeAddresses { v4: from_v4, v6: from_v6 } = addresses;
        let v4 = self.elements(IpAddr::is_ipv4);
        let v6 = self.elements(IpAddr::is_ipv6);
        format!(
            "{removal}table inet {TABLE} {{
	set probes-v4 {{
		type ipv4_addr{v4}
	}}
	set probes-v6 {{
		type ipv6_addr{v6}
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat - 1; policy accept;
		meta l4proto tcp meta skuid {prober} ip daddr @probes-v4 counter snat ip to {from_v4}
		meta l4proto tcp meta skuid {prober} ip6 daddr @probes-v6 counter snat ip6 to {from_v6}
	}}
}}
",
            removal = removal()
        )
    }

    fn elements(&self, family: impl Fn(&IpAddr) -> bool) -> String {
        let all: Vec<String> = self
            .owners
            .iter()
            .filter(|(ip, _)| family(ip))
            .map(|(ip, uid)| format!("{ip} comment \"{}\"", printable(uid)))
            .collect();
        if all.is_empty() { String::new() } else { format!("\n\t\telements = {{ {} }}", all.join(", ")) }
    }

    /// From `nft -j list table`.
    fn read(listing: &str) -> Self {
        let listing: Value = serde_json::from_str(listing).unwrap_or_default();
        let sets = listing.get("nftables").and_then(Value::as_array).into_iter().flatten();
        let elements = sets
            .filter_map(|object| object.pointer("/set/elem")?.as_array())
            .flatten()
            .filter_map(|element| element.get("elem"));
        let owners = elements.filter_map(|element| {
            let ip = element.get("val")?.as_str()?.parse().ok()?;
            Some((ip, element.get("comment")?.as_str()?.to_owned()))
        });
        Self { owners: owners.collect() }
    }
}

/// Kubelet's user, if it runs on this node. A process may call itself what it likes, so only those count that live where
/// the node's first process does: a pod's have process ids of their own, unless it was let out of its box.
pub fn kubelet(proc: &Path) -> Option<u32> {
    let home = |process: &Path| {
        let namespace = |kind: &str| fs::read_link(process.join("ns").join(kind)).ok();
        namespace("net").zip(namespace("pid"))
    };
    let node = home(&proc.join("1"))?;
    fs::read_dir(proc).ok()?.flatten().find_map(|process| {
        (home(&process.path()).as_ref() == Some(&node)).then_some(())?;
        let name = fs::read_to_string(process.path().join("comm")).ok()?;
        let told = || fs::read(process.path().join("cmdline")).is_ok_and(|line| is_told_to_be_kubelet(&line));
        (KUBELETS.contains(&name.trim()) || told()).then_some(())?;
        Some(fs::metadata(process.path()).ok()?.uid())
    })
}

/// One program may be all of Kubernetes, and be told by its first word which part to be. Programs of other names
/// may be given that word for other reasons.
fn is_told_to_be_kubelet(command_line: &[u8]) -> bool {
    let mut words = command_line.split(|byte| *byte == 0);
    let program = words.next().and_then(|path| path.rsplit(|byte| *byte == b'/').next()).unwrap_or_default();
    let is_kubernetes = [&b"hyperkube"[..], b"kubernetes", b"kube"].contains(&program);
    is_kubernetes && words.next() == Some(b"kubelet")
}

/// UIDs are plain; this keeps one that is not from ending the comment.
fn printable(uid: &str) -> String {
    uid.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(120).collect()
}

fn removal() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// Puts the table in, and reads it back.
async fn make(ruleset: String) -> Result<Option<String>, HostError> {
    on_node(move || {
        command::demand("nft", &["-f", "-"], &ruleset)?;
        list()
    })
    .await
}

/// The table without its counters; `None` if there is none.
fn list() -> Result<Option<String>, CommandError> {
    let listed = command::run("nft", &["-s", "list", "table", "inet", TABLE], "")?;
    Ok(listed.content.then_some(listed.out))
}

fn left_behind() -> Result<ProbeSet, CommandError> {
    let listed = command::run("nft", &["-j", "list", "table", "inet", TABLE], "")?;
    // No table, most often: then nothing was left.
    Ok(if listed.content { ProbeSet::read(&listed.out) } else { ProbeSet::default() })
}

async fn on_node<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CommandError> + Send + 'static,
) -> Result<T, HostError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| HostError::Died)??)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_table() {
        let mut set = ProbeSet::default();
        insta::assert_snapshot!("empty", set.ruleset(0, ProbeAddresses::default()));
        set.assign("uid-a", &[ip("10.0.0.1"), ip("fd00::1")]);
        set.assign("uid-b", &[ip("10.0.0.2")]);
        insta::assert_snapshot!("three", set.ruleset(997, ProbeAddresses::default()));
    }

    #[test]
    fn an_address_that_changed_hands_is_not_taken_from_its_new_owner() {
        let mut set = ProbeSet::default();
        set.assign("old", &[ip("10.0.0.1"), ip("10.0.0.2")]);
        set.assign("new", &[ip("10.0.0.1")]);
        set.assign("old", &[]);
        assert_eq!(set.owners, [(ip("10.0.0.1"), "new".to_owned())].into());
    }

    #[test]
    fn a_pod_has_the_addresses_it_has_now() {
        let mut set = ProbeSet::default();
        set.assign("a", &[ip("10.0.0.1")]);
        set.assign("a", &[ip("10.0.0.9")]);
        assert_eq!(set.owners, [(ip("10.0.0.9"), "a".to_owned())].into());
    }

    #[test]
    fn what_nft_lists_is_read_back() {
        let listing = r#"{"nftables": [{"metainfo": {}}, {"table": {"name": "ambit-probes"}},
            {"set": {"name": "probes-v4", "elem": [{"elem": {"val": "10.0.0.1", "comment": "a"}}, "10.0.0.7"]}},
            {"set": {"name": "probes-v6", "elem": [{"elem": {"val": "fd00::1", "comment": "a"}}]}}]}"#;
        let owners = [(ip("10.0.0.1"), "a".to_owned()), (ip("fd00::1"), "a".to_owned())];
        assert_eq!(ProbeSet::read(listing).owners, owners.into());
        assert_eq!(ProbeSet::read("nonsense"), ProbeSet::default());
    }

    #[test]
    fn a_route_of_its_own_to_the_address_for_probes_is_noticed() {
        let listing = r#"[{"dst": "default", "gateway": "10.0.0.1"}, {"dst": "10.0.0.0/24"}, {"dst": "169.254.0.0/16"},
            {"type": "local", "dst": "10.0.0.7"}, {"dst": "169.254.7.0/24"}, {"dst": 7}, {}]"#;
        assert!(covering(listing, ip("169.254.7.127")).unwrap().contains("169.254.7.0/24"));
        assert!(covering(listing, ip("10.0.0.7")).is_some());
        for other in ["169.254.8.1", "192.0.2.1", "fd00::1"] {
            assert_eq!(covering(listing, ip(other)), None, "{other}");
        }
        assert_eq!(covering("nonsense", ip("10.0.0.7")), None);
    }

    #[test]
    fn kubelet_is_found_by_its_name_where_the_node_lives() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str, (net, pid_space): (&str, &str), comm: &str, line: &[u8]| {
            let dir = proc.path().join(pid);
            fs::create_dir_all(dir.join("ns")).unwrap();
            symlink(net, dir.join("ns/net")).unwrap();
            symlink(pid_space, dir.join("ns/pid")).unwrap();
            fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
            fs::write(dir.join("cmdline"), line).unwrap();
        };
        let node = ("net:[1]", "pid:[1]");
        process("1", node, "init", b"");
        process("7", node, "kubelet-exporter", b"");
        for (pid, line) in
            [("3", &b"vim\0kubelet\0"[..]), ("4", b"/bin/kubernetes\0kube-proxy\0kubelet\0"), ("5", b"")]
        {
            process(pid, node, "kubernetes", line);
        }
        // Pods that call themselves so.
        process("20", ("net:[2]", "pid:[2]"), "kubelet", b"");
        process("21", ("net:[1]", "pid:[3]"), "kubelet", b"");
        assert_eq!(kubelet(proc.path()), None);
        let own = Some(fs::metadata(proc.path()).unwrap().uid());
        process("6", node, "kubernetes", b"/opt/kubernetes\0kubelet\0--config\0x\0");
        assert_eq!(kubelet(proc.path()), own);
        fs::remove_dir_all(proc.path().join("6")).unwrap();
        process("9", node, "kubelet", b"");
        assert_eq!(kubelet(proc.path()), own);
        // It cannot be told where the node lives.
        fs::remove_dir_all(proc.path().join("1/ns")).unwrap();
        assert_eq!(kubelet(proc.path()), None);
    }
}
