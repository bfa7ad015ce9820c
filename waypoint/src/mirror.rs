//! Copies of requests (HTTPRequestMirrorFilter). Nobody reads their responses, and nobody waits for them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ambit_model::{
    route::{Destination, Filters, Timeout},
    snapshot::Snapshot,
};
use ambit_runtime::task;
use http::{Version as Spoken, header, request::Parts};
use http_body_util::BodyExt as _;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    body::Copied,
    plan::{goal, version},
    shared::dice,
    upstream::{Upstream, attempt::Sending, choose::Goal},
};

/// How many copies are under way at a time. A destination that is slower than the one that it shadows must not hold
/// more and more of them.
const UNDERWAY: usize = 256;
/// How long a copy may take, response and all.
const LIMIT: Duration = Duration::from_secs(15);

/// Sends copies, for one worker.
#[derive(Debug)]
pub struct Mirrors {
    upstream: Arc<Upstream>,
    places: Arc<Semaphore>,
}

impl Mirrors {
    /// Sends through `upstream`.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self { upstream, places: Arc::new(Semaphore::new(UNDERWAY)) }
    }

    /// Who gets a copy of one request. A destination that is invalid, or has no endpoint, gets none.
    pub fn draw<'f>(&self, mesh: &Snapshot, filters: impl Iterator<Item = &'f Filters>) -> Vec<Goal> {
        let mut copies = Vec::new();
        for filters in filters {
            let mut dice = dice();
            for mirror in filters.mirrors(&mut dice) {
                match &mirror.to {
                    Destination::Service { service, port } => copies.extend(goal(mesh, service, *port).ok()),
                    Destination::Invalid { .. } => {}
                }
            }
        }
        copies
    }

    /// Sends copies. What is longer than what is kept of a body cannot be copied any more.
    pub fn send(&self, to: Vec<Goal>, head: &Parts, body: &Copied, spoken: Spoken, asked: SocketAddr) {
        let metrics = &self.upstream.shared().metrics;
        for goal in to {
            let place = self.places.clone().try_acquire_owned();
            let (Ok(place), Some(body)) = (place, body.whole()) else {
                metrics.mirrors_skipped.inc();
                continue;
            };
            metrics.mirrored.inc();
            let mut head = head.clone();
            // Its length is told anew.
            head.headers.remove(header::CONTENT_LENGTH);
            let sending = Sending {
                version: version(&goal, spoken, &head),
                goal,
                asked,
                head,
                body,
                upgrade: None,
                retry: None,
                attempt: Timeout::Default,
                deadline: None,
            };
            let upstream = self.upstream.clone();
            task::spawn("mirror", async move {
                // Whatever comes of it is nobody's concern but the endpoint's.
                let _ = timeout(LIMIT, exchange(&upstream, sending)).await;
                drop(place);
            });
        }
    }
}

async fn exchange(upstream: &Upstream, sending: Sending<'_>) {
    let mesh = upstream.shared().mesh.current();
    let Ok(answered) = upstream.send(&mesh, sending, &mut ()).await else { return };
    let mut body = answered.response.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    answered.lease.give_back();
}
