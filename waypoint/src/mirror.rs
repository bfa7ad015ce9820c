//! Copies of requests (HTTPRequestMirrorFilter). Nobody reads their responses, and nobody waits for them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ambit_model::{
    route::{Destination, Filters, Timeout},
    service_config::ServiceConfig,
    snapshot::Snapshot,
    trace::Context,
    workload::Workload,
};
use ambit_runtime::task;
use http::{HeaderMap, Response, Version as Spoken, header, request::Parts};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    body::Copied,
    plan::{goal, version},
    refusal::Refusal,
    shared::dice,
    upstream::{
        Upstream,
        attempt::{Sending, Witness},
        choose::Goal,
        destinations::Terms,
        endpoints::Affinity,
    },
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
    pub fn draw<'f>(
        &self,
        mesh: &Snapshot,
        config: &ServiceConfig,
        filters: impl Iterator<Item = &'f Filters>,
    ) -> Vec<Goal> {
        let mut copies = Vec::new();
        for filters in filters {
            let mut dice = dice();
            for mirror in filters.mirrors(&mut dice) {
                match &mirror.to {
                    Destination::Service { service, port, subset } => {
                        let terms = Terms::find(config, service, *port, subset.as_ref());
                        copies.extend(terms.and_then(|terms| goal(mesh, service, *port, terms)).ok());
                    }
                    Destination::Invalid { .. } => {}
                }
            }
        }
        copies
    }

    /// Sends copies. What is longer than what is kept of a body cannot be copied any more.
    /// `within` is the span that they are sent in; nobody waits for what they do in it.
    pub fn send(
        &self,
        to: Vec<Goal>,
        head: &Parts,
        body: &Copied,
        spoken: Spoken,
        asked: SocketAddr,
        within: Option<Context>,
    ) {
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
                affinity: Affinity::default(),
                head,
                body,
                switch: None,
                hearing: None,
                retry: None,
                attempt: Timeout::Default,
                deadline: None,
            };
            let (upstream, within) = (self.upstream.clone(), Within(within.clone()));
            task::spawn("mirror", async move {
                // Whatever comes of it is nobody's concern but the endpoint's.
                let _ = timeout(LIMIT, exchange(&upstream, sending, within)).await;
                drop(place);
            });
        }
    }
}

/// The span that a copy is sent in.
struct Within(Option<Context>);

impl Witness for Within {
    fn attempt(&mut self, _: &Arc<Workload>, _: SocketAddr, _: u32) {}

    fn tell(&self, headers: &mut HeaderMap) {
        if let Some(context) = &self.0 {
            context.write(headers);
        }
    }

    fn answered(&mut self, _: Result<&Response<Incoming>, &Refusal>) {}
}

async fn exchange(upstream: &Upstream, sending: Sending<'_>, mut within: Within) {
    let mesh = upstream.shared().mesh.current();
    let Ok(answered) = upstream.send(&mesh, sending, &mut within).await else { return };
    let mut body = answered.response.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    answered.lease.give_back();
}
