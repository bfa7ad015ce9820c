//! The client's end: makes one kind of traffic for a bounded time and prints what came of it.

mod bulk;
mod churn;
mod hold;
mod http;

use std::{
    io::{self, Read, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use clap::Subcommand;
use serde::{Deserialize, Serialize};

use crate::serve;

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
        /// How large the one answer is.
        #[arg(long)]
        bytes: usize,
    },
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
    let outcome = match *load {
        Load::Bulk { to, streams, seconds } => bulk::run(to, streams, Duration::from_secs_f64(seconds))?,
        Load::Http { to, connections, rate, burst, seconds } => {
            let pace = rate.map(|rate| http::Pace { rate, burst });
            http::run(to, connections, pace, Duration::from_secs_f64(seconds))?
        }
        Load::Churn { to, clients, seconds } => churn::run(to, clients, Duration::from_secs_f64(seconds))?,
        Load::Hold { to, connections, bytes } => hold::run(to, connections, bytes)?,
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

fn request(size: usize) -> Vec<u8> {
    format!("GET /{size} HTTP/1.1\r\nhost: bench\r\n\r\n").into_bytes()
}

/// One request and its answer of `size` bytes.
fn ask(stream: &mut TcpStream, size: usize) -> io::Result<()> {
    stream.write_all(&request(size))?;
    let mut missing = serve::response(size).len();
    let mut buffer = [0; 16 * 1024];
    while missing > 0 {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        missing = missing.saturating_sub(count);
    }
    Ok(())
}
