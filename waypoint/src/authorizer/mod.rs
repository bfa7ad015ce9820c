//! External authorizers: whom CUSTOM policies ask before anything else is judged, and whom a rule of a route asks
//! after all policies.
//!
//! | an authorizer | the request |
//! |---|---|
//! | allows | goes on, changed as it says; routes and other policies see it so |
//! | denies | is answered as it says |
//! | does not answer in time, or with what is no answer | is denied with the provider's `statusOnError`, or 500 if a route asks; goes on if it has `failOpen` |
//!
//! A worker has [`UNDERWAY`] checks under way at a time, of which [`SHOWING`] show a body. What comes beyond is turned away,
//! `failOpen` or not: who can make us busy must not get past a policy by it.

mod grpc;
mod http;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::http::{HeaderMap, Uri, Version as Spoken, request::Parts};
use ambit_model::{
    authz::{self, Answer, Ask, Authorizer, CheckProtocol, HeaderChange, InvalidAnswer, Longer, OnFailure},
    name::{Label, PolicyKey},
    route::{Chosen, ExternalAuth},
    snapshot::Snapshot,
};
use ambit_wire::ext_authz::{CheckError, LARGEST_ANSWER, Shown};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::{
    accept::arrival::Client,
    body::{Beginning, Streamed},
    metrics::CheckOutcome,
    plan::{Target, route_name},
    refusal::Refusal,
    shared::Shared,
    upstream::{
        Upstream,
        choose::Goal,
        destinations::Terms,
        exchange::{Exchange, Unanswered, origin},
    },
};

/// How many checks are under way at a time, for one worker: an authorizer that is slow must not hold more and more
/// requests.
const UNDERWAY: usize = 1024;
/// How many of them show a body, which is held meanwhile: with bodies of 1 MiB, the longest, these are 64 MiB.
const SHOWING: usize = 64;
/// How long a client may take to send what is shown of its body.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks authorizers, for one worker.
#[derive(Debug)]
pub struct Authorizers {
    upstream: Arc<Upstream>,
    underway: Semaphore,
    showing: Semaphore,
}

/// A request about which somebody is asked. Its head is changed by whoever allows it.
#[derive(Debug)]
pub struct Question<'a> {
    /// Who sends it.
    pub client: &'a Client,
    /// For what it is meant.
    pub target: &'a Target,
    /// The address that it asks for.
    pub address: SocketAddr,
    /// In which version it came.
    pub spoken: Spoken,
    /// Its head.
    pub head: &'a mut Parts,
    /// Its body, of which a beginning may be read ahead.
    pub body: &'a mut Streamed,
}

/// Whom the rule wants asked that was `chosen` for a request, if it wants anybody. Pure.
///
/// # Errors
/// It names somebody who cannot be asked.
pub fn asked_by(chosen: &Chosen<'_>, head: &Parts) -> Result<Option<Ask>, Refusal> {
    let route = &chosen.origin.key;
    match chosen.rule.filters.asks(head) {
        None => Ok(None),
        Some(ExternalAuth::Nobody { reason }) => {
            let (route, reason) = (route_name(chosen), reason.to_string());
            Err(Refusal::UnknownAuthorizer { route, reason })
        }
        Some(ExternalAuth::Asks(authorizer)) => {
            let parts = authorizer.parts();
            Ok(Some(Ask {
                provider: format!("{}:{}", parts.hostname, parts.port).into(),
                authorizer: Some(authorizer.clone()),
                policy: PolicyKey::new(route.namespace(), route.name()),
            }))
        }
    }
}

/// Who was asked about one request, and let it go on. Only asking adds to it.
#[derive(Debug, Default)]
pub struct Heard {
    providers: Vec<Label>,
    response: Vec<HeaderChange>,
}

impl Heard {
    /// Whether `provider` was asked, and lets the request go on.
    pub fn lets(&self, provider: &Label) -> bool {
        self.providers.contains(provider)
    }

    /// Does to the head of a response what authorizers say.
    pub fn respond(&self, headers: &mut HeaderMap) {
        authz::change(headers, &self.response);
    }
}

/// Why nobody knows whether a request may be.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the mesh has no service {0}")]
    NoService(String),
    #[error("{0} is no host")]
    NoHost(String),
    #[error("the question cannot be written: {0}")]
    Unwritable(#[from] ::http::Error),
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    #[error(transparent)]
    Answer(#[from] InvalidAnswer),
    #[error(transparent)]
    Check(#[from] CheckError),
}

/// What a check needs beside the question.
struct Asking<'a> {
    authorizer: &'a Authorizer,
    exchange: Exchange<'a>,
    /// `hostname:port`.
    origin: Uri,
    shown: Option<Beginning>,
}

impl Authorizers {
    /// Asks through `upstream`.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self { upstream, underway: Semaphore::new(UNDERWAY), showing: Semaphore::new(SHOWING) }
    }

    /// Asks about a request, which has the answer's headers afterwards, and enters into `heard` that it may go on.
    ///
    /// # Errors
    /// It may not: it is denied, or nobody knows whether it may be.
    pub async fn ask(
        &self,
        mesh: &Snapshot,
        ask: &Ask,
        question: Question<'_>,
        heard: &mut Heard,
    ) -> Result<(), Refusal> {
        let names = || (ask.provider.to_string(), ask.policy.to_string());
        let Some(authorizer) = ask.authorizer.as_deref() else {
            let (provider, policy) = names();
            return Err(Refusal::NoAuthorizer { provider, policy });
        };
        // Held until it is answered.
        let (shown, _showing) = self.beginning(authorizer, question.body).await?;
        let _place = place(&self.underway, "checks under way", UNDERWAY)?;
        let began = Instant::now();
        let answer = self.check(mesh, authorizer, &question, shown).await;
        let metrics = &self.shared().metrics;
        let (outcome, result) = match (answer, authorizer.parts().on_failure) {
            (Ok(Answer::Allowed(changes)), _) => {
                authz::change(&mut question.head.headers, &changes.request);
                heard.providers.push(ask.provider.clone());
                heard.response.extend(changes.response);
                (CheckOutcome::Allowed, Ok(()))
            }
            (Ok(Answer::Denied(denial)), _) => {
                let (provider, policy) = names();
                let denied = Refusal::DeniedByAuthorizer { provider, policy, denial: Box::new(denial) };
                (CheckOutcome::Denied, Err(denied))
            }
            (Err(failure), OnFailure::Allow) => {
                tracing::warn!(provider = %ask.provider, policy = %ask.policy, error = %failure, "Nobody knows whether a request may be; it goes on, as failOpen says");
                heard.providers.push(ask.provider.clone());
                (CheckOutcome::FailedOpen, Ok(()))
            }
            (Err(failure), OnFailure::Deny(status)) => {
                let (provider, policy) = names();
                let reason = failure.to_string();
                (CheckOutcome::Failed, Err(Refusal::AuthorizerFailed { provider, policy, reason, status }))
            }
        };
        metrics.checks.ended(outcome, began.elapsed());
        result
    }

    fn shared(&self) -> &Arc<Shared> {
        self.upstream.shared()
    }

    /// What is shown of a body, and the place that it takes.
    async fn beginning(
        &self,
        authorizer: &Authorizer,
        body: &mut Streamed,
    ) -> Result<(Option<Beginning>, Option<SemaphorePermit<'_>>), Refusal> {
        let Some(shared) = authorizer.parts().body else { return Ok((None, None)) };
        let too_long = || Err(Refusal::BodyTooLong(shared.limit));
        if shared.longer == Longer::Refused && body.least() > shared.limit.into() {
            return too_long();
        }
        if body.is_at_end() {
            return Ok((Some(Beginning { is_whole: true, ..Beginning::default() }), None));
        }
        let place = place(&self.showing, "bodies shown to authorizers", SHOWING)?;
        let most = usize::try_from(shared.limit).unwrap_or(usize::MAX);
        let read = timeout_at(Instant::now() + PATIENCE, body.beginning(most)).await;
        let late =
            || Refusal::ClientBody(format!("what an authorizer is shown did not come within {PATIENCE:?}"));
        let beginning = read.map_err(|_| late())?.map_err(|error| Refusal::ClientBody(error.to_string()))?;
        match (beginning.is_whole, shared.longer) {
            (false, Longer::Refused) => too_long(),
            (true, _) | (false, Longer::Cut) => Ok((Some(beginning), Some(place))),
        }
    }

    async fn check(
        &self,
        mesh: &Snapshot,
        authorizer: &Authorizer,
        question: &Question<'_>,
        shown: Option<Beginning>,
    ) -> Result<Answer, Failure> {
        let parts = authorizer.parts();
        let (patience, until) = (parts.timeout, Instant::now() + parts.timeout);
        let service = authorizer.service(mesh.services_named(parts.hostname.as_str()));
        let service = service.ok_or_else(|| Failure::NoService(parts.hostname.to_string()))?.clone();
        let origin = origin(parts.hostname.as_str(), parts.port);
        let origin = origin.map_err(|_| Failure::NoHost(parts.hostname.to_string()))?;
        let goal = Goal::Service { service, port: parts.port, terms: Terms::default() };
        let asked = question.address;
        let exchange = Exchange { mesh, goal, asked, patience, until, largest: LARGEST_ANSWER };
        let asking = Asking { authorizer, exchange, origin, shown };
        match &parts.protocol {
            CheckProtocol::Grpc(grpc) => self.grpc(&asking, question, grpc, SystemTime::now()).await,
            CheckProtocol::Http(http) => self.http(&asking, question, http).await,
        }
    }
}

/// A place among few.
fn place<'s>(
    places: &'s Semaphore,
    what: &'static str,
    limit: usize,
) -> Result<SemaphorePermit<'s>, Refusal> {
    places.try_acquire().map_err(|_| Refusal::Overload { what, limit })
}

impl Beginning {
    fn shown(&self, form: authz::BodyForm) -> Shown<'_> {
        Shown { bytes: &self.bytes, form, is_whole: self.is_whole }
    }
}
