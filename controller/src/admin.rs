//! The pages for operators: health, metrics, and what the controller knows, sends and objects to.
//!
//! | page | |
//! |---|---|
//! | `/healthz` `/readyz` | is it alive; does it know the mesh and serve it |
//! | `/metrics` | for Prometheus |
//! | `/debug/configz` | every published resource with its version; `?type=` and `?name=` narrow it |
//! | `/debug/syncz` | every subscriber: which node, since when, what was sent and acknowledged, the last NACK |
//! | `/debug/ca` | what signs, who is trusted, how a rotation stands |
//! | `/debug/token` | POST: signs a debug token for `?for=NAMESPACE/WAYPOINT`, `&life=10m`; on this machine alone |
//! | `/debug/objects` | how many objects there are, what is wrong with documents, conditions of objects |

use std::time::SystemTime;

use ambit_api::directory::Problem;
use ambit_runtime::{
    admin::{Address, Method, Pages, Request, Response},
    metrics::Metrics,
    ready::Ready,
    version,
};
use ambit_wire::xds::{Publisher, server::SubscriberState, server::TypeState};
use http::StatusCode;
use serde::Serialize;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::watch;

use crate::{
    ca::{Desk, debug_token::Wish},
    config::duration,
    engine::View,
    metrics::{objects_of, short},
    translate::status,
};

/// What the pages show.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What is published, and to whom.
    pub publisher: Publisher,
    /// The objects.
    pub cluster: View,
    /// What could not be read of them.
    pub problems: watch::Receiver<Vec<Problem>>,
    /// Whether the process is ready.
    pub ready: Ready,
    /// Who signs.
    pub desk: Desk,
    /// Where the pages are.
    pub at: Address,
}

/// All pages.
pub fn pages(shown: Shown, metrics: &Metrics) -> Pages {
    let pages = shown.ready.pages(metrics.pages(Pages::new("Ambit controller")));
    let pages = health_pages(pages, &shown.ready);
    let pages = pages.page(Method::GET, "/version", "which build this is", |_| {
        Response::text(format!("{}\n", version::line()))
    });
    let of = shown.clone();
    let pages = pages.page(
        Method::GET,
        "/debug/configz",
        "every published resource with its version; ?type=wds, ?type=wads, ?name=…",
        move |request| document(&configuration(&of.publisher, request.query("type"), request.query("name"))),
    );
    let of = shown.clone();
    let pages = pages.page(
        Method::GET,
        "/debug/syncz",
        "every subscriber: node, since when, what was sent and acknowledged, last NACK",
        move |_| document(&subscribers(&of.publisher, SystemTime::now())),
    );
    let desk = shown.desk.clone();
    let pages = pages.page(
        Method::GET,
        "/debug/ca",
        "what signs, which roots are trusted, how a rotation stands",
        move |_| document(&desk.page(SystemTime::now())),
    );
    let of = shown.clone();
    let pages = pages.slow_page(
        Method::POST,
        "/debug/token",
        "signs a debug token; ?for=NAMESPACE or ?for=NAMESPACE/WAYPOINT, &life=10m",
        move |request| token(of.clone(), request),
    );
    pages.page(
        Method::GET,
        "/debug/objects",
        "how many objects there are, what is wrong with documents, conditions of objects",
        move |_| document(&objects(&shown)),
    )
}

/// Whether it lives, and whether it is ready: all that a kubelet needs to know.
pub fn health_pages(pages: Pages, ready: &Ready) -> Pages {
    let pages =
        pages.page(Method::GET, "/healthz", "200 while the process lives", |_| Response::text("ok\n"));
    ["/readyz", "/ready"].into_iter().fold(pages, |pages, path| {
        let ready = ready.clone();
        pages.page(Method::GET, path, "200 when ready, else 503 and what is pending", move |_| {
            readiness(&ready)
        })
    })
}

fn readiness(ready: &Ready) -> Response {
    match ready.pending().as_slice() {
        [] => Response::text("ready\n"),
        pending => Response::text(format!("not ready, pending: {}\n", pending.join(", ")))
            .with_status(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// Signs a debug token. Nobody is asked who he is here, so it must take a right to get here: to this machine, or to
/// forward a port to this pod.
async fn token(shown: Shown, request: Request) -> Response {
    let no = |status, why: String| Response::text(format!("{why}\n")).with_status(status);
    let is_local = match &shown.at {
        Address::Tcp(address) => address.ip().is_loopback(),
        Address::Unix(_) => true,
    };
    if !is_local {
        let why = "these pages are for the whole network, debug tokens are not; bind them to localhost or to a socket, by --admin";
        return no(StatusCode::FORBIDDEN, why.to_owned());
    }
    // Browsers tell the origin of whatever posts; a page that has taken the name of this machine could read the answer.
    if request.header("origin").is_some() || request.header("sec-fetch-site").is_some() {
        return no(
            StatusCode::FORBIDDEN,
            "debug tokens are not for browsers; ask with ambit waypoint token".to_owned(),
        );
    }
    let life = match request.query("life").map(|life| duration(&life)).transpose() {
        Ok(life) => life,
        Err(why) => return no(StatusCode::BAD_REQUEST, why),
    };
    let audience = request.query("for").unwrap_or_default();
    let wish = match Wish::parse(&shown.cluster.read(), &audience, life) {
        Ok(wish) => wish,
        Err(why) => return no(StatusCode::BAD_REQUEST, why.to_string()),
    };
    match shown.desk.debug_token(&wish).await {
        Ok(token) => Response::text(format!("{token}\n")),
        Err(why) => no(StatusCode::SERVICE_UNAVAILABLE, why.to_string()),
    }
}

fn configuration(
    publisher: &Publisher,
    kind: Option<String>,
    name: Option<String>,
) -> Vec<serde_json::Value> {
    let wanted = |url: &str, of: &str| {
        kind.as_ref().is_none_or(|kind| kind == url || *kind == short(url))
            && name.as_ref().is_none_or(|name| name == of)
    };
    let listing = publisher.listing().into_iter().filter(|one| wanted(&one.type_url, &one.name));
    listing
        .map(|one| {
            json!({
                "type": short(&one.type_url),
                "name": one.name,
                "version": one.version,
                "aliases": one.aliases,
                "bytes": one.bytes,
                "change": one.change,
            })
        })
        .collect()
}

/// One subscriber, as `ambit status` reads it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Subscriber {
    node_id: String,
    node: String,
    caller: String,
    address: Option<String>,
    connected_since: String,
    connected_seconds: u64,
    /// Every type is sent and acknowledged.
    synced: bool,
    types: Vec<Type>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Type {
    #[serde(rename = "type")]
    kind: String,
    type_url: String,
    wildcard: bool,
    synced: bool,
    /// Numbers of changes: up to which was sent, acknowledged, and what the latest is.
    sent: u64,
    acked: u64,
    latest: u64,
    /// Since when a response waits for its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_answer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_nack: Option<Nack>,
}

#[derive(Debug, Serialize)]
struct Nack {
    at: String,
    message: String,
}

fn subscribers(publisher: &Publisher, now: SystemTime) -> Vec<Subscriber> {
    publisher.subscribers().into_iter().map(|state| subscriber(state, now)).collect()
}

fn subscriber(state: SubscriberState, now: SystemTime) -> Subscriber {
    Subscriber {
        node_id: state.node_id,
        node: state.node_name,
        caller: state.caller,
        address: state.peer.map(|peer| peer.to_string()),
        connected_since: written(state.since),
        connected_seconds: now.duration_since(state.since).unwrap_or_default().as_secs(),
        synced: !state.types.is_empty() && state.types.iter().all(|one| one.progress.synced),
        types: state.types.into_iter().map(progress).collect(),
    }
}

fn progress(state: TypeState) -> Type {
    let TypeState { progress, waiting_since, last_answer, last_nack } = state;
    Type {
        kind: short(&progress.type_url),
        wildcard: progress.wildcard,
        synced: progress.synced,
        sent: progress.sent,
        acked: progress.acked,
        latest: progress.latest,
        waiting_since: waiting_since.map(written),
        last_answer: last_answer.map(written),
        last_nack: last_nack.map(|(at, message)| Nack { at: written(at), message }),
        type_url: progress.type_url,
    }
}

fn objects(shown: &Shown) -> serde_json::Value {
    let problems: Vec<_> = shown
        .problems
        .borrow()
        .iter()
        .map(|problem| {
            json!({
                "file": problem.file.display().to_string(),
                "line": problem.line,
                "object": problem.key.as_ref().map(ToString::to_string),
                "field": problem.field,
                "problem": problem.what,
                "remedy": problem.remedy,
            })
        })
        .collect();
    let cluster = shown.cluster.read();
    let counts: serde_json::Map<_, _> =
        objects_of(&cluster).into_iter().map(|(kind, count)| (kind.to_owned(), json!(count))).collect();
    let conditions: Vec<_> = status::all(&cluster)
        .into_iter()
        .map(|(key, conditions)| {
            json!({
                "kind": key.kind.word(),
                "namespace": key.name.namespace.as_str(),
                "name": key.name.name.as_str(),
                "conditions": conditions,
            })
        })
        .collect();
    json!({ "counts": counts, "problems": problems, "conditions": conditions })
}

fn document(content: &impl Serialize) -> Response {
    match serde_json::to_vec_pretty(content) {
        Ok(json) => Response::json(json),
        Err(error) => Response::text(format!("{error}\n")).with_status(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn written(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}
