//! The DNS proxy between a client and a real nameserver (dnsmasq), on loopback.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests fail by panicking, in their helpers too, and say what they skip"
)]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_fixtures::mesh::{pod, service};
use ambit_model::snapshot::Update;
use ambit_runtime::metrics::{Format, Registry};
use ambit_wire::discovery::{Discovery, Mesh};
use ambit_ztunnel::{
    dns::{Forwarder, ResolvConf, Resolver, Settings, Sockets},
    metrics::{Build, Metrics},
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sockets of this namespace.
struct Here;

impl Sockets for Here {
    fn udp(&self, _: SocketAddr) -> io::Result<UdpSocket> {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    fn tcp(&self, _: SocketAddr) -> io::Result<TcpSocket> {
        TcpSocket::new_v4()
    }
}

/// A nameserver that knows one of each kind. Ends with the test.
struct Dnsmasq {
    process: Child,
    address: SocketAddr,
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Dnsmasq {
    /// `None` when it is not installed, which is said loudly.
    async fn start() -> Option<Self> {
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // 60 answers of 16 bytes are more than one datagram of 512 bytes.
        let large = (0..60).map(|n| format!("--host-record=large.test,10.9.0.{n}"));
        let long = format!("--txt-record=long.test,{},{}", "x".repeat(250), "y".repeat(250));
        let started = Command::new("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--no-daemon",
                "--conf-file=/dev/null",
            ])
            .args([
                format!("--port={port}"),
                "--listen-address=127.0.0.1".to_owned(),
                "--bind-interfaces".to_owned(),
            ])
            .args([
                "--local=/test/",
                "--host-record=host.test,10.1.1.1,fd00::11",
                "--cname=alias.test,host.test",
            ])
            .args(["--srv-host=_ldap._tcp.test,host.test,389,10,20", "--txt-record=text.test,one,two words"])
            .args(["--mx-host=test,host.test,5", "--ptr-record=1.1.1.10.in-addr.arpa,host.test"])
            .args(["--no-round-robin", "--pid-file", "--user=root", "--group=root"])
            .args(large)
            .arg(long)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) => {
                eprintln!(
                    "SKIPPED: dnsmasq cannot be started ({error}); install it with `apt-get install dnsmasq-base`"
                );
                return None;
            }
        };
        let server = Self { process, address };
        let began = Instant::now();
        let probe = packet("host.test.", RecordType::A, None);
        while over_udp_within(address, &probe, Duration::from_millis(100)).await.is_none() {
            assert!(began.elapsed() < PATIENCE, "dnsmasq does not answer");
        }
        Some(server)
    }
}

/// A running proxy.
struct Proxy {
    udp: SocketAddr,
    tcp: SocketAddr,
    metrics: ambit_runtime::metrics::Metrics,
    stop: Vec<oneshot::Sender<()>>,
    tasks: Vec<JoinHandle<()>>,
    mesh: Discovery,
}

impl Proxy {
    async fn start(nameservers: &[SocketAddr], limit: usize) -> Self {
        let proxy = Self::before_its_pod_is_known(nameservers, limit).await;
        proxy.tell_of_its_pod();
        proxy
    }

    /// As the control plane does when the API server has the pod's address.
    fn tell_of_its_pod(&self) {
        self.mesh.writer().apply(&[], [Update::Workload(Arc::new(pod("shop/client").build()))]);
    }

    async fn before_its_pod_is_known(nameservers: &[SocketAddr], limit: usize) -> Self {
        let (mesh, discovery) = Mesh::new(None);
        let client = pod("shop/client").build();
        let web = service("shop/web.shop.svc.cluster.local").vip("10.96.0.1").build();
        discovery.writer().apply(&[], [Update::Service(Arc::new(web))]);
        let mut registry = Registry::new();
        let metrics = Metrics::register(&mut registry, &Build { tag: "test".to_owned() }, Arc::default());
        let conf = ResolvConf {
            nameservers: nameservers.to_vec(),
            patience: Duration::from_millis(500),
            attempts: 1,
        };
        let settings =
            Settings { cluster_domain: "cluster.local".to_owned(), preferred_namespace: None, ipv6: true };
        let resolver = Resolver::new(
            mesh,
            settings,
            move |mesh| mesh.workload(&client.uid).cloned(),
            Forwarder::new(Here, Arc::new(conf)),
            metrics,
            limit,
        );
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
        let (stop_udp, udp_stopped) = oneshot::channel();
        let (stop_tcp, tcp_stopped) = oneshot::channel();
        let ended = |stopped: oneshot::Receiver<()>| async move { drop(stopped.await) };
        #[expect(clippy::disallowed_methods, reason = "a test that joins its own tasks")]
        let tasks = vec![
            tokio::spawn(resolver.clone().serve_udp(socket, ended(udp_stopped))),
            tokio::spawn(resolver.serve_tcp(listener, ended(tcp_stopped))),
        ];
        Self { udp, tcp, metrics: registry.share(), stop: vec![stop_udp, stop_tcp], tasks, mesh: discovery }
    }

    async fn stop(self) {
        drop(self.stop);
        for task in self.tasks {
            timeout(PATIENCE, task).await.expect("it stops").expect("without a panic");
        }
    }
}

fn packet(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

async fn over_udp_within(to: SocketAddr, packet: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket.send(packet).await.ok()?;
    let mut answer = vec![0; 65_535];
    match timeout(patience, socket.recv(&mut answer)).await {
        Ok(Ok(length)) => Some(answer[..length].to_vec()),
        // Nobody listens there yet: not at once again.
        Ok(Err(_)) => {
            sleep(Duration::from_millis(10)).await;
            None
        }
        Err(_) => None,
    }
}

async fn over_udp(to: SocketAddr, packet: &[u8]) -> Vec<u8> {
    over_udp_within(to, packet, PATIENCE).await.expect("an answer")
}

async fn over_tcp(to: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream_once(&mut stream, packet).await
}

async fn stream_once(stream: &mut TcpStream, packet: &[u8]) -> Vec<u8> {
    stream.write_all(&u16::try_from(packet.len()).unwrap().to_be_bytes()).await.unwrap();
    stream.write_all(packet).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_pod_that_has_just_started_waits_for_its_first_name_and_gets_it() {
    let proxy = Proxy::before_its_pod_is_known(&[], 64).await;
    let question = packet("web.shop.svc.cluster.local.", RecordType::A, None);
    let (by_udp, by_tcp) = (proxy.udp, proxy.tcp);
    let asking = async { tokio::join!(over_udp(by_udp, &question), over_tcp(by_tcp, &question)) };
    tokio::pin!(asking);
    let early = timeout(Duration::from_millis(300), &mut asking).await;
    assert!(early.is_err(), "answered before anybody knew the pod: {early:?}");
    proxy.tell_of_its_pod();
    let (udp, tcp) = timeout(PATIENCE, asking).await.expect("an answer");
    for answer in [udp, tcp] {
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert_eq!(answer.answers.len(), 1);
    }
    proxy.stop().await;
}

#[tokio::test]
async fn what_the_mesh_does_not_own_comes_back_byte_for_byte() {
    let Some(server) = Dnsmasq::start().await else { return };
    let proxy = Proxy::start(&[server.address], 64).await;
    let (mut compared, mut truncated) = (0, 0);
    for name in [
        "host.test.",
        "HoSt.TeSt.",
        "alias.test.",
        "_ldap._tcp.test.",
        "text.test.",
        "long.test.",
        "test.",
        "1.1.1.10.in-addr.arpa.",
        "large.test.",
        "missing.test.",
        "refused.elsewhere.",
    ] {
        for kind in [
            RecordType::A,
            RecordType::AAAA,
            RecordType::SRV,
            RecordType::TXT,
            RecordType::CNAME,
            RecordType::MX,
            RecordType::PTR,
            RecordType::ANY,
            RecordType::HTTPS,
            RecordType::Unknown(4711),
        ] {
            for payload in [None, Some(1232), Some(4096)] {
                let packet = packet(name, kind, payload);
                let direct = over_udp(server.address, &packet).await;
                let proxied = over_udp(proxy.udp, &packet).await;
                assert_eq!(proxied, direct, "{name} {kind} {payload:?}");
                truncated += usize::from(direct[2] & 0x02 != 0);
                let direct = over_tcp(server.address, &packet).await;
                let proxied = over_tcp(proxy.tcp, &packet).await;
                assert_eq!(proxied, direct, "{name} {kind} {payload:?} in a stream");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 330);
    assert!(truncated > 0, "no answer was too large for its datagram");
    // The SRV answer brought an additional record.
    let srv =
        Message::from_vec(&over_udp(proxy.udp, &packet("_ldap._tcp.test.", RecordType::SRV, None)).await);
    assert!(!srv.unwrap().additionals.is_empty());
    proxy.stop().await;
}

#[tokio::test]
async fn a_large_answer_is_fetched_in_a_stream_as_a_client_does() {
    let Some(server) = Dnsmasq::start().await else { return };
    let proxy = Proxy::start(&[server.address], 64).await;
    let question = packet("large.test.", RecordType::A, None);
    let short = Message::from_vec(&over_udp(proxy.udp, &question).await).unwrap();
    assert!(short.metadata.truncation, "the client is told to ask again");
    let whole = Message::from_vec(&over_tcp(proxy.tcp, &question).await).unwrap();
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (60, false));
    proxy.stop().await;
}

#[tokio::test]
async fn the_meshs_own_names_need_no_nameserver() {
    let proxy = Proxy::start(&[], 64).await;
    let question = packet("web.shop.svc.cluster.local.", RecordType::A, Some(1400));
    for answer in [over_udp(proxy.udp, &question).await, over_tcp(proxy.tcp, &question).await] {
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!((answer.metadata.id, answer.metadata.response_code), (0x4242, ResponseCode::NoError));
        assert_eq!(answer.answers.first().and_then(|record| record.data.ip_addr()), "10.96.0.1".parse().ok());
        assert_eq!(answer.edns.map(|edns| edns.max_payload()), Some(1400));
    }
    // Others fail, and say so.
    let other = packet("example.org.", RecordType::A, None);
    for answer in [over_udp(proxy.udp, &other).await, over_tcp(proxy.tcp, &other).await] {
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(answer.queries.len(), 1);
    }
    let text = proxy.metrics.render(Format::Prometheus);
    for (name, protocol, count) in [
        ("istio_dns_requests_total", "udp", 2),
        ("istio_dns_requests_total", "tcp", 2),
        ("istio_dns_upstream_requests_total", "udp", 1),
        ("istio_dns_upstream_failures_total", "tcp", 1),
        ("istio_dns_upstream_request_duration_seconds_count", "udp", 1),
    ] {
        let line = format!(
            "{name}{{request_query_type=\"A\",request_protocol=\"{protocol}\",source_canonical_service=\"client\",\
             source_canonical_revision=\"unknown\"}} {count}"
        );
        assert!(text.lines().any(|shown| shown == line), "{line} is missing in {text}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn several_questions_go_through_one_stream() {
    let proxy = Proxy::start(&[], 64).await;
    let mut stream = TcpStream::connect(proxy.tcp).await.unwrap();
    for name in ["web.", "web.shop.", "web.shop.svc."] {
        let answer = stream_once(&mut stream, &packet(name, RecordType::A, None)).await;
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1, "{name}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn questions_beyond_the_limit_fail_at_once_and_owned_names_do_not() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(&[silent.local_addr().unwrap()], 1).await;
    let slow = packet("slow.example.", RecordType::A, None);
    let waiting = over_udp(proxy.udp, &slow);
    let others = async {
        // The first is under way as soon as its nameserver has heard of it.
        silent.recv(&mut [0; 600]).await.unwrap();
        let began = Instant::now();
        let refused = over_udp(proxy.udp, &packet("other.example.", RecordType::A, None)).await;
        assert!(began.elapsed() < Duration::from_millis(400), "it did not wait for the first");
        let owned = over_udp(proxy.udp, &packet("web.shop.", RecordType::A, None)).await;
        (refused, owned)
    };
    let (waited, (refused, owned)) = tokio::join!(waiting, others);
    let code = |answer: &[u8]| Message::from_vec(answer).unwrap().metadata.response_code;
    assert_eq!((code(&waited), code(&refused)), (ResponseCode::ServFail, ResponseCode::ServFail));
    assert_eq!(code(&owned), ResponseCode::NoError);
    let text = proxy.metrics.render(Format::Prometheus);
    assert!(
        text.contains("ambit_overload_rejections_total{limit=\"DNS questions of this pod\"} 1"),
        "{text}"
    );
    proxy.stop().await;
}

#[tokio::test]
async fn random_bytes_do_no_harm_to_either_socket() {
    let proxy = Proxy::start(&[], 64).await;
    let good = packet("web.shop.", RecordType::A, None);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(proxy.udp).await.unwrap();
    for round in 0..300 {
        let noise: Vec<u8> = (0..round * 3).map(|_| rand::random()).collect();
        socket.send(&noise).await.unwrap();
        // The same noise where a question should be, behind a header that is fine.
        let damaged: Vec<u8> = good.iter().take(12).copied().chain(noise.iter().copied()).collect();
        socket.send(&damaged).await.unwrap();
        if round % 10 == 0 {
            for bytes in [&noise, &damaged] {
                let mut stream = TcpStream::connect(proxy.tcp).await.unwrap();
                // The proxy may hang up first: that is its right.
                let _ = stream.write_all(bytes).await;
            }
        }
    }
    let answered = Message::from_vec(&over_udp(proxy.udp, &good).await).unwrap();
    assert_eq!(answered.answers.len(), 1);
    assert_eq!(Message::from_vec(&over_tcp(proxy.tcp, &good).await).unwrap().answers.len(), 1);
    let text = proxy.metrics.render(Format::Prometheus);
    assert!(text.contains("ambit_task_panics_total 0\n"), "{text}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_closed() {
    let proxy = Proxy::start(&[], 64).await;
    let began = Instant::now();
    let mut stream = TcpStream::connect(proxy.tcp).await.unwrap();
    let ended = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("it is closed").unwrap();
    assert_eq!(ended, 0);
    assert!(began.elapsed() >= Duration::from_secs(4), "it had its five seconds");
    proxy.stop().await;
}
