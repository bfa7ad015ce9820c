//! The client: `client URL [--method M] [-H NAME:VALUE] [--count N]`. What it prints is all that a test learns.

use std::io::{self, Write as _};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::grpc::{Echo, PATH};
use super::headers;
use crate::grpc;
use crate::report::Verdict;

/// For one request. The tests wait for half a minute in all, so one that hangs must not take it all.
const LIMIT: Duration = Duration::from_secs(5);
/// No answer of the tests is longer.
const LONGEST: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to ask for: `http://` or `grpc://`.
    pub(crate) url: Uri,
    /// The method.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// A header, `name:value`; `Host` stands in place of the URL's.
    #[arg(long = "header", short = 'H', value_parser = crate::call::header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// How many requests, one after the other.
    #[arg(long, default_value_t = 1)]
    pub(crate) count: u64,
}

pub(crate) async fn run(args: Args) -> io::Result<Verdict> {
    // What breaks a connection is told by the request that meets it.
    let mut connections = JoinSet::new();
    let mut server = timeout(LIMIT, Server::reach(&args.url, &mut connections)).await??;
    for number in 0..args.count.max(1) {
        let answer = timeout(LIMIT, server.ask(&args)).await??;
        let mut out = io::stdout().lock();
        out.write_all(answer.told(number, &args.url).as_bytes())?;
        out.flush()?;
    }
    Ok(Verdict::Good)
}

/// A server that is connected.
pub(crate) enum Server {
    /// By HTTP/1.1.
    Http(http1::SendRequest<Full<Bytes>>),
    /// By HTTP/2.
    Grpc(http2::SendRequest<Full<Bytes>>),
}

impl Server {
    async fn reach(url: &Uri, connections: &mut JoinSet<()>) -> io::Result<Self> {
        let host = url.host().ok_or_else(|| io::Error::other("the URL has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, url.port_u16().unwrap_or(80))).await?;
        stream.set_nodelay(true)?;
        Self::over(stream, url, connections).await
    }

    /// Greets it as the URL's scheme has it. What drives the connection is put to `connections`.
    pub(crate) async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        url: &Uri,
        connections: &mut JoinSet<()>,
    ) -> io::Result<Self> {
        let stream = TokioIo::new(stream);
        match url.scheme_str() {
            Some("http") => {
                let (sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
                connections.spawn(async { drop(connection.await) });
                Ok(Self::Http(sender))
            }
            Some("grpc") => {
                let handshake = http2::handshake(TokioExecutor::new(), stream).await;
                let (sender, connection) = handshake.map_err(io::Error::other)?;
                connections.spawn(async { drop(connection.await) });
                Ok(Self::Grpc(sender))
            }
            scheme => Err(io::Error::other(format!("{scheme:?} is not http and not grpc"))),
        }
    }

    /// Asks once. A call of gRPC that is not answered well is an error.
    pub(crate) async fn ask(&mut self, args: &Args) -> io::Result<Answer> {
        match self {
            Self::Http(sender) => {
                sender.ready().await.map_err(io::Error::other)?;
                let response = sender.send_request(plain(args)?).await.map_err(io::Error::other)?;
                Answer::read(response).await
            }
            Self::Grpc(sender) => {
                sender.ready().await.map_err(io::Error::other)?;
                let response = sender.send_request(call(args)?).await.map_err(io::Error::other)?;
                Answer::read(response).await?.message()
            }
        }
    }
}

fn plain(args: &Args) -> io::Result<Request<Full<Bytes>>> {
    let path = args.url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder().method(args.method.clone()).uri(path);
    if !args.headers.iter().any(|(name, _)| name == HOST) {
        request = request.header(HOST, args.url.authority().map_or("", |authority| authority.as_str()));
    }
    for (name, value) in &args.headers {
        request = request.header(name, value);
    }
    request.body(Full::default()).map_err(io::Error::other)
}

fn call(args: &Args) -> io::Result<Request<Full<Bytes>>> {
    let authority = args.url.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::post(format!("http://{authority}{}", PATH))
        .version(Version::HTTP_2)
        .header(CONTENT_TYPE, grpc::TYPE)
        .header("te", "trailers");
    for (name, value) in &args.headers {
        request = request.header(name, value);
    }
    request
        .body(Full::new(grpc::encode(&Echo { message: "conformance".to_owned() })))
        .map_err(io::Error::other)
}

/// An answer, its body read.
pub(crate) struct Answer {
    head: hyper::http::response::Parts,
    body: String,
    status: Option<HeaderValue>,
    bytes: Bytes,
}

impl Answer {
    async fn read(response: Response<Incoming>) -> io::Result<Self> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LONGEST).collect().await.map_err(io::Error::other)?;
        // With a body it is in the trailers.
        let last = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
        let status = last.or_else(|| head.headers.get("grpc-status")).cloned();
        let bytes = body.to_bytes();
        Ok(Self { body: String::from_utf8_lossy(&bytes).into_owned(), head, status, bytes })
    }

    /// The answer with what the message says for a body; an error if the call was not answered well.
    fn message(mut self) -> io::Result<Self> {
        match &self.status {
            Some(status) if status == "0" => {
                self.body = grpc::decode::<Echo>(&self.bytes)?.message;
                Ok(self)
            }
            status => Err(io::Error::other(format!("{}, gRPC status {status:?}", self.head.status))),
        }
    }

    /// As the tests read it.
    pub(crate) fn told(&self, number: u64, url: &Uri) -> String {
        let marked = |mark: &str, text: &str| -> String {
            text.lines().map(|line| format!("[{number}{mark}] {line}\n")).collect()
        };
        let head = format!(
            "Url={url}\nStatusCode={}\n{}",
            self.head.status.as_u16(),
            headers("ResponseHeader", &self.head.headers)
        );
        format!("{}{}\n", marked("", &head), marked(" body", &self.body))
    }
}
