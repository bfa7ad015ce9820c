//! Requests over HTTP/2 connections that stay open, plain or gRPC, from one thread.
//!
//! As over HTTP/1.1, with a stream in place of a connection: so many of them ask at once on each connection.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ambit_runtime::task;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use nix::sys::prctl;
use tokio::{
    net::TcpStream,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::timeout,
};

use super::{
    Ask, LIMIT, Outcome,
    http::{LAST, Pace, WARM_UP, percentiles},
};
use crate::{rounds::rest, serve::http2::message_head, usage::float_of};

/// What a server may send before it is told to go on, as generous as clients of today.
const WINDOW: u32 = 1 << 20;

/// What a client is asked to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// How many connections.
    pub connections: usize,
    /// How many requests at once on each.
    pub streams: usize,
    /// With `POST`, a message each way and a status in the trailers.
    pub is_grpc: bool,
}

/// When the next request of a stream is due.
enum Turns {
    /// As soon as the last was answered, until then.
    AtOnce(Instant),
    /// At these instants.
    Told(UnboundedReceiver<Instant>),
}

#[derive(Default)]
struct Tally {
    latencies: Vec<Duration>,
    requests: u64,
    failures: u64,
}

pub(super) fn run(
    to: SocketAddr,
    work: Work,
    pace: Option<Pace>,
    time: Duration,
    ask: &Ask,
) -> anyhow::Result<Outcome> {
    // As over HTTP/1.1.
    prctl::set_timerslack(1)?;
    let request = request(to, ask, work.is_grpc)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut clients = Vec::with_capacity(work.connections);
        for _ in 0..work.connections {
            clients.push(timeout(LIMIT, connect(to)).await??);
        }
        let started = Instant::now();
        let until = started + WARM_UP + time;
        let mut streams = JoinSet::new();
        let mut turns = Vec::new();
        for client in clients.iter().flat_map(|client| std::iter::repeat_n(client, work.streams)) {
            let next = if pace.is_some() {
                let (turn, told) = unbounded_channel();
                turns.push(turn);
                Turns::Told(told)
            } else {
                Turns::AtOnce(until)
            };
            let stream = Stream { client: client.clone(), request: request.clone(), body: ask.bytes, next };
            streams.spawn(stream.ask(started + WARM_UP, until + LAST));
        }
        if let Some(pace) = pace {
            std::thread::spawn(move || tell(&turns, pace, started, until));
        }
        let mut sum = Tally::default();
        while let Some(tally) = streams.join_next().await {
            let Tally { latencies, requests, failures } = tally?;
            sum.latencies.extend(latencies);
            sum.requests += requests;
            sum.failures += failures;
        }
        let Tally { mut latencies, requests, failures } = sum;
        latencies.sort_unstable();
        Ok(Outcome {
            seconds: started.elapsed().as_secs_f64(),
            bytes: requests * u64::try_from(ask.bytes)?,
            requests,
            rate: float_of(latencies.len()) / time.as_secs_f64(),
            failures,
            latency: percentiles(&latencies),
            ..Outcome::default()
        })
    })
}

async fn connect(to: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(16 * WINDOW).enable_push(false);
    let (client, connection) = builder.handshake(stream).await?;
    // Whoever asks on it hears of its end.
    task::spawn("connection", async move { drop(connection.await) });
    Ok(client)
}

fn request(to: SocketAddr, ask: &Ask, is_grpc: bool) -> anyhow::Result<Request<()>> {
    let Ask { bytes, below, header } = ask;
    let method = if is_grpc { Method::POST } else { Method::GET };
    let mut request = Request::builder().method(method).uri(format!("http://{to}{below}/{bytes}"));
    if is_grpc {
        request = request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
    }
    if let Some(header) = header {
        let (name, value) = header.split_once(": ").context("a header is `name: value`")?;
        request = request.header(HeaderName::try_from(name)?, HeaderValue::from_str(value)?);
    }
    Ok(request.body(())?)
}

/// Tells the streams in turn when their requests are due. A thread of its own keeps time better than the runtime's timer,
/// whose ticks are a millisecond.
fn tell(turns: &[UnboundedSender<Instant>], pace: Pace, started: Instant, until: Instant) {
    let interval = Duration::from_secs(1) / pace.rate;
    let mut due = started;
    for turn in turns.iter().cycle() {
        if due >= until {
            return;
        }
        rest(due.saturating_duration_since(Instant::now()));
        // A stream that broke counts what it does not do.
        let _ = turn.send(due);
        due += interval;
    }
}

impl Turns {
    async fn next(&mut self) -> Option<Instant> {
        match self {
            Self::AtOnce(until) => Some(Instant::now()).filter(|now| now < until),
            Self::Told(due) => due.recv().await,
        }
    }
}

struct Stream {
    client: SendRequest<Bytes>,
    request: Request<()>,
    /// How long an answer is.
    body: usize,
    next: Turns,
}

impl Stream {
    /// Asks whenever it is due, until a request fails.
    async fn ask(mut self, record_from: Instant, at_last: Instant) -> Tally {
        let mut tally = Tally::default();
        while let Some(due) = self.next.next().await {
            let left = at_last.saturating_duration_since(Instant::now()).min(LIMIT);
            match timeout(left, self.once()).await {
                Ok(Ok(())) => tally.requests += 1,
                Ok(Err(_)) | Err(_) => {
                    tally.failures += 1;
                    break;
                }
            }
            if due >= record_from {
                tally.latencies.push(due.elapsed());
            }
        }
        if let Turns::Told(due) = &mut self.next {
            while due.recv().await.is_some() {
                tally.failures += 1;
            }
        }
        tally
    }

    async fn once(&mut self) -> anyhow::Result<()> {
        let mut client = self.client.clone().ready().await?;
        let is_grpc = self.request.method() == Method::POST;
        let (response, mut sent) = client.send_request(self.request.clone(), !is_grpc)?;
        if is_grpc {
            sent.send_data(message_head(0), true)?;
        }
        let (head, mut body) = response.await?.into_parts();
        ensure!(head.status == StatusCode::OK, "{}", head.status);
        let expected = self.body + if is_grpc { message_head(0).len() } else { 0 };
        ensure!(read(&mut body).await? == expected, "an answer of another length");
        if is_grpc {
            let trailers = body.trailers().await?.context("no trailers")?;
            ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "{trailers:?}");
        }
        Ok(())
    }
}

async fn read(body: &mut RecvStream) -> Result<usize, h2::Error> {
    let mut read = 0;
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        read += piece.len();
    }
    Ok(read)
}

/// Opens connections that answer once and are then held until this program is killed.
pub(super) fn hold(to: SocketAddr, connections: usize, ask: &Ask) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let request = request(to, ask, false)?;
    runtime.block_on(async {
        let mut held = Vec::with_capacity(connections);
        let mut failures = 0;
        for _ in 0..connections {
            let once = async {
                let client = connect(to).await?;
                let next = Turns::AtOnce(Instant::now());
                let mut stream = Stream { client, request: request.clone(), body: ask.bytes, next };
                stream.once().await?;
                anyhow::Ok(stream)
            };
            match timeout(LIMIT, once).await.map_err(io::Error::from) {
                Ok(Ok(stream)) => held.push(stream),
                Ok(Err(_)) | Err(_) => failures += 1,
            }
        }
        crate::report::line(&serde_json::json!({ "held": held.len(), "failures": failures }));
        pending().await
    })
}
