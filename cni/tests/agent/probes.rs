//! Kubelet's probes, and the node's rules for them.

use std::net::{IpAddr, SocketAddr};

use ambit_cni::redirect::rules::{PROBE_V4, PROBE_V6};

use crate::{
    mesh::{Mesh, Played},
    place::{self, allowed, any, dial, exchange, families, listen},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelets_probes_reach_the_application_and_other_users_do_not() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "0"]);
    let (_, _session) = Played::start(mesh.tunnel().await);
    mesh.wait_for_annotation(Some("enabled"));
    // Another CNI gives everything the node's address (protocols 12, line 41).
    mesh.place.in_node(|| {
        place::run("nft", &["add table inet other"]);
        let chain = "{ type nat hook postrouting priority srcnat; }";
        place::run("nft", &[&format!("add chain inet other postrouting {chain}")]);
        place::run("nft", &["add rule inet other postrouting masquerade"]);
    });
    for families in families() {
        let (application, captor) =
            mesh.place.in_pod(|| (listen(any(families.pod, 8080)), listen(any(families.pod, 15006))));
        let to = SocketAddr::new(families.pod, 8080);
        let mut probe = mesh.place.in_node(|| dial(to));
        let mut server = application.accept();
        let probes = [IpAddr::from(PROBE_V4), IpAddr::from(PROBE_V6)];
        assert!(probes.contains(&server.peer_addr().unwrap().ip()), "{server:?}");
        exchange(&mut probe, &mut server);
        let script = format!("exec 3<>/dev/tcp/{}/8080", families.pod);
        mesh.place.in_node(|| {
            place::run("setpriv", &["--reuid", "65534", "--clear-groups", "bash", "-c", &script])
        });
        assert_eq!(captor.accept().peer_addr().unwrap().ip(), families.node);
        assert!(application.nobody_came());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_rules_for_probes_are_put_back_when_somebody_changes_them() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.label(Some("ambient"));
    mesh.start(&["--probes", "0"]);
    let (_, _session) = Played::start(mesh.tunnel().await);
    mesh.wait_for_annotation(Some("enabled"));
    let table = || mesh.place.in_node(|| place::run("nft", &["list", "table", "inet", "ambit-probes"]));
    for change in ["delete table inet ambit-probes", "flush chain inet ambit-probes postrouting"] {
        mesh.place.in_node(|| place::run("nft", &[change]));
        mesh.until("rules and addresses are there", |mesh| {
            let tables = mesh.place.in_node(|| place::run("nft", &["list", "tables"]));
            tables.contains("ambit-probes")
                && table().contains("10.99.0.2 comment \"u1\"")
                && table().contains("snat ip to 169.254.7.127")
        });
    }
    let counted = |mesh: &Mesh| {
        mesh.page("/metrics").is_some_and(|page| page.contains("ambit_agent_host_rules_repaired_total 2"))
    };
    mesh.until("both are counted", counted);
}
