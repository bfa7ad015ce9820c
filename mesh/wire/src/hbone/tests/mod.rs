//! Client against server, in memory, in virtual time. Numbers in names are edge cases of protocols 12.

mod hostile;
mod lifecycle;
mod pool;
mod streams;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ambit_model::address::Target;
use http::{HeaderMap, StatusCode};
use tokio::{
    io::{DuplexStream, duplex},
    sync::{mpsc, oneshot},
};

use super::{Connect, Connection, Incoming, Settings, Transport, TunnelStream, connect, headers, server};
use crate::spawn::Spawner;

/// What an in-memory socket holds.
const SOCKET: usize = 256 * 1024;

#[expect(clippy::disallowed_methods, reason = "a test is its own supervisor")]
fn task(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}

/// Counts tasks that have not ended.
#[derive(Clone, Default)]
struct Tasks(Arc<AtomicUsize>);

impl Tasks {
    fn spawner(&self) -> Spawner {
        let alive = Arc::clone(&self.0);
        Spawner::new(move |_, future| {
            alive.fetch_add(1, Ordering::SeqCst);
            let alive = Arc::clone(&alive);
            task(async move {
                future.await;
                alive.fetch_sub(1, Ordering::SeqCst);
            });
        })
    }

    fn alive(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn to(authority: &str) -> Connect {
    Connect { authority: headers::parse_authority(authority).unwrap(), headers: HeaderMap::new() }
}

/// A server in a task: what it is asked, and ways to end it.
struct Server {
    asked: mpsc::UnboundedReceiver<Incoming>,
    drain: Option<oneshot::Sender<()>>,
    cut: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<Result<server::Served, server::ServeError>>,
}

impl Server {
    fn on(io: impl Transport + Send + 'static, settings: Settings) -> Self {
        let (ask, asked) = mpsc::unbounded_channel();
        let (drain, drained) = oneshot::channel::<()>();
        let (cut, was_cut) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        task(async move {
            let wait = |told: oneshot::Receiver<()>| async move {
                if told.await.is_err() {
                    pending::<()>().await;
                }
            };
            let take = move |incoming| drop(ask.send(incoming));
            let _ = end.send(server::serve(io, &settings, take, wait(drained), wait(was_cut)).await);
        });
        Self { asked, drain: Some(drain), cut: Some(cut), ended }
    }

    async fn accept(&mut self) -> TunnelStream {
        self.asked.recv().await.unwrap().accept(None).unwrap()
    }

    fn drain(&mut self) {
        self.drain.take().unwrap().send(()).unwrap();
    }

    fn cut(&mut self) {
        self.cut.take().unwrap().send(()).unwrap();
    }
}

/// A connected pair.
async fn pair() -> (Connection, Server, Tasks) {
    pair_with(Settings::default()).await
}

async fn pair_with(settings: Settings) -> (Connection, Server, Tasks) {
    let (near, far) = duplex(SOCKET);
    let server = Server::on(far, settings.clone());
    let tasks = Tasks::default();
    (connected(near, &settings, &tasks).await, server, tasks)
}

async fn connected(io: DuplexStream, settings: &Settings, tasks: &Tasks) -> Connection {
    connect(io, Vec::new(), settings, &tasks.spawner()).await.unwrap()
}

/// One open stream, both ends.
async fn stream(connection: &Connection, server: &mut Server) -> (TunnelStream, TunnelStream) {
    let (near, far) = tokio::join!(connection.open(to("10.0.0.9:80")), server.accept());
    (near.unwrap().0, far)
}

/// Lets everything that can happen without the clock happen.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn is_send(_: impl Send) {}

#[test]
fn futures_may_move_between_threads() {
    let io = || duplex(1).0;
    let settings = Settings::default();
    is_send(server::serve(io(), &settings, |_| (), pending(), pending()));
    is_send(connect(io(), Vec::new(), &settings, &Tasks::default().spawner()));
}

#[tokio::test(start_paused = true)]
async fn a_connect_carries_authority_and_headers_and_its_answer_carries_baggage() {
    let (connection, mut server, _) = pair().await;
    let mut connect = to("[fd00::9]:80");
    connect.headers.insert(headers::BAGGAGE, "k8s.namespace.name=a".parse().unwrap());
    let serve = async {
        let incoming = server.asked.recv().await.unwrap();
        assert_eq!(incoming.method, http::Method::CONNECT);
        assert_eq!(incoming.authority, Ok(Target::Ip("[fd00::9]:80".parse().unwrap())));
        assert_eq!(headers::Baggage::read(&incoming.headers).namespace, "a");
        incoming.accept(Some("k8s.namespace.name=b".parse().unwrap())).unwrap()
    };
    let (opened, _far) = tokio::join!(connection.open(connect), serve);
    let (_near, answer) = opened.unwrap();
    assert_eq!(headers::Baggage::read(&answer).namespace, "b");
}

#[tokio::test(start_paused = true)]
async fn every_refusal_arrives_as_its_status_and_the_connection_lives_on() {
    let (connection, mut server, _) = pair().await;
    for status in [StatusCode::BAD_REQUEST, StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE] {
        let refuse = async { server.asked.recv().await.unwrap().refuse(status).unwrap() };
        let (opened, ()) = tokio::join!(connection.open(to("web.shop:80")), refuse);
        let error = opened.unwrap_err();
        assert!(matches!(error, super::OpenError::Status(seen) if seen == status), "{error}");
    }
    stream(&connection, &mut server).await;
    assert_eq!(connection.active(), 0);
}
