//! WebSocket between clients and applications of the same or of different versions of HTTP.

use ambit_fixtures::mesh::pod;
use ambit_model::{
    authz::{Action, Clause, Content, Match, Policy, RequestMatch, Rule as PolicyRule, Scope, Text},
    name::PolicyKey,
    route::{Abort, Fault, Filter, Filters, Fraction, Rule, With},
    service::AppProtocol,
    service_config::Parts,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use h2::{RecvStream, SendStream, ext::Protocol};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, request};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use crate::world::*;

/// That of RFC 6455, 1.3, and its answer there.
const A_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ITS_ANSWER: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Where the application is.
const APP: &str = "127.0.0.2:8080";

fn publish(world: &World, protocol: AppProtocol) {
    world.publish(
        [pod("shop/web-1").at("127.0.0.2").plain().behind("shop/web", &[(80, 8080)])],
        [http_service("shop/web", "10.1.0.1")
            .with(|service| service.app_protocols = [(80, protocol)].into())],
    );
    world.configure("shop/web", Parts::default());
}

/// A stream of HTTP/2.
struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
}

impl Stream {
    fn say(&mut self, text: &'static str) {
        self.send.send_data(text.into(), false).unwrap();
    }

    fn finish(&mut self) {
        self.send.send_data(Bytes::new(), true).unwrap();
    }

    /// Everything up to the end.
    async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        let reading = async {
            while let Some(piece) = self.recv.data().await {
                all.extend_from_slice(&piece.expect("a piece"));
            }
        };
        timeout(SOON, reading).await.expect("an end");
        String::from_utf8(all).unwrap()
    }

    async fn hears(&mut self, expected: &str) {
        let mut all = Vec::new();
        while all.len() < expected.len() {
            all.extend(timeout(SOON, self.recv.data()).await.expect("in time").expect("more").unwrap());
        }
        assert_eq!(String::from_utf8(all).unwrap(), expected);
    }
}

/// A client of HTTP/2, as it is without hyper.
struct Client {
    sender: h2::client::SendRequest<Bytes>,
    _task: JoinSet<()>,
}

impl Client {
    async fn open(world: &World) -> Self {
        let io = world.tunnel().await.connect(WEB).await.unwrap();
        let (sender, connection) = h2::client::handshake(io).await.unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move { connection.await.unwrap_or_default() });
        Self { sender, _task: task }
    }

    /// A CONNECT to `path`; `protocol` is what it names.
    async fn connect(
        &mut self,
        path: &str,
        protocol: Option<&str>,
        headers: &HeaderMap,
    ) -> (Response<()>, Stream) {
        let mut request = Request::builder().method(Method::CONNECT).version(Version::HTTP_2);
        request = match protocol {
            Some(_) => request.uri(format!("https://web{path}")),
            None => request.uri("web:80"),
        };
        let mut request = request.body(()).unwrap();
        *request.headers_mut() = headers.clone();
        protocol.map(Protocol::from).into_iter().for_each(|protocol| {
            request.extensions_mut().insert(protocol);
        });
        let mut sender = self.sender.clone().ready().await.unwrap();
        let (response, send) = sender.send_request(request, false).unwrap();
        let response = timeout(SOON, response).await.expect("a response").unwrap();
        let (head, recv) = response.into_parts();
        (Response::from_parts(head, ()), Stream { send, recv })
    }

    async fn websocket(&mut self, path: &str) -> (Response<()>, Stream) {
        let headers = [("sec-websocket-version", "13"), ("sec-websocket-protocol", "chat")];
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        self.connect(path, Some("websocket"), &headers.into_iter().collect()).await
    }
}

/// The head of a request, read off a connection.
async fn head(app: &mut TcpStream) -> String {
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\n") {
        all.push(timeout(SOON, app.read_u8()).await.expect("a head").unwrap());
    }
    String::from_utf8(all).unwrap()
}

fn value<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| line.split_once(": ").filter(|(of, _)| *of == name)).map(|(_, value)| value)
}

fn answer(head: &str) -> String {
    let key = value(head, "sec-websocket-key").expect("a key");
    let answered = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(boring::sha::sha1(answered.as_bytes()))
}

#[test]
fn a_stream_of_a_client_becomes_a_connection_of_an_application() {
    world(async |world| {
        let listener = TcpListener::bind(APP).await.unwrap();
        publish(&world, AppProtocol::Http11);
        let waypoint = world.start().await;
        let mut client = Client::open(&world).await;
        let application = async {
            let (mut app, _) = timeout(SOON, listener.accept()).await.expect("a connection").unwrap();
            let asked = head(&mut app).await;
            let agreed = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                sec-websocket-protocol: chat\r\nsec-websocket-accept:";
            app.write_all(format!("{agreed} {}\r\n\r\nwelcome", answer(&asked)).as_bytes()).await.unwrap();
            (app, asked)
        };
        let ((told, mut stream), (mut app, asked)) =
            tokio::join!(client.websocket("/a/../chat?x=1"), application);
        assert!(asked.starts_with("GET /chat?x=1 HTTP/1.1\r\n"), "{asked}");
        assert_eq!(value(&asked, "host"), Some("web"));
        assert_eq!(
            (value(&asked, "upgrade"), value(&asked, "connection")),
            (Some("websocket"), Some("upgrade"))
        );
        assert_eq!(value(&asked, "sec-websocket-version"), Some("13"));
        assert_eq!(
            (told.status(), told.headers()["sec-websocket-protocol"].as_bytes()),
            (StatusCode::OK, &b"chat"[..])
        );
        assert!(!told.headers().contains_key("sec-websocket-accept"), "{told:?}");
        stream.hears("welcome").await;
        stream.say("hello");
        let mut heard = [0; 5];
        timeout(SOON, app.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(&heard, b"hello");
        // Each side ends on its own.
        stream.finish();
        assert_eq!(timeout(SOON, app.read(&mut heard)).await.unwrap().unwrap(), 0);
        app.write_all(b"goodbye").await.unwrap();
        drop(app);
        assert_eq!(stream.rest().await, "goodbye");
        waypoint.line(&["request complete", "method=\"GET\"", "status=200 flag=\"-\""]).await;
    });
}

#[test]
fn what_an_application_says_instead_of_a_websocket() {
    world(async |world| {
        let listener = TcpListener::bind(APP).await.unwrap();
        publish(&world, AppProtocol::Http11);
        let waypoint = world.start().await;
        let mut client = Client::open(&world).await;
        let table = [
            ("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", 403, "no"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npage", 502, ""),
            (
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n",
                502,
                "",
            ),
        ];
        for (says, status, body) in table {
            let application = async {
                let (mut app, _) = timeout(SOON, listener.accept()).await.expect("a connection").unwrap();
                head(&mut app).await;
                app.write_all(says.as_bytes()).await.unwrap();
                app
            };
            let ((told, mut stream), _app) = tokio::join!(client.websocket("/chat"), application);
            assert_eq!((told.status().as_u16(), stream.rest().await.as_str()), (status, body), "{says}");
        }
        waypoint.until_counted("istio_requests_total", &["response_flags=\"UPE\""], 2).await;
        waypoint.line(&["the application does not switch: its Sec-WebSocket-Accept does not answer"]).await;
    });
}

/// An application that speaks HTTP/2 alone, agrees to every CONNECT and says back what it hears.
struct Streams {
    asked: mpsc::UnboundedReceiver<request::Parts>,
    _task: JoinSet<()>,
}

impl Streams {
    /// `takes`: it says that it takes a CONNECT that names a protocol.
    async fn start(takes: bool) -> Self {
        let listener = TcpListener::bind(APP).await.unwrap();
        let (tell, asked) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                serving.spawn(serve(tcp, takes, tell.clone()));
            }
        });
        Self { asked, _task: task }
    }

    async fn asked(&mut self) -> request::Parts {
        timeout(SOON, self.asked.recv()).await.expect("a request").unwrap()
    }
}

async fn serve(tcp: TcpStream, takes: bool, tell: mpsc::UnboundedSender<request::Parts>) {
    let mut builder = h2::server::Builder::new();
    if takes {
        builder.enable_connect_protocol();
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(tcp).await else { return };
    let mut echoes = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, mut recv) = request.into_parts();
        let status = if head.uri.path() == "/no-content" { 204 } else { 200 };
        tell.send(head).unwrap();
        let response = Response::builder().status(status).header("sec-websocket-protocol", "chat");
        let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
        echoes.spawn(async move {
            while let Some(Ok(piece)) = recv.data().await {
                let _ = send.send_data(piece, false);
            }
            let _ = send.send_data(Bytes::from_static(b"bye"), true);
        });
    }
}

fn handshake(method: Method, path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", "web");
    let request = request.header("connection", "Upgrade").header("upgrade", "websocket");
    let request = request.header("sec-websocket-key", A_KEY).header("sec-websocket-version", "13");
    request.body(Full::default()).unwrap()
}

#[test]
fn a_connection_of_a_client_becomes_a_stream_of_an_application() {
    world(async |world| {
        let mut app = Streams::start(true).await;
        publish(&world, AppProtocol::Http2);
        let waypoint = world.start().await;
        let mut sender = world.tunnel().await.http1(WEB).await;
        let told = sender.send_request(handshake(Method::GET, "/a/../chat")).await.unwrap();
        assert_eq!(told.status(), StatusCode::SWITCHING_PROTOCOLS);
        let named = |name: &str| told.headers().get(name).and_then(|value| value.to_str().ok());
        assert_eq!((named("upgrade"), named("sec-websocket-accept")), (Some("websocket"), Some(ITS_ANSWER)));
        assert_eq!(named("sec-websocket-protocol"), Some("chat"));
        let asked = app.asked().await;
        assert_eq!((asked.method, asked.uri.path()), (Method::CONNECT, "/chat"));
        assert_eq!(asked.uri.host(), Some("web"));
        assert_eq!(asked.extensions.get::<Protocol>().map(Protocol::as_str), Some("websocket"));
        assert!(!asked.headers.contains_key("sec-websocket-key"), "{:?}", asked.headers);
        let mut io = TokioIo::new(hyper::upgrade::on(told).await.unwrap());
        io.write_all(b"hello").await.unwrap();
        io.shutdown().await.unwrap();
        let mut heard = String::new();
        timeout(SOON, io.read_to_string(&mut heard)).await.unwrap().unwrap();
        assert_eq!(heard, "hellobye");
        waypoint.line(&["request complete", "status=101"]).await;
    });
}

#[test]
fn a_stream_stays_a_stream() {
    world(async |world| {
        let mut app = Streams::start(true).await;
        publish(&world, AppProtocol::Http2);
        let _waypoint = world.start().await;
        let mut client = Client::open(&world).await;
        // Two on the same connections, side by side.
        let (first, mut one) = client.websocket("/one").await;
        let (second, mut two) = client.websocket("/two").await;
        assert_eq!((first.status(), second.status()), (StatusCode::OK, StatusCode::OK));
        assert_eq!(app.asked().await.extensions.get::<Protocol>().map(Protocol::as_str), Some("websocket"));
        one.say("1");
        two.say("2");
        one.hears("1").await;
        two.hears("2").await;
        one.finish();
        assert_eq!(one.rest().await, "bye");
        two.say("3");
        two.hears("3").await;
        let (told, mut none) = client.websocket("/no-content").await;
        assert_eq!((told.status().as_u16(), none.rest().await.as_str()), (502, ""));
    });
}

#[test]
fn an_application_that_takes_no_streams_gets_none() {
    world(async |world| {
        let _app = Streams::start(false).await;
        publish(&world, AppProtocol::Http2);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        assert_eq!(tunnel.ask(WEB, handshake(Method::GET, "/chat")).await.status, 502);
        let (told, _) = Client::open(&world).await.websocket("/chat").await;
        assert_eq!(told.status(), StatusCode::BAD_GATEWAY);
        waypoint.until_counted("istio_requests_total", &["response_flags=\"UPE\""], 2).await;
    });
}

#[test]
fn what_is_no_handshake_does_not_become_one() {
    world(async |world| {
        let mut app = Streams::start(true).await;
        publish(&world, AppProtocol::Http2);
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        // The application would take it for a GET.
        assert_eq!(tunnel.ask(WEB, handshake(Method::POST, "/chat")).await.status, 400);
        let mut other = handshake(Method::GET, "/chat");
        other.headers_mut().insert("upgrade", "other".parse().unwrap());
        assert_eq!(tunnel.ask(WEB, other).await.status, 400);
        let mut client = Client::open(&world).await;
        let none = HeaderMap::new();
        assert_eq!(client.connect("/", None, &none).await.0.status(), StatusCode::METHOD_NOT_ALLOWED);
        let (told, _) = client.connect("/", Some("connect-udp"), &none).await;
        assert_eq!(told.status(), StatusCode::NOT_IMPLEMENTED);
        assert!(app.asked.try_recv().is_err(), "nothing came through");
    });
}

fn policy(action: Action, request: RequestMatch) -> Parts {
    let one = Match { request: Some(Box::new(request)), ..Match::default() };
    let rules = vec![PolicyRule { clauses: vec![Clause { matches: vec![one] }] }];
    let content = Content::Rules { action, rules, dry_run: false };
    let policy = Policy { key: PolicyKey::new("shop", "p"), scope: Scope::WorkloadSelector, content };
    Parts { policies: vec![policy.into()], ..Parts::default() }
}

fn method(name: &str) -> RequestMatch {
    RequestMatch { methods: vec![Text::Exact(name.into())], ..RequestMatch::default() }
}

fn aborted(with: u16) -> Parts {
    let share = Fraction::percent(100).unwrap();
    let with = With::Http(StatusCode::from_u16(with).unwrap());
    let fault = Fault::new(None, Some(Abort { share, with })).unwrap();
    let filters = Filters::new(vec![Filter::Fault(fault)]).unwrap();
    parts(vec![Rule { backends: vec![to("shop/web", 1)], filters, ..Rule::default() }])
}

#[test]
fn a_policy_of_gets_holds_for_websockets_in_either_version() {
    world(async |world| {
        let _app = Streams::start(true).await;
        publish(&world, AppProtocol::Http2);
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut client = Client::open(&world).await;
        let table = [
            ("no GET", policy(Action::Deny, method("GET")), 403, 403),
            ("GET alone", policy(Action::Allow, method("GET")), 200, 101),
            // It is no GET to whom policies look at, in whatever version it comes.
            ("CONNECT alone", policy(Action::Allow, method("CONNECT")), 403, 403),
            ("no CONNECT, which it is not, either", policy(Action::Deny, method("CONNECT")), 200, 101),
            ("an answer in place of the application is no stream", aborted(200), 403, 200),
        ];
        for (number, (what, parts, of_stream, of_connection)) in table.into_iter().enumerate() {
            world.configure("shop/web", parts);
            until(what, async || {
                let told = tunnel.ask(WEB, handshake(Method::GET, "/chat")).await;
                (told.status == of_connection).then_some(())
            })
            .await;
            let mut headers = HeaderMap::new();
            // A refusal of a call is a 200, which would open the stream.
            headers.insert("content-type", "application/grpc".parse().unwrap());
            let headers = if number == 0 { headers } else { HeaderMap::new() };
            let (told, _) = client.connect("/chat", Some("websocket"), &headers).await;
            assert_eq!(told.status().as_u16(), of_stream, "{what}");
        }
        waypoint
            .line(&["method=\"GET\"", "protocol=\"HTTP/2\" status=403", "denied by policy: shop/p"])
            .await;
    });
}
