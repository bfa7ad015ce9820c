//! One request to a daemon's pages: by TCP, by a local socket, from inside a network namespace, as the pages of a
//! node are on its own loopback, or from inside a pod of a cluster, by the API server.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ambit_lab::netns::{Netns, NetnsError};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Pages are made in milliseconds; a dump of everything may take some more.
const LIMIT: Duration = Duration::from_secs(10);
/// A dump of a hundred thousand workloads is smaller.
const LONGEST: usize = 512 * 1024 * 1024;

/// The reason of a broken stream comes right after its end.
const BESIDE: Duration = Duration::from_millis(500);

/// Where a daemon has its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `netns:NAME/IP:PORT`.
    Netns {
        /// As `ip netns` calls it.
        name: String,
        /// The address inside.
        address: SocketAddr,
    },
    /// `pod:NAMESPACE/NAME:PORT`: a port on the loopback of a pod, by the API server and the kubelet.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The port.
        port: u16,
        /// The cluster it is in.
        through: Through,
    },
}

/// The cluster through which a pod is reached, if one was named. It is no part of the address.
#[derive(Clone, Default)]
pub(crate) struct Through(Option<Box<Client>>);

impl Through {
    /// By the API server of this cluster.
    pub(crate) fn cluster(client: Client) -> Self {
        Self(Some(Box::new(client)))
    }
}

impl PartialEq for Through {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Through {}

impl fmt::Debug for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Through(cluster)" } else { "Through(nothing)" })
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The text.
    pub(crate) body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The namespace is not there, or may not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Nobody listens.
    #[error("cannot connect to {to}: {source}; does the daemon run?")]
    Refused {
        /// Where.
        to: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The API server or the kubelet does not let us through.
    #[error("cannot reach {to}: {why}; is the pod up, and may you create pods/portforward?")]
    Forward {
        /// Where.
        to: Endpoint,
        /// Why.
        why: String,
    },
    /// The daemon does not answer.
    #[error("{to} did not answer within {LIMIT:?}; is the daemon stopped or overloaded?")]
    Late {
        /// Where.
        to: Endpoint,
    },
    /// What answers speaks no HTTP.
    #[error("{to} broke off: {why}; is that the address of its admin pages?")]
    Broken {
        /// Where.
        to: Endpoint,
        /// Why.
        why: String,
    },
    /// The page says no.
    #[error("{to}{path} answered {status}: {said}")]
    Status {
        /// Where.
        to: Endpoint,
        /// The page.
        path: String,
        /// The status.
        status: StatusCode,
        /// What it says.
        said: String,
    },
}

/// A text that names no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address of pages; write HOST:PORT, unix:PATH, netns:NAME/IP:PORT or pod:NAMESPACE/NAME:PORT"
)]
pub(crate) struct NoEndpoint(String);

impl FromStr for Endpoint {
    type Err = NoEndpoint;

    fn from_str(text: &str) -> Result<Self, NoEndpoint> {
        let wrong = || NoEndpoint(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        if let Some(rest) = text.strip_prefix("netns:") {
            let (name, address) =
                rest.split_once('/').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
            let address = address.parse().map_err(|_| wrong())?;
            return Ok(Self::Netns { name: name.to_owned(), address });
        }
        if let Some(rest) = text.strip_prefix("pod:") {
            let (pod, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
            let (namespace, name) = pod
                .split_once('/')
                .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
                .ok_or_else(wrong)?;
            let port = port.parse().map_err(|_| wrong())?;
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            return Ok(Self::Pod { namespace, name, port, through: Through::default() });
        }
        let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        match port.map(u16::from_str) {
            Some(Ok(_)) => Ok(Self::Tcp(text.to_owned())),
            Some(Err(_)) | None => Err(wrong()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Netns { name, address } => write!(f, "netns:{name}/{address}"),
            Self::Pod { namespace, name, port, .. } => write!(f, "pod:{namespace}/{name}:{port}"),
        }
    }
}

impl Endpoint {
    /// The same host, so many ports above. A local socket has only itself.
    pub(crate) fn above(&self, by: u16) -> Self {
        match self {
            Self::Tcp(address) => match address.rsplit_once(':') {
                Some((host, port)) => {
                    let port = port.parse::<u16>().unwrap_or_default().saturating_add(by);
                    Self::Tcp(format!("{host}:{port}"))
                }
                None => self.clone(),
            },
            Self::Unix(path) => Self::Unix(path.clone()),
            Self::Netns { name, address } => {
                let port = address.port().saturating_add(by);
                Self::Netns { name: name.clone(), address: SocketAddr::new(address.ip(), port) }
            }
            Self::Pod { namespace, name, port, through } => Self::Pod {
                namespace: namespace.clone(),
                name: name.clone(),
                port: port.saturating_add(by),
                through: through.clone(),
            },
        }
    }

    /// The same, and if it is a pod, one of this cluster.
    pub(crate) fn within(self, client: &Client) -> Self {
        match self {
            Self::Pod { namespace, name, port, .. } => {
                Self::Pod { namespace, name, port, through: Through::cluster(client.clone()) }
            }
            Self::Tcp(_) | Self::Unix(_) | Self::Netns { .. } => self,
        }
    }

    /// The page at `path`, whatever its status.
    pub(crate) async fn ask(&self, method: Method, path: &str) -> Result<Answer, ConnectError> {
        let asked = async {
            match self {
                Self::Tcp(address) => self.exchange(TcpStream::connect(address).await, method, path).await,
                Self::Unix(socket) => self.exchange(UnixStream::connect(socket).await, method, path).await,
                Self::Netns { name, address } => {
                    let stream = Netns::named(name).connect(*address, LIMIT)?;
                    let stream = stream.and_then(|stream| {
                        stream.set_nonblocking(true)?;
                        TcpStream::from_std(stream)
                    });
                    self.exchange(stream, method, path).await
                }
                Self::Pod { namespace, name, port, through } => {
                    self.forward((namespace, name, *port), through, method, path).await
                }
            }
        };
        timeout(LIMIT, asked).await.unwrap_or_else(|_| Err(ConnectError::Late { to: self.clone() }))
    }

    /// The text of the page at `path`, which must be there.
    pub(crate) async fn get(&self, path: &str) -> Result<String, ConnectError> {
        let Answer { status, body } = self.ask(Method::GET, path).await?;
        if status.is_success() { Ok(body) } else { Err(self.refused(path, status, &body)) }
    }

    /// Has the page at `path` do what it does; gives what it says.
    pub(crate) async fn post(&self, path: &str) -> Result<String, ConnectError> {
        let Answer { status, body } = self.ask(Method::POST, path).await?;
        if status.is_success() { Ok(body) } else { Err(self.refused(path, status, &body)) }
    }

    fn refused(&self, path: &str, status: StatusCode, body: &str) -> ConnectError {
        let said = body.lines().next().unwrap_or_default().to_owned();
        ConnectError::Status { to: self.clone(), path: path.to_owned(), status, said }
    }

    async fn forward(
        &self,
        (namespace, name, port): (&str, &str, u16),
        through: &Through,
        method: Method,
        path: &str,
    ) -> Result<Answer, ConnectError> {
        let failed = |why: String| ConnectError::Forward { to: self.clone(), why };
        let client =
            through.0.as_deref().cloned().ok_or_else(|| failed("no cluster was named".to_owned()))?;
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let mut forwarder =
            pods.portforward(name, &[port]).await.map_err(|err| failed(crate::objects::said(&err)))?;
        let told = forwarder.take_error(port);
        let stream = forwarder.take_stream(port).ok_or_else(|| failed("no stream".to_owned()))?;
        let answer = self.exchange(Ok(stream), method, path).await;
        // Why a stream ended is told beside it.
        let why = match (&answer, told) {
            (Err(_), Some(told)) => timeout(BESIDE, told).await.ok().flatten(),
            (_, _) => None,
        };
        forwarder.abort();
        why.map_or(answer, |why| Err(failed(short(&why, port))))
    }

    async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: io::Result<S>,
        method: Method,
        path: &str,
    ) -> Result<Answer, ConnectError> {
        let broken = |why: String| ConnectError::Broken { to: self.clone(), why };
        let stream = stream.map_err(|source| ConnectError::Refused { to: self.clone(), source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|err| broken(err.to_string()))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("connection", "close")
            .body(Empty::<Bytes>::new())
            .map_err(|err| broken(err.to_string()))?;
        let talk = async {
            let response = sender.send_request(request).await.map_err(|err| broken(err.to_string()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LONGEST).collect().await;
            let body = body.map_err(|err| broken(err.to_string()))?.to_bytes();
            drop(sender);
            Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
        };
        // Its errors are seen by whoever talks.
        let (answer, _) = tokio::join!(talk, connection);
        answer
    }
}

/// What the kubelet says of a stream that came to nothing, without the names of its sandboxes.
fn short(why: &str, port: u16) -> String {
    if why.contains("connection refused") {
        return format!("nothing listens at port {port} of its loopback");
    }
    let last = why.trim().rsplit(": ").next().unwrap_or_default();
    if last.is_empty() { why.trim().to_owned() } else { last.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, UnixListener};

    #[test]
    fn every_kind_of_address_is_read_and_written() {
        for text in [
            "10.0.0.1:15000",
            "[::1]:15000",
            "node-a:15000",
            "unix:/run/x.sock",
            "netns:amb-a/127.0.0.1:1",
            "pod:istio-system/ztunnel-x:15000",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "15000",
            ":15000",
            "unix:",
            "netns:/127.0.0.1:1",
            "netns:a/b",
            "host:port",
            "pod:x:1",
            "pod:/x:1",
            "pod:a/x",
        ] {
            let err = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(err.contains("HOST:PORT"), "{err}");
        }
        let other = "netns:amb-a/127.0.0.1:15000".parse::<Endpoint>().unwrap().above(21);
        assert_eq!(other.to_string(), "netns:amb-a/127.0.0.1:15021");
        assert_eq!("[::1]:15000".parse::<Endpoint>().unwrap().above(20).to_string(), "[::1]:15020");
    }

    #[test]
    fn what_a_kubelet_says_is_cut_to_the_point() {
        let long = "error forwarding port 1 to pod 2c7d, uid : failed to execute portforward in network namespace \
                    \"x\": failed to connect to localhost:1 inside namespace \"2c7d\", IPv4: dial tcp4 127.0.0.1:1: \
                    connect: connection refused IPv6 dial tcp6: address localhost: no suitable address found ";
        assert_eq!(short(long, 1), "nothing listens at port 1 of its loopback");
        assert_eq!(short("error forwarding: sandbox is not running\n", 1), "sandbox is not running");
    }

    #[tokio::test]
    async fn a_pod_of_no_cluster_is_told_so() {
        let pod = "pod:istio-system/x:1".parse::<Endpoint>().unwrap();
        let err = pod.get("/").await.unwrap_err().to_string();
        assert!(err.contains("no cluster") && err.contains("pods/portforward"), "{err}");
    }

    /// Answers one request with `answer`, and gives what was asked.
    async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            let mut bytes = [0; 1024];
            let read = stream.read(&mut bytes).await.unwrap();
            asked.extend_from_slice(&bytes[..read]);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(asked).unwrap()
    }

    #[tokio::test]
    async fn a_page_is_fetched_by_tcp_even_in_pieces() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap().to_string());
        let served = async {
            let (stream, _) = listener.accept().await.unwrap();
            answer(
                stream,
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
            )
            .await
        };
        let (page, asked) = tokio::join!(endpoint.get("/config_dump"), served);
        assert_eq!(page.unwrap(), "abc");
        assert!(asked.starts_with("GET /config_dump HTTP/1.1\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_refusal_of_a_local_socket_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let served = async {
            let (stream, _) = listener.accept().await.unwrap();
            answer(stream, "HTTP/1.1 400 Bad Request\r\ncontent-length: 9\r\n\r\nno level\n").await
        };
        let endpoint = Endpoint::Unix(path);
        let (page, asked) = tokio::join!(endpoint.post("/logging?level=loud"), served);
        let err = page.unwrap_err().to_string();
        assert!(err.contains("400") && err.ends_with("no level"), "{err}");
        assert!(asked.starts_with("POST /logging?level=loud"), "{asked}");
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_a_remedy() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let err = Endpoint::Tcp(gone.to_string()).get("/").await.unwrap_err().to_string();
        assert!(err.contains("does the daemon run?"), "{err}");
        let none = Endpoint::Netns { name: "amb-none".to_owned(), address: gone };
        let err = none.get("/").await.unwrap_err().to_string();
        assert!(err.contains("ip netns list"), "{err}");
    }
}
