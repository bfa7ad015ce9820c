//! Real sockets on loopback; a tunnel is two of ours over an in-memory socket.

use std::{future::pending, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use super::*;
use crate::{
    hbone::{self, Connect, Connection, Settings, headers},
    spawn::Spawner,
};

#[expect(clippy::disallowed_methods, reason = "a test is its own supervisor")]
fn task(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (one.unwrap(), other.unwrap().0)
}

struct Tunnels {
    connection: Connection,
    accepted: mpsc::UnboundedReceiver<TunnelStream>,
}

impl Tunnels {
    async fn new() -> Self {
        let (near, far) = duplex(1024 * 1024);
        let (give, accepted) = mpsc::unbounded_channel();
        task(async move {
            let take = |incoming: hbone::Incoming| drop(give.send(incoming.accept(None).unwrap()));
            let _ = hbone::serve(far, &Settings::default(), take, pending(), pending()).await;
        });
        let spawner = Spawner::new(|_, future| task(future));
        let connection = hbone::connect(near, Vec::new(), &Settings::default(), &spawner).await.unwrap();
        Self { connection, accepted }
    }

    async fn stream(&mut self) -> (TunnelStream, TunnelStream) {
        let authority = headers::parse_authority("10.0.0.9:80").unwrap();
        let (near, _) = self.connection.open(Connect { authority, headers: HeaderMap::new() }).await.unwrap();
        (near, self.accepted.recv().await.unwrap())
    }
}

/// client ── socket ── copy ── tunnel ── copy ── socket ── server, or the same through one plain copy.
struct Path {
    client: TcpStream,
    server: TcpStream,
    ends: mpsc::UnboundedReceiver<(End, u64, u64)>,
}

impl Path {
    async fn tunnel() -> Self {
        let mut tunnels = Tunnels::new().await;
        let (near, far) = tunnels.stream().await;
        let (client, app) = sockets().await;
        let (back, server) = sockets().await;
        let (tell, ends) = mpsc::unbounded_channel();
        let other = tell.clone();
        task(async move {
            let _keep = tunnels;
            let meter = Arc::<Meter>::default();
            let end = both_ways(app, near, meter.clone()).await;
            let _ = tell.send((end, meter.from_app(), meter.to_app()));
        });
        task(async move {
            let meter = Arc::<Meter>::default();
            let end = both_ways(back, far, meter.clone()).await;
            let _ = other.send((end, meter.to_app(), meter.from_app()));
        });
        Self { client, server, ends }
    }

    async fn plain() -> Self {
        let (client, app) = sockets().await;
        let (far, server) = sockets().await;
        let (tell, ends) = mpsc::unbounded_channel();
        task(async move {
            let meter = Arc::<Meter>::default();
            let end = both_ways(app, far, meter.clone()).await;
            let _ = tell.send((end, meter.from_app(), meter.to_app()));
        });
        Self { client, server, ends }
    }

    async fn end(&mut self) -> (End, u64, u64) {
        timeout(Duration::from_secs(20), self.ends.recv()).await.unwrap().unwrap()
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

async fn exchange(mut path: Path, up: usize, down: usize) {
    let (sent_up, sent_down) = (pattern(up, 1), pattern(down, 2));
    let (mut client_read, mut client_write) = path.client.into_split();
    let (mut server_read, mut server_write) = path.server.into_split();
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let writes = async {
        client_write.write_all(&sent_up).await.unwrap();
        client_write.shutdown().await.unwrap();
    };
    let answers = async {
        server_write.write_all(&sent_down).await.unwrap();
        server_write.shutdown().await.unwrap();
    };
    let all = async {
        tokio::join!(
            writes,
            answers,
            server_read.read_to_end(&mut got_up),
            client_read.read_to_end(&mut got_down)
        )
    };
    let (.., up_read, down_read) = timeout(Duration::from_secs(60), all).await.unwrap();
    assert_eq!((up_read.unwrap(), down_read.unwrap()), (up, down));
    assert!(got_up == sent_up && got_down == sent_down);
    let (end, from_app, to_app) = timeout(Duration::from_secs(20), path.ends.recv()).await.unwrap().unwrap();
    assert!(matches!(end, End::Complete), "{end:?}");
    assert_eq!((from_app, to_app), (u64::try_from(up).unwrap(), u64::try_from(down).unwrap()));
}

#[tokio::test]
async fn sixty_four_mebibytes_cross_a_tunnel_both_ways_unchanged_and_counted() {
    exchange(Path::tunnel().await, 64 << 20, 64 << 20).await;
}

#[tokio::test]
async fn sixty_four_mebibytes_cross_two_sockets_both_ways_unchanged_and_counted() {
    exchange(Path::plain().await, 64 << 20, 64 << 20).await;
}

#[tokio::test]
async fn odd_lengths_cross_unchanged() {
    for (up, down) in [(0, 0), (1, 0), (0, 1), (1, 70_000), (131_073, 1), (16_383, 2049), (2048, 300_001)] {
        exchange(Path::tunnel().await, up, down).await;
        exchange(Path::plain().await, up, down).await;
    }
}

/// Small socket buffers and a reader that dawdles: most writes are partial.
async fn through_a_narrow_door(path: Path) {
    for socket in [&path.client, &path.server] {
        SockRef::from(socket).set_recv_buffer_size(64 * 1024).unwrap();
        SockRef::from(socket).set_send_buffer_size(64 * 1024).unwrap();
    }
    let (mut client, mut server, mut ends) = (path.client, path.server, path.ends);
    let sent = pattern(3 << 20, 5);
    let write = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let read = async {
        let mut got = Vec::new();
        let mut piece = [0; 3001];
        loop {
            tokio::task::yield_now().await;
            match server.read(&mut piece).await.unwrap() {
                0 => return got,
                read => got.extend_from_slice(&piece[..read]),
            }
        }
    };
    let ((), got) = timeout(Duration::from_secs(60), async { tokio::join!(write, read) }).await.unwrap();
    assert!(got == sent);
    drop((client, server));
    ends.recv().await.unwrap();
}

#[tokio::test]
async fn edge_2_what_a_socket_does_not_take_at_once_is_kept_for_later_in_a_tunnel() {
    through_a_narrow_door(Path::tunnel().await).await;
}

#[tokio::test]
async fn edge_2_what_a_socket_does_not_take_at_once_is_kept_for_later_between_sockets() {
    through_a_narrow_door(Path::plain().await).await;
}

async fn half_closes(mut path: Path) {
    path.client.write_all(b"question").await.unwrap();
    path.client.shutdown().await.unwrap();
    let mut question = String::new();
    path.server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    path.server.write_all(b"answer after the end").await.unwrap();
    path.server.shutdown().await.unwrap();
    let mut answer = String::new();
    path.client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer after the end");
    let (end, from_app, to_app) = path.end().await;
    assert!(matches!(end, End::Complete), "{end:?}");
    assert_eq!((from_app, to_app), (8, 20));
}

#[tokio::test]
async fn edge_1_half_closes_cross_a_tunnel() {
    half_closes(Path::tunnel().await).await;
    let mut path = Path::tunnel().await;
    std::mem::swap(&mut path.client, &mut path.server);
    path.server.write_all(b"x").await.unwrap();
    path.server.shutdown().await.unwrap();
    let mut got = String::new();
    path.client.read_to_string(&mut got).await.unwrap();
    path.client.write_all(b"y").await.unwrap();
    path.client.shutdown().await.unwrap();
    path.server.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "xy");
}

#[tokio::test]
async fn edge_1_half_closes_cross_two_sockets() {
    half_closes(Path::plain().await).await;
}

/// A client that leaves with RST: what it had said arrives, the server learns that it is gone, and nobody
/// calls it a failure.
async fn resets(mut path: Path) {
    path.client.write_all(b"last").await.unwrap();
    let mut got = [0; 4];
    path.server.read_exact(&mut got).await.unwrap();
    SockRef::from(&path.client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(path.client);
    let _ = timeout(Duration::from_secs(20), path.server.read(&mut got)).await.unwrap();
    // An answer to one who has left.
    let _ = path.server.write_all(&[0; 1000]).await;
    drop(path.server);
    while let Some((end, from_app, _)) = timeout(Duration::from_secs(20), path.ends.recv()).await.unwrap() {
        assert!(!matches!(end, End::Failed(..)), "{end:?}");
        assert_eq!(from_app, 4);
    }
}

#[tokio::test]
async fn edge_3_and_4_an_application_that_resets_is_no_failure_in_a_tunnel() {
    resets(Path::tunnel().await).await;
}

#[tokio::test]
async fn edge_3_and_4_an_application_that_resets_is_no_failure_between_sockets() {
    resets(Path::plain().await).await;
}

/// One who sends everything and closes at once: what the server answers meets a closed door, and still
/// nothing of what was sent may be lost.
#[tokio::test]
async fn one_who_sends_and_leaves_is_heard_to_the_end_through_a_tunnel() {
    let Path { mut client, mut server, mut ends } = Path::tunnel().await;
    let sent = pattern(4 << 20, 9);
    client.write_all(&sent).await.unwrap();
    drop(client);
    let mut got = Vec::new();
    let mut piece = vec![0; 100_000];
    let hear = async {
        loop {
            let _ = server.write_all(b"ack").await;
            match server.read(&mut piece).await {
                Ok(read) if read > 0 => got.extend_from_slice(&piece[..read]),
                _ => break,
            }
        }
    };
    timeout(Duration::from_secs(30), hear).await.unwrap();
    assert!(got == sent, "{} of {}", got.len(), sent.len());
    drop(server);
    let (end, ..) = ends.recv().await.unwrap();
    assert!(!matches!(end, End::Failed(..)), "{end:?}");
}

#[tokio::test]
async fn a_tunnel_that_fails_is_a_failure_of_the_far_side() {
    let mut tunnels = Tunnels::new().await;
    let (near, mut far) = tunnels.stream().await;
    let (_client, app) = sockets().await;
    let meter = Arc::<Meter>::default();
    let copy = both_ways(app, near, meter.clone());
    far.reset(h2::Reason::INTERNAL_ERROR);
    let end = timeout(Duration::from_secs(20), copy).await.unwrap();
    assert!(matches!(end, End::Failed(Side::Far, _)), "{end:?}");
}

#[tokio::test]
async fn a_peer_that_said_all_and_then_leaves_is_noticed() {
    let mut tunnels = Tunnels::new().await;
    let (near, mut far) = tunnels.stream().await;
    let (mut client, app) = sockets().await;
    let meter = Arc::<Meter>::default();
    let copy = both_ways(app, near, meter.clone());
    let leave = async {
        far.finish().unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        drop(far);
    };
    let (end, ()) = timeout(Duration::from_secs(20), async { tokio::join!(copy, leave) }).await.unwrap();
    assert!(matches!(end, End::Left(Side::Far)), "{end:?}");
}

#[tokio::test]
async fn bytes_are_counted_while_they_flow() {
    let mut tunnels = Tunnels::new().await;
    let (near, mut far) = tunnels.stream().await;
    let (mut client, app) = sockets().await;
    let meter = Arc::<Meter>::default();
    let copy = both_ways(app, near, meter.clone());
    let talk = async {
        client.write_all(b"12345").await.unwrap();
        assert_eq!(far.data().await.unwrap().unwrap(), "12345");
        assert_eq!(meter.from_app(), 5);
        far.send(Bytes::from_static(b"123")).unwrap();
        client.read_exact(&mut [0; 3]).await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(meter.to_app(), 3);
    };
    tokio::select! {
        end = copy => panic!("{end:?}"),
        () = talk => {}
    }
}

/// One bulk stream and one that asks small questions, on one thread: the questions are answered.
#[tokio::test]
async fn a_bulk_stream_leaves_others_their_turn() {
    let bulk = Path::plain().await;
    let mut talk = Path::plain().await;
    let (mut source, mut sink) = (bulk.client, bulk.server);
    task(async move {
        let piece = vec![0; 1 << 20];
        while source.write_all(&piece).await.is_ok() {}
    });
    task(async move { while sink.read(&mut vec![0; 1 << 20]).await.is_ok_and(|read| read > 0) {} });
    let mut byte = [7];
    for _ in 0..200 {
        let ask = async {
            talk.client.write_all(&byte).await.unwrap();
            talk.server.read_exact(&mut byte).await.unwrap();
        };
        timeout(Duration::from_secs(5), ask).await.unwrap();
    }
}

/// What a connection at rest costs in its future; beside it there is only what the kernel and h2 keep.
#[test]
fn the_futures_stay_small() {
    assert!(size_of::<TunnelCopy>() <= 224, "{}", size_of::<TunnelCopy>());
    assert!(size_of::<PlainCopy>() <= 224, "{}", size_of::<PlainCopy>());
}
