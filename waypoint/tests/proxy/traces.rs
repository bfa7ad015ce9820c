//! Traces and access logs: what an endpoint is told, what a collector gets, and what it costs when there is none.

use std::time::{Duration, Instant};

use ambit_fixtures::collector::{Mood, SeenSpan, TestCollector};
use ambit_model::route::{Backend, Rule, retry};
use http::Request;
use http_body_util::Full;

use crate::world::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// A waypoint that exports to `collector`, batch by batch without delay, with further environment.
async fn start(world: &World, collector: &TestCollector, extra: &[(&str, &str)]) -> Waypoint {
    let endpoint = collector.endpoint();
    let mut env = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "10"),
    ];
    env.extend(extra);
    world.start_with(&env).await
}

/// Waits for so many spans; those of servers come first.
async fn spans(collector: &TestCollector, count: usize) -> Vec<SeenSpan> {
    let mut spans = until(&format!("{count} spans"), async || {
        let spans = collector.spans();
        (spans.len() >= count).then_some(spans)
    })
    .await;
    assert_eq!(spans.len(), count, "{spans:#?}");
    spans.sort_by_key(|span| std::cmp::Reverse(span.kind));
    spans
}

fn traced(path: &str, headers: &[(&str, String)]) -> Request<Full<bytes::Bytes>> {
    let mut request = get(path);
    for (name, value) in headers {
        request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    request
}

fn parent(flags: &str) -> (&'static str, String) {
    ("traceparent", format!("00-{TRACE}-{SPAN}-{flags}"))
}

fn retried(backends: Vec<Backend>) -> Rule {
    let policy = retry::Policy::parse(&[503], Some(2), Some(Duration::from_millis(1))).unwrap();
    Rule { backends, retry: Some(policy), ..Rule::default() }
}

#[test]
fn a_request_is_a_span_of_its_callers_trace_and_so_is_its_way_on() {
    world(async |world| {
        let app = world.web().await;
        let collector = TestCollector::start().await;
        let waypoint = start(&world, &collector, &[]).await;
        let state = ("tracestate", "vendor=1".to_owned());
        let secret = ("authorization", "Bearer hunter2".to_owned());
        let request = traced("/a/../b?key=hunter2", &[parent("01"), state, secret]);
        assert_eq!(world.tunnel().await.ask(WEB, request).await.status, 200);
        let spans = spans(&collector, 2).await;
        let (server, client) = (&spans[0], &spans[1]);
        assert_eq!((server.kind, server.trace.as_str(), server.parent.as_str()), ("server", TRACE, SPAN));
        assert_eq!((client.kind, client.trace.as_str(), &client.parent), ("client", TRACE, &server.id));
        let heard = app.last();
        assert_eq!(heard.header("traceparent"), Some(format!("00-{TRACE}-{}-01", client.id).as_str()));
        assert_eq!(heard.header("tracestate"), Some("vendor=1"));
        for (span, name, value) in [
            (server, "http.request.method", "GET"),
            (server, "url.path", "/b"),
            (server, "http.response.status_code", "200"),
            (server, "server.address", "web"),
            (server, "ambit.response_flags", "-"),
            (server, "ambit.source.principal", "spiffe://cluster.local/ns/shop/sa/client"),
            (server, "ambit.policy", "no policy applies"),
            (client, "network.peer.address", "127.0.0.2"),
            (client, "network.peer.port", "8080"),
            (client, "http.response.status_code", "200"),
        ] {
            assert_eq!(span.attributes.get(name).map(String::as_str), Some(value), "{name} of {span:#?}");
        }
        assert!(!client.attributes.contains_key("http.request.resend_count"));
        assert_eq!(server.resource.get("service.name").map(String::as_str), Some("gate.shop"));
        assert!(!format!("{spans:?}").contains("hunter2"), "{spans:#?}");
        let line = waypoint.line(&["request complete"]).await;
        assert!(line.contains(&format!("trace.id={TRACE}")) && line.contains(&server.id), "{line}");
        waypoint.until_counted("ambit_otlp_items_total", &["signal=\"spans\"", "outcome=\"sent\""], 2).await;
    });
}

#[test]
fn the_caller_decides_what_is_recorded_and_of_the_others_a_share_is() {
    world(async |world| {
        let app = world.web().await;
        let collector = TestCollector::start().await;
        let none = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")];
        let waypoint = start(&world, &collector, &none).await;
        let tunnel = world.tunnel().await;
        tunnel.ask(WEB, traced("/", &[parent("00")])).await;
        let told = app.last().header("traceparent").unwrap().to_owned();
        assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00"), "{told}");
        tunnel.get(WEB, "/").await;
        let told = app.last().header("traceparent").expect("a trace of its own").to_owned();
        assert!(told.ends_with("-00") && !told.contains(TRACE), "{told}");
        tunnel.ask(WEB, traced("/", &[parent("not hexadecimal"), ("b3", format!("{TRACE}-{SPAN}-1"))])).await;
        assert_eq!(app.last().header("traceparent"), None, "what is malformed goes no further");
        let told = app.last().header("b3").unwrap().to_owned();
        let spans = spans(&collector, 2).await;
        assert_eq!(told, format!("{TRACE}-{}-1", spans[1].id));
        waypoint.until_counted("ambit_malformed_trace_headers_total", &["form=\"traceparent\""], 1).await;
    });
}

#[test]
fn each_time_a_request_is_sent_is_a_span() {
    world(async |world| {
        let app = world.web().await;
        world.route(vec![retried(vec![to("shop/web", 1)])]);
        let collector = TestCollector::start().await;
        let waypoint = start(&world, &collector, &[]).await;
        let request =
            traced("/status/503/1", &[("x-b3-traceid", TRACE.into()), ("x-b3-spanid", SPAN.into())]);
        assert_eq!(world.tunnel().await.ask(WEB, request).await.status, 200);
        let spans = spans(&collector, 3).await;
        assert_eq!(spans[0].attributes["ambit.attempts"], "2");
        assert_eq!(spans[0].attributes["ambit.route"], "shop/route");
        let told: Vec<_> =
            app.heard().iter().map(|heard| heard.header("x-b3-spanid").unwrap().to_owned()).collect();
        assert_eq!(told, [spans[1].id.clone(), spans[2].id.clone()], "each is asked within its own span");
        assert!(spans[1].failed && !spans[2].failed && !spans[0].failed);
        assert_eq!(spans[1].attributes["error.type"], "503");
        assert_eq!(spans[2].attributes["http.request.resend_count"], "1");
        assert!(spans.iter().all(|span| span.trace == TRACE));
        drop(waypoint);
    });
}

#[test]
fn what_is_refused_is_a_span_that_says_why() {
    world(async |world| {
        world.publish([], [http_service("shop/web", "10.1.0.1")]);
        world.configure("shop/web", Default::default());
        let collector = TestCollector::start().await;
        let _waypoint = start(&world, &collector, &[]).await;
        assert_eq!(world.tunnel().await.get(WEB, "/").await.status, 503);
        let spans = spans(&collector, 1).await;
        assert_eq!((spans[0].kind, spans[0].failed, spans[0].parent.as_str()), ("server", true, ""));
        assert_eq!(spans[0].attributes["error.type"], "no_endpoint");
        assert_eq!(spans[0].attributes["ambit.response_flags"], "UH");
    });
}

#[test]
fn a_collector_that_hangs_changes_nothing_for_requests() {
    world(async |world| {
        let _app = world.web().await;
        let collector = TestCollector::start().await;
        collector.set_mood(Mood::Hangs);
        let few = [("OTEL_BSP_MAX_QUEUE_SIZE", "8"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")];
        let mut waypoint = start(&world, &collector, &few).await;
        let mut sender = world.tunnel().await.http1(WEB).await;
        for number in 0..30 {
            sender.ready().await.unwrap();
            let told = Told::read(sender.send_request(get("/")).await.unwrap()).await;
            assert_eq!(told.status, 200, "{number}");
        }
        // At most eight are on their way and eight wait; each request has two.
        until("what is too much is counted", async || {
            let lost = waypoint.counted("ambit_otlp_items_total", &["outcome=\"queue_full\""]).await;
            (lost >= 60 - 16).then_some(())
        })
        .await;
        drop(sender);
        let asked = Instant::now();
        waypoint.terminate();
        let status = tokio::time::timeout(SOON, waypoint.until_exited()).await.unwrap();
        assert!(
            status.success() && asked.elapsed() < Duration::from_secs(10),
            "{status} {:?}",
            asked.elapsed()
        );
        assert!(collector.spans().is_empty());
    });
}

#[test]
fn a_collector_that_is_away_is_counted_and_what_waits_at_the_end_is_brought_out() {
    world(async |world| {
        let _app = world.web().await;
        let away = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.77:4317"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "50"),
            ("OTEL_BSP_SCHEDULE_DELAY", "10"),
        ];
        let waypoint = world.start_with(&away).await;
        assert_eq!(world.tunnel().await.get(WEB, "/").await.status, 200);
        waypoint.until_counted("ambit_otlp_items_total", &["outcome=\"failed\""], 2).await;
        waypoint.line(&["The collector does not take them"]).await;
        drop(waypoint);
        let collector = TestCollector::start().await;
        let mut waypoint = start(&world, &collector, &[("OTEL_BSP_SCHEDULE_DELAY", "3600000")]).await;
        assert_eq!(world.tunnel().await.get(WEB, "/").await.status, 200);
        waypoint.terminate();
        assert!(tokio::time::timeout(SOON, waypoint.until_exited()).await.unwrap().success());
        assert_eq!(collector.spans().len(), 2);
    });
}

#[test]
fn without_a_collector_what_the_caller_says_passes_untouched() {
    world(async |world| {
        let app = world.web().await;
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let malformed = ("b3", "as it is".to_owned());
        tunnel.ask(WEB, traced("/", &[parent("01"), malformed])).await;
        let heard = app.last();
        assert_eq!(heard.header("traceparent"), Some(parent("01").1.as_str()));
        assert_eq!(heard.header("b3"), Some("as it is"));
        tunnel.get(WEB, "/").await;
        assert_eq!(app.last().header("traceparent"), None);
        assert!(!waypoint.line(&["request complete"]).await.contains("trace.id"));
    });
}

#[test]
fn the_access_log_is_sent_as_records_of_its_trace() {
    world(async |world| {
        let _app = world.web().await;
        let collector = TestCollector::start().await;
        let waypoint = start(&world, &collector, &[("OTEL_LOGS_EXPORTER", "otlp")]).await;
        world.tunnel().await.ask(WEB, traced("/a", &[parent("01")])).await;
        let record = until("a record", async || collector.records().pop()).await;
        assert_eq!(
            (record.body.as_str(), record.severity.as_str(), record.trace.as_str()),
            ("request complete", "INFO", TRACE)
        );
        assert_eq!((record.attributes["path"].as_str(), record.attributes["status"].as_str()), ("/a", "200"));
        waypoint.line(&["request complete", "status=200"]).await;
        waypoint.until_counted("ambit_otlp_items_total", &["signal=\"logs\"", "outcome=\"sent\""], 1).await;
    });
}

#[test]
fn the_access_log_is_as_its_template_and_nobody_forges_a_line() {
    world(async |world| {
        let _app = world.web().await;
        let template = "T \"%REQ(:METHOD)% %REQ(:PATH)%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \"%REQ(USER-AGENT)%\" \
            %UPSTREAM_HOST% %RESP(X-APP)% %TRACE_ID% %DOWNSTREAM_PEER_URI_SAN%\n";
        let waypoint = world.start_with(&[("AMBIT_ACCESS_LOG_FORMAT", template)]).await;
        let agent = ("user-agent", "a\" 200\tb".to_owned());
        world.tunnel().await.ask(WEB, traced("/x?y=1", &[parent("00"), agent])).await;
        let line = waypoint.line(&["T \"GET"]).await;
        assert_eq!(
            line,
            format!(
                "T \"GET /x?y=1\" 200 - \"a\\\" 200\\u0009b\" 127.0.0.2:8080 127.0.0.2:8080 {TRACE} \
                 spiffe://cluster.local/ns/shop/sa/client"
            )
        );
        assert!(!waypoint.said().contains("request complete"));
    });
}

#[test]
fn a_setting_that_makes_no_sense_stops_the_waypoint_and_is_named() {
    world(async |world| {
        for (name, value, said) in [
            ("AMBIT_ACCESS_LOG_FORMAT", "%UPSTREAM_HOTS%", "%UPSTREAM_HOTS% is no operator"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5", "a number from 0 to 1"),
        ] {
            let mut waypoint = world.spawn_with(&[(name, value)]);
            let status = tokio::time::timeout(SOON, waypoint.until_exited()).await.unwrap();
            let log = waypoint.said();
            assert!(!status.success() && log.contains(name) && log.contains(said), "{log}");
        }
    });
}
