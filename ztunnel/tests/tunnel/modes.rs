//! Other ways to run it: for one pod, from a file, on demand.

use ambit_fixtures::control_plane::Settings;
use ambit_fixtures::mesh::{PodBuilder, pod};
use ambit_wire::{
    codec::{self, ADDRESS},
    xds::Resource,
};
use tokio::{io::copy_bidirectional, net::TcpStream};

use crate::harness::*;

#[test]
fn a_dedicated_tunnel_serves_the_pod_that_it_is_in_under_its_own_identity() {
    world(async |world: World| {
        let web = Pod::of("web", world.node.pod());
        world.publish([web.builder()], []);
        let _app = App::echo(&web, 8080);
        // In there, the node's loopback is another's: what listens on it is brought in.
        let plane = world.plane.address().port();
        let ca = world.served_ca.address().port();
        let _relays = [plane, ca].map(|port| {
            let listener = web.listen_at(([127, 0, 0, 1], port).into());
            App::serve(listener, move |mut stream, _| async move {
                if let Ok(mut onward) = TcpStream::connect(("127.0.0.1", port)).await {
                    let _ = copy_bidirectional(&mut stream, &mut onward).await;
                }
            })
        });
        // The CA decides by itself who asks; it is not told a name.
        world.served_ca.set_mood(ambit_fixtures::ca::Mood::WrongIdentity(web.identity()));
        let env = world.env().with("PROXY_MODE", "dedicated").with("PROXY_WORKLOAD_INFO", "default/web/web");
        // Nobody has laid the routes that an answer to a borrowed address would need.
        let env = env.without("POD_NAME").with("ENABLE_ORIG_SRC", "false");
        let tunnel = world.launch_in(env, &web);
        tunnel.until_ready().await;
        let client = world.stranger();
        let peer = world.hbone(&client, "curl", &web).await;
        let mut stream = peer.connect(web.at(8080)).await.unwrap();
        let seen = greeting(&mut stream).await.unwrap();
        assert!(seen.starts_with(&format!("{}:", web.v4)), "{seen}");
        exchange(&mut stream, b"hello").await.unwrap();
        assert!(world.served_ca.seen().iter().all(|asked| asked.impersonated.is_none()));
    });
}

#[test]
fn a_dedicated_tunnel_that_is_not_told_its_pod_does_not_start() {
    world(async |world: World| {
        for info in [None, Some("web"), Some("default/web"), Some("//")] {
            let mut env = world.env().with("PROXY_MODE", "dedicated");
            if let Some(info) = info {
                env.set("PROXY_WORKLOAD_INFO", info);
            }
            let tunnel = world.launch(env);
            assert_eq!(tunnel.until_exited().await.code(), Some(1), "{info:?}");
            assert!(tunnel.said().contains("PROXY_WORKLOAD_INFO"), "{info:?}: {}", tunnel.said());
        }
    });
}

#[test]
fn every_mistake_in_the_environment_is_named_at_once() {
    world(async |world: World| {
        let env =
            world.env().with("SECRET_TTL", "soon").with("XDS_ADDRESS", "ftp://x").with("SAME_NODE", "maybe");
        let tunnel = world.launch(env.with("ZTUNNEL_WORKER_THREADS", "many"));
        assert_eq!(tunnel.until_exited().await.code(), Some(1));
        for name in ["SECRET_TTL", "XDS_ADDRESS", "SAME_NODE", "ZTUNNEL_WORKER_THREADS"] {
            assert!(tunnel.said().contains(name), "{name} is not in {}", tunnel.said());
        }
    });
}

#[test]
fn a_mesh_from_a_file_with_a_ca_inside_needs_nobody_else() {
    world(async |world: World| {
        let net = [world.node.pod(), world.node.pod()];
        for one in &net {
            one.redirect().await;
        }
        let [web, client] = net;
        let (web, client) = (Pod::of("web", web), Pod::of("client", client));
        let workload = |pod: &Pod| {
            format!(
                "  - {{ uid: Kubernetes//Pod/default/{name}, name: {name}, namespace: default, serviceAccount: {name},\n\
                 \x20     workloadIps: [{v4}, \"{v6}\"], protocol: HBONE, node: {NODE},\n\
                 \x20     services: {{ default/{name}.test: {{ \"80\": 8080 }} }} }}\n",
                name = pod.name,
                v4 = pod.v4,
                v6 = pod.v6,
            )
        };
        let mesh = format!(
            "workloads:\n{}{}services:\n  - {{ name: web, namespace: default, hostname: web.test, vips: [/10.96.0.1], \
             ports: {{ \"80\": 8080 }} }}\npolicies:\n  - name: only-client\n    namespace: default\n    scope: Namespace\n    \
             action: Allow\n    rules: [[[{{ principals: [!Exact cluster.local/ns/default/sa/client] }}]]]\n",
            workload(&web),
            workload(&client),
        );
        let file = world.path("mesh.yaml");
        std::fs::write(&file, mesh).unwrap();
        let env = world.env().with("XDS_ADDRESS", "").with("FAKE_CA", "true").with("SAME_NODE", "hbone");
        let env = env.without("CA_ADDRESS").with("LOCAL_XDS_PATH", file.to_str().unwrap());
        let tunnel = world.tunnel_with(env).await;
        for pod in [&web, &client] {
            world.agent.enrol(pod).await.unwrap();
        }
        let _app = App::echo(&web, 8080);
        for to in [web.at(8080), web.at6(8080), "10.96.0.1:80".parse().unwrap()] {
            let (_stream, seen) = call(&client, to).await.unwrap_or_else(|error| panic!("{to}: {error}"));
            let own = if to.is_ipv4() { client.v4.to_string() } else { format!("[{}]", client.v6) };
            assert!(seen.starts_with(&own), "{seen}");
        }
        assert!(call(&world.stranger(), web.at(8080)).await.is_err(), "plain text has no identity");
        tunnel
            .line(&["connection complete", "src.identity=\"spiffe://cluster.local/ns/default/sa/client\""])
            .await;
        assert_eq!(tunnel.get("/debug/sync").await.json()["configured"], false);
    });
}

#[test]
fn a_mistake_in_the_local_mesh_stops_the_start() {
    world(async |world: World| {
        let env = world.env().with("XDS_ADDRESS", "").with("FAKE_CA", "true");
        let tunnel = world.launch(
            env.with("LOCAL_XDS", "policies: [{ name: p, namespace: n, scope: Here, action: Deny }]"),
        );
        assert_eq!(tunnel.until_exited().await.code(), Some(1));
        assert!(tunnel.said().contains("Here"), "{}", tunnel.said());
    });
}

#[test]
fn on_demand_an_address_is_asked_for_and_its_alias_wakes_who_waits() {
    world(async |mut world: World| {
        let caller = Settings::default().caller;
        let caller = ambit_wire::xds::server::Caller { node: Some(NODE.to_owned()), ..caller };
        world.plane = Settings { caller, ..plane(&world.ca) }.start().await;
        let env = world.env().with("XDS_ON_DEMAND", "true").with("ISTIO_META_DNS_CAPTURE", "false");
        let publish = |builder: PodBuilder, node: &str| {
            let workload = builder.build();
            let aliases = workload.addresses.iter().map(|ip| format!("/{ip}")).collect();
            let body = codec::encode_workload(&workload);
            let name = workload.uid.to_string();
            let resource = Resource {
                name,
                version: "1".into(),
                aliases,
                body,
                node: node.into(),
                ..Resource::default()
            };
            world.plane.publisher().update(ADDRESS, vec![resource], &[]).unwrap();
        };
        let net = world.node.pod();
        net.redirect().await;
        let client = Pod::of("client", net);
        publish(client.builder(), NODE);
        // Elsewhere, ended by a double: only with its workload known is it called in a tunnel.
        let server = std::sync::Arc::new(world.stranger());
        let _app = App::echo(&server, 8080);
        let double = Gateway::start(&world.ca, &identity("server"), server.clone(), server.at(8080));
        publish(pod("default/server").at(&server.v4.to_string()).account("server"), "elsewhere");
        publish(pod("default/unused").at("10.200.0.1"), "elsewhere");
        let tunnel = world.tunnel_with(env).await;
        world.agent.enrol(&client).await.unwrap();
        let (_stream, _) = call(&client, server.at(8080)).await.unwrap();
        assert_eq!(double.asked().await.authority, server.at(8080).to_string());
        let dump = tunnel.get("/config_dump").await.body;
        assert!(dump.contains("default/server") && !dump.contains("default/unused"), "{dump}");
        // What does not exist is known not to, and left alone.
        let stranger = world.stranger();
        let _plain = App::echo(&stranger, 8080);
        call(&client, stranger.at(8080)).await.unwrap();
    });
}
