//! The HTTP client: one request, or many at a rate, with what came of each and of all.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::report::{self, Verdict, millis};

/// What is kept of an answer to be shown.
const SHOWN: usize = 4096;
/// No answer of ours is longer.
const LONGEST: usize = 1 << 30;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// What to ask for, `http://host:port/path`.
    url: Uri,
    /// How many requests. Without a count and a duration: one.
    #[arg(long)]
    count: Option<u64>,
    /// For how many seconds.
    #[arg(long)]
    duration: Option<f64>,
    /// Requests a second, at fixed times whatever the answers take; without it, each after the last.
    #[arg(long)]
    rate: Option<f64>,
    /// How many requests at a time, each on a connection of its own.
    #[arg(long, default_value_t = 1)]
    concurrency: u64,
    /// A new connection for each request, instead of kept ones.
    #[arg(long)]
    new_connection: bool,
    /// Milliseconds for a request, connecting included.
    #[arg(long, default_value_t = 5000)]
    timeout: u64,
    /// Prints the summary alone.
    #[arg(long, short)]
    quiet: bool,
    /// The method.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// A header, `name: value`.
    #[arg(long = "header", short = 'H', value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The request's body.
    #[arg(long, default_value = "")]
    data: String,
}

/// Reads a header, `name: value`.
pub(crate) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("a header is `name: value`")?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is no header name"))?;
    let value = value.trim().parse().map_err(|_| format!("{value:?} is no header value"))?;
    Ok((name, value))
}

pub(crate) async fn run(args: Args) -> io::Result<Verdict> {
    let host = args
        .url
        .host()
        .ok_or_else(|| io::Error::other("the URL has no host; write http://host:port/path"))?;
    // An IPv6 address keeps its brackets in a URL.
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let run = Arc::new(Run {
        to: (host, args.url.port_u16().unwrap_or(80)),
        begun: Instant::now(),
        next: Mutex::new(0),
        tally: Mutex::default(),
        args,
    });
    let mut workers = JoinSet::new();
    for _ in 0..run.args.concurrency.max(1) {
        workers.spawn(Arc::clone(&run).work());
    }
    tokio::select! {
        () = async { while workers.join_next().await.is_some() {} } => {}
        stopped = report::stopped() => stopped?,
    }
    let tally = run.tally();
    report::line(&json!({ "summary": tally.summary(run.begun.elapsed()) }));
    Ok(Verdict::of(tally.failures == 0))
}

struct Run {
    args: Args,
    to: (String, u16),
    begun: Instant,
    next: Mutex<u64>,
    tally: Mutex<Tally>,
}

/// What came of one request.
struct Answer {
    status: u16,
    pod: Option<String>,
    body: Bytes,
}

impl Run {
    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the next request and when it is due; `None` when there is none.
    fn ticket(&self) -> Option<(u64, Instant)> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match (self.args.count, self.args.duration) {
            (Some(count), _) => count,
            (None, Some(_)) => u64::MAX,
            (None, None) => 1,
        };
        let now = Instant::now();
        let due = match self.args.rate {
            Some(rate) if rate > 0.0 => {
                self.begun + Duration::from_secs_f64(1.0 / rate).mul_f64(precise(*next))
            }
            _ => now,
        };
        let end = self.args.duration.map(|seconds| self.begun + Duration::from_secs_f64(seconds.max(0.0)));
        if *next >= count || end.is_some_and(|end| due.max(now) >= end) {
            return None;
        }
        *next += 1;
        Some((*next - 1, due))
    }

    async fn work(self: Arc<Self>) {
        let mut kept = None;
        let mut connections = JoinSet::new();
        while let Some((number, due)) = self.ticket() {
            sleep_until(due).await;
            let deadline = due.max(Instant::now()) + Duration::from_millis(self.args.timeout);
            let asked = timeout_at(deadline, self.ask(&mut kept, &mut connections)).await;
            let answer = asked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            if answer.is_err() || self.args.new_connection {
                kept = None;
            }
            // From when it was due: a stalled server must not hide how long others waited.
            let took = due.elapsed();
            if !self.args.quiet {
                report::line(&shown(number, took, &answer));
            }
            self.tally().count(took, &answer);
            while connections.try_join_next().is_some() {}
        }
    }

    async fn ask(
        &self,
        kept: &mut Option<SendRequest<Full<Bytes>>>,
        connections: &mut JoinSet<()>,
    ) -> Result<Answer, String> {
        let usable = match kept {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            *kept = None;
        }
        let sender = match kept {
            Some(sender) => sender,
            None => kept.insert(self.connect(connections).await?),
        };
        let response = sender.send_request(self.request()?).await.map_err(|err| chain(&err))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LONGEST).collect().await.map_err(|err| chain(err.as_ref()))?.to_bytes();
        let pod = head.headers.get("x-pod").and_then(|pod| pod.to_str().ok()).map(str::to_owned);
        Ok(Answer { status: head.status.as_u16(), pod, body })
    }

    async fn connect(&self, connections: &mut JoinSet<()>) -> Result<SendRequest<Full<Bytes>>, String> {
        let (host, port) = &self.to;
        let stream =
            TcpStream::connect((host.as_str(), *port)).await.map_err(|err| format!("connect: {err}"))?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|err| chain(&err))?;
        // Its error is told by the request that meets it.
        connections.spawn(async { drop(connection.await) });
        self.tally().connections += 1;
        Ok(sender)
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, String> {
        let path = self.args.url.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.args.url.authority().map_or("", |authority| authority.as_str());
        let mut request =
            Request::builder().method(self.args.method.clone()).uri(path).header(HOST, authority);
        for (name, value) in &self.args.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(Bytes::from(self.args.data.clone()))).map_err(|err| err.to_string())
    }
}

fn shown(number: u64, took: Duration, answer: &Result<Answer, String>) -> Value {
    match answer {
        Ok(answer) => {
            let text = answer.body.get(..answer.body.len().min(SHOWN)).unwrap_or_default();
            json!({
                "request": number, "ms": millis(took), "status": answer.status, "pod": answer.pod,
                "bytes": answer.body.len(), "body": String::from_utf8_lossy(text),
            })
        }
        Err(err) => json!({ "request": number, "ms": millis(took), "error": err }),
    }
}

/// An error with its causes, which say more than it.
fn chain(err: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(err.source(), |cause| cause.source());
    causes.fold(err.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Four billion requests are more than a run has.
fn precise(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}

#[derive(Debug, Default)]
struct Tally {
    took: Vec<Duration>,
    failures: u64,
    connections: u64,
    pods: BTreeMap<String, u64>,
    statuses: BTreeMap<u16, u64>,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn count(&mut self, took: Duration, answer: &Result<Answer, String>) {
        self.took.push(took);
        match answer {
            Ok(answer) => {
                self.failures += u64::from(answer.status >= 400);
                *self.statuses.entry(answer.status).or_default() += 1;
                if let Some(pod) = &answer.pod {
                    *self.pods.entry(pod.clone()).or_default() += 1;
                }
            }
            Err(err) => {
                self.failures += 1;
                *self.errors.entry(err.clone()).or_default() += 1;
            }
        }
    }

    fn summary(&self, elapsed: Duration) -> Value {
        let mut took = self.took.clone();
        took.sort_unstable();
        let at = |permille: usize| {
            let place = (took.len() * permille / 1000).min(took.len().saturating_sub(1));
            took.get(place).map(|took| millis(*took))
        };
        json!({
            "requests": took.len(),
            "failures": self.failures,
            "connections": self.connections,
            "pods": self.pods,
            "statuses": self.statuses.iter().map(|(status, n)| (status.to_string(), *n)).collect::<BTreeMap<_, _>>(),
            "errors": self.errors,
            "seconds": (elapsed.as_secs_f64() * 1e3).round() / 1e3,
            "ms": { "p50": at(500), "p90": at(900), "p99": at(990), "p999": at(999), "max": at(1000) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_answers_refusals_and_errors() {
        let mut tally = Tally::default();
        for number in 1..=100 {
            let answer = Answer { status: 200, pod: Some("web-1".to_owned()), body: Bytes::new() };
            tally.count(Duration::from_millis(number), &Ok(answer));
        }
        tally.count(Duration::ZERO, &Ok(Answer { status: 403, pod: None, body: Bytes::new() }));
        tally.count(Duration::ZERO, &Err("connect: refused".to_owned()));
        let summary = tally.summary(Duration::from_secs(1));
        assert_eq!((&summary["requests"], &summary["failures"]), (&json!(102), &json!(2)));
        assert_eq!(summary["pods"], json!({ "web-1": 100 }));
        assert_eq!(summary["statuses"], json!({ "200": 100, "403": 1 }));
        assert_eq!(summary["errors"], json!({ "connect: refused": 1 }));
        assert_eq!(summary["ms"]["max"], json!(100.0));
    }

    #[test]
    fn a_header_is_a_name_and_a_value() {
        let (name, value) = header("x-user:  ann ").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-user", "ann"));
        assert!(header("nonsense").is_err());
    }
}
