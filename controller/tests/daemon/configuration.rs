//! What tunnels are sent.

use std::collections::BTreeSet;

use ambit_wire::{
    channel::{ChannelSettings, ControlPlane, RootSource, TokenSource},
    codec::{ADDRESS, AUTHORIZATION, WORKLOAD},
    tls::{Compliance, Profile, Versions, revoked::Revocation},
};

use crate::setup::*;

const CART: &str = "Kubernetes//Pod/shop/cart";
const PAY: &str = "Kubernetes//Pod/shop/pay";
const WEB: &str = "shop/web.shop.svc.cluster.local";

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_is_told_everything_when_it_comes() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let tunnel = mesh.tunnel(controller.address(), "n1");
    tunnel.synced().await;
    let held = tunnel.held();
    assert_eq!(held.names(ADDRESS), set([CART, PAY, WEB]));
    assert_eq!(held.names(AUTHORIZATION), set(["shop/only-cart"]));
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_workloads_alone_gets_no_services() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let proxy = mesh.subscriber(controller.address(), "n1", &[WORKLOAD]);
    let held = proxy.until("workloads", |held| !held.responses.is_empty()).await;
    assert_eq!(held.names(WORKLOAD), set([CART, PAY]));
    mesh.remove("pay.yaml");
    let held = proxy.until("the removal", |held| held.responses.len() > 1).await;
    assert_eq!(held.since(1, WORKLOAD), (set([]), set([PAY])));
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_sent_and_nothing_else() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let tunnels = ["n1", "n2"].map(|node| mesh.tunnel(controller.address(), node));
    for tunnel in &tunnels {
        tunnel.synced().await;
    }
    let before = tunnels[0].held().responses.len();
    mesh.pod("cart", "10.0.0.1", "n1", "two");
    for tunnel in &tunnels {
        let held = tunnel.until("the change", |held| held.responses.len() > before).await;
        assert_eq!(held.since(before, ADDRESS), (set([CART]), set([])));
        assert_eq!(held.since(before, AUTHORIZATION), (set([]), set([])));
    }
    mesh.policy("{from: [{source: {principals: [cluster.local/ns/shop/sa/pay]}}]}");
    let held = tunnels[0].until("the policy", |held| held.responses.len() > before + 1).await;
    assert_eq!(held.since(before + 1, AUTHORIZATION), (set(["shop/only-cart"]), set([])));
    assert_eq!(held.since(before + 1, ADDRESS), (set([]), set([])));
    mesh.remove("pay.yaml");
    let held = tunnels[0].until("the removal", |held| held.responses.len() > before + 2).await;
    assert_eq!(held.since(before + 2, ADDRESS), (set([]), set([PAY])));
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_takes_nothing_away_and_everything_else_goes_on() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let tunnel = mesh.tunnel(controller.address(), "n1");
    tunnel.synced().await;
    let before = tunnel.held();
    mesh.write("cart.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop\n");
    mesh.policy("{to: [{operation: {ports: ['not a port']}}]}");
    // What is written after the mistakes arrives.
    mesh.pod("new", "10.0.0.3", "n1", "one");
    let held = tunnel.until("the new pod", |held| held.names(ADDRESS).len() == 4).await;
    let (came, went) = held.since(before.responses.len(), ADDRESS);
    assert_eq!((came, went), (set(["Kubernetes//Pod/shop/new"]), set([])));
    assert_eq!(held.since(before.responses.len(), AUTHORIZATION), (set([]), set([])));

    let objects = json(&controller, "/debug/objects").await;
    let problems = objects["problems"].as_array().unwrap();
    let of = |file: &str| problems.iter().find(|one| one["file"].as_str().unwrap().ends_with(file)).unwrap();
    assert!(of("cart.yaml")["line"].as_u64().unwrap() > 0);
    assert!(of("policy.yaml")["field"].as_str().unwrap().contains("ports"), "{problems:?}");
    assert!(of("policy.yaml")["remedy"].as_str().unwrap().contains("stays in force"), "{problems:?}");
    assert_eq!(objects["counts"]["Pod"], 3);

    mesh.pod("cart", "10.0.0.1", "n1", "two");
    let before = held.responses.len();
    let held = tunnel.until("the corrected pod", |held| held.responses.len() > before).await;
    assert_eq!(held.since(before, ADDRESS).0, set([CART]));
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_returns_after_a_restart_is_sent_only_what_changed() {
    let mesh = Mesh::new();
    for at in 0..200_u8 {
        mesh.pod(&format!("many-{at}"), &format!("10.1.0.{at}"), "n2", "one");
    }
    let controller = mesh.start(&[]).await;
    let address = controller.address();
    let tunnel = mesh.tunnel(address, "n1");
    tunnel.synced().await;
    let before = tunnel.held();
    let first = tunnel.metrics.received.of(ADDRESS);
    assert_eq!(before.names(ADDRESS).len(), 203);
    stop(controller).await;
    tunnel.until_state("disconnected", |state| state.connected_since.is_none()).await;

    mesh.pod("cart", "10.0.0.1", "n1", "two");
    mesh.remove("pay.yaml");
    let controller = mesh.start_at(address).await;
    let held =
        tunnel.until("the differences", |held| held.responses.len() >= before.responses.len() + 2).await;
    assert_eq!(held.since(before.responses.len(), ADDRESS), (set([CART]), set([PAY])));
    // Policies have no version on this wire (protocols 1.7): they come again.
    assert_eq!(held.since(before.responses.len(), AUTHORIZATION), (set(["shop/only-cart"]), set([])));
    let second = tunnel.metrics.received.of(ADDRESS).bytes - first.bytes;
    assert!(second * 20 < first.bytes, "{second} bytes after {}", first.bytes);
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_told_why() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let said = |tunnel: Tunnel| async move {
        let state = tunnel.until_state("refused", |state| state.last_end.is_some()).await;
        assert!(tunnel.held().responses.is_empty());
        state.last_end.unwrap()
    };
    let stranger = mesh.channel(controller.address(), &token("n9"));
    let end = said(Tunnel::start(stranger, &node_info("n9"))).await;
    assert!(end.contains("not that of a node"), "{end}");
    let elsewhere = ambit_wire::xds::NodeInfo { pod_namespace: "shop".into(), ..node_info("n1") };
    let end = said(Tunnel::start(mesh.channel(controller.address(), &token("n1")), &elsewhere)).await;
    assert!(end.contains("namespace"), "{end}");
    let end = said(Tunnel::start(mesh.channel(controller.address(), &token("n1")), &node_info("n2"))).await;
    assert!(end.contains("node"), "{end}");
    // The same with the right token is let in, also when the token came later.
    mesh.admit("n9");
    let tunnel = mesh.tunnel(controller.address(), "n9");
    tunnel.synced().await;
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_ends_lets_its_subscribers_go_and_refuses_new_ones() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let address = controller.address();
    let tunnel = mesh.tunnel(address, "n1");
    tunnel.synced().await;
    within("a prompt end", stop(controller)).await;
    let complete = |(reason, count): (ambit_wire::xds::backoff::Reason, u64)| {
        reason == ambit_wire::xds::backoff::Reason::Complete && count > 0
    };
    eventually("a clean end", || tunnel.metrics.terminations().any(complete).then_some(())).await;
    let refused = tokio::net::TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_every_one_of_many_tunnels() {
    const TUNNELS: usize = 1000;
    // Both ends of every connection are in this process.
    ambit_runtime::rlimit::raise_open_files().unwrap();
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let tunnels: Vec<_> =
        (0..TUNNELS).map(|at| mesh.tunnel(controller.address(), ["n1", "n2"][at % 2])).collect();
    for tunnel in &tunnels {
        tunnel.synced().await;
    }
    mesh.pod("cart", "10.0.0.1", "n1", "two");
    for tunnel in &tunnels {
        let held = tunnel.until("the change", |held| held.responses.len() > 2).await;
        assert_eq!(held.since(2, ADDRESS), (set([CART]), set([])));
    }
    let (_, metrics) = page(&controller, "/metrics").await;
    assert!(metrics.contains(&format!("pilot_xds{{version=\"0.1.0\"}} {TUNNELS}")), "{metrics}");
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_show_what_is_sent_to_whom() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    assert_eq!(page(&controller, "/healthz").await.0, 200);
    assert_eq!(page(&controller, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(json(&controller, "/debug/syncz").await, serde_json::json!([]));
    let tunnel = mesh.tunnel(controller.address(), "n1");
    tunnel.synced().await;

    let config = json(&controller, "/debug/configz").await;
    let names: BTreeSet<_> =
        config.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from([CART, PAY, WEB, "shop/only-cart"]));
    let held = tunnel.held();
    for one in config.as_array().unwrap() {
        let url = match one["type"].as_str() {
            Some("wds") => ADDRESS,
            Some("wads") => AUTHORIZATION,
            _ => continue,
        };
        let key = (url.to_owned(), one["name"].as_str().unwrap().to_owned());
        assert_eq!(held.resources[&key], one["version"].as_str().unwrap());
    }
    let narrowed = json(&controller, "/debug/configz?type=wads").await;
    assert_eq!(narrowed.as_array().unwrap().len(), 1);

    let mut sync = json(&controller, "/debug/syncz").await;
    let begun = std::time::Instant::now();
    while sync[0]["synced"] != true {
        assert!(begun.elapsed() < SOON, "{sync}");
        sync = json(&controller, "/debug/syncz").await;
    }
    assert_eq!(sync[0]["node"], "n1");
    assert_eq!(sync[0]["caller"], "spiffe://cluster.local/ns/istio-system/sa/ztunnel on n1");
    let types: BTreeSet<_> =
        sync[0]["types"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect();
    assert_eq!(types, BTreeSet::from(["wads", "wds"]));
    assert!(sync[0]["types"].as_array().unwrap().iter().all(|one| one["acked"] == one["latest"]));

    mesh.pod("cart", "10.0.0.1", "n1", "two");
    tunnel.until("the change", |held| held.responses.len() > 2).await;
    let (_, metrics) = page(&controller, "/metrics").await;
    for line in [
        "pilot_xds_pushes{type=\"wds\"} 2",
        "pilot_xds_pushes{type=\"wads\"} 1",
        "ambit_objects{kind=\"Pod\"} 2",
        "ambit_source_problems 0",
        "ambit_nodes_with_token 2",
        "ambit_published_resources{type=\"wds\"} 3",
        "pilot_proxy_convergence_time_count 1",
        "citadel_server_csr_count 0",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line} is missing in\n{metrics}");
    }
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tunnel_rejects_is_shown() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let channel = mesh.channel(controller.address(), &token("n1"));
    let tunnel = Tunnel::rejecting(channel, &node_info("n1"), PAY);
    let begun = std::time::Instant::now();
    let nack = loop {
        let sync = json(&controller, "/debug/syncz").await;
        let types = sync[0]["types"].as_array().cloned().unwrap_or_default();
        if let Some(nack) = types.iter().find_map(|one| one["lastNack"]["message"].as_str()) {
            break nack.to_owned();
        }
        assert!(begun.elapsed() < SOON, "{sync}");
    };
    assert!(nack.contains(PAY) && nack.contains("not to my taste"), "{nack}");
    let (_, metrics) = page(&controller, "/metrics").await;
    assert!(metrics.lines().any(|line| line == "pilot_total_xds_rejects{type=\"wds\"} 1"), "{metrics}");
    drop(tunnel);
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_and_strange_roots_get_nowhere() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let port = controller.address().port();
    let other = ambit_fixtures::ca::TestCa::new();
    for (address, roots) in [
        (format!("http://localhost:{port}"), mesh.path("root.pem")),
        (format!("https://localhost:{port}"), {
            std::fs::write(mesh.path("other.pem"), other.root_pem()).unwrap();
            mesh.path("other.pem")
        }),
    ] {
        let settings = ChannelSettings {
            address,
            roots: RootSource::File(roots),
            alt_hostname: None,
            token: TokenSource::Literal(token("n1")),
            cluster_id: "Kubernetes".into(),
            headers: Vec::new(),
        };
        let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured).unwrap();
        let tunnel = Tunnel::start(ControlPlane::new(settings, &profile).unwrap(), &node_info("n1"));
        tunnel.until_state("refused", |state| state.last_end.is_some()).await;
        assert!(tunnel.state().connected_since.is_none());
        assert!(tunnel.held().responses.is_empty());
    }
    stop(controller).await;
}
