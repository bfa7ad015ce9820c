//! The story of one request.

use std::{net::SocketAddr, sync::Arc};

use ambit_model::snapshot::Snapshot;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version as Spoken, header, request, response,
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::Instant;

use crate::{
    accept::arrival::{Arrival, Client},
    access::Record,
    body::{Answer, Ending, Passed, Source},
    caller,
    hygiene::{self, InvalidHead, Received},
    io::Heads,
    mirror::Mirrors,
    opaque::asked_address,
    permit::Permit,
    plan::{Plan, Planned, Target, plan, version},
    refusal::Refusal,
    shared::Shared,
    upgrade,
    upstream::{
        Upstream,
        attempt::{Answered, Sending},
        endpoints::Underway,
        pool::{Lease, Version},
    },
};

/// What a stream is for, and who opened it.
#[derive(Debug)]
pub struct Tunnel {
    /// What it is for.
    pub arrival: Arrival,
    /// Who opened it.
    pub client: Arc<Client>,
}

/// Answers requests, on one worker.
#[derive(Debug)]
pub struct Proxy {
    upstream: Arc<Upstream>,
    mirrors: Mirrors,
}

/// A request as it was received.
struct Asked {
    head: request::Parts,
    body: Incoming,
    received: Received,
    /// The version that the client speaks.
    spoken: Spoken,
    /// The address that it asked for.
    address: SocketAddr,
}

/// What a request is answered with.
enum Reply {
    /// This, and no body.
    Here(Response<()>),
    /// What an endpoint says.
    Upstream(Box<Said>),
}

/// A response of an endpoint, after filters.
struct Said {
    head: response::Parts,
    body: Incoming,
    /// Where its connection becomes one of another protocol.
    switch: Option<OnUpgrade>,
    lease: Lease,
    underway: Underway,
    deadline: Option<Instant>,
}

impl Proxy {
    /// Answers through `upstream`.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self { mirrors: Mirrors::new(upstream.clone()), upstream }
    }

    /// What all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        self.upstream.shared()
    }

    /// What sends.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Answers one request of a client. `heads` waits for the next when it is answered.
    pub async fn answer(
        &self,
        tunnel: &Tunnel,
        heads: Option<Heads>,
        mut request: Request<Incoming>,
    ) -> Response<Answer> {
        let may_switch =
            request.headers().contains_key(header::UPGRADE) || request.method() == Method::CONNECT;
        let wish = may_switch.then(|| hyper::upgrade::on(&mut request));
        let mut record =
            Record::open(&self.shared().records, &tunnel.client, &tunnel.arrival.asked, &request);
        let told = self.story(tunnel, request, &mut record).await;
        let ending =
            |record| Ending { record, lease: None, underway: None, heads, passed: Passed::default() };
        match told {
            Ok(Reply::Here(response)) => {
                record.responded(response.status(), response.headers());
                response.map(|()| Answer::text("", ending(record)))
            }
            Ok(Reply::Upstream(said)) => {
                let Said { head, body, switch, lease, underway, deadline } = *said;
                record.responded(head.status, &head.headers);
                let ending = Ending { lease: Some(lease), underway: Some(underway), ..ending(record) };
                if let (Some(client), Some(server)) = (wish, switch) {
                    return Response::from_parts(head, upgrade::answer(client, server, ending));
                }
                let idle = self.shared().settings.limits.idle;
                Response::from_parts(head, Answer::upstream(body, idle, deadline, ending))
            }
            Err(refusal) => {
                wish.into_iter().for_each(upgrade::decline);
                refused(refusal, ending(record))
            }
        }
    }

    async fn story(
        &self,
        tunnel: &Tunnel,
        request: Request<Incoming>,
        record: &mut Record,
    ) -> Result<Reply, Refusal> {
        let mut asked = receive(tunnel, request)?;
        record.read(&asked.head);
        let shared = self.shared();
        // One snapshot for the whole request.
        let mesh = shared.mesh.current();
        let target = Target::find(&mesh, &shared.served, shared.namespace(), &tunnel.arrival)?;
        record.meant_for(target.service());
        let rules = target.config().authentication();
        let claims = caller::identify(rules, &shared.keys, &mut asked.head).await?;
        let request = (&asked.head, &asked.received);
        let permit =
            Permit::request(target.config(), &tunnel.client, asked.address, request, claims.as_ref())?;
        record.permitted(&permit);
        let plan = match plan(&mesh, &target, &tunnel.client.namespace(), &mut asked.head)? {
            Planned::Go(plan) => plan,
            Planned::Answer(response) => return Ok(Reply::Here(response)),
        };
        record.route(plan.route());
        self.send(&mesh, *plan, asked, record).await.map(|said| Reply::Upstream(Box::new(said)))
    }

    /// Sends a request as `plan` says, and its copies; then what the filters have to say of the response.
    async fn send(
        &self,
        mesh: &Snapshot,
        plan: Plan<'_>,
        asked: Asked,
        record: &mut Record,
    ) -> Result<Said, Refusal> {
        let Asked { head, body, received, spoken, address } = asked;
        let version = version(&plan.goal, spoken, &head);
        if version == Version::Http2 && received.upgrade.is_some() {
            return Err(Refusal::BadRequest(InvalidHead::Upgrade));
        }
        let copies = self.mirrors.draw(mesh, plan.filters());
        let keep = plan.retry().is_some() || !copies.is_empty();
        let body = Source::new(body, keep, self.shared().settings.limits.idle, record.received());
        let copied = (!copies.is_empty()).then(|| (head.clone(), body.copy()));
        let deadline = plan.deadline(Instant::now());
        let sending = Sending {
            goal: plan.goal.clone(),
            asked: address,
            head,
            body,
            version,
            upgrade: received.upgrade,
            retry: plan.retry(),
            attempt: plan.timeouts().backend,
            deadline,
        };
        let sent = self.upstream.send(mesh, sending, record).await;
        // Copies go out when the request has, whatever came of it: their bodies are what was kept of its own.
        if let Some((head, body)) = copied {
            self.mirrors.send(copies, &head, &body, spoken, address, record.context());
        }
        let Answered { mut response, lease, underway } = sent?;
        let is_switch = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let switch = is_switch.then(|| hyper::upgrade::on(&mut response));
        let (mut head, body) = response.into_parts();
        let protocol = head.headers.get(header::UPGRADE).cloned().filter(|_| is_switch);
        hygiene::respond(&mut head.headers);
        plan.response(&mut head);
        if let Some(protocol) = protocol {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(header::UPGRADE, protocol);
        }
        Ok(Said { head, body, switch, lease, underway, deadline })
    }
}

/// Gives a request its one reading.
fn receive(tunnel: &Tunnel, request: Request<Incoming>) -> Result<Asked, Refusal> {
    let (mut head, body) = request.into_parts();
    let spoken = head.version;
    let received = hygiene::receive(&mut head, tunnel.client.address.ip(), rand::random);
    let received = received.map_err(Refusal::BadRequest)?;
    Ok(Asked { head, body, received, spoken, address: asked_address(&tunnel.arrival.asked) })
}

/// The answer to a request that is refused. A gRPC call is answered with a status of its own kind.
fn refused(refusal: Refusal, mut ending: Ending) -> Response<Answer> {
    let mut head = Response::new(()).into_parts().0;
    let text = refusal.body();
    if ending.record.is_grpc() {
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        head.headers.insert("grpc-status", HeaderValue::from_static(grpc_status(refusal.status())));
        if !text.is_empty() {
            head.headers.insert("grpc-message", HeaderValue::from_static(text));
        }
    } else {
        head.status = refusal.status();
        if !text.is_empty() {
            head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
    }
    let text = if ending.record.is_grpc() { "" } else { text };
    ending.record.responded(head.status, &head.headers);
    ending.record.refused(refusal);
    Response::from_parts(head, Answer::text(text, ending))
}

/// The gRPC status of a call that HTTP answers with `status` (gRPC over HTTP/2, "HTTP2 to gRPC status codes").
fn grpc_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502 | 503 | 504 => "14",
        _ => "2",
    }
}
