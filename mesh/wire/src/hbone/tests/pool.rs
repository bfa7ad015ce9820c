//! Sharing connections.

use std::{sync::Mutex, time::Duration};

use futures_util::future::join_all;
use tokio::{sync::Semaphore, time::advance};

use super::*;
use crate::hbone::{
    Key, Pool,
    pool::{PoolError, Spread},
};

/// A peer that can be dialled: each dial makes a server that accepts everything.
#[derive(Clone)]
struct Peer {
    settings: Settings,
    tasks: Tasks,
    dials: Arc<AtomicUsize>,
    /// Held back until given a permit.
    gate: Arc<Semaphore>,
    served: Arc<Mutex<Vec<Served>>>,
    broken: bool,
}

/// One server's end.
struct Served {
    drain: Option<oneshot::Sender<()>>,
    accepted: mpsc::UnboundedReceiver<TunnelStream>,
}

#[derive(Debug, thiserror::Error)]
#[error("nobody there")]
struct Nobody;

impl Peer {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            tasks: Tasks::default(),
            dials: Arc::default(),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            served: Arc::default(),
            broken: false,
        }
    }

    async fn dial(self) -> Result<Connection, Nobody> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        if self.broken {
            return Err(Nobody);
        }
        let (near, far) = duplex(SOCKET);
        let mut server = Server::on(far, self.settings.clone());
        let drain = server.drain.take();
        let (give, accepted) = mpsc::unbounded_channel();
        self.served.lock().unwrap().push(Served { drain, accepted });
        task(async move {
            while let Some(incoming) = server.asked.recv().await {
                let _ = give.send(incoming.accept(None).unwrap());
            }
        });
        Ok(connected(near, &self.settings, &self.tasks).await)
    }

    async fn open(&self, pool: &Pool<Nobody>, key: &Key) -> Result<TunnelStream, PoolError<Nobody>> {
        pool.open(key, to("10.0.0.9:80"), |_| self.clone().dial()).await.map(|(stream, _)| stream)
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }

    fn drain_oldest(&self) {
        self.served.lock().unwrap()[0].drain.take().unwrap().send(()).unwrap();
    }
}

fn key(to: &str) -> Key {
    let identity = |name: &str| ambit_model::identity::Identity::new("td", "ns", name);
    Key { source: identity("a"), expected: [identity("b")].into(), to: to.parse().unwrap(), from: None }
}

fn pool() -> Pool<Nobody> {
    Pool::new(Spread { streams: usize::MAX, connections: 1 })
}

#[tokio::test(start_paused = true)]
async fn edge_7_a_thousand_requests_at_once_make_as_few_connections_as_they_fit_in() {
    let peer = Peer::new(Settings::default());
    let pool = pool();
    let key = key("10.0.0.1:15008");
    let opened = join_all((0..1000).map(|_| peer.open(&pool, &key))).await;
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!((peer.dials(), pool.len()), (10, 10));
}

#[tokio::test(start_paused = true)]
async fn edge_7_requests_during_a_dial_wait_for_it_and_others_do_not() {
    let mut peer = Peer::new(Settings::default());
    peer.gate = Arc::new(Semaphore::new(0));
    let pool = pool();
    let (one, other) = (key("10.0.0.1:15008"), key("10.0.0.2:15008"));
    let slow = join_all((0..50).map(|_| peer.open(&pool, &one)));
    let quick = Peer::new(Settings::default());
    let release = async {
        quick.open(&pool, &other).await.unwrap();
        assert_eq!(peer.dials(), 1);
        peer.gate.add_permits(1);
    };
    let (opened, ()) = tokio::join!(slow, release);
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!(peer.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_dial_share_its_error_and_the_next_dials_anew() {
    let mut peer = Peer::new(Settings::default());
    peer.broken = true;
    peer.gate = Arc::new(Semaphore::new(0));
    let pool = pool();
    let key = key("10.0.0.1:15008");
    let release = async { peer.gate.add_permits(1) };
    let (opened, ()) = tokio::join!(join_all((0..20).map(|_| peer.open(&pool, &key))), release);
    assert!(opened.iter().all(|result| matches!(result, Err(PoolError::Dial(_)))));
    assert_eq!(peer.dials(), 1);
    peer.broken = false;
    peer.gate.add_permits(1);
    peer.open(&pool, &key).await.unwrap();
    assert_eq!(peer.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_in_its_dial_leaves_the_dialling_to_one_who_waits() {
    let mut peer = Peer::new(Settings::default());
    peer.gate = Arc::new(Semaphore::new(0));
    let pool = pool();
    let key = key("10.0.0.1:15008");
    let mut first = Box::pin(peer.open(&pool, &key));
    assert!(futures_util::poll!(&mut first).is_pending());
    let mut second = Box::pin(peer.open(&pool, &key));
    assert!(futures_util::poll!(&mut second).is_pending());
    assert_eq!(peer.dials(), 1);
    drop(first);
    peer.gate.add_permits(1);
    second.await.unwrap();
    assert_eq!(peer.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn edge_8_a_connection_that_said_goodbye_is_replaced_before_it_costs_a_request() {
    let peer = Peer::new(Settings::default());
    let pool = pool();
    let key = key("10.0.0.1:15008");
    let mut old = peer.open(&pool, &key).await.unwrap();
    peer.drain_oldest();
    // Not settled on purpose for the first: the GOAWAY may be on its way when the stream opens.
    let _racing = peer.open(&pool, &key).await.unwrap();
    settle().await;
    let _new = peer.open(&pool, &key).await.unwrap();
    assert_eq!((peer.dials(), pool.len()), (2, 1));
    old.send_when_ready("the old stream lives on".into()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn different_keys_share_nothing() {
    let peer = Peer::new(Settings::default());
    let pool = pool();
    let one = key("10.0.0.1:15008");
    let identity = ambit_model::identity::Identity::new("td", "ns", "c");
    let keys = [
        one.clone(),
        Key { source: identity.clone(), ..one.clone() },
        Key { expected: [identity].into(), ..one.clone() },
        Key { from: Some("10.0.0.7".parse().unwrap()), ..one.clone() },
        key("10.0.0.2:15008"),
    ];
    for key in &keys {
        peer.open(&pool, key).await.unwrap();
        peer.open(&pool, key).await.unwrap();
    }
    assert_eq!(peer.dials(), keys.len());
}

#[tokio::test(start_paused = true)]
async fn under_load_a_second_connection_takes_its_share() {
    let peer = Peer::new(Settings::default());
    let pool = Pool::new(Spread { streams: 4, connections: 2 });
    let key = key("10.0.0.1:15008");
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(peer.open(&pool, &key).await.unwrap());
    }
    settle().await;
    let mut shares: Vec<_> = peer.served.lock().unwrap().iter().map(|one| one.accepted.len()).collect();
    shares.sort_unstable();
    assert_eq!(shares, [10, 10]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_to_spread_the_load_costs_nobody_a_stream() {
    let mut peer = Peer::new(Settings::default());
    let pool = Pool::new(Spread { streams: 1, connections: 2 });
    let key = key("10.0.0.1:15008");
    let _first = peer.open(&pool, &key).await.unwrap();
    peer.broken = true;
    let _second = peer.open(&pool, &key).await.unwrap();
    assert_eq!((peer.dials(), pool.len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn after_a_rotation_new_streams_use_a_new_connection_and_old_ones_finish() {
    let peer = Peer::new(Settings::default());
    let pool = pool();
    let key = key("10.0.0.1:15008");
    let mut old = peer.open(&pool, &key).await.unwrap();
    pool.retire(|stale| stale == &key);
    let _new = peer.open(&pool, &key).await.unwrap();
    assert_eq!((peer.dials(), peer.tasks.alive()), (2, 2));
    old.send_when_ready("still".into()).await.unwrap();
    drop(old);
    settle().await;
    assert_eq!(peer.tasks.alive(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_peer_loses_its_streams_and_nobody_else_does() {
    let peer = Peer::new(Settings::default());
    let pool = pool();
    let (bad, good) = (key("10.0.0.1:15008"), key("10.0.0.2:15008"));
    let mut retired = peer.open(&pool, &bad).await.unwrap();
    pool.retire(|key| key == &bad);
    let mut cut = peer.open(&pool, &bad).await.unwrap();
    let mut kept = peer.open(&pool, &good).await.unwrap();
    pool.close_revoked(|key, certificates| certificates.is_empty() && key == &bad);
    assert!(!matches!(cut.data().await, Some(Ok(_))));
    assert!(!matches!(retired.data().await, Some(Ok(_))));
    settle().await;
    assert_eq!(peer.tasks.alive(), 1);
    kept.send_when_ready("here".into()).await.unwrap();
    assert_eq!(pool.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_adopted_connection_ends_when_it_is_revoked_and_with_the_pool() {
    let peer = Peer::new(Settings::default());
    let pool = pool();
    let (bad, good) = (key("10.0.0.1:15008"), key("10.0.0.2:15008"));
    // Many that have ended are forgotten.
    for _ in 0..300 {
        pool.adopt(good.clone(), &peer.clone().dial().await.unwrap());
    }
    settle().await;
    assert_eq!((pool.len(), peer.tasks.alive()), (0, 0));
    let (revoked, kept) = (peer.clone().dial().await.unwrap(), peer.clone().dial().await.unwrap());
    pool.adopt(bad.clone(), &revoked);
    pool.adopt(good, &kept);
    pool.close_revoked(|key, _| key == &bad);
    settle().await;
    assert_eq!(peer.tasks.alive(), 1);
    drop(pool);
    settle().await;
    assert_eq!(peer.tasks.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pool_ends_all_its_drivers() {
    let peer = Peer::new(Settings::default());
    let pool = pool();
    let mut one = peer.open(&pool, &key("10.0.0.1:15008")).await.unwrap();
    pool.retire(|_| true);
    let mut other = peer.open(&pool, &key("10.0.0.2:15008")).await.unwrap();
    drop(pool);
    assert!(!matches!(one.data().await, Some(Ok(_))));
    assert!(!matches!(other.data().await, Some(Ok(_))));
    settle().await;
    assert_eq!(peer.tasks.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn edge_6_idle_connections_leave_the_pool_and_the_next_request_dials() {
    let peer = Peer::new(Settings::default());
    let pool = pool();
    let key = key("10.0.0.1:15008");
    drop(peer.open(&pool, &key).await.unwrap());
    for _ in 0..40 {
        advance(Duration::from_secs(10)).await;
        settle().await;
    }
    assert_eq!((peer.tasks.alive(), pool.len()), (0, 0));
    let _next = peer.open(&pool, &key).await.unwrap();
    assert_eq!(peer.dials(), 2);
}
