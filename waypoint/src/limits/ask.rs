//! Asks a limit service: one gRPC call over the connections that requests take, to an endpoint of its service.

use std::net::SocketAddr;

use ambit_model::{
    limit::GlobalLimit,
    route::{Destination, Timeout},
    snapshot::Snapshot,
};
use ambit_wire::limiter::{self, Answer};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::{Instant, timeout_at};

use super::UNDERWAY;
use crate::{
    body::Source,
    plan::goal,
    upstream::{
        Upstream,
        attempt::{Answered, Sending},
        choose::Goal,
        destinations::Terms,
        endpoints::Affinity,
        pool::Version,
    },
};

/// How large an answer may be: a status for each of some descriptors, and a few headers.
const LARGEST: usize = 64 * 1024;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What the service of `limit` says about `descriptors`, or why it says nothing. `asked` is an address of the family
/// that is preferred.
pub(super) async fn ask(
    upstream: &Upstream,
    mesh: &Snapshot,
    limit: &GlobalLimit,
    descriptors: &[Vec<(&str, String)>],
    asked: SocketAddr,
) -> Result<Answer, String> {
    let (service, port) = match limit.to() {
        Destination::Service { service, port, .. } => (service, *port),
        Destination::Invalid { reason } => return Err(format!("the limit service is not known: {reason}")),
    };
    let goal = goal(mesh, service, port, Terms::default()).map_err(|refusal| refusal.to_string())?;
    let full = |_| format!("too many questions under way: the limit is {UNDERWAY}");
    let _place = upstream.shared().limits.underway.try_acquire().map_err(full)?;
    let deadline = Instant::now() + limit.timeout();
    let question = limiter::encode_question(limit.domain(), descriptors);
    let head = head(limit, service.hostname.as_str(), port)?;
    let exchange = exchange(upstream, mesh, goal, asked, head, question, deadline);
    match timeout_at(deadline, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {:?}", limit.timeout())),
    }
}

fn head(limit: &GlobalLimit, host: &str, port: u16) -> Result<Parts, String> {
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = format!("{host}:{port}").parse().ok();
    uri.path_and_query = Some(PathAndQuery::from_static(limiter::PATH));
    let uri = Uri::from_parts(uri).map_err(|error| error.to_string())?;
    let (mut head, ()) = Request::new(()).into_parts();
    (head.method, head.uri) = (Method::POST, uri);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let patience = HeaderValue::try_from(format!("{}m", limit.timeout().as_millis()));
    head.headers.extend(patience.ok().map(|patience| (GRPC_TIMEOUT, patience)));
    Ok(head)
}

async fn exchange(
    upstream: &Upstream,
    mesh: &Snapshot,
    goal: Goal,
    asked: SocketAddr,
    head: Parts,
    question: Bytes,
    deadline: Instant,
) -> Result<Answer, String> {
    let sending = Sending {
        goal,
        asked,
        affinity: Affinity::default(),
        head,
        body: Source::Whole(question),
        version: Version::Http2,
        switch: None,
        hearing: None,
        retry: None,
        attempt: Timeout::Default,
        deadline: Some(deadline),
    };
    let sent = upstream.send(mesh, sending, &mut ()).await;
    let Answered { response, lease, .. } = sent.map_err(|refusal| refusal.to_string())?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("answered {}", head.status));
    }
    let body = Limited::new(body, LARGEST).collect().await.map_err(|error| format!("broke off: {error}"))?;
    lease.give_back();
    // An answer without a body has its status in its head.
    let status = |headers: &HeaderMap| headers.get(&GRPC_STATUS).cloned();
    let status = body.trailers().and_then(status).or_else(|| status(&head.headers));
    match status {
        Some(status) if status.as_bytes() == b"0" => {}
        Some(status) => return Err(format!("answered with gRPC status {status:?}")),
        None => return Err("answered without a gRPC status".to_owned()),
    }
    limiter::decode_answer(&body.to_bytes()).map_err(|error| format!("its answer {error}"))
}
