//! The server: HTTP/1.1, HTTP/2 and gRPC on the same ports.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::grpc::{Echo, PATH};
use super::headers;
use crate::grpc;
use crate::report::{self, Verdict};
use crate::serve::{self, Identity, Speak};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ports that speak HTTP.
    #[arg(long = "port", default_value = "8080")]
    ports: Vec<u16>,
    /// Ports that speak gRPC.
    #[arg(long)]
    grpc: Vec<u16>,
    /// Ports that echo lines.
    #[arg(long)]
    tcp: Vec<u16>,
    /// Which of the ports would speak TLS. No test of a mesh calls one, so nothing listens there.
    #[arg(long)]
    tls: Vec<u16>,
    /// Its certificate.
    #[arg(long)]
    crt: Option<String>,
    /// Its key.
    #[arg(long)]
    key: Option<String>,
}

pub(crate) async fn run(args: Args) -> io::Result<Verdict> {
    // Its own UTS namespace says so.
    let pod = std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    let identity = Arc::new(Identity::named(pod));
    let spoken = args.ports.into_iter().chain(args.grpc).filter(|port| !args.tls.contains(port));
    let spoken = spoken.map(|port| (port, Speak::Suite(port)));
    let mut servers = JoinSet::new();
    for (port, speak) in spoken.chain(args.tcp.into_iter().map(|port| (port, Speak::Echo))) {
        servers.spawn(serve::serve(serve::listen(port).await?, speak, Arc::clone(&identity)));
    }
    report::line(&serde_json::json!({ "serving": identity.pod }));
    report::stopped().await?;
    Ok(Verdict::Good)
}

/// Serves one connection.
pub(crate) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    port: u16,
    identity: Arc<Identity>,
) -> io::Result<()> {
    let service = service_fn(move |request| {
        let identity = Arc::clone(&identity);
        async move { Ok::<_, Infallible>(answer(request, port, &identity.pod).await) }
    });
    let connection = auto::Builder::new(TokioExecutor::new());
    connection.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

async fn answer(request: Request<Incoming>, port: u16, host: &str) -> Response<grpc::Body> {
    let (head, body) = request.into_parts();
    let seen = seen(&head, port, host);
    if !grpc::is_call(&head.headers) {
        return grpc::response("text/plain", vec![Frame::data(Bytes::from(seen))]);
    }
    let asked = grpc::message::<Echo>(body).await.filter(|_| head.uri.path() == PATH);
    let echo = asked.map(|asked| Echo { message: format!("StatusCode=200\n{seen}Echo={}\n", asked.message) });
    grpc::answer(echo.as_ref())
}

fn seen(head: &hyper::http::request::Parts, port: u16, host: &str) -> String {
    let authority = head.uri.authority().map(|authority| authority.to_string());
    let named =
        head.headers.get(hyper::header::HOST).map(|name| String::from_utf8_lossy(name.as_bytes()).into());
    let asked: String = authority.or(named).unwrap_or_default();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    format!(
        "ServicePort={port}\nHost={asked}\nURL={path}\nMethod={}\nProto={:?}\n{}Hostname={host}\n",
        head.method,
        head.version,
        headers("RequestHeader", &head.headers)
    )
}
