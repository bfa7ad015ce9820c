//! What `ambit check --probe` has run in two pods of its own: a server, and a client that says how it got there. It is in
//! this program because its image is there already wherever the mesh is.

use std::{
    io::{self, Write as _},
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use ambit_runtime::{
    admin::{Address, Method, Pages, Response, Server},
    signal, task,
};
use anyhow::Context as _;
use bytes::Bytes;
use clap::{Parser, Subcommand};
use http::{Request, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, sleep, timeout},
};

/// The word by which the controller's program is asked for this.
pub const WORD: &str = "probe";
/// The server's only page.
pub const PAGE: &str = "/probe";

/// Whoever says something else is not the server.
const GREETING: &str = "the probe of an Ambit mesh\n";
/// For a name, and for an answer: connecting to another node may take a tunnel's own ten seconds to fail.
const LIMIT: Duration = Duration::from_secs(15);
/// Between attempts: what has just been made becomes known within a second or two.
const PAUSE: Duration = Duration::from_secs(1);
/// Exchanges on a connection that is there; the one in the middle is told.
const ROUNDS: usize = 11;

/// One of the two parts.
#[derive(Debug, Parser)]
#[command(name = "controller probe")]
pub struct Line {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Answers, until it is told to end.
    Serve {
        /// Where. With 0, a port that is free; it is printed.
        #[arg(long)]
        port: u16,
    },
    /// Calls until it is answered, and prints how that went.
    Call {
        /// Whom, `http://HOST:PORT/probe`.
        #[arg(long)]
        url: Uri,
        /// After how many seconds it does not try again.
        #[arg(long)]
        seconds: u32,
    },
}

/// How the client got on: the one line of JSON that it prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Report {
    /// The server answered.
    Answered {
        /// Which of its addresses.
        address: SocketAddr,
        /// How long the first answer took, with all that had to be connected for it.
        first_micros: u64,
        /// How long the others took, each.
        round_trip_micros: u64,
    },
    /// Its name has no address.
    Unresolved {
        /// In the resolver's words.
        why: String,
    },
    /// There was no answer, or that of somebody else.
    Unanswered {
        /// Where.
        address: SocketAddr,
        /// What happened instead.
        why: String,
    },
}

/// Does it; `false` if the client was not answered.
pub async fn run(line: Line) -> anyhow::Result<bool> {
    match line.part {
        Part::Serve { port } => serve(port).await.map(|()| true),
        Part::Call { url, seconds } => {
            let report = call(&url, Duration::from_secs(seconds.into())).await?;
            say(&serde_json::to_string(&report)?)?;
            Ok(matches!(report, Report::Answered { .. }))
        }
    }
}

async fn serve(port: u16) -> anyhow::Result<()> {
    let (_exit, shutdown) = signal::listen().context("cannot listen for signals")?;
    let server = Server::bind(&[Address::Tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))]).await?;
    for address in server.local_addresses() {
        say(&serde_json::json!({ "listening": address }).to_string())?;
    }
    let pages = Pages::new(WORD).page(Method::GET, PAGE, "says who it is", |_| Response::text(GREETING));
    server
        .serve(pages, async {
            shutdown.requested().await;
        })
        .await;
    Ok(())
}

async fn call(url: &Uri, patience: Duration) -> anyhow::Result<Report> {
    let authority = url.authority().context("--url: write http://HOST:PORT/probe")?;
    // An IPv6 address keeps its brackets in a URL.
    let host = authority.host().trim_matches(['[', ']']);
    let port = authority.port_u16().unwrap_or(80);
    let begun = Instant::now();
    loop {
        let report = attempt(host, port, url).await;
        if matches!(report, Report::Answered { .. }) || begun.elapsed() >= patience {
            return Ok(report);
        }
        sleep(PAUSE).await;
    }
}

async fn attempt(host: &str, port: u16, url: &Uri) -> Report {
    let found = within(async { Ok(lookup_host((host, port)).await?.next()) }).await;
    let address = match found {
        Ok(Some(address)) => address,
        Ok(None) => return Report::Unresolved { why: format!("{host} has no address") },
        Err(why) => return Report::Unresolved { why },
    };
    match within(exchanges(address, url)).await {
        Ok((first, round_trip)) => {
            Report::Answered { address, first_micros: micros(first), round_trip_micros: micros(round_trip) }
        }
        Err(why) => Report::Unanswered { address, why },
    }
}

/// How long the first exchange takes, connecting included, and how long those after it.
async fn exchanges(address: SocketAddr, url: &Uri) -> anyhow::Result<(Duration, Duration)> {
    let begun = Instant::now();
    let stream = TcpStream::connect(address).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    // What ends it, the sender is told.
    task::spawn("probe", async { drop(connection.await) });
    ask(&mut sender, url).await?;
    let first = begun.elapsed();
    let mut others = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        ask(&mut sender, url).await?;
        others.push(begun.elapsed());
    }
    others.sort();
    Ok((first, others.get(ROUNDS / 2).copied().unwrap_or_default()))
}

async fn ask(sender: &mut SendRequest<Empty<Bytes>>, url: &Uri) -> anyhow::Result<()> {
    let authority = url.authority().map(ToString::to_string).unwrap_or_default();
    let request = Request::get(url.path()).header(HOST, authority).body(Empty::new())?;
    let response = sender.send_request(request).await.context("the connection broke")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), GREETING.len()).collect().await;
    let is_ours = body.is_ok_and(|body| body.to_bytes() == GREETING);
    anyhow::ensure!(status == StatusCode::OK && is_ours, "somebody else answered, with status {status}");
    Ok(())
}

async fn within<T>(doing: impl Future<Output = anyhow::Result<T>>) -> Result<T, String> {
    match timeout(LIMIT, doing).await {
        Ok(done) => done.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("nothing within {LIMIT:?}")),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let address = SocketAddr::from(([10, 96, 0, 9], 80));
        for (report, expected) in [
            (
                Report::Answered { address, first_micros: 12_000, round_trip_micros: 900 },
                r#"{"outcome":"answered","address":"10.96.0.9:80","firstMicros":12000,"roundTripMicros":900}"#,
            ),
            (Report::Unresolved { why: "no".to_owned() }, r#"{"outcome":"unresolved","why":"no"}"#),
            (
                Report::Unanswered { address, why: "no".to_owned() },
                r#"{"outcome":"unanswered","address":"10.96.0.9:80","why":"no"}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&report).unwrap(), expected);
            assert_eq!(serde_json::from_str::<Report>(expected).unwrap(), report);
        }
    }
}
