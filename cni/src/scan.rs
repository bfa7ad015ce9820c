//! Finds the network namespaces of pods that run already, among the node's processes.
//!
//! A process tells by the path of its control group which pod it belongs to. A pod may hold processes of
//! several namespaces (a container that makes its own, a process of the node that was moved there): the
//! oldest one whose namespace is not the node's and holds the pod's address is taken (protocols 12, line 38).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use nix::ifaddrs::getifaddrs;
use tracing::debug;

use crate::netns::{Netns, NetnsError, NetnsId};

/// A pod that is looked for: its UID as kubelet names it, and its addresses.
pub type Wanted = BTreeMap<String, Vec<IpAddr>>;

/// A process that belongs to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    /// When it was started, in ticks of the kernel.
    started: u64,
    netns: PathBuf,
    id: NetnsId,
}

/// Looks through all processes of the node, whose `/proc` is at `proc`.
pub async fn find(proc: PathBuf, wanted: Wanted) -> BTreeMap<String, Netns> {
    let looked = {
        let wanted: BTreeSet<String> = wanted.keys().cloned().collect();
        tokio::task::spawn_blocking(move || candidates(&proc, &wanted)).await
    };
    let mut found = BTreeMap::new();
    for (uid, candidates) in looked.unwrap_or_default() {
        let ips = wanted.get(&uid).cloned().unwrap_or_default();
        if let Some(netns) = choose(&uid, &candidates, &ips).await {
            found.insert(uid, netns);
        }
    }
    found
}

/// The oldest that holds one of the pod's addresses.
async fn choose(uid: &str, candidates: &[Candidate], ips: &[IpAddr]) -> Option<Netns> {
    let mut seen = Vec::new();
    for candidate in candidates {
        if seen.contains(&candidate.id) {
            continue;
        }
        seen.push(candidate.id);
        match holds(&candidate.netns, candidate.id, ips).await {
            Ok(Some(netns)) => return Some(netns),
            Ok(None) => {
                debug!(pod.uid = %uid, netns = %candidate.netns.display(), "A namespace without the pod's address")
            }
            Err(error) => debug!(pod.uid = %uid, %error, "A namespace that cannot be the pod's"),
        }
    }
    None
}

async fn holds(path: &Path, id: NetnsId, ips: &[IpAddr]) -> Result<Option<Netns>, NetnsError> {
    let netns = Netns::open(path)?;
    // The process may have ended, and its number be another's.
    if netns.id() != id {
        return Ok(None);
    }
    let addresses = netns.inside(addresses).await?;
    Ok(ips.iter().any(|ip| addresses.contains(ip)).then_some(netns))
}

/// The addresses of this thread's network namespace.
pub fn addresses() -> BTreeSet<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return BTreeSet::new() };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let storage = interface.address?;
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    interfaces.filter_map(address).collect()
}

fn candidates(proc: &Path, wanted: &BTreeSet<String>) -> BTreeMap<String, Vec<Candidate>> {
    let node = NetnsId::at(&proc.join("1/ns/net")).ok();
    let mut found: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        if !process.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            continue;
        }
        // Processes end while we look: what cannot be read is none.
        let Ok(cgroup) = fs::read_to_string(process.path().join("cgroup")) else { continue };
        let Some(uid) = pod_uids(&cgroup).into_iter().find(|uid| wanted.contains(uid)) else { continue };
        let netns = process.path().join("ns/net");
        let Ok(id) = NetnsId::at(&netns) else { continue };
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let Some(started) = start_time(&stat) else { continue };
        if Some(id) != node {
            found.entry(uid).or_default().push(Candidate { started, netns, id });
        }
    }
    for candidates in found.values_mut() {
        candidates.sort_by_key(|candidate| candidate.started);
    }
    found
}

/// Every pod UID that the lines of a `/proc/PID/cgroup` name, whichever driver wrote them:
/// `…/pod<UID>/…` or `…-pod<UID with underscores>.slice…`. UIDs of static pods are 32 digits without a dash.
fn pod_uids(cgroup: &str) -> BTreeSet<String> {
    cgroup.lines().flat_map(|line| line.split(['/', ':'])).filter_map(pod_uid).collect()
}

fn pod_uid(segment: &str) -> Option<String> {
    let segment = segment.strip_suffix(".slice").unwrap_or(segment);
    let uid = match segment.rsplit_once("-pod") {
        Some((_, uid)) => uid,
        None => segment.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-").to_ascii_lowercase();
    let lengths: Vec<usize> = uid.split('-').map(str::len).collect();
    let hexadecimal = uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    (hexadecimal && (lengths == [8, 4, 4, 4, 12] || lengths == [32])).then_some(uid)
}

/// The 22nd field of `/proc/PID/stat`. The second is the program's name in brackets, and may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "87a5b680-98b5-4850-8a1c-e5062fbfdcc8";

    #[test]
    fn a_control_group_names_its_pod_whoever_runs_the_node() {
        let underscored = UID.replace('-', "_");
        for path in [
            // cgroupfs, version 1 and 2, every class of service.
            format!("12:memory:/kubepods/burstable/pod{UID}/4f0f5ec2"),
            format!("11:cpuset,cpu:/kubepods/besteffort/pod{UID}/4f0f5ec2"),
            format!("0::/kubepods/pod{UID}/4f0f5ec2"),
            format!("0::/kubepods/pod{UID}"),
            // systemd, containerd and CRI-O.
            format!(
                "1:name=systemd:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscored}.slice/cri-containerd-4f0f.scope"
            ),
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{underscored}.slice/crio-4f0f.scope/container"
            ),
            format!("0::/kubepods.slice/kubepods-pod{underscored}.slice/cri-containerd-4f0f.scope"),
            // A path made for systemd that is used as it is.
            format!(
                "0::/system.slice/containerd.service/kubepods-burstable-pod{underscored}.slice:cri-containerd:4f0f"
            ),
            // Seen from another control group's namespace, and nested in a machine that is a container.
            format!("0::/../../kubepods/burstable/pod{UID}/4f0f"),
            format!(
                "0::/docker/99aa/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable-pod{underscored}.slice/cri-containerd-4f.scope"
            ),
            format!("0::/docker/99aa/kubelet/kubepods/burstable/pod{}/4f", UID.to_uppercase()),
        ] {
            assert_eq!(pod_uids(&path), [UID.to_owned()].into(), "{path}");
        }
    }

    #[test]
    fn static_pods_have_another_kind_of_uid() {
        let path = "0::/kubepods.slice/kubepods-podd0a2b5c1f9e84e6e8f4f1c2d3b4a5968.slice/x.scope";
        assert_eq!(pod_uids(path), ["d0a2b5c1f9e84e6e8f4f1c2d3b4a5968".to_owned()].into());
    }

    #[test]
    fn other_control_groups_name_nobody() {
        for path in [
            "",
            "0::/",
            "0::/init.scope",
            "0::/system.slice/podman.service",
            "0::/kubepods.slice",
            "0::/kubepods/pod/x",
            "0::/kubepods/pod87a5b680/x",
            "0::/kubepods/podzza5b680-98b5-4850-8a1c-e5062fbfdcc8",
            "0::/user.slice/my-pod-87a5b680-98b5-4850-8a1c-e5062fbfdcc8",
            "nonsense",
            "0::/kubepods/pod87a5b680-98b5-4850-8a1c-e5062fbfdcc8-2",
        ] {
            assert_eq!(pod_uids(path), BTreeSet::new(), "{path}");
        }
    }

    #[test]
    fn a_program_cannot_lie_about_its_age_by_its_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        for name in ["sh", "a b", "x) R 1 1 1", "(", ""] {
            assert_eq!(start_time(&format!("7 ({name}) {fields}")), Some(4242), "{name}");
        }
        assert_eq!(start_time("7 (sh) S 1"), None);
        assert_eq!(start_time(""), None);
    }
}
