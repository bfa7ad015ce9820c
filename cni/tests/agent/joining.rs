//! A pod that joins: running, starting, refused.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    process::Child,
    time::{Duration, Instant},
};

use ambit_wire::zds::Request;
use tokio::time::timeout;

use crate::{
    mesh::{Mesh, Played, hear, is_add, snapshot},
    place::{self, allowed, any, dial, exchange, families, listen, original},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_enrols_a_running_pod_and_its_removal_lets_it_go() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.start(&["--probes", "off"]);
    let mut tunnel = mesh.tunnel().await;
    assert_eq!(snapshot(&mut tunnel).await, 0);
    let (state, reason) = mesh.state();
    assert_eq!(state, "outside");
    assert!(reason.contains("istio.io/dataplane-mode=ambient"), "{reason}");
    assert!(mesh.place.is_clean());

    mesh.label(Some("ambient"));
    let request = hear(&mut tunnel).await;
    assert!(is_add(&request, "u1", &mesh.place.path()), "{request:?}");
    assert_eq!(mesh.annotation(), None, "peers are told when the tunnel is there, not before");
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));
    mesh.until("enabled", |mesh| mesh.state().0 == "enabled");
    let [families, _] = families();
    mesh.place.in_pod(|| {
        let outbound = listen(any(families.pod, 15001));
        let mut client = dial(SocketAddr::new(families.node, 80));
        let mut server = outbound.accept();
        assert_eq!(original(&server), SocketAddr::new(families.node, 80));
        exchange(&mut client, &mut server);
    });
    let metrics = mesh.page("/metrics").unwrap();
    for line in [
        "ambit_agent_pods{state=\"enabled\"} 1",
        "ambit_agent_tunnels_connected 1",
        "ambit_agent_pods_enrolled_total 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }

    mesh.label(None);
    assert!(matches!(hear(&mut tunnel).await, Request::Del { uid } if uid == "u1"));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(None);
    mesh.until("the pod is clean", |mesh| mesh.place.is_clean());

    // And back again; out and in at once, while the rules of the farewell are still there (protocols 12, line 40).
    mesh.label(Some("ambient"));
    assert!(is_add(&hear(&mut tunnel).await, "u1", &mesh.place.path()));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));
    mesh.label(None);
    assert!(matches!(hear(&mut tunnel).await, Request::Del { uid } if uid == "u1"));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.label(Some("ambient"));
    assert!(is_add(&hear(&mut tunnel).await, "u1", &mesh.place.path()));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));
    let since = Instant::now();
    mesh.until("the farewell is over", |_| since.elapsed() > Duration::from_millis(800));
    mesh.place.in_pod(|| {
        let outbound = listen(any(families.pod, 15001));
        let mut client = dial(SocketAddr::new(families.node, 80));
        exchange(&mut client, &mut outbound.accept());
    });
}

/// What the plugin says, and whether the pod may start.
fn outcome(plugin: Child) -> (bool, String) {
    let output = plugin.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_starts_when_it_is_captured_and_not_before() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.write_unborn("u1");
    mesh.start_with_plugin(&["--probes", "0"]);
    let mode = fs::metadata(mesh.plugin_socket()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600, "only root may have pods enrolled");
    let mut tunnel = mesh.tunnel().await;
    assert_eq!(snapshot(&mut tunnel).await, 0, "a pod without a network is nothing to tell a tunnel of");
    assert_eq!(mesh.annotation(), None);

    let mut plugin = mesh.announce("u1");
    let request = hear(&mut tunnel).await;
    assert!(is_add(&request, "u1", &mesh.place.path()), "{request:?}");
    assert!(plugin.try_wait().unwrap().is_none(), "the pod waits for the tunnel");
    assert!(!mesh.place.is_clean(), "its rules are in force by then");
    tunnel.ack(Ok(())).await.unwrap();
    let (started, said) = outcome(plugin);
    assert!(started && said.contains("10.99.0.2/24"), "{said}");
    mesh.wait_for_annotation(Some("enabled"));
    let probes = mesh.place.in_node(|| place::run("nft", &["list", "table", "inet", "ambit-probes"]));
    assert!(probes.contains("10.99.0.2 comment \"u1\""), "{probes}");

    // What is seen of it later changes nothing, and neither does a runtime that says it twice.
    mesh.put(
        "web.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, uid: u1}\n\
         spec: {nodeName: n1, serviceAccountName: seller, containers: []}\n\
         status: {phase: Running, podIP: 10.99.0.2, podIPs: [{ip: 10.99.0.2}, {ip: 'fd99::2'}]}\n",
    );
    let (again, said) = outcome(mesh.announce("u1"));
    assert!(again, "{said}");
    assert!(timeout(Duration::from_millis(500), tunnel.next()).await.is_err(), "the tunnel knows it already");
    mesh.until("counted", |mesh| {
        mesh.page("/metrics")
            .is_some_and(|page| page.contains("ambit_agent_arrivals_total{outcome=\"captured\"} 2"))
    });

    mesh.label(None);
    assert!(matches!(hear(&mut tunnel).await, Request::Del { uid } if uid == "u1"));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.until("the pod is clean", |mesh| mesh.place.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tunnel_no_pod_of_the_mesh_starts_and_nothing_is_left_of_the_try() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.write_unborn("u1");
    mesh.start_with_plugin(&["--probes", "off"]);
    let (started, said) = outcome(mesh.announce("u1"));
    assert!(!started && said.contains("is ztunnel running"), "{said}");
    assert!(mesh.place.is_clean());
    assert_eq!(mesh.annotation(), None);
    mesh.until("waited for again", |mesh| mesh.state().1.contains("no network yet"));

    // One that refuses is as good as none.
    let mut tunnel = mesh.tunnel().await;
    assert_eq!(snapshot(&mut tunnel).await, 0);
    let plugin = mesh.announce("u1");
    let waiting = std::thread::spawn(move || outcome(plugin));
    while !waiting.is_finished() {
        if let Ok(Ok(request)) = timeout(Duration::from_millis(50), tunnel.next()).await {
            let answer = if matches!(request, Request::Add { .. }) { Err("no room".into()) } else { Ok(()) };
            tunnel.ack(answer).await.unwrap();
        }
    }
    let (started, said) = waiting.join().unwrap();
    assert!(!started && said.contains("no room"), "{said}");
    assert!(mesh.place.is_clean());

    let (asked, _session) = Played::start(tunnel);
    let (started, said) = outcome(mesh.announce("u1"));
    assert!(started, "{said}");
    assert!(asked.was_asked("add u1"));
    mesh.wait_for_annotation(Some("enabled"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_belong_starts_and_whoever_is_not_known_does_not() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.write_unborn("u1");
    mesh.start_with_plugin(&["--probes", "off"]);
    let (started, said) = outcome(mesh.announce("u1"));
    assert!(started, "{said}");
    assert!(mesh.place.is_clean());
    let (started, said) = outcome(mesh.announce("u2"));
    assert!(!started && said.contains("no such pod"), "{said}");
    mesh.stop();
    let (started, said) = outcome(mesh.announce("u1"));
    assert!(!started && said.contains("ambit-cni-node"), "no agent can tell: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_its_tunnel_and_tries_again_when_refused() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "off"]);
    mesh.wait_for_annotation(Some("pending"));
    mesh.until("a reason", |mesh| mesh.state().1.contains("is ztunnel running"));
    assert!(!mesh.place.is_clean(), "until then its traffic fails closed");

    let mut tunnel = mesh.tunnel().await;
    let request = hear(&mut tunnel).await;
    assert!(is_add(&request, "u1", &mesh.place.path()), "{request:?}");
    tunnel.ack(Ok(())).await.unwrap();
    assert!(matches!(hear(&mut tunnel).await, Request::SnapshotSent));
    tunnel.ack(Ok(())).await.unwrap();
    assert!(matches!(hear(&mut tunnel).await, Request::Add { .. }));
    tunnel.ack(Err("no room".into())).await.unwrap();
    mesh.until("the refusal is shown", |mesh| {
        mesh.state() == ("pending".into(), "the tunnel refused the pod: no room".into())
    });
    assert_eq!(mesh.annotation().as_deref(), Some("pending"));
    assert!(matches!(hear(&mut tunnel).await, Request::Add { .. }));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));
}
