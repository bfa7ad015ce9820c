//! The client's end: makes one kind of traffic for a bounded time and prints what came of it.

mod bulk;
mod churn;
mod hold;
mod http;
mod http2;

use std::{
    io::{self, Read, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

/// A connection or an answer that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(20);

/// One kind of traffic.
#[derive(Clone, Debug, Subcommand)]
pub enum Load {
    /// Streams of bytes as fast as they go.
    Bulk {
        /// The sink.
        #[arg(long)]
        to: SocketAddr,
        /// How many at once.
        #[arg(long)]
        streams: usize,
        /// For how long.
        #[arg(long)]
        seconds: f64,
    },
    /// HTTP/1.1 requests over connections that stay open.
    Http {
        /// The server.
        #[arg(long)]
        to: SocketAddr,
        /// How many.
        #[arg(long)]
        connections: usize,
        /// So many a second, due at fixed instants whatever the answers do; as fast as they go without it.
        #[arg(long)]
        rate: Option<u32>,
        /// With a rate: so many of them are due at the same instant, and then none for as long as they take.
        #[arg(long, default_value = "1", requires = "rate")]
        burst: u32,
        /// For how long.
        #[arg(long)]
        seconds: f64,
        /// What is asked.
        #[command(flatten)]
        ask: Ask,
    },
    /// HTTP/2 requests over connections that stay open.
    Http2 {
        /// The server.
        #[arg(long)]
        to: SocketAddr,
        /// How many connections.
        #[arg(long)]
        connections: usize,
        /// How many requests at once on each.
        #[arg(long)]
        streams: usize,
        /// gRPC's unary calls.
        #[arg(long)]
        grpc: bool,
        /// So many a second in all, due at fixed instants whatever the answers do; as fast as they go without it.
        #[arg(long)]
        rate: Option<u32>,
        /// For how long.
        #[arg(long)]
        seconds: f64,
        /// What is asked.
        #[command(flatten)]
        ask: Ask,
    },
    /// A connection for each request.
    Churn {
        /// The server.
        #[arg(long)]
        to: SocketAddr,
        /// How many at once.
        #[arg(long)]
        clients: usize,
        /// For how long.
        #[arg(long)]
        seconds: f64,
    },
    /// Connections that answer once and are then held until this program is killed.
    Hold {
        /// The server.
        #[arg(long)]
        to: SocketAddr,
        /// How many.
        #[arg(long)]
        connections: usize,
        /// Of HTTP/2.
        #[arg(long)]
        http2: bool,
        /// What is asked, once.
        #[command(flatten)]
        ask: Ask,
    },
}

/// One request.
#[derive(Clone, Debug, Args)]
pub struct Ask {
    /// How many bytes the answer has.
    #[arg(long, default_value = "1024")]
    bytes: usize,
    /// What comes before the last segment of the path, from its slash on.
    #[arg(long, default_value = "")]
    below: String,
    /// A header beside the host, `name: value`.
    #[arg(long)]
    header: Option<String>,
}

impl Ask {
    /// This many bytes, of the root.
    fn plain(bytes: usize) -> Self {
        Self { bytes, below: String::new(), header: None }
    }

    /// On the wire, HTTP/1.1.
    fn request(&self) -> Vec<u8> {
        let Self { bytes, below, header } = self;
        let header = header.as_ref().map(|header| format!("{header}\r\n")).unwrap_or_default();
        format!("GET {below}/{bytes} HTTP/1.1\r\nhost: bench\r\n{header}\r\n").into_bytes()
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// From the first byte to the last.
    pub seconds: f64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Requests that were answered, also while warming up.
    pub requests: u64,
    /// Requests a second after warming up.
    pub rate: f64,
    /// What failed.
    pub failures: u64,
    /// CPU seconds of this end, user and kernel.
    pub cpu: (f64, f64),
    /// Microseconds from when a request was due to its answer, by percentile.
    pub latency: Vec<(String, f64)>,
}

/// Makes the traffic.
pub fn run(load: &Load) -> anyhow::Result<()> {
    ambit_runtime::rlimit::raise_open_files()?;
    let seconds = Duration::from_secs_f64;
    let outcome = match load {
        Load::Bulk { to, streams, seconds: time } => bulk::run(*to, *streams, seconds(*time))?,
        Load::Http { to, connections, rate, burst, seconds: time, ask } => {
            let pace = rate.map(|rate| http::Pace { rate, burst: *burst });
            http::run(*to, *connections, pace, seconds(*time), ask)?
        }
        Load::Http2 { to, connections, streams, grpc, rate, seconds: time, ask } => {
            let pace = rate.map(|rate| http::Pace { rate, burst: 1 });
            let work = http2::Work { connections: *connections, streams: *streams, is_grpc: *grpc };
            http2::run(*to, work, pace, seconds(*time), ask)?
        }
        Load::Churn { to, clients, seconds: time } => churn::run(*to, *clients, seconds(*time))?,
        Load::Hold { to, connections, http2: true, ask } => http2::hold(*to, *connections, ask)?,
        Load::Hold { to, connections, http2: false, ask } => hold::run(*to, *connections, ask)?,
    };
    let cpu = crate::usage::own_cpu()?;
    let outcome = Outcome { cpu: (cpu.user, cpu.system), ..outcome };
    crate::report::line(&serde_json::to_value(outcome)?);
    Ok(())
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// One request and the whole of its answer, however long its head is.
fn answered(stream: &mut TcpStream, ask: &Ask) -> io::Result<()> {
    stream.write_all(&ask.request())?;
    let mut missing = Missing::new(ask.bytes);
    let mut buffer = [0; 16 * 1024];
    while !missing.is_none() {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        missing.take(buffer.get(..count).unwrap_or_default())?;
    }
    Ok(())
}

/// What of an answer is still to come. Proxies add headers, so only the body's length is known.
#[derive(Debug)]
struct Missing {
    body: usize,
    /// How much of the empty line that ends the head has been seen; `None`: the head is over.
    end: Option<usize>,
    /// How much of the first line has been seen.
    status: usize,
}

/// How an answer begins, and what ends its head.
const OK: &[u8] = b"HTTP/1.1 200";
const END: &[u8] = b"\r\n\r\n";

impl Missing {
    fn new(body: usize) -> Self {
        Self { body, end: Some(0), status: 0 }
    }

    /// Whether all of it has come.
    fn is_none(&self) -> bool {
        self.end.is_none() && self.body == 0
    }

    /// Takes the next bytes. Any other status than 200 is an error.
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        for (at, byte) in bytes.iter().enumerate() {
            let Some(end) = self.end else {
                self.body = self.body.saturating_sub(bytes.len() - at);
                return Ok(());
            };
            if let Some(expected) = OK.get(self.status) {
                if byte != expected {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                self.status += 1;
            }
            let next = if END.get(end) == Some(byte) { end + 1 } else { usize::from(*byte == b'\r') };
            self.end = (next < END.len()).then_some(next);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_whatever_a_proxy_put_into_its_head() {
        let whole = b"HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: 3\r\n\r\nabc";
        for split in 0..whole.len() {
            let mut missing = Missing::new(3);
            missing.take(&whole[..split]).unwrap();
            assert!(!missing.is_none(), "{split}");
            missing.take(&whole[split..]).unwrap();
            assert!(missing.is_none(), "{split}");
        }
        assert!(Missing::new(3).take(b"HTTP/1.1 404").is_err());
    }
}
