//! Serves pages over HTTP/1.1, on TCP addresses and Unix sockets, within bounds.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{Pages, Response};
use crate::backoff::Backoff;
use crate::drain::{self, Mode, Watch};
use crate::task;

/// Connections served at once, all listeners of a server together: a scraper, a prober, some people.
const MOST_CONNECTIONS: usize = 64;

/// A client must send a request's head within this; an idle connection is closed after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Pages take a few words as input, not files.
const BODY_LIMIT: usize = 64 * 1024;

/// The head of a request, and the buffer of a connection.
const HEAD_LIMIT: usize = 16 * 1024;

/// Header lines of a request.
const HEADER_LIMIT: usize = 64;

/// No connection outlives this, whatever its client does: a reader that stops reading holds a place.
const LIFETIME: Duration = Duration::from_secs(600);

/// What open requests may take when the server ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Listeners that were bound, not served yet.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
}

impl Server {
    /// Binds all addresses, or none. A Unix socket that a dead process left behind is replaced; ours is for our user only.
    pub async fn bind(addresses: &[Address]) -> Result<Self, BindError> {
        let mut listeners = Vec::with_capacity(addresses.len());
        for address in addresses {
            let failed = |source| BindError { address: address.clone(), source };
            listeners.push(match address {
                Address::Tcp(socket) => Listener::Tcp(TcpListener::bind(*socket).await.map_err(failed)?),
                Address::Unix(path) => {
                    let (listener, file) = bind_unix(path).map_err(failed)?;
                    Listener::Unix(listener, file)
                }
            });
        }
        Ok(Self { listeners })
    }

    /// The TCP addresses that are bound, with the real port where 0 was asked for.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        let tcp = |listener: &Listener| match listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        };
        self.listeners.iter().filter_map(tcp).collect()
    }

    /// Serves until `stop`, then lets open requests finish. Dropping the future ends all at once.
    pub async fn serve(self, pages: Pages, stop: impl Future<Output = ()>) {
        let (drain, watch) = drain::channel();
        let (pages, places) = (Arc::new(pages), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
        for listener in self.listeners {
            let door = Door { pages: pages.clone(), places: places.clone(), watch: watch.clone() };
            task::spawn("admin listener", door.accept(listener));
        }
        drop(watch);
        stop.await;
        drain.start(Mode::Graceful { deadline: LAST_ANSWERS }).await;
    }
}

/// Where a server listens: `127.0.0.1:15000`, `[::1]:15000`, or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Neither an IP address with a port nor `unix:/path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("accepted: IP:PORT, localhost:PORT or unix:/PATH")]
pub struct InvalidAddress;

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(InvalidAddress) } else { Ok(Self::Unix(path.into())) };
        }
        if let Some(port) = text.strip_prefix("localhost:") {
            let port = port.parse().map_err(|_| InvalidAddress)?;
            return Ok(Self::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
        }
        text.parse().map(Self::Tcp).map_err(|_| InvalidAddress)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; is another process there, or is the directory missing?")]
pub struct BindError {
    address: Address,
    source: io::Error,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, #[expect(dead_code, reason = "held for its drop")] SocketFile),
}

/// A Unix socket in the file system, removed with the listener if it is still ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may have put its own there.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let inode = std::fs::symlink_metadata(path)?.ino();
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

/// What an accept loop needs, and hands on to connections.
#[derive(Clone)]
struct Door {
    pages: Arc<Pages>,
    places: Arc<Semaphore>,
    watch: Watch,
}

impl Door {
    async fn accept(self, listener: Listener) {
        // Out of descriptors: soon there may be one again.
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let accepted = tokio::select! {
                accepted = self.accept_one(&listener) => accepted,
                _ = self.watch.signaled() => return,
            };
            match accepted {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    warn!(%error, "Admin connection could not be accepted");
                    tokio::select! {
                        () = sleep(backoff.next(0.0)) => {}
                        _ = self.watch.signaled() => return,
                    }
                }
            }
        }
    }

    async fn accept_one(&self, listener: &Listener) -> io::Result<()> {
        // First a place, then a connection: those over the limit wait in the kernel's queue.
        let Ok(place) = self.places.clone().acquire_owned().await else { return Ok(()) };
        match listener {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                task::spawn("admin connection", self.clone().serve(stream, place));
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                task::spawn("admin connection", self.clone().serve(stream, place));
            }
        }
        Ok(())
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin, _place: OwnedSemaphorePermit) {
        let service = service_fn(|request| answer(&self.pages, request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_LIMIT)
            .max_headers(HEADER_LIMIT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = sleep(LIFETIME) => return,
            _ = self.watch.signaled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = self.watch.forced() => return,
                }
            }
        };
        if let Err(error) = ended {
            debug!(%error, "Admin connection ended early");
        }
    }
}

async fn answer(
    pages: &Pages,
    request: http::Request<Incoming>,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let response = match timeout(BODY_TIMEOUT, whole(body)).await {
        Ok(Some(body)) => pages.answer(http::Request::from_parts(head, body).into()).await,
        Ok(None) => Response::text(format!("the body is broken, or longer than {BODY_LIMIT} bytes\n"))
            .with_status(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Response::text("the body did not come in time\n").with_status(StatusCode::REQUEST_TIMEOUT),
    };
    Ok(response.into_http())
}

async fn whole(body: Incoming) -> Option<Bytes> {
    // A length that is announced need not be waited for.
    if body.size_hint().lower() > u64::try_from(BODY_LIMIT).ok()? {
        return None;
    }
    Some(Limited::new(body, BODY_LIMIT).collect().await.ok()?.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Method;
    use crate::task::{Ended, Task};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};
    use tokio::sync::{Notify, oneshot};

    const DEADLINE: Duration = Duration::from_secs(10);

    struct Running {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        task: Task,
    }

    async fn start(pages: Pages, more: &[Address]) -> Running {
        let mut addresses = vec!["127.0.0.1:0".parse().unwrap()];
        addresses.extend_from_slice(more);
        let server = Server::bind(&addresses).await.unwrap();
        let address = server.local_addresses()[0];
        let (stop, stopped) = oneshot::channel();
        let task = task::spawn(
            "server",
            server.serve(pages, async {
                let _ = stopped.await;
            }),
        );
        Running { address, stop, task }
    }

    async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, sent: &str) -> String {
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut received)).await.unwrap().unwrap();
        String::from_utf8(received).unwrap()
    }

    fn hello() -> Pages {
        Pages::new("test").page(Method::GET, "/hello", "greets", |_| Response::text("hello\n"))
    }

    const GET: &str = "GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn pages_are_served_over_tcp_and_unix_sockets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let running = start(hello(), &[Address::Unix(path.clone())]).await;
        let over_tcp = exchange(TcpStream::connect(running.address).await.unwrap(), GET).await;
        let over_unix = exchange(UnixStream::connect(&path).await.unwrap(), GET).await;
        for answer in [over_tcp, over_unix] {
            assert!(
                answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhello\n"),
                "{answer}"
            );
            assert!(answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        running.stop.send(()).unwrap();
        assert_eq!(timeout(DEADLINE, running.task).await, Ok(Ended::Finished));
        assert!(!path.exists(), "the socket file goes with the server");
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let address = [Address::Unix(path.clone())];
        let _living = Server::bind(&address).await.unwrap();
        let error = Server::bind(&address).await.unwrap_err().to_string();
        assert!(error.contains("cannot listen on unix:"), "{error}");
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn an_open_request_is_answered_before_the_end() {
        let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let gate = (entered.clone(), leave.clone());
        let pages = Pages::new("test").slow_page(Method::GET, "/hello", "waits", move |_| {
            let (entered, leave) = gate.clone();
            async move {
                entered.notify_one();
                leave.notified().await;
                Response::text("late\n")
            }
        });
        let running = start(pages, &[]).await;
        let stream = TcpStream::connect(running.address).await.unwrap();
        let client = async {
            let kept_alive = "GET /hello HTTP/1.1\r\nhost: x\r\n\r\n";
            exchange(stream, kept_alive).await
        };
        let end = async {
            entered.notified().await;
            running.stop.send(()).unwrap();
            // The listener closes first; then the request may go on.
            while TcpStream::connect(running.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
            leave.notify_one();
        };
        let (answer, ended) = tokio::join!(client, timeout(DEADLINE, end));
        assert_eq!(ended, Ok(()));
        assert!(answer.ends_with("late\n"), "{answer}");
        assert_eq!(timeout(DEADLINE, running.task).await, Ok(Ended::Finished));
    }

    #[tokio::test]
    async fn rubbish_and_long_bodies_are_refused() {
        let running = start(hello(), &[]).await;
        let rubbish =
            exchange(TcpStream::connect(running.address).await.unwrap(), "\x16\x03\x01\r\n\r\n").await;
        assert!(rubbish.starts_with("HTTP/1.1 400"), "{rubbish}");
        let long = format!(
            "GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            BODY_LIMIT + 1
        );
        let long = exchange(TcpStream::connect(running.address).await.unwrap(), &long).await;
        assert!(long.starts_with("HTTP/1.1 413"), "{long}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_dawdles_is_cut() {
        let door_pages = Arc::new(hello());
        let places = Arc::new(Semaphore::new(1));
        let (_drain, watch) = drain::channel();
        let door = Door { pages: door_pages, places: places.clone(), watch };
        let (mut client, server) = tokio::io::duplex(1024);
        let place = places.clone().acquire_owned().await.unwrap();
        let task = task::spawn("connection", door.serve(server, place));
        client.write_all(b"GET /hello HTTP/1.1\r\nhost:").await.unwrap();
        let started = tokio::time::Instant::now();
        assert_eq!(task.await, Ended::Finished);
        assert_eq!(started.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
        assert_eq!(places.available_permits(), 1);
    }

    #[tokio::test]
    async fn no_more_than_the_limit_are_served_at_once() {
        let running = start(hello(), &[]).await;
        let mut held = Vec::new();
        for _ in 0..MOST_CONNECTIONS {
            let mut stream = TcpStream::connect(running.address).await.unwrap();
            stream.write_all(b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut first = [0_u8; 1];
            stream.read_exact(&mut first).await.unwrap();
            held.push(stream);
        }
        let mut waiting = TcpStream::connect(running.address).await.unwrap();
        waiting.write_all(GET.as_bytes()).await.unwrap();
        let mut first = [0_u8; 1];
        let early = timeout(Duration::from_millis(100), waiting.read_exact(&mut first)).await;
        assert!(early.is_err(), "one more than the limit was served");
        held.pop();
        assert_eq!(timeout(DEADLINE, waiting.read_exact(&mut first)).await.unwrap().unwrap(), 1);
    }

    #[test]
    fn addresses_are_parsed_and_printed() {
        for text in ["127.0.0.1:15000", "[::1]:15000", "unix:/run/x.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("localhost:1".parse::<Address>().unwrap().to_string(), "127.0.0.1:1");
        for text in ["", "unix:", "15000", "host:1", "localhost:", "1.2.3.4"] {
            assert_eq!(text.parse::<Address>(), Err(InvalidAddress), "{text}");
        }
    }
}
