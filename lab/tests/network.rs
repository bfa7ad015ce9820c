//! The network on real namespaces: what is made works in both families, and nothing remains.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::fs;
use std::net::{IpAddr, TcpListener};
use std::time::{Duration, Instant};

use ambit_lab::address::Family;
use ambit_lab::netns::Netns;
use ambit_lab::{Lab, NewPod, PodName, Process, Program, Topology};

/// Namespaces need root; a skipped test says so.
fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: this test makes network namespaces and must run as root");
    }
    root
}

fn leftovers(lab: &str) -> Vec<String> {
    let ours = format!("amb-{lab}-");
    ["/run/netns", "/etc/netns"]
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(&ours))
        .collect()
}

/// Connects from one namespace to an address of another; says who the server saw.
fn reach(from: &Netns, to: &Netns, ip: IpAddr) -> IpAddr {
    let listener = to.inside(|| TcpListener::bind((ip, 7000))).unwrap().unwrap();
    let _client = from.connect((ip, 7000).into(), Duration::from_secs(5)).unwrap().unwrap();
    listener.accept().unwrap().1.ip()
}

#[test]
fn two_nodes_and_eight_pods_come_up_quickly_reach_each_other_and_leave_nothing() {
    if !root() {
        return;
    }
    let begun = Instant::now();
    let lab = Lab::create("nettwo").unwrap();
    let pods: Vec<_> = (0..8)
        .map(|number| NewPod {
            name: PodName::new("shop", format!("p{number}")),
            node: ["node-a", "node-b"][number % 2].to_owned(),
        })
        .collect();
    let pods = lab.add_pods(&pods).unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");

    let first = lab.pod("shop", "p0").unwrap();
    for to in [&pods[1], &pods[2]] {
        for ip in to.ips() {
            assert_eq!(reach(first.netns(), to.netns(), *ip), first.address(ip.is_ipv6(), 0).unwrap().ip());
        }
    }
    // A node reaches its own pods and the other node's; a pod reaches its node.
    let node = lab.node("node-a").unwrap();
    for pod in &pods[..2] {
        for ip in pod.ips() {
            assert!(node.ips().contains(&reach(node.netns(), pod.netns(), *ip)));
        }
    }
    reach(first.netns(), node.netns(), node.ips()[0]);

    // The pod sees its own resolv.conf, and its addresses are its alone.
    let resolver = first.exec(["cat", "/etc/resolv.conf"]).unwrap().ok().unwrap();
    assert!(resolver.contains("search shop.svc.cluster.local"), "{resolver}");
    let addresses = first.exec(["ip", "-br", "addr", "show", "eth0"]).unwrap().ok().unwrap();
    assert!(addresses.contains("10.42.0.2/32") && addresses.contains("fd00:42::2/128"), "{addresses}");

    // A pod ends with what runs in it, and its name can be used again.
    let sleeper = first.spawn("sleep", &Program::new("sleep").arg("1000")).unwrap();
    lab.remove_pod(first.name()).unwrap();
    assert!(!sleeper.wait(Duration::from_secs(5)).unwrap().success());
    assert!(lab.pod("shop", "p0").unwrap_err().to_string().contains("no pod shop/p0"));
    let again = lab.add_pod("shop", "p0", "node-a").unwrap();
    assert_ne!(again.ips(), first.ips());

    assert!(Lab::sweep("nettwo").unwrap_err().to_string().contains(&std::process::id().to_string()));
    drop(lab);
    assert_eq!(leftovers("nettwo"), Vec::<String>::new());
}

#[test]
fn three_nodes_share_a_wire_and_single_stack_is_single() {
    if !root() {
        return;
    }
    for (name, family) in [("netvfour", Family::V4), ("netvsix", Family::V6)] {
        let topology =
            Topology { nodes: ["x", "y", "z"].map(str::to_owned).to_vec(), family, ..Topology::default() };
        let lab = Lab::build(name, &topology).unwrap();
        let a = lab.add_pod("ns", "a", "x").unwrap();
        let b = lab.add_pod("ns", "b", "z").unwrap();
        assert_eq!(a.ips().len(), 1);
        assert_eq!(a.ips()[0].is_ipv6(), family == Family::V6);
        assert_eq!(reach(a.netns(), b.netns(), b.ips()[0]), a.ips()[0]);
        let listed = a.exec(["ip", "-br", "addr"]).unwrap().ok().unwrap();
        assert_eq!(listed.contains("fe80::"), family == Family::V6, "{listed}");
        drop(lab);
        assert_eq!(leftovers(name), Vec::<String>::new());
    }
}

#[test]
fn what_a_dead_owner_left_is_swept_and_only_that() {
    if !root() {
        return;
    }
    let lab = Lab::create("netkeep").unwrap();
    // As after a crash: namespaces of a lab that nobody owns.
    let orphan = Lab::node_netns("netcrash", "node-a");
    let add = ["netns", "add", orphan.name()];
    ambit_lab::process::run(None, &Program::new("ip").args(add), Duration::from_secs(5))
        .unwrap()
        .ok()
        .unwrap();
    Lab::sweep("netcrash").unwrap();
    assert!(!orphan.exists());
    assert!(lab.node("node-a").unwrap().netns().exists());
}

#[test]
fn a_capture_has_all_that_crossed_between_its_start_and_its_end() {
    if !root() {
        return;
    }
    let lab = Lab::create("netcap").unwrap();
    let web = lab.add_pod("shop", "web", "node-b").unwrap();
    let app = lab.add_pod("shop", "app", "node-a").unwrap();
    let dir = tempfile::tempdir().unwrap();
    for v6 in [false, true] {
        let server = web.address(v6, 8080).unwrap();
        let capture = lab.node("node-a").unwrap().link().capture(&dir.path().join("wire.pcap")).unwrap();
        let listener = web.netns().inside(|| TcpListener::bind(server)).unwrap().unwrap();
        let mut client = app.netns().connect(server, Duration::from_secs(5)).unwrap().unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut client, b"the password is swordfish").unwrap();
        std::io::Read::read_exact(&mut accepted, &mut [0; 25]).unwrap();
        let captured = capture.stop().unwrap();
        assert!(captured.contains("swordfish"));
        assert!(!captured.contains("trout"));
        let summary = captured.summary();
        assert_eq!((summary.lost, summary.handshakes.len()), (0, 0));
        assert!(summary.ports[&8080].packets >= 4, "{summary:?}");
    }
}

/// What a lab's process does until it is killed.
fn live_and_wait_for_death() {
    let lab = Lab::create("netdead").unwrap();
    let pod = lab.add_pod("ns", "pod", "node-a").unwrap();
    let sleeper = pod.spawn("sleep", &Program::new("sleep").arg("1000000")).unwrap();
    eprintln!("sleeper={};", sleeper.pid());
    sleeper.wait(Duration::from_secs(60)).unwrap_err();
}

#[test]
fn what_runs_ends_with_a_killed_owner_and_the_rest_is_swept() {
    const CHILD: &str = "AMBIT_LAB_TEST_CHILD";
    if !root() {
        return;
    }
    if std::env::var_os(CHILD).is_some() {
        return live_and_wait_for_death();
    }
    let dir = tempfile::tempdir().unwrap();
    let program = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "what_runs_ends_with_a_killed_owner_and_the_rest_is_swept"])
        .env(CHILD, "1");
    let owner = Process::start(None, &program, &dir.path().join("owner.log")).unwrap();
    owner.wait_until_said(";", Duration::from_secs(10)).unwrap();
    let said = owner.said();
    let sleeper = said.split_once("sleeper=").unwrap().1.split_once(';').unwrap().0.to_owned();
    let alive = || fs::read_to_string(format!("/proc/{sleeper}/comm")).is_ok_and(|name| name == "sleep\n");
    // It becomes `sleep` by way of two other programs.
    eventually(alive);
    assert!(Lab::sweep("netdead").is_err());

    owner.signal(nix::sys::signal::Signal::SIGKILL);
    eventually(|| !alive());
    assert!(!leftovers("netdead").is_empty());
    owner.wait(Duration::from_secs(5)).unwrap();
    Lab::sweep("netdead").unwrap();
    assert_eq!(leftovers("netdead"), Vec::<String>::new());
    assert!(!std::path::Path::new("/run/ambit-lab/netdead").exists());
}

fn eventually(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within ten seconds");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
