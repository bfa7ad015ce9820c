//! Pods, tunnels and agents that go, and others in their place.

use std::{fs, net::SocketAddr};

use ambit_runtime::task::Ended;

use crate::{
    mesh::{Mesh, Played, hear, is_add, snapshot},
    place::{self, Place, allowed, any, dial, exchange, families, listen},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_replaced_leaves_no_gap() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "off"]);
    let (asked, session) = Played::start(mesh.tunnel().await);
    mesh.wait_for_annotation(Some("enabled"));
    let [families, _] = families();
    let (outbound, mut open) = mesh.place.in_pod(|| {
        let outbound = listen(any(families.pod, 15001));
        let client = dial(SocketAddr::new(families.node, 80));
        let server = outbound.accept();
        (outbound, (client, server))
    });

    mesh.stop();
    assert_eq!(session.await, Ended::Finished);
    assert!(!asked.was_asked("del u1"), "an agent that ends takes nobody out");
    assert!(!mesh.place.is_clean());
    assert_eq!(mesh.annotation().as_deref(), Some("enabled"));
    exchange(&mut open.0, &mut open.1);

    mesh.start(&["--probes", "off"]);
    assert_eq!(mesh.annotation().as_deref(), Some("enabled"), "peers go on meanwhile");
    exchange(&mut open.0, &mut open.1);
    let mut new = (mesh.place.in_pod(|| dial(SocketAddr::new(families.node, 80))), outbound.accept());
    exchange(&mut new.0, &mut new.1);
    let mut tunnel = mesh.tunnel().await;
    assert_eq!(snapshot(&mut tunnel).await, 1, "the list is whole before a tunnel hears it");
    let (_, session) = Played::start(tunnel);
    mesh.until("enabled", |mesh| mesh.state().0 == "enabled");
    mesh.stop();
    assert_eq!(session.await, Ended::Finished);

    // While the agent was away, someone decided against the mesh.
    mesh.label(None);
    mesh.start(&["--probes", "off"]);
    mesh.wait_for_annotation(None);
    mesh.until("what was left is cleaned up", |mesh| mesh.place.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_told_to_clean_up_does() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "0", "--cleanup-on-exit"]);
    let (asked, session) = Played::start(mesh.tunnel().await);
    mesh.wait_for_annotation(Some("enabled"));
    mesh.stop();
    assert_eq!(session.await, Ended::Finished);
    assert!(asked.was_asked("del u1"));
    assert!(mesh.place.is_clean());
    assert_eq!(mesh.annotation(), None);
    assert!(mesh.place.in_node(|| place::run("nft", &["list", "tables"])).trim().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_pod_in_a_new_sandbox_is_enrolled_anew() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "off"]);
    let mut tunnel = mesh.tunnel().await;
    snapshot(&mut tunnel).await;
    assert!(is_add(&hear(&mut tunnel).await, "u1", &mesh.place.path()));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));

    let other = Place::make();
    mesh.write_pod("u1", &other.path());
    assert!(is_add(&hear(&mut tunnel).await, "u1", &other.path()));
    tunnel.ack(Ok(())).await.unwrap();
    mesh.wait_for_annotation(Some("enabled"));
    assert!(!other.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_gone_or_finished_is_removed_from_the_tunnel_only() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "0"]);
    let (asked, _session) = Played::start(mesh.tunnel().await);
    mesh.wait_for_annotation(Some("enabled"));
    let probes = || mesh.place.in_node(|| place::run("nft", &["list", "table", "inet", "ambit-probes"]));
    assert!(probes().contains("10.99.0.2 comment \"u1\""));
    // Another pod of the same name, with the same address.
    mesh.write_pod("u2", &mesh.place.path());
    mesh.until("the new one is told and the old one is not any more", |_| {
        asked.was_asked("add u2") && asked.was_asked("del u1")
    });
    mesh.until("its address is its own", |_| probes().contains("10.99.0.2 comment \"u2\""));
    mesh.until("u2 is enrolled", |mesh| mesh.state().0 == "enabled");
    mesh.wait_for_annotation(Some("enabled"));
    fs::remove_file(mesh.source().join("web.yaml")).unwrap();
    mesh.until("the tunnel is told", |_| asked.was_asked("del u2"));
    assert!(!mesh.place.is_clean(), "rules end with their pod's namespace");
    mesh.until("its address is nobody's", |_| !probes().contains("10.99.0.2"));
    mesh.until("nothing is written on it", |mesh| {
        !mesh.source().join("status/agent-n1/Pod.shop.web.yaml").exists()
    });
}
