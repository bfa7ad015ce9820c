//! What the agent says of its pods and of the runtime's configuration.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
};

use ambit_runtime::task::Ended;

use crate::{
    mesh::{Mesh, Played},
    place::{self, allowed, any, dial, exchange, families, listen},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_older_than_the_capture_are_counted_until_they_end() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    mesh.start(&["--probes", "off"]);
    let (_, session) = Played::start(mesh.tunnel().await);
    let [v4, v6] = families();
    let (node, pod) = (SocketAddr::new(v4.node, 80), SocketAddr::new(v6.pod, 80));
    let loopback: SocketAddr = ([127, 0, 0, 1], 80).into();
    let connect = |server: place::Listening, client: TcpStream| (client, server.accept());
    let mut outgoing =
        connect(mesh.place.in_node(|| listen(any(v4.node, 80))), mesh.place.in_pod(|| dial(node)));
    let incoming = connect(mesh.place.in_pod(|| listen(any(v6.pod, 80))), mesh.place.in_node(|| dial(pod)));
    let inner = mesh.place.in_pod(|| connect(listen(any(v4.pod, 80)), dial(loopback)));
    assert_eq!(mesh.outside(), None, "nobody counts in a pod that is not captured");

    mesh.label(Some("ambient"));
    mesh.until("enabled", |mesh| mesh.state().0 == "enabled");
    assert_eq!(mesh.outside(), Some(2));
    let mut captured = mesh.place.in_pod(|| connect(listen(any(v4.pod, 15001)), dial(node)));
    exchange(&mut captured.0, &mut captured.1);
    exchange(&mut outgoing.0, &mut outgoing.1);
    assert_eq!(mesh.outside(), Some(2), "who came later is not counted");
    drop(incoming);
    mesh.until("one has ended", |mesh| mesh.outside() == Some(1));

    mesh.stop();
    assert_eq!(session.await, Ended::Finished);
    mesh.start(&["--probes", "off"]);
    let (_, _session) = Played::start(mesh.tunnel().await);
    mesh.until("enabled", |mesh| mesh.state().0 == "enabled");
    assert_eq!(mesh.outside(), None, "what a former agent captured cannot be told from what it did not");
    exchange(&mut outgoing.0, &mut outgoing.1);

    // Out and in again: what is connected now is outside, for whatever reason.
    mesh.label(None);
    mesh.until("the pod is clean", |mesh| mesh.place.is_clean());
    drop(captured);
    mesh.label(Some("ambient"));
    mesh.until("enabled", |mesh| mesh.state().0 == "enabled");
    mesh.until("it is counted anew", |mesh| mesh.outside() == Some(1));
    drop((outgoing, inner));
    mesh.until("all have ended", |mesh| mesh.outside() == Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_says_with_which_plugins_pods_start() {
    if !allowed() {
        return;
    }
    let mut mesh = Mesh::make();
    let at = |name: &str| mesh.dir.path().join(name);
    let (bin, conf) = (at("bin"), at("conf"));
    for directory in [&bin, &conf] {
        fs::create_dir(directory).unwrap();
    }
    let net =
        r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;
    fs::write(conf.join("10-net.conflist"), net).unwrap();
    let [bin, conf] = [bin, conf].map(|path| path.display().to_string());
    mesh.start_with_plugin(&[
        "--probes",
        "off",
        "--install-plugin",
        "true",
        "--cni-bin-dir",
        &bin,
        "--cni-conf-dir",
        &conf,
    ]);
    let expected = serde_json::json!({
        "directory": conf, "file": "10-net.conflist", "plugins": ["bridge", "portmap", "ambit-cni"], "owned": false,
    });
    assert_eq!(mesh.json("/debug/cni"), expected);
}
