//! One question to a service that helps to decide about a request, and its whole answer: authorizers and limit services are
//! asked so, over the connections that requests take.

use std::{net::SocketAddr, time::Duration};

use ambit_model::{route::Timeout, snapshot::Snapshot};
use ambit_wire::unary::{SendError, Sent};
use bytes::Bytes;
use http::{Request, Response, Uri, uri::InvalidUri};
use http_body_util::{BodyExt as _, Collected, Limited};
use tokio::time::{Instant, timeout_at};

use super::{
    Upstream,
    attempt::{Answered, Sending},
    choose::Goal,
    endpoints::Affinity,
    pool::Version,
};
use crate::{body::Source, refusal::Refusal};

/// Whom to ask, and how long it may take and be.
#[derive(Debug)]
pub struct Exchange<'m> {
    /// The mesh.
    pub mesh: &'m Snapshot,
    /// Who.
    pub goal: Goal,
    /// The address that the request asks for, whose family is preferred.
    pub asked: SocketAddr,
    /// For the question and the last byte of its answer.
    pub patience: Duration,
    /// When that is over.
    pub until: Instant,
    /// How long the body of the answer may be, in bytes.
    pub largest: usize,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// There is no time left.
    #[error("no complete answer within {0:?}")]
    TimedOut(Duration),
    /// What came was not all, or more than may be.
    #[error("the answer broke off, or is too long: {0}")]
    Broke(String),
    /// It could not be sent.
    #[error(transparent)]
    Upstream(#[from] Refusal),
}

/// The authority of a service, as gRPC clients want it: `http://hostname:port`.
pub fn origin(hostname: &str, port: u16) -> Result<Uri, InvalidUri> {
    format!("http://{hostname}:{port}").parse()
}

impl Upstream {
    /// Sends a question and reads all of its answer. It is sent once.
    pub async fn inquire(
        &self,
        exchange: &Exchange<'_>,
        version: Version,
        question: Request<Bytes>,
    ) -> Result<Response<Collected<Bytes>>, Unanswered> {
        let (head, body) = question.into_parts();
        let sending = Sending {
            goal: exchange.goal.clone(),
            asked: exchange.asked,
            affinity: Affinity::default(),
            head,
            body: Source::Whole(body),
            version,
            switch: None,
            hearing: None,
            retry: None,
            attempt: Timeout::Default,
            deadline: Some(exchange.until),
        };
        let late = || Unanswered::TimedOut(exchange.patience);
        let sent = self.send(exchange.mesh, sending, &mut ()).await;
        let Answered { response, lease, underway, .. } =
            sent.map_err(
                |refusal| {
                    if matches!(refusal, Refusal::TimedOut(_)) { late() } else { refusal.into() }
                },
            )?;
        let (head, body) = response.into_parts();
        let collected = timeout_at(exchange.until, Limited::new(body, exchange.largest).collect()).await;
        let collected = collected.map_err(|_| late())?;
        let collected = collected.map_err(|error| Unanswered::Broke(error.to_string()))?;
        lease.give_back();
        drop(underway);
        Ok(Response::from_parts(head, collected))
    }

    /// The same for a client of gRPC.
    pub fn call<'s>(&'s self, exchange: &'s Exchange<'s>, question: Request<Bytes>) -> Sent<'s> {
        Box::pin(async move {
            let answer = self.inquire(exchange, Version::Http2, question).await;
            answer.map_err(|unanswered| SendError(unanswered.to_string()))
        })
    }
}
