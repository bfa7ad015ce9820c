//! Client against server, over HTTP/2 in memory, in virtual time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ambit_proto::discovery::{
    DeltaDiscoveryRequest, DiscoveryRequest, Node,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::{io::DuplexStream, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, metadata::MetadataMap, transport::Channel};

use super::{
    client::{Connect, ConnectError, DemandError},
    ledger::Limits,
    server::{Authenticator, Caller},
    *,
};
use crate::{
    codec::{ADDRESS, AUTHORIZATION},
    spawn::Spawner,
};

/// Long in virtual time, bounded in a test that hangs.
const SOON: Duration = Duration::from_secs(60);

fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::runtime::Handle::current().spawn(task);
}

fn spawner() -> Spawner {
    Spawner::new(|_, task| spawn(task))
}

/// Lets in whoever brings no `x-refuse` header.
struct Open;

impl Authenticator for Open {
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        match metadata.get("x-refuse") {
            Some(_) => Err(Status::unauthenticated("no token")),
            None => {
                let (name, namespace, service_account) = ("test".into(), "ns".into(), "z".into());
                Ok(Caller { name, namespace, service_account, node: None })
            }
        }
    }
}

/// A server that accepts connections through memory, and a switch that cuts them all.
#[derive(Clone)]
struct Wire {
    dial: mpsc::Sender<DuplexStream>,
    down: Arc<AtomicBool>,
    cut: Arc<tokio::sync::watch::Sender<u64>>,
}

fn serve() -> (Wire, Publisher) {
    let (server, publisher) = Server::new([ADDRESS, AUTHORIZATION], Limits::default(), Open, spawner());
    let (dial, accepted) = mpsc::channel(64);
    let incoming = tokio_stream::StreamExt::map(ReceiverStream::new(accepted), Ok::<_, std::io::Error>);
    spawn(async move {
        server::builder().add_service(server).serve_with_incoming(incoming).await.unwrap();
    });
    let wire = Wire { dial, down: Arc::default(), cut: Arc::new(tokio::sync::watch::Sender::new(0)) };
    (wire, publisher)
}

impl Wire {
    async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let wire = self.clone();
        let connector = tower::service_fn(move |_| {
            let wire = wire.clone();
            async move {
                if wire.down.load(Relaxed) {
                    return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                }
                // A wire of two parts, so that it can be cut from outside.
                let (near, mut a) = tokio::io::duplex(1 << 16);
                let (mut b, far) = tokio::io::duplex(1 << 16);
                let mut cut = wire.cut.subscribe();
                spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut a, &mut b) => {}
                        _ = cut.changed() => {}
                    }
                });
                wire.dial.send(far).await.map_err(std::io::Error::other)?;
                Ok(TokioIo::new(near))
            }
        });
        tonic::transport::Endpoint::from_static("http://memory").connect_with_connector(connector).await
    }

    fn cut(&self) {
        self.cut.send_modify(|n| *n += 1);
    }
}

impl Connect for Wire {
    type Body = tonic::body::Body;
    type Channel = Channel;

    async fn connect(&mut self) -> Result<Channel, ConnectError> {
        self.channel().await.map_err(|e| ConnectError::Unreachable(e.into()))
    }
}

/// The simplest handler: a map. Rejects bodies that start with `bad`.
#[derive(Clone, Default)]
struct Map(Arc<Mutex<BTreeMap<(String, String), Bytes>>>);

impl Handler for Map {
    fn apply(&mut self, response: Update) -> Vec<Rejected> {
        let mut map = self.0.lock().unwrap();
        let key = |name: String| (response.type_url.clone(), name);
        for name in response.removed {
            map.remove(&key(name));
        }
        let mut rejected = Vec::new();
        for resource in response.upserts {
            match resource.body {
                Some(body) if !body.starts_with(b"bad") => {
                    map.insert(key(resource.name), body);
                }
                _ => rejected.push(Rejected { name: resource.name, reason: "bad".into() }),
            }
        }
        rejected
    }
}

impl Map {
    fn of(&self, type_url: &str) -> BTreeMap<String, Bytes> {
        let map = self.0.lock().unwrap();
        map.iter().filter(|((t, _), _)| t == type_url).map(|((_, n), b)| (n.clone(), b.clone())).collect()
    }
}

fn node() -> NodeInfo {
    NodeInfo { pod_namespace: "ns".into(), pod_name: "z".into(), ..NodeInfo::default() }
}

fn subscribe(wire: &Wire, address: Mode) -> (Map, Handle, Arc<ClientMetrics>) {
    let (map, metrics) = (Map::default(), Arc::new(ClientMetrics::default()));
    let types = [(ADDRESS, address), (AUTHORIZATION, Mode::Wildcard)];
    let (client, handle) = Client::new(&node(), types, wire.clone(), map.clone(), metrics.clone());
    spawn(client.run(std::future::pending()));
    (map, handle, metrics)
}

fn resource(name: &str, version: &str) -> Resource {
    let body = Bytes::from(format!("{name}@{version}"));
    Resource { name: name.into(), version: version.into(), body, ..Resource::default() }
}

/// Waits until every subscriber has taken everything.
async fn at_rest(publisher: &Publisher, subscribers: usize) {
    let rest = async {
        loop {
            let states = publisher.subscribers();
            let synced =
                |s: &server::SubscriberState| s.types.len() == 2 && s.types.iter().all(|t| t.progress.synced);
            if states.len() == subscribers && states.iter().all(synced) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, rest).await.expect("subscribers come to rest");
}

#[tokio::test(start_paused = true)]
async fn a_client_is_synced_once_the_server_is_open_and_then_follows_it() {
    let (wire, publisher) = serve();
    let (map, handle, metrics) = subscribe(&wire, Mode::Wildcard);
    publisher.update(ADDRESS, vec![resource("a", "1")], &[]).unwrap();
    assert!(timeout(Duration::from_secs(5), handle.synced()).await.is_err(), "not open");
    publisher.open();
    timeout(SOON, handle.synced()).await.unwrap();
    at_rest(&publisher, 1).await;
    assert_eq!(map.of(ADDRESS), BTreeMap::from([("a".into(), Bytes::from("a@1"))]));
    publisher.update(ADDRESS, vec![resource("b", "1")], &["a".into()]).unwrap();
    at_rest(&publisher, 1).await;
    assert_eq!(map.of(ADDRESS), BTreeMap::from([("b".into(), Bytes::from("b@1"))]));
    assert_eq!(metrics.received.of(ADDRESS).messages, 2);
    assert!(metrics.received.of(ADDRESS).bytes > 0);
    let state = handle.state();
    assert!(state.connected_since.is_some() && state.last_update.is_some() && state.last_nack.is_none());
    assert_eq!(state.held, [(ADDRESS.to_owned(), 1), (AUTHORIZATION.to_owned(), 0)]);
    let seen = &publisher.subscribers()[0];
    assert_eq!(seen.node_id, "ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local");
    assert!(seen.types.iter().all(|t| t.waiting_since.is_none() && t.last_answer.is_some()));
}

#[tokio::test(start_paused = true)]
async fn whose_a_resource_is_is_judged_by_the_credentials() {
    let (wire, publisher) = serve();
    publisher.open();
    let owned = |name: &str, owner: &str| Resource { owner: owner.into(), ..resource(name, "1") };
    let all = vec![resource("all", "1"), owned("mine", "ns/z"), owned("other", "ns/y"), owned("far", "n/z")];
    publisher.update(ADDRESS, all, &[]).unwrap();
    let (map, ..) = subscribe(&wire, Mode::Wildcard);
    at_rest(&publisher, 1).await;
    assert_eq!(map.of(ADDRESS).into_keys().collect::<Vec<_>>(), ["all", "mine"]);
}

#[tokio::test(start_paused = true)]
async fn who_returns_before_the_server_knows_everything_is_told_only_the_difference() {
    let (wire, publisher) = serve();
    let held =
        HashMap::from([("a".to_owned(), "1".to_owned()), ("b".into(), "1".into()), ("c".into(), "1".into())]);
    let first = DeltaDiscoveryRequest {
        node: Some(Node { id: "ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local".into(), ..Node::default() }),
        type_url: ADDRESS.into(),
        initial_resource_versions: held,
        ..DeltaDiscoveryRequest::default()
    };
    let mut client = AggregatedDiscoveryServiceClient::new(wire.channel().await.unwrap());
    let (sender, requests) = mpsc::channel(1);
    sender.send(first).await.unwrap();
    let mut stream =
        client.delta_aggregated_resources(ReceiverStream::new(requests)).await.unwrap().into_inner();
    assert!(timeout(SOON, stream.message()).await.is_err(), "it does not know what is gone");
    publisher.update(ADDRESS, vec![resource("a", "1"), resource("b", "2")], &[]).unwrap();
    publisher.open();
    let response = timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap();
    let names: Vec<_> = response.resources.iter().map(|one| one.name.as_str()).collect();
    assert_eq!((names, response.removed_resources), (vec!["b"], vec!["c".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_rejected_resource_holds_up_the_first_sync_and_is_shown_at_both_ends() {
    let (wire, publisher) = serve();
    publisher.open();
    let bad = Resource { body: Bytes::from_static(b"bad"), ..resource("x", "1") };
    publisher.update(ADDRESS, vec![bad, resource("a", "1")], &[]).unwrap();
    let (map, handle, _) = subscribe(&wire, Mode::Wildcard);
    at_rest(&publisher, 1).await;
    assert_eq!(map.of(ADDRESS).len(), 1, "the sound one is applied");
    assert!(!handle.is_synced());
    assert_eq!(handle.state().last_nack.unwrap().message, "x: bad");
    let shown = publisher.subscribers()[0].types[0].last_nack.clone().unwrap();
    assert_eq!(shown.1, "x: bad");
    assert_eq!(publisher.metrics().nacked.of(ADDRESS).messages, 1);
    publisher.update(ADDRESS, vec![resource("x", "2")], &[]).unwrap();
    timeout(SOON, handle.synced()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cut_wire_is_mended_and_only_the_difference_travels() {
    let (wire, publisher) = serve();
    publisher.open();
    publisher.update(ADDRESS, (0..50).map(|i| resource(&format!("r{i}"), "1")).collect(), &[]).unwrap();
    let (map, _, metrics) = subscribe(&wire, Mode::Wildcard);
    at_rest(&publisher, 1).await;
    wire.down.store(true, Relaxed);
    wire.cut();
    while metrics.terminations().all(|(reason, n)| reason.label() != "ConnectionError" || n < 3) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    publisher.update(ADDRESS, vec![resource("r1", "2"), resource("new", "1")], &["r0".into()]).unwrap();
    let before = metrics.received.of(ADDRESS);
    wire.down.store(false, Relaxed);
    let news = async {
        while !map.of(ADDRESS).contains_key("new") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, news).await.unwrap();
    let after = metrics.received.of(ADDRESS);
    assert_eq!(map.of(ADDRESS).len(), 50);
    assert!(!map.of(ADDRESS).contains_key("r0"));
    assert_eq!(after.messages - before.messages, 1);
    assert!(after.bytes - before.bytes < 400, "two resources and one removal, not fifty");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_with_ok_is_called_again_at_once() {
    let (wire, publisher) = serve();
    publisher.open();
    let (_, handle, metrics) = subscribe(&wire, Mode::Wildcard);
    timeout(SOON, handle.synced()).await.unwrap();
    publisher.close();
    let complete = || metrics.terminations().any(|(r, n)| r == backoff::Reason::Complete && n > 0);
    let ended = async {
        while !complete() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, ended).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_demand_waits_for_its_answer_and_sees_the_state_that_goes_with_it() {
    let (wire, publisher) = serve();
    publisher.open();
    let pod = Resource { aliases: vec!["/10.0.0.1".into()], ..resource("uid", "1") };
    publisher.update(ADDRESS, vec![pod, resource("other", "1")], &[]).unwrap();
    let (map, handle, _) = subscribe(&wire, Mode::OnDemand);
    timeout(SOON, handle.synced()).await.unwrap();
    assert!(map.of(ADDRESS).is_empty());
    assert_eq!(handle.demand(ADDRESS, "/10.0.0.1", SOON).await, Ok(()));
    assert!(map.of(ADDRESS).contains_key("uid"), "woken after the state is in place, by alias");
    assert_eq!(handle.demand(ADDRESS, "nobody", SOON).await, Ok(()), "an answer, too");
    assert_eq!(map.of(ADDRESS).len(), 1);
    assert_eq!(handle.demand(AUTHORIZATION, "x", SOON).await, Err(DemandError::NotOnDemand));
}

#[tokio::test(start_paused = true)]
async fn a_demand_made_while_disconnected_is_answered_after_the_return_or_times_out() {
    let (wire, publisher) = serve();
    publisher.open();
    publisher.update(ADDRESS, vec![resource("uid", "1")], &[]).unwrap();
    wire.down.store(true, Relaxed);
    let (map, handle, _) = subscribe(&wire, Mode::OnDemand);
    let early = handle.demand(ADDRESS, "uid", Duration::from_secs(1)).await;
    assert_eq!(early, Err(DemandError::Timeout));
    let waiting = handle.demand(ADDRESS, "uid", SOON);
    let mend = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.down.store(false, Relaxed);
    };
    let (answer, ()) = tokio::join!(waiting, mend);
    assert_eq!(answer, Ok(()));
    assert!(map.of(ADDRESS).contains_key("uid"));
}

/// A bare gRPC client, for what ours never does.
async fn first_status(wire: &Wire, first: DeltaDiscoveryRequest, header: Option<&'static str>) -> Status {
    let mut client = AggregatedDiscoveryServiceClient::new(wire.channel().await.unwrap());
    let (sender, requests) = mpsc::channel(4);
    sender.send(first).await.unwrap();
    let mut request = tonic::Request::new(ReceiverStream::new(requests));
    if let Some(header) = header {
        request.metadata_mut().insert(header, "1".parse().unwrap());
    }
    match client.delta_aggregated_resources(request).await {
        Err(status) => status,
        Ok(response) => {
            let message = timeout(SOON, response.into_inner().message()).await.expect("an end");
            message.expect_err("refused")
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_does_not_say_who_it_is_is_refused() {
    let (wire, publisher) = serve();
    publisher.open();
    let with = |node: Option<Node>| DeltaDiscoveryRequest {
        node,
        type_url: ADDRESS.into(),
        ..DeltaDiscoveryRequest::default()
    };
    let named = |id: &str| with(Some(Node { id: id.into(), ..Node::default() }));
    let status = first_status(&wire, with(None), None).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let status = first_status(&wire, named("three~1.1.1.1~parts"), None).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let status = first_status(&wire, named("ztunnel~1.1.1.1~z.other~other.svc.cluster.local"), None).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let status =
        first_status(&wire, named("ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local"), Some("x-refuse")).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert_eq!(publisher.metrics().refused(), 1);
    let gone = async {
        while publisher.metrics().connected() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, gone).await.expect("refused streams leave the list");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_of_a_very_large_mesh_may_return_with_all_it_holds() {
    let (wire, publisher) = serve();
    publisher.open();
    let client = AggregatedDiscoveryServiceClient::new(wire.channel().await.unwrap());
    let mut client = client.max_decoding_message_size(64 << 20);
    let held = (0..60_000).map(|i| {
        (format!("Kubernetes//Pod/a-namespace/a-workload-of-some-deployment-{i:08}"), format!("{i:016x}"))
    });
    let first = DeltaDiscoveryRequest {
        node: Some(Node { id: "ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local".into(), ..Node::default() }),
        type_url: ADDRESS.into(),
        initial_resource_versions: held.collect(),
        ..DeltaDiscoveryRequest::default()
    };
    assert!(prost::Message::encoded_len(&first) > 4 << 20, "more than gRPC's usual limit");
    let (sender, requests) = mpsc::channel(1);
    sender.send(first).await.unwrap();
    let mut stream =
        client.delta_aggregated_resources(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let response = timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(response.removed_resources.len(), 60_000);
}

#[tokio::test(start_paused = true)]
async fn state_of_the_world_is_refused_with_a_hint() {
    let (wire, _publisher) = serve();
    let mut client = AggregatedDiscoveryServiceClient::new(wire.channel().await.unwrap());
    let requests = tokio_stream::iter([DiscoveryRequest::default()]);
    let status = client.stream_aggregated_resources(requests).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("DeltaAggregatedResources"));
}

#[tokio::test]
async fn a_compressed_request_is_refused_with_what_is_read() {
    let (server, _publisher) = Server::new([ADDRESS], Limits::default(), Open, spawner());
    let ask = |encoding: &'static str| {
        let request = http::Request::post(message::DELTA).header("grpc-encoding", encoding);
        tower::ServiceExt::oneshot(server.clone(), request.body(tonic::body::Body::empty()).unwrap())
    };
    let refused = ask("gzip").await.unwrap();
    let status = Status::from_header_map(refused.headers()).unwrap();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(refused.headers()["grpc-accept-encoding"], "identity");
    assert!(!ask("identity").await.unwrap().headers().contains_key("grpc-status"));
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_never_answers_is_shown_and_gets_no_more() {
    let (wire, publisher) = serve();
    publisher.open();
    publisher.update(ADDRESS, vec![resource("a", "1")], &[]).unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(wire.channel().await.unwrap());
    let (sender, requests) = mpsc::channel(4);
    let node = Some(Node { id: "ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local".into(), ..Node::default() });
    let first = DeltaDiscoveryRequest { node, type_url: ADDRESS.into(), ..DeltaDiscoveryRequest::default() };
    sender.send(first).await.unwrap();
    let mut stream =
        client.delta_aggregated_resources(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let response = timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap();
    publisher.update(ADDRESS, vec![resource("b", "1")], &[]).unwrap();
    assert!(timeout(SOON, stream.message()).await.is_err(), "one response at a time");
    let state = &publisher.subscribers()[0].types[0];
    assert!(state.progress.waiting && state.waiting_since.is_some() && !state.progress.synced);
    // An answer to something else does not count.
    let answer = |nonce: String| DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        response_nonce: nonce,
        ..DeltaDiscoveryRequest::default()
    };
    sender.send(answer("wrong".into())).await.unwrap();
    assert!(timeout(SOON, stream.message()).await.is_err());
    sender.send(answer(response.nonce)).await.unwrap();
    let next = timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(next.resources[0].name, "b");
}

/// How much the process holds, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(start_paused = true)]
async fn one_change_reaches_three_thousand_subscribers_and_each_costs_little() {
    const SUBSCRIBERS: u64 = 3000;
    let started = std::time::Instant::now();
    let (wire, publisher) = serve();
    publisher.update(ADDRESS, (0..50).map(|i| resource(&format!("r{i}"), "1")).collect(), &[]).unwrap();
    publisher.open();
    // All streams over one connection: what is measured is the subscriber, not HTTP/2.
    let channel = wire.channel().await.unwrap();
    let changed = Arc::new(AtomicU64::new(0));
    let before = resident();
    for _ in 0..SUBSCRIBERS {
        let types = [(ADDRESS, Mode::Wildcard), (AUTHORIZATION, Mode::Wildcard)];
        let handler = Count(changed.clone());
        let (client, _) = Client::new(&node(), types, Shared(channel.clone()), handler, Arc::default());
        spawn(client.run(std::future::pending()));
    }
    let subscribers = usize::try_from(SUBSCRIBERS).unwrap();
    at_rest(&publisher, subscribers).await;
    let each = resident().saturating_sub(before) / SUBSCRIBERS;
    publisher.update(ADDRESS, vec![resource("the change", "1")], &[]).unwrap();
    at_rest(&publisher, subscribers).await;
    assert_eq!(changed.load(Relaxed), SUBSCRIBERS);
    let sent = publisher.metrics().sent.of(ADDRESS);
    assert_eq!(sent.messages, 2 * SUBSCRIBERS, "everything once, the change once");
    // Both ends are in this process, and a client remembers what it holds (here some 10 KiB).
    assert!(each < 96 * 1024, "{each} bytes for both ends of a subscriber");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

/// Counts how often "the change" arrived; remembers nothing.
struct Count(Arc<AtomicU64>);

impl Handler for Count {
    fn apply(&mut self, response: Update) -> Vec<Rejected> {
        let hits = response.upserts.iter().filter(|r| r.name == "the change").count();
        self.0.fetch_add(u64::try_from(hits).unwrap(), Relaxed);
        Vec::new()
    }
}

/// One connection for many clients.
struct Shared(Channel);

impl Connect for Shared {
    type Body = tonic::body::Body;
    type Channel = Channel;

    async fn connect(&mut self) -> Result<Channel, ConnectError> {
        Ok(self.0.clone())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Bad(u8),
    Remove(u8),
    Cut,
    Close(bool),
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..8u8, 0..4u8).prop_map(|(n, v)| Step::Put(n, v)),
        1 => (0..8u8).prop_map(Step::Bad),
        3 => (0..8u8).prop_map(Step::Remove),
        1 => Just(Step::Cut),
        1 => any::<bool>().prop_map(Step::Close),
        4 => (0..40u8).prop_map(Step::Wait),
    ]
}

async fn converges(steps: Vec<Step>) {
    let (wire, publisher) = serve();
    publisher.open();
    let (map, _, _) = subscribe(&wire, Mode::Wildcard);
    let mut truth = [BTreeMap::new(), BTreeMap::new()];
    let types = [ADDRESS, AUTHORIZATION];
    for step in steps {
        match step {
            Step::Put(n, v) => {
                let at = usize::from(n % 2);
                let name = format!("r{n}");
                let version = if at == 0 { v.to_string() } else { String::new() };
                let body = Bytes::from(format!("body {v}"));
                truth[at].insert(name.clone(), body.clone());
                publisher
                    .update(types[at], vec![Resource { name, version, body, ..Resource::default() }], &[])
                    .unwrap();
            }
            Step::Bad(n) => {
                let body = Bytes::from_static(b"bad");
                let resource =
                    Resource { name: format!("r{n}"), version: "bad".into(), body, ..Resource::default() };
                publisher.update(types[usize::from(n % 2)], vec![resource], &[]).unwrap();
            }
            Step::Remove(n) => {
                let at = usize::from(n % 2);
                truth[at].remove(&format!("r{n}"));
                publisher.update(types[at], vec![], &[format!("r{n}")]).unwrap();
            }
            Step::Cut => wire.cut(),
            Step::Close(down) => {
                wire.down.store(down, Relaxed);
                wire.cut();
            }
            Step::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms.into())).await,
        }
    }
    wire.down.store(false, Relaxed);
    // What was rejected to the end is made good, so that there is one right answer.
    for n in 0..8u8 {
        let at = usize::from(n % 2);
        let name = format!("r{n}");
        match truth[at].get(&name).cloned() {
            Some(body) => {
                let version = if at == 0 { format!("{body:?}") } else { String::new() };
                publisher
                    .update(types[at], vec![Resource { name, version, body, ..Resource::default() }], &[])
                    .unwrap();
            }
            None => {
                publisher.update(types[at], vec![], &[name]).unwrap();
            }
        }
    }
    let equal = async {
        while map.of(ADDRESS) != truth[0] || map.of(AUTHORIZATION) != truth[1] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = timeout(SOON, equal).await.is_ok();
    assert!(reached, "{:?} {:?}, should be {truth:?}", map.of(ADDRESS), map.of(AUTHORIZATION));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_client_ends_with_what_the_server_has(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap().block_on(converges(steps));
    }
}
