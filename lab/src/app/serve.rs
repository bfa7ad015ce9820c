//! The server: each port speaks one protocol, on IPv4 and IPv6.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hyper::StatusCode;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::report::{self, Verdict};
use crate::{bulk, http, suite};

/// A longer line is echoed in parts.
const LINE: u64 = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ports that speak HTTP/1.1.
    #[arg(long, value_delimiter = ',', default_value = "8080")]
    http: Vec<u16>,
    /// Ports that echo lines, with the pod's name before each.
    #[arg(long, value_delimiter = ',', default_value = "9090")]
    echo: Vec<u16>,
    /// Ports that take bytes and answer with their SHA-256.
    #[arg(long, value_delimiter = ',', default_value = "9091")]
    sink: Vec<u16>,
    /// Ports that give bytes.
    #[arg(long, value_delimiter = ',', default_value = "9092")]
    source: Vec<u16>,
    #[command(flatten)]
    identity: Identity,
}

/// Who is answering.
#[derive(Debug, clap::Args)]
pub(crate) struct Identity {
    /// The pod's name.
    #[arg(long = "pod", env = "POD_NAME", default_value = "nobody")]
    pub(crate) pod: String,
    /// The pod's namespace.
    #[arg(long = "namespace", env = "POD_NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,
    /// The status of every answer over HTTP, where the path asks for no other.
    #[arg(long, default_value = "200")]
    pub(crate) status: StatusCode,
    /// How many requests were answered over HTTP.
    #[arg(skip)]
    pub(crate) answered: AtomicU64,
}

impl Identity {
    /// Of this name, and nothing else about it is asked for.
    pub(crate) fn named(pod: String) -> Self {
        Self { pod, namespace: String::new(), status: StatusCode::OK, answered: AtomicU64::new(0) }
    }
}

/// What a port speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Speak {
    /// HTTP/1.1.
    Http,
    /// Lines, with the pod's name before each.
    Echo,
    /// Takes bytes.
    Sink,
    /// Gives bytes.
    Source,
    /// HTTP and gRPC of the conformance tests, at that port.
    Suite(u16),
}

pub(crate) async fn run(args: Args) -> io::Result<Verdict> {
    let identity = Arc::new(args.identity);
    let ports = [
        (Speak::Http, args.http),
        (Speak::Echo, args.echo),
        (Speak::Sink, args.sink),
        (Speak::Source, args.source),
    ];
    let mut servers = JoinSet::new();
    for (speak, ports) in ports {
        for port in ports {
            let listener = listen(port).await?;
            servers.spawn(serve(listener, speak, Arc::clone(&identity)));
        }
    }
    report::line(&json!({ "serving": identity.pod }));
    report::stopped().await?;
    Ok(Verdict::Good)
}

/// On every address; on IPv4 alone where there is no IPv6.
pub(crate) async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(err) if err.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    }
}

/// Serves whoever connects, for ever.
pub(crate) async fn serve(listener: TcpListener, speak: Speak, identity: Arc<Identity>) {
    serve_with(listener, |stream| answer(stream, speak, Arc::clone(&identity))).await;
}

/// Answers whoever connects with `answer`, for ever.
pub(crate) async fn serve_with<F>(listener: TcpListener, answer: impl Fn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                // A segment that waits for an acknowledgement would be measured as the mesh's latency.
                let _ = stream.set_nodelay(true);
                let answered = answer(stream);
                open.spawn(async {
                    if let Err(err) = answered.await {
                        report::line(&json!({ "broken": err.to_string() }));
                    }
                });
            },
            Some(_) = open.join_next() => {}
        }
    }
}

async fn answer(stream: TcpStream, speak: Speak, identity: Arc<Identity>) -> io::Result<()> {
    match speak {
        Speak::Http => http::serve(stream, identity).await,
        Speak::Echo => echo(stream, &identity).await,
        Speak::Sink => bulk::sink(stream, &identity).await,
        Speak::Source => bulk::source(stream).await,
        Speak::Suite(port) => suite::server::serve(stream, port, identity).await,
    }
}

async fn echo(mut stream: TcpStream, identity: &Identity) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = format!("{} ", identity.pod).into_bytes();
        let empty = line.len();
        (&mut read).take(LINE).read_until(b'\n', &mut line).await?;
        if line.len() == empty {
            return write.shutdown().await;
        }
        write.write_all(&line).await?;
    }
}
