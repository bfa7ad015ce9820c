//! Exports to a collector that takes them, hangs, fails, or is away.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: whatever fails here fails it"
)]

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, UNIX_EPOCH},
};

use ambit_fixtures::collector::{Mood, TestCollector};
use ambit_model::trace::{SpanId, TraceId};
use ambit_wire::{
    channel::{ChannelSettings, ControlPlane, RootSource, TokenSource},
    otlp::{Kind, Limits, LogRecord, Queue, Resource, Severity, Span, Value, exporter},
    tls::{Compliance, Profile, Versions, revoked::Revocation},
};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tonic::Code;

const SOON: Duration = Duration::from_secs(20);

fn collector(address: String) -> ControlPlane {
    let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured).unwrap();
    let settings = ChannelSettings {
        address,
        roots: RootSource::System,
        alt_hostname: None,
        token: TokenSource::None,
        cluster_id: String::new(),
        headers: Vec::new(),
    };
    ControlPlane::new(settings, &profile).unwrap()
}

const LIMITS: Limits = Limits {
    queue: 8,
    batch: 2,
    delay: Duration::from_millis(20),
    timeout: Duration::from_secs(10),
    is_compressed: true,
};

fn span(number: u32) -> Span {
    Span {
        trace: TraceId::drawn(0xabc),
        id: SpanId::drawn(number.into()),
        parent: SpanId::new(0xdef),
        parent_is_remote: true,
        state: "a=1".to_owned(),
        name: format!("GET {number}"),
        kind: Kind::Server,
        began: UNIX_EPOCH + Duration::from_secs(5),
        ended: UNIX_EPOCH + Duration::from_secs(6),
        attributes: vec![("http.response.status_code", 200_u16.into()), ("url.path", Value::text("/a"))],
        failed: None,
    }
}

/// A running exporter of spans.
struct Running {
    queue: Arc<Queue<Span>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn run(address: String, limits: Limits) -> Running {
    let resource = Resource(vec![("service.name".to_owned(), "gate".to_owned())]);
    let (queue, exporter) = exporter::<Span>(collector(address), resource, limits);
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(exporter.run(async move { drop(stopped.await) }));
    Running { queue, stop, task }
}

impl Running {
    async fn end(self) -> Arc<Queue<Span>> {
        self.stop.send(()).unwrap();
        timeout(SOON, self.task).await.expect("it ends").unwrap();
        self.queue
    }
}

fn counted(queue: &Queue<Span>) -> [u64; 4] {
    let counts = &queue.counts;
    [&counts.sent, &counts.queue_full, &counts.failed, &counts.rejected].map(|count| count.load(Relaxed))
}

#[tokio::test]
async fn a_collector_gets_all_that_waits_even_at_the_end() {
    let collector = TestCollector::start().await;
    let running = run(collector.endpoint(), Limits { delay: SOON, ..LIMITS });
    (1..=5).for_each(|number| running.queue.push(span(number)));
    assert_eq!(counted(&*running.end().await), [5, 0, 0, 0]);
    let seen = collector.spans();
    let names: Vec<_> = seen.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["GET 1", "GET 2", "GET 3", "GET 4", "GET 5"]);
    assert_eq!(collector.calls(), 3, "two together");
    let first = &seen[0];
    assert_eq!(
        (first.trace.as_str(), first.parent.as_str()),
        (&*format!("{:032x}", 0xabc), &*format!("{:016x}", 0xdef))
    );
    assert_eq!((first.kind, first.took, first.failed), ("server", 1_000_000_000, false));
    assert_eq!(first.attributes["http.response.status_code"], "200");
    assert_eq!(first.resource["service.name"], "gate");
}

#[tokio::test]
async fn records_are_sent_as_lines_with_their_trace() {
    let collector_double = TestCollector::start().await;
    let (queue, exporter) = exporter(collector(collector_double.endpoint()), Resource::default(), LIMITS);
    queue.push(LogRecord {
        at: UNIX_EPOCH,
        severity: Severity::Warn,
        body: "x".repeat(10_000),
        attributes: vec![("path", Value::text(&"é".repeat(1000)))],
        trace: TraceId::new(1),
        span: SpanId::new(2),
    });
    exporter.run(std::future::ready(())).await;
    let seen = collector_double.records();
    assert_eq!((seen[0].body.len(), seen[0].severity.as_str()), (4096, "WARN"));
    assert_eq!(seen[0].attributes["path"].len(), 1024);
    assert_eq!(seen[0].trace, format!("{:032x}", 1));
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_hangs_costs_its_batch_and_the_queue_stays_bounded() {
    let collector = TestCollector::start().await;
    collector.set_mood(Mood::Hangs);
    let running = run(collector.endpoint(), Limits { timeout: Duration::from_secs(1), ..LIMITS });
    (1..=20).for_each(|number| running.queue.push(span(number)));
    assert_eq!(counted(&running.queue)[1], 12, "eight wait, nobody waited for them");
    let queue = running.queue.clone();
    assert!(timeout(Duration::from_secs(300), running.end()).await.is_ok());
    assert_eq!(counted(&queue), [0, 12, 8, 0]);
    assert!(collector.spans().is_empty());
}

#[tokio::test]
async fn what_fails_for_now_is_sent_again_and_what_fails_for_good_is_not() {
    let collector = TestCollector::start().await;
    collector.set_mood(Mood::Fails(Code::Unavailable));
    let running = run(collector.endpoint(), LIMITS);
    running.queue.push(span(1));
    let asked_twice = async {
        while collector.calls() < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, asked_twice).await.expect("it is sent again");
    collector.set_mood(Mood::Takes);
    assert_eq!(counted(&*running.end().await), [1, 0, 0, 0]);
    collector.set_mood(Mood::Fails(Code::InvalidArgument));
    let (before, running) = (collector.calls(), run(collector.endpoint(), LIMITS));
    running.queue.push(span(2));
    assert_eq!(counted(&*running.end().await), [0, 0, 1, 0]);
    assert_eq!(collector.calls(), before + 1);
}

#[tokio::test]
async fn what_the_collector_does_not_want_is_counted() {
    let collector = TestCollector::start().await;
    collector.set_mood(Mood::Rejects(1));
    let running = run(collector.endpoint(), LIMITS);
    (1..=2).for_each(|number| running.queue.push(span(number)));
    assert_eq!(counted(&*running.end().await), [1, 0, 0, 1]);
}

#[tokio::test]
async fn a_collector_that_is_away_is_given_up_in_time() {
    let limits = Limits { timeout: Duration::from_millis(300), ..LIMITS };
    let running = run("http://127.0.0.1:1".to_owned(), limits);
    running.queue.push(span(1));
    assert_eq!(counted(&*running.end().await), [0, 0, 1, 0]);
}
