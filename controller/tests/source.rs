//! Objects from an API server that pages, cuts, expires, refuses and forgets kinds: what is told is what changed, once.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests: whatever fails in them fails the test"
)]

#[expect(dead_code, reason = "a double that other tests ask more of")]
#[path = "secrets/api.rs"]
mod api;

use std::time::Duration;

use ambit_controller::source::{Event, kubernetes};
use http::Method;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::api::Api;

const SECURITY: &str = "security.istio.io";
const POLICIES: &str = "authorizationpolicies";
/// Of virtual time: longer than any wait of the source.
const AGES: Duration = Duration::from_secs(300);

/// A source that runs.
struct Source {
    api: Api,
    events: mpsc::Receiver<Event>,
    counts: kubernetes::Counts,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Source {
    fn start(api: Api) -> Self {
        let (tell, events) = mpsc::channel(1000);
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move { drop(stopped.await) };
        let counts = kubernetes::Counts::default();
        let run = kubernetes::run(api.client(), tell, watch::Sender::default(), counts.clone(), stopped);
        #[expect(clippy::disallowed_methods, reason = "a test that ends its own task")]
        let task = tokio::spawn(run);
        Self { api, events, counts, stop, task }
    }

    async fn next(&mut self) -> String {
        match timeout(AGES, self.events.recv()).await.expect("something is told").expect("it runs") {
            Event::Upsert(object) => format!("+{}", object.key().name),
            Event::Delete(key) => format!("-{}", key.name),
            Event::Synced => "synced".to_owned(),
        }
    }

    /// All that is told until everything is known, in order of names.
    async fn until_synced(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            match self.next().await {
                word if word == "synced" => break,
                word => told.push(word),
            }
        }
        told.sort();
        told
    }

    async fn silence(&mut self, length: Duration) {
        if let Ok(told) = timeout(length, self.events.recv()).await {
            panic!("told for nothing: {told:?}");
        }
    }

    async fn end(self) {
        drop(self.stop);
        timeout(AGES, self.task).await.expect("it ends").expect("without a panic");
    }
}

fn policy(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"action": "DENY", "rules": [{}]}})
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"nodeName": "n1", "containers": []}, "status": {"podIP": ip}
    })
}

fn town() -> Api {
    let api = Api::new();
    api.put("namespaces", "", json!({"metadata": {"name": "shop", "labels": {"a": "b"}}}));
    api.put("pods", "shop", pod("web", "10.0.0.1"));
    api.put(POLICIES, "shop", policy("deny"));
    api
}

const TOWN: [&str; 3] = ["+shop", "+shop/deny", "+shop/web"];

#[tokio::test(start_paused = true)]
async fn everything_is_told_once_and_then_what_changes() {
    let mut source = Source::start(town());
    assert_eq!(source.until_synced().await, TOWN);
    source.api.put("pods", "shop", pod("web", "10.0.0.2"));
    assert_eq!(source.next().await, "+shop/web");
    source.api.put("pods", "shop", pod("web", "10.0.0.2"));
    source.api.remove(POLICIES, "shop", "deny");
    assert_eq!(source.next().await, "-shop/deny");
    source.silence(AGES).await;
    source.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_too_old_is_begun_anew_whichever_way_that_is_told() {
    let mut source = Source::start(town());
    assert_eq!(source.until_synced().await, TOWN);
    // In turns as the answer to the request and as an event.
    for round in 0..4 {
        source.api.cut();
        let name = format!("new-{round}");
        source.api.put(POLICIES, "shop", policy(&name));
        assert_eq!(source.next().await, format!("+shop/{name}"));
        source.silence(AGES).await;
    }
    source.end().await;
}

#[tokio::test(start_paused = true)]
async fn refusals_are_waited_out_and_nothing_is_lost() {
    let api = town();
    for code in [500, 429, 503, 403] {
        api.fail(Method::GET, "/pods", code, 2);
        api.fail(Method::GET, POLICIES, code, 2);
    }
    let mut source = Source::start(api);
    assert_eq!(source.until_synced().await, TOWN);
    source.api.fail(Method::GET, POLICIES, 500, 5);
    source.api.cut();
    source.api.put(POLICIES, "shop", policy("late"));
    source.silence(Duration::from_secs(1)).await;
    assert_eq!(source.counts.ill(), 1, "an outage is seen");
    assert_eq!(source.next().await, "+shop/late");
    source.silence(AGES).await;
    assert_eq!(source.counts.ill(), 0);
    source.end().await;
}

#[tokio::test(start_paused = true)]
async fn policies_outlive_a_definition_that_is_missing_for_a_moment() {
    let mut source = Source::start(town());
    assert_eq!(source.until_synced().await, TOWN);
    source.api.serve_group(SECURITY, false);
    source.silence(Duration::from_secs(40)).await;
    source.api.serve_group(SECURITY, true);
    source.silence(AGES).await;
    // One that is gone for good takes its objects with it.
    source.api.serve_group(SECURITY, false);
    assert_eq!(source.next().await, "-shop/deny");
    source.api.serve_group(SECURITY, true);
    assert_eq!(source.next().await, "+shop/deny");
    source.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_was_never_there_holds_nothing_up() {
    let api = town();
    api.serve_group(SECURITY, false);
    let mut source = Source::start(api);
    assert_eq!(source.until_synced().await, ["+shop", "+shop/web"]);
    source.api.serve_group(SECURITY, true);
    assert_eq!(source.next().await, "+shop/deny");
    source.end().await;
}
