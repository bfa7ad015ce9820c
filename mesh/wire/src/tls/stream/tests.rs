//! Our records against our own, rustls' and OpenSSL's; and against somebody in the middle.

use std::{
    fs,
    future::poll_fn,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use ambit_fixtures::ca::{Life, TestCa};
use ambit_model::identity::Identity;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{record::Content, *};
use crate::tls::{rejected::Rejected, unnamed};

fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "ns", name)
}

fn server_config(ca: &TestCa) -> Arc<ServerConfig> {
    let mut config = (*ca.certificate(&identity("b")).server_config()).clone();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

fn client_config(ca: &TestCa) -> Arc<ClientConfig> {
    let expected: Arc<[Identity]> = [identity("b")].into();
    let mut config = (*ca.certificate(&identity("a")).client_config(expected)).clone();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// A connection, both of whose ends are ours.
async fn pair() -> (TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let ca = TestCa::new();
    let (near, far) = duplex(64 * 1024);
    let (near, far) =
        tokio::join!(connect(client_config(&ca), unnamed(), near), accept(server_config(&ca), far));
    (near.unwrap(), far.unwrap())
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect()
}

/// Both say a lot at once, in pieces of odd sizes, and close.
async fn talk(near: impl AsyncRead + AsyncWrite, far: impl AsyncRead + AsyncWrite) {
    async fn say(into: &mut (impl AsyncWrite + Unpin), said: &[u8]) {
        let mut rest = said;
        for size in [1usize, 7, 100, 16_383, 16_384, 16_385, 70_000, 300_000].into_iter().cycle() {
            let (piece, after) = rest.split_at(size.min(rest.len()));
            into.write_all(piece).await.unwrap();
            into.flush().await.unwrap();
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        into.shutdown().await.unwrap();
    }
    let said = pattern(5_000_000);
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let (mut near_heard, mut far_heard) = (Vec::new(), Vec::new());
    let all = async {
        tokio::join!(
            say(&mut near_write, &said),
            say(&mut far_write, &said),
            near_read.read_to_end(&mut near_heard),
            far_read.read_to_end(&mut far_heard),
        )
    };
    let (.., near_end, far_end) = timeout(Duration::from_secs(60), all).await.unwrap();
    assert_eq!((near_end.unwrap(), far_end.unwrap()), (said.len(), said.len()));
    assert!(near_heard == said && far_heard == said);
}

#[tokio::test]
async fn our_two_ends_understand_each_other() {
    let (near, far) = pair().await;
    for (stream, peer) in [(&near, "b"), (&far, "a")] {
        let session = stream.session();
        assert_eq!(session.protocol.as_deref(), Some(&b"h2"[..]));
        assert_eq!(crate::tls::verify::peer_identity(&session.peer), Some(identity(peer)));
    }
    talk(near, far).await;
}

#[tokio::test]
async fn rustls_as_server_understands_us() {
    let ca = TestCa::new();
    let (near, far) = duplex(64 * 1024);
    let accept = TlsAcceptor::from(server_config(&ca)).accept(far);
    let (near, far) = tokio::join!(connect(client_config(&ca), unnamed(), near), accept);
    talk(near.unwrap(), far.unwrap()).await;
}

#[tokio::test]
async fn rustls_as_client_understands_us() {
    let ca = TestCa::new();
    let (near, far) = duplex(64 * 1024);
    let connect = TlsConnector::from(client_config(&ca)).connect(unnamed(), near);
    let (near, far) = tokio::join!(connect, accept(server_config(&ca), far));
    talk(near.unwrap(), far.unwrap()).await;
}

#[tokio::test]
async fn keys_change_whoever_wants_it() {
    let ca = TestCa::new();
    let (near, far) = duplex(64 * 1024);
    let accept = TlsAcceptor::from(server_config(&ca)).accept(far);
    let (near, far) = tokio::join!(connect(client_config(&ca), unnamed(), near), accept);
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let mut heard = [0; 6];
    for _ in 0..3 {
        // rustls changes its key and demands that we change ours, too.
        far.get_mut().1.refresh_traffic_keys().unwrap();
        far.write_all(b"change").await.unwrap();
        far.flush().await.unwrap();
        near.read_exact(&mut heard).await.unwrap();
        near.write_all(b"answer").await.unwrap();
        near.flush().await.unwrap();
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"answer");
    }
    talk(near, far).await;
}

#[tokio::test]
async fn a_worn_key_is_replaced_on_the_way() {
    let ca = TestCa::new();
    let (near, far) = duplex(64 * 1024);
    let accept = TlsAcceptor::from(server_config(&ca)).accept(far);
    let (near, far) = tokio::join!(connect(client_config(&ca), unnamed(), near), accept);
    let (near, far) = (near.unwrap(), far.unwrap());
    near.shared.lock().outgoing.wear(10);
    talk(near, far).await;
}

#[tokio::test]
async fn a_connection_at_rest_holds_no_buffer() {
    let (mut near, mut far) = pair().await;
    near.write_all(&pattern(300_000)[..100_000]).await.unwrap();
    let mut heard = vec![0; 100_000];
    let (flushed, read) = tokio::join!(near.flush(), far.read_exact(&mut heard));
    flushed.unwrap();
    read.unwrap();
    // Nothing more has come, as the next read finds.
    assert!(futures_util::poll!(Box::pin(far.read(&mut heard))).is_pending());
    assert_eq!(near.shared.lock().outgoing.held(), 0);
    assert_eq!(far.shared.lock().incoming.held(), 0);
}

/// Counts writes.
struct Counting(DuplexStream, Arc<AtomicUsize>);

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_corked_stream_writes_once_a_turn_and_in_one_record() {
    let ca = TestCa::new();
    let (near, far) = duplex(1024 * 1024);
    let writes = Arc::new(AtomicUsize::new(0));
    let near = Counting(near, writes.clone());
    let (near, far) =
        tokio::join!(connect(client_config(&ca), unnamed(), near), accept(server_config(&ca), far));
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let corked = near.cork();
    corked.engage();
    let before = writes.load(Ordering::Relaxed);
    for _ in 0..50 {
        near.write_all(b"1234567890").await.unwrap();
        near.flush().await.unwrap();
    }
    assert_eq!(writes.load(Ordering::Relaxed), before);
    poll_fn(|cx| corked.poll_flush(cx)).await.unwrap();
    assert_eq!(writes.load(Ordering::Relaxed), before + 1);
    let mut heard = vec![0; 1000];
    assert_eq!(far.read(&mut heard).await.unwrap(), 500);
    // More than a buffer does not wait for the end of the turn.
    let (written, read) = tokio::join!(near.write_all(&[1; 300_000]), far.read_exact(&mut heard));
    written.unwrap();
    read.unwrap();
}

#[tokio::test]
async fn goodbye_is_an_end_and_silence_is_none() {
    let (mut near, mut far) = pair().await;
    near.write_all(b"bye").await.unwrap();
    near.shutdown().await.unwrap();
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"bye");
    assert_eq!(near.write_all(b"?").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    // The other direction lives on.
    far.write_all(b"later").await.unwrap();
    far.flush().await.unwrap();
    let mut heard = [0; 5];
    near.read_exact(&mut heard).await.unwrap();
    drop(far);
    assert_eq!(near.read(&mut heard).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn what_does_not_belong_after_a_handshake_ends_the_connection() {
    let key_update = [24, 0, 0, 1, 0];
    let floods = key_update.repeat(2);
    for (content, message) in [
        (Content::Handshake, &b"\x01\0\0\0"[..]),
        // Two in one record: the second is under the wrong key.
        (Content::Handshake, &floods[..]),
        (Content::Handshake, b"\x18\0\0\x01\x02"),
        (Content::Handshake, b"\x18\0\0\0"),
        (Content::Handshake, b""),
        // A ticket, to a server.
        (Content::Handshake, b"\x04\0\0\x01x"),
        (Content::Alert, b""),
        (Content::Alert, b"\x01"),
        (Content::Alert, b"\x02\x28"),
    ] {
        let (near, mut far) = pair().await;
        {
            let state = &mut *near.shared.lock();
            state.outgoing.message(content, message).unwrap();
        }
        let mut near = near;
        near.flush().await.unwrap();
        let error = far.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{content:?} {message:?}: {error}");
        // It stays so, and we are told why, unless it was we who gave up.
        far.read(&mut [0; 10]).await.unwrap_err();
        far.write_all(b"?").await.unwrap_err();
        if message != b"\x02\x28" {
            let mut heard = [0; 10];
            let told = timeout(Duration::from_secs(5), near.read(&mut heard)).await.unwrap();
            assert!(told.unwrap_err().to_string().contains("alert"));
        }
    }
}

#[tokio::test]
async fn a_message_in_parts_is_one_message_and_data_between_the_parts_is_not_allowed() {
    let (mut near, mut far) = pair().await;
    near.shared.lock().outgoing.message(Content::Handshake, &[24, 0]).unwrap();
    near.shared.lock().outgoing.message(Content::Handshake, &[0, 1, 0]).unwrap();
    {
        let State { outgoing, keys, .. } = &mut *near.shared.lock();
        outgoing.replace_key(keys.as_mut());
    }
    near.write_all(b"under a new key").await.unwrap();
    near.flush().await.unwrap();
    let mut heard = [0; 15];
    far.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"under a new key");

    near.shared.lock().outgoing.message(Content::Handshake, &[24, 0]).unwrap();
    near.write_all(b"data").await.unwrap();
    near.flush().await.unwrap();
    assert_eq!(far.read(&mut heard).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn key_updates_without_end_end_the_connection() {
    let (mut near, mut far) = pair().await;
    let flood = async {
        for _ in 0..100 {
            {
                let State { outgoing, keys, .. } = &mut *near.shared.lock();
                outgoing.message(Content::Handshake, &[24, 0, 0, 1, 1]).unwrap();
                outgoing.replace_key(keys.as_mut());
            }
            if near.flush().await.is_err() {
                break;
            }
        }
    };
    let mut heard = [0; 1];
    let ((), read) = tokio::join!(flood, far.read(&mut heard));
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn both_sides_of_a_refused_handshake_learn_why() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let (near, far) = duplex(64 * 1024);
    let (near, far) =
        tokio::join!(connect(client_config(&ours), unnamed(), near), accept(server_config(&theirs), far));
    // The client looks first.
    let near = near.unwrap_err();
    assert!(Rejected::from_io(&near).is_some(), "{near:?}");
    let far = far.unwrap_err().to_string();
    assert!(far.contains("lert"), "{far}");
}

#[tokio::test]
async fn a_handshake_that_is_none_fails() {
    let ca = TestCa::new();
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\0\x05hello", b""] {
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(noise).await.unwrap();
        near.shutdown().await.unwrap();
        timeout(Duration::from_secs(5), accept(server_config(&ca), far)).await.unwrap().unwrap_err();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Somebody in the middle changes, drops or repeats bytes at any place after the handshake.
    #[test]
    fn nothing_that_was_altered_on_the_way_is_read(at in 0usize..60_000, how in 0u8..3, bit in 0u32..8) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ca = TestCa::new();
            let (near, middle_near) = duplex(1 << 20);
            let (middle_far, far) = duplex(1 << 20);
            let (mut from_near, mut to_near) = tokio::io::split(middle_near);
            let (mut from_far, mut to_far) = tokio::io::split(middle_far);
            let said = pattern(60_000);
            let ends = async {
                let (near, far) =
                    tokio::join!(connect(client_config(&ca), unnamed(), near), accept(server_config(&ca), far));
                (near.unwrap(), far.unwrap())
            };
            let carry = async {
                tokio::join!(
                    tokio::io::copy(&mut from_near, &mut to_far),
                    tokio::io::copy(&mut from_far, &mut to_near)
                )
            };
            let (mut near, mut far) = tokio::select! {
                ends = ends => ends,
                _ = carry => unreachable!(),
            };
            near.write_all(&said).await.unwrap();
            near.shutdown().await.unwrap();
            let mut sealed = Vec::new();
            from_near.read_to_end(&mut sealed).await.unwrap();
            match how {
                0 => sealed[at] ^= 1 << bit,
                1 => drop(sealed.remove(at)),
                _ => sealed.insert(at, sealed[at]),
            }
            to_far.write_all(&sealed).await.unwrap();
            to_far.shutdown().await.unwrap();
            let mut heard = Vec::new();
            let end = far.read_to_end(&mut heard).await;
            // Repeating a byte that equals its neighbour may only move the damage further along.
            assert!(end.is_err() && said.starts_with(&heard));
        });
    }
}

/// A directory with a certificate of `name`, its key and the root, as OpenSSL wants them.
fn files(ca: &TestCa, name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (chain, key) = ca.issue(&identity(name), Life::Hour);
    fs::write(directory.path().join("chain.pem"), chain[..chain.len() - 1].concat()).unwrap();
    fs::write(directory.path().join("key.pem"), key.to_pem().unwrap()).unwrap();
    fs::write(directory.path().join("root.pem"), ca.root_pem()).unwrap();
    directory
}

/// Ends the process when dropped.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a key update without data.
async fn key_update(stream: &mut TlsStream<TcpStream>) {
    poll_fn(|cx| {
        let mut heard = [0; 1];
        assert!(Pin::new(&mut *stream).poll_read(cx, &mut ReadBuf::new(&mut heard)).is_pending());
        if stream.shared.lock().incoming.key_updates() == 1 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[tokio::test]
async fn openssl_as_client_understands_us_and_changes_keys() {
    let ca = TestCa::new();
    let files = files(&ca, "a");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = Running(
        Command::new("openssl")
            .args(["s_client", "-tls1_3", "-alpn", "h2", "-cert", "chain.pem", "-key", "key.pem"])
            .args(["-CAfile", "root.pem", "-connect", &listener.local_addr().unwrap().to_string()])
            .current_dir(files.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let (tcp, _) = listener.accept().await.unwrap();
    let mut stream = accept(server_config(&ca), tcp).await.unwrap();
    let mut heard = [0; 6];
    let mut input = client.0.stdin.take().unwrap();
    use std::io::Write as _;
    for _ in 0..3 {
        input.write_all(b"hello\n").unwrap();
        timeout(Duration::from_secs(20), stream.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(&heard, b"hello\n");
        // A new key of theirs, and one of ours, please.
        input.write_all(b"K\n").unwrap();
        timeout(Duration::from_secs(20), key_update(&mut stream)).await.unwrap();
        stream.write_all(b"there\n").await.unwrap();
        stream.flush().await.unwrap();
    }
    input.write_all(b"Q\n").unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn openssl_as_server_understands_us_and_gives_tickets() {
    let ca = TestCa::new();
    let files = files(&ca, "b");
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        free.local_addr().unwrap()
    };
    let _server = Running(
        Command::new("openssl")
            .args(["s_server", "-tls1_3", "-alpn", "h2", "-cert", "chain.pem", "-key", "key.pem", "-rev"])
            .args(["-CAfile", "root.pem", "-Verify", "2", "-accept", &port.to_string()])
            .current_dir(files.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let reach = async {
        loop {
            match TcpStream::connect(port).await {
                Ok(tcp) => return tcp,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let tcp = timeout(Duration::from_secs(20), reach).await.unwrap();
    let mut stream = connect(client_config(&ca), unnamed(), tcp).await.unwrap();
    for _ in 0..3 {
        stream.write_all(b"abcdef\n").await.unwrap();
        stream.flush().await.unwrap();
        let mut heard = [0; 7];
        timeout(Duration::from_secs(20), stream.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(&heard, b"fedcba\n");
    }
}
