//! Looking for the namespaces of pods that run, among processes in real namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a whole crate of test code, of which clippy knows only the functions that bear #[test]"
)]

mod place;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
};

use ambit_cni::scan;
use place::{Place, allowed};

const UID: &str = "87a5b680-98b5-4850-8a1c-e5062fbfdcc8";

/// A process in a namespace, ended with the test.
struct Process(Child);

impl Process {
    fn start(netns: Option<&str>) -> Self {
        let (program, arguments) = match netns {
            Some(netns) => ("ip", vec!["netns", "exec", netns, "sh", "-c", "echo here; exec cat"]),
            None => ("sh", vec!["-c", "echo here; exec cat"]),
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "here\n");
        Self(child)
    }

    /// Shows the process in a `/proc` of the test's own, in a control group of its choice.
    fn show(&self, proc: &Path, cgroup: &str) {
        let pid = self.0.id().to_string();
        let shown = proc.join(&pid);
        fs::create_dir(&shown).unwrap();
        fs::write(shown.join("cgroup"), cgroup).unwrap();
        for name in ["ns", "stat"] {
            symlink(format!("/proc/{pid}/{name}"), shown.join(name)).unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_oldest_process_whose_namespace_has_the_pods_address_tells_where_the_pod_is() {
    if !allowed() {
        return;
    }
    let (place, other) = (Place::make(), Place::make());
    let proc = tempfile::tempdir().unwrap();
    fs::create_dir_all(proc.path().join("1/ns")).unwrap();
    symlink("/proc/self/ns/net", proc.path().join("1/ns/net")).unwrap();
    let cgroup =
        format!("0::/kubepods.slice/kubepods-pod{}.slice/cri-containerd-4f.scope\n", UID.replace('-', "_"));
    // The node's own, another machine's without the address, and two of the pod's. All in the pod's group.
    let processes = [None, Some(other.node.as_str()), Some(place.pod.as_str()), Some(place.pod.as_str())]
        .map(Process::start);
    for process in &processes {
        process.show(proc.path(), &cgroup);
    }
    let stranger = Process::start(Some(&other.pod));
    stranger.show(proc.path(), "0::/kubepods/pod00000000-98b5-4850-8a1c-e5062fbfdcc8/x\n");

    let find = |ips: &[&str]| {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        scan::find(proc.path().to_owned(), [(UID.to_owned(), ips)].into())
    };
    for address in ["10.99.0.2", "fd99::2"] {
        let found = find(&[address]).await;
        assert_eq!(found[UID].id(), place.netns().id(), "{address}");
    }
    assert!(find(&["10.99.0.77"]).await.is_empty(), "nobody has the address");
    assert!(find(&[]).await.is_empty());
    drop(processes);
    assert!(find(&["10.99.0.2"]).await.is_empty(), "they have ended");
}
