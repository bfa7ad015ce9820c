//! Pods that come and go, and agents that leave, return, or lie.

use std::{
    fs::File,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use ambit_wire::zds::{AddError, PodInfo, Request, socket::Listener};
use tokio::time::{Instant, timeout};

use crate::harness::*;

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn a_namespace_that_cannot_be_used_is_refused_retried_and_cleared_by_del() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let lie = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        let info =
            PodInfo { name: "gone".into(), namespace: "default".into(), service_account: "gone".into() };
        let refused = world.agent.handle.add("uid-gone", info, Some(lie)).await.unwrap_err();
        assert!(matches!(&refused, AddError::Refused(reason) if !reason.is_empty()), "{refused}");
        let page =
            until("it is not ready", async || tunnel.readiness().await.filter(|page| page.status == 500))
                .await;
        assert!(page.body.contains("workload proxy manager"), "{page:?}");
        let pending = "workload_manager_pending_proxy_count";
        assert_eq!(tunnel.counted(pending, &[]).await, 1);
        let dump = tunnel.get("/config_dump").await.json();
        assert_eq!(dump["workloadState"]["uid-gone"]["state"], "Pending", "{}", dump["workloadState"]);
        // The session goes on with others meanwhile.
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        call(&world.stranger(), web.at(8080)).await.unwrap();
        tunnel.lines(&["\twarn\t", "Pod cannot be served yet", "uid-gone"], 2).await;
        world.agent.handle.remove("uid-gone").await;
        tunnel.until_ready().await;
        assert_eq!(tunnel.counted(pending, &[]).await, 0);
    });
}

#[test]
fn a_pod_whose_ports_are_taken_is_served_as_soon_as_they_are_free() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let net = world.node.pod();
        let squatter = net.listen(HBONE);
        net.redirect().await;
        let web = Pod::of("web", net);
        world.publish([web.builder()], []);
        let _app = App::echo(&web, 8080);
        let refused = world.agent.enrol(&web).await.unwrap_err();
        assert!(refused.to_string().contains("in use"), "{refused}");
        drop(squatter);
        tunnel.until_ready().await;
        world.hbone(&world.stranger(), "curl", &web).await.connect(web.at(8080)).await.unwrap();
    });
}

#[test]
fn the_same_uid_in_a_new_namespace_ends_the_old_connections_and_serves_the_new() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let client = world.stranger();
        let mut web = world.pod("web").await;
        let app = App::echo(&web, 8080);
        let peer = world.hbone(&client, "curl", &web).await;
        let mut old = peer.connect(web.at(8080)).await.unwrap();
        greeting(&mut old).await.unwrap();
        // Its sandbox is made anew, at the same address.
        web.unplug();
        let again = world.node.pod_at(web.v4, web.v6);
        again.redirect().await;
        drop(app);
        web.net = Arc::new(again);
        let _app = App::echo(&web, 8080);
        world.agent.enrol(&web).await.unwrap();
        until_true("the new one is served", async || {
            let stream = client.connect(web.at(HBONE)).await;
            let Ok(stream) = stream else { return false };
            let config = world.ca.certificate(&identity("curl")).client_config(web.identity());
            let Ok(peer) = Peer::over(stream, config).await else { return false };
            peer.connect(web.at(8080)).await.is_ok()
        })
        .await;
        tunnel.line(&["Serving pod no longer", "uid-web"]).await;
        tunnel.until_counted("workload_manager_proxies_stopped_total", &[], 1).await;
        tunnel.line(&["connection complete", "the tunnel is shutting down"]).await;
        assert_eq!(tunnel.counted("workload_manager_active_proxy_count", &[]).await, 1);
    });
}

#[test]
fn an_agent_that_returns_keeps_what_it_keeps_and_drops_what_it_does_not_name() {
    world(async |mut world: World| {
        let tunnel = world.tunnel().await;
        let client = world.stranger();
        let (kept, added, gone) =
            (world.pod("kept").await, world.pod("added").await, world.pod("gone").await);
        let _apps = (App::echo(&kept, 8080), App::echo(&added, 8080), App::echo(&gone, 8080));
        let mut streams = Vec::new();
        for pod in [&kept, &added, &gone] {
            streams.push(call(&client, pod.at(8080)).await.unwrap().0);
        }
        let fresh = world.path("elsewhere.sock");
        let path = std::mem::replace(&mut world.agent, Agent::start(fresh)).stop().await;
        until_true("the loss was noticed", async || !tunnel.is_ready().await).await;
        // Nobody is there, and everything goes on: old connections, new ones, tunnels.
        for (pod, stream) in [&kept, &added, &gone].into_iter().zip(&mut streams) {
            exchange(stream, b"on and on").await.unwrap();
            call(&client, pod.at(8080)).await.unwrap();
            world.hbone(&client, "curl", pod).await.connect(pod.at(8080)).await.unwrap();
        }
        // The agent is back, knows one namespace, only of one pod, and nothing of the third.
        let agent = Agent::start(world.path("prepared.sock"));
        agent.keep(&kept).await;
        agent.enrol(&added).await.unwrap_err();
        std::fs::rename(world.path("prepared.sock"), &path).unwrap();
        world.agent = agent;
        tunnel.until_ready().await;
        until_closed(&mut streams[2]).await;
        tunnel.line(&["Serving pod no longer", "uid-gone"]).await;
        exchange(&mut streams[0], b"kept").await.unwrap();
        exchange(&mut streams[1], b"added").await.unwrap();
        until_true("nobody listens there", async || gone.connect(loopback(HBONE)).await.is_err()).await;
        assert_eq!(tunnel.counted("workload_manager_active_proxy_count", &[]).await, 2);
    });
}

#[test]
fn a_deleted_pod_is_left_at_once() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        let peer = world.hbone(&client, "curl", &web).await;
        let mut stream = peer.connect(web.at(8080)).await.unwrap();
        greeting(&mut stream).await.unwrap();
        let removed = Instant::now();
        world.agent.remove(&web).await;
        until_closed(&mut stream).await;
        assert!(removed.elapsed() < Duration::from_secs(2), "after {:?}", removed.elapsed());
        until_true("nobody listens there", async || web.connect(loopback(HBONE)).await.is_err()).await;
        // Once more is no mistake.
        world.agent.remove(&web).await;
        assert!(tunnel.is_ready().await);
        world.agent.enrol(&web).await.unwrap();
        world.hbone(&client, "curl", &web).await.connect(web.at(8080)).await.unwrap();
    });
}

#[test]
fn a_pod_whose_wire_is_cut_harms_nobody() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let (web, other, client) =
            (world.pod("web").await, world.pod("other").await, world.pod("client").await);
        let _apps = (App::echo(&web, 8080), App::echo(&other, 8080));
        let (_open, _) = call(&client, web.at(8080)).await.unwrap();
        let (mut inward, _) = call(&world.stranger(), other.at(8080)).await.unwrap();
        web.unplug();
        world.agent.remove(&web).await;
        exchange(&mut inward, b"still here").await.unwrap();
        call(&client, other.at(8080)).await.unwrap();
        assert!(tunnel.is_ready().await && tunnel.exited().is_none());
    });
}

/// A packet, and whether a descriptor goes with it.
type Packet = (Vec<u8>, bool);

#[test]
fn an_agent_that_breaks_the_protocol_ends_the_process_with_status_1() {
    world(async |world: World| {
        let net = world.stranger();
        let info =
            || PodInfo { name: "web".into(), namespace: "default".into(), service_account: "web".into() };
        let add = || Request::Add { uid: "a".into(), info: info(), netns: () }.encode().unwrap();
        let keep = || Request::Keep { uid: "a".into() }.encode().unwrap();
        let snapshot = || Request::SnapshotSent.encode().unwrap();
        // Field 1 (add) with a uid and no workload_info.
        let no_info = || b"\x0a\x03\x0a\x01a".to_vec();
        let lies: Vec<(&str, Vec<Packet>)> = vec![
            ("not a message", vec![(vec![0xff; 12], false)]),
            ("a message of no known kind", vec![(vec![0x3a, 0x00], false)]),
            ("longer than", vec![([add(), vec![0x3a, 0x80, 0x08], vec![0; 1100]].concat(), true)]),
            ("without a network namespace", vec![(add(), false)]),
            ("without workload_info", vec![(no_info(), true)]),
            ("a descriptor with a message that has none", vec![(keep(), true)]),
            ("after the snapshot", vec![(snapshot(), false), (keep(), false)]),
            ("a second snapshot", vec![(snapshot(), false), (snapshot(), false)]),
        ];
        for (number, (said, packets)) in lies.into_iter().enumerate() {
            let path = world.path(&format!("liar-{number}.sock"));
            let listener = Listener::bind(&path).unwrap();
            let tunnel = world.launch(world.env().with("INPOD_UDS", path.to_str().unwrap()));
            let session = timeout(SOON, listener.accept()).await.unwrap().unwrap();
            timeout(SOON, session.receive()).await.unwrap().expect("it greets");
            for (packet, with_descriptor) in packets {
                let descriptor = with_descriptor.then(|| net.file.as_fd());
                if session.send(&packet, descriptor).await.is_err() {
                    break;
                }
                let _ = timeout(Duration::from_secs(2), session.receive()).await;
            }
            let status = tunnel.until_exited().await;
            assert_eq!(status.code(), Some(1), "{said}: {}", tunnel.said());
            assert!(tunnel.said().contains("breaks the protocol"), "{said}: {}", tunnel.said());
            assert!(tunnel.said().contains(said), "{said}: {}", tunnel.said());
        }
    });
}
