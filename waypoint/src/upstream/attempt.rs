//! One request, sent until it is answered or may not be sent again.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use ambit_model::{
    name::Uid,
    route::{
        Timeout,
        retry::{self, Next},
    },
    snapshot::Snapshot,
    traffic::{Connections, FailureKind},
    workload::Workload,
};
use http::{HeaderMap, Request, Response, request::Parts};
use hyper::body::Incoming;
use tokio::time::timeout_at;

use super::{
    Upstream,
    choose::{Choice, Endpoint, Goal},
    destinations::{Destination, Place, What},
    endpoints::{Affinity, Standing, Underway},
    health::Outcome as Judged,
    judge::Verdict,
    pool::{Lease, Unanswered, Version},
    rest,
};
use crate::{body::Source, hygiene, interim::Hearing, refusal::Refusal, shared::dice, websocket::Switch};

/// How often a request is tried elsewhere of which nothing says how often: only if its endpoint could not be reached,
/// or refused to look at it.
const UNTOUCHED: u32 = 2;

/// A request, and all that is to be heeded when it is sent.
#[derive(Debug)]
pub struct Sending<'a> {
    /// Where it goes.
    pub goal: Goal,
    /// The address that was asked for; its family is preferred.
    pub asked: SocketAddr,
    /// What ties it to an endpoint.
    pub affinity: Affinity,
    /// Its head.
    pub head: Parts,
    /// Its body.
    pub body: Source,
    /// How it is spoken.
    pub version: Version,
    /// What its connection is to become.
    pub switch: Option<Switch>,
    /// Who hears what is said before the response.
    pub hearing: Option<Hearing>,
    /// When it is repeated.
    pub retry: Option<&'a retry::Policy>,
    /// How long one attempt may take to its response's head.
    pub attempt: Timeout,
    /// When all is over.
    pub deadline: Option<tokio::time::Instant>,
}

impl Sending<'_> {
    /// Who is asked for an endpoint.
    fn choice<'a>(&'a self, kept: Option<&'a Arc<Destination>>) -> Choice<'a> {
        Choice { goal: &self.goal, asked: self.asked, affinity: &self.affinity, kept }
    }

    /// How much is sent at once.
    fn connections(&self) -> Option<&Connections> {
        self.goal.terms()?.connections()
    }
}

/// An answered request.
#[derive(Debug)]
pub struct Answered {
    /// The response.
    pub response: Response<Incoming>,
    /// The connection that its body comes from.
    pub lease: Lease,
    /// Counts at the endpoint as long as it is held.
    pub underway: Underway,
    /// The endpoint.
    pub workload: Arc<Workload>,
}

/// How one attempt ended.
#[derive(Debug)]
struct Ended {
    outcome: retry::Outcome,
    /// What it says of the endpoint.
    verdict: Verdict,
    result: Result<Answered, Refusal>,
}

/// Whoever wants to know where a request was sent, and tells the endpoint of that.
pub trait Witness {
    /// It is sent to `workload` at `address`, after `repeated` others.
    fn attempt(&mut self, workload: &Arc<Workload>, address: SocketAddr, repeated: u32);

    /// Puts into the headers that are sent what the endpoint is to know of this attempt.
    fn tell(&self, headers: &mut HeaderMap);

    /// The attempt has ended with the head of a response, or without.
    fn answered(&mut self, outcome: Result<&Response<Incoming>, &Refusal>);

    /// From now on the endpoint gets less, or nothing.
    fn fell(&mut self, _: Standing) {}

    /// Whether there is another attempt.
    fn next(&mut self, _: Next) {}
}

/// Nobody: a question of our own, which is part of no trace.
impl Witness for () {
    fn attempt(&mut self, _: &Arc<Workload>, _: SocketAddr, _: u32) {}

    fn tell(&self, _: &mut HeaderMap) {}

    fn answered(&mut self, _: Result<&Response<Incoming>, &Refusal>) {}
}

impl Upstream {
    /// Sends a request, and again if it may be.
    pub async fn send(
        &self,
        mesh: &Snapshot,
        mut sending: Sending<'_>,
        witness: &mut impl Witness,
    ) -> Result<Answered, Refusal> {
        let mut tried: Vec<Uid> = Vec::new();
        let mut repeated = 0;
        let kept = self.kept(&sending.goal);
        // One place for all attempts: only one of them is under way at a time.
        let mut place = self.place(kept.as_ref(), &sending).await?;
        let mut repeating: Option<Place> = None;
        if let (Some(_), Some(service)) = (sending.retry, sending.goal.service()) {
            self.shared.budgets.of(&service.key()).hold().sent(self.shared.settings.started.elapsed());
        }
        loop {
            let chosen = self.choose(mesh, &sending.choice(kept.as_ref()), &tried)?;
            witness.attempt(&chosen.workload, chosen.hop.address(), repeated);
            let Ended { outcome, verdict, mut result } = self.once(&chosen, &mut sending, witness).await;
            let fell = self.judge(mesh, &sending.choice(kept.as_ref()), &chosen, &verdict);
            witness.answered(result.as_ref().map(|answered| &answered.response));
            if let Some(fell) = fell {
                witness.fell(fell);
            }
            if let Ok(answered) = &mut result {
                answered.underway.hold(place.take());
            }
            let next = self.next(&sending, outcome, repeated);
            witness.next(next);
            let wait = match next {
                Next::Repeat(wait) => wait,
                Next::Stop(_) => return result,
            };
            if let (Some(kept), Some(limits), None) = (&kept, sending.connections(), &repeating) {
                repeating = kept.repeat(limits);
                if repeating.is_none() {
                    witness.next(Next::Stop(retry::Stop::Budget));
                    return result;
                }
            }
            self.shared.metrics.retries.inc();
            place = result.as_mut().ok().and_then(|answered| answered.underway.yielded()).or(place);
            // A response that is not given back breaks off its connection with the lease.
            drop(result);
            tried.push(chosen.workload.uid.clone());
            repeated += 1;
            tokio::time::sleep(wait).await;
        }
    }

    /// A place at the service, as far as its places are counted.
    async fn place(
        &self,
        kept: Option<&Arc<Destination>>,
        sending: &Sending<'_>,
    ) -> Result<Option<Place>, Refusal> {
        let (Some(kept), Some(limits)) = (kept, sending.connections()) else { return Ok(None) };
        let until = sending.deadline.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
        let patience = until.unwrap_or(self.shared.settings.limits.idle);
        kept.enter(limits, What::Request(sending.version), patience).await
    }

    /// Whether there is a next attempt.
    fn next(&self, sending: &Sending<'_>, outcome: retry::Outcome, repeated: u32) -> Next {
        let body = if sending.body.can_be_sent() { retry::Body::Kept } else { retry::Body::GivenAway };
        let left =
            sending.deadline.map(|deadline| deadline.saturating_duration_since(tokio::time::Instant::now()));
        let attempt = retry::Attempt { repeated, method: &sending.head.method, body, left };
        match sending.retry {
            Some(policy) => {
                let now = self.shared.settings.started.elapsed();
                let budget = sending.goal.service().map(|service| self.shared.budgets.of(&service.key()));
                let mut budget = budget.as_ref().map(|budget| budget.hold());
                retry::next(policy, &attempt, outcome, budget.as_deref_mut(), now, &mut dice())
            }
            None => retry::untouched(&attempt, outcome, UNTOUCHED),
        }
    }

    /// One attempt.
    async fn once(&self, chosen: &Endpoint, sending: &mut Sending<'_>, witness: &impl Witness) -> Ended {
        let began = Instant::now();
        let underway = chosen.doing.begin();
        let limit = match sending.attempt {
            Timeout::After(limit) => Some(tokio::time::Instant::now() + limit),
            Timeout::Default | Timeout::Never => None,
        };
        let until = [limit, sending.deadline].into_iter().flatten().min();
        let attempt = self.exchange(chosen, sending, witness);
        let ended = match until {
            Some(until) => timeout_at(until, attempt)
                .await
                .unwrap_or_else(|_| (retry::Outcome::TimedOut, Err(Refusal::TimedOut(began.elapsed())))),
            None => attempt.await,
        };
        let (outcome, result) = ended;
        let response = result.as_ref().ok().map(|(response, _)| response);
        let rest = response.and_then(|response| rest::asked(response.status(), response.headers()));
        let verdict = Verdict { outcome: judged(outcome), rest, took: began.elapsed() };
        let workload = chosen.workload.clone();
        let result = result.map(|(response, lease)| Answered { response, lease, underway, workload });
        Ended { outcome, verdict, result }
    }

    async fn exchange(
        &self,
        chosen: &Endpoint,
        sending: &mut Sending<'_>,
        witness: &impl Witness,
    ) -> (retry::Outcome, Result<(Response<Incoming>, Lease), Refusal>) {
        let mut unsent = None;
        loop {
            let lease = self.pool.lease(&self.dial, &chosen.hop, sending.version, sending.connections());
            let mut lease = match lease.await {
                Ok(lease) => lease,
                Err(refusal) => return (retry::Outcome::NotConnected, Err(refusal)),
            };
            if sending.version == Version::Http2 && sending.switch.is_some() && !lease.takes_streams().await {
                let closed = "it speaks HTTP/2 and does not take WebSockets (RFC 8441)".to_owned();
                return (retry::Outcome::Refused, Err(Refusal::NotSwitched(closed)));
            }
            let request = match unsent.take() {
                Some(request) => request,
                None => match request(sending, witness) {
                    Some(request) => request,
                    None => {
                        let gone = Refusal::UpstreamBroke("the body is given away".to_owned());
                        return (retry::Outcome::Broken, Err(gone));
                    }
                },
            };
            match lease.send(request).await {
                Ok(response) => {
                    let outcome = retry::Outcome::Status(response.status());
                    return (outcome, Ok((response, lease)));
                }
                Err(failed) => {
                    let Unanswered { error, unsent: back } = *failed;
                    match back {
                        // It met an idle connection that was closed at this very moment; nobody has seen it.
                        Some(request) if lease.is_reused => unsent = Some(request),
                        Some(request) => {
                            sending.body.take_back(request.into_body());
                            return (retry::Outcome::Refused, Err(broke(&error)));
                        }
                        None => return (outcome_of(&error), Err(broke(&error))),
                    }
                }
            }
        }
    }
}

/// What an outcome says of the endpoint. 429 is about a client, and not about the endpoint.
fn judged(outcome: retry::Outcome) -> Judged {
    let status = match outcome {
        retry::Outcome::NotConnected | retry::Outcome::Broken | retry::Outcome::TimedOut => {
            return Judged::Failed(FailureKind::Unreachable);
        }
        retry::Outcome::Refused => return Judged::Nothing,
        retry::Outcome::Begun => return Judged::Answered,
        retry::Outcome::Status(status) => status,
    };
    match status.as_u16() {
        502..=504 => Judged::Failed(FailureKind::Gateway),
        500..=599 => Judged::Failed(FailureKind::Server),
        _ => Judged::Answered,
    }
}

fn outcome_of(error: &hyper::Error) -> retry::Outcome {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<h2::Error>()
            && error.reason() == Some(h2::Reason::REFUSED_STREAM)
        {
            return retry::Outcome::Refused;
        }
        source = inner.source();
    }
    retry::Outcome::Broken
}

fn broke(error: &hyper::Error) -> Refusal {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    Refusal::UpstreamBroke(text)
}

/// The request as it is written for one attempt; `None`: its body is given away.
fn request(sending: &mut Sending<'_>, witness: &impl Witness) -> Option<Request<crate::body::Outgoing>> {
    let body = sending.body.outgoing()?;
    let mut head = sending.head.clone();
    witness.tell(&mut head.headers);
    match sending.version {
        Version::Http1 => hygiene::write_http1(&mut head),
        Version::Http2 => hygiene::write_http2(&mut head),
    }
    sending.switch.iter().for_each(|switch| switch.ask(&mut head));
    let mut request = Request::from_parts(head, body);
    // HTTP/2 has nobody who would tell.
    if let (Version::Http1, Some(hearing)) = (sending.version, sending.hearing.clone()) {
        hyper::ext::on_informational(&mut request, move |said| hearing.hear(said.status(), said.headers()));
    }
    Some(request)
}
