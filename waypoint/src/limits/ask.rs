//! Asks a limit service: one gRPC call over the connections that requests take, to an endpoint of its service.

use std::net::SocketAddr;

use ambit_model::{limit::GlobalLimit, route::Destination, snapshot::Snapshot};
use ambit_wire::{
    limiter::{self, Answer, LARGEST_ANSWER},
    unary::Sent,
};
use tokio::time::Instant;

use super::UNDERWAY;
use crate::{
    plan::goal,
    upstream::{
        Upstream,
        destinations::Terms,
        exchange::{Exchange, origin},
    },
};

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
    let origin = origin(service.hostname.as_str(), port).map_err(|error| error.to_string())?;
    let full = |_| format!("too many questions under way: the limit is {UNDERWAY}");
    let _place = upstream.shared().limits.underway.try_acquire().map_err(full)?;
    let patience = limit.timeout();
    let until = Instant::now() + patience;
    let exchange = Exchange { mesh, goal, asked, patience, until, largest: LARGEST_ANSWER };
    let send = |question| -> Sent<'_> { upstream.call(&exchange, question) };
    let answer = limiter::ask(limit.domain(), descriptors, origin, patience, &send).await;
    answer.map_err(|error| error.to_string())
}
