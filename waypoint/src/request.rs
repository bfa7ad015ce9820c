//! The story of one request.

use std::{net::SocketAddr, sync::Arc};

use ambit_model::{
    authz::{self, Ask},
    claims::Claims,
    limit::Going,
    route::{RouteTable, With},
    snapshot::Snapshot,
};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version as Spoken, header, request, response,
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::Instant;

use crate::{
    accept::arrival::{Arrival, Client},
    access::Record,
    authorizer::{Authorizers, Heard, Question, asked_by},
    body::{Answer, Ending, Passed, Source, Streamed},
    caller::{self, debug},
    fault::Faults,
    hygiene::{self, InvalidHead, Received},
    interim::{self, Interim},
    io::{Heads, Told},
    limits::{self, Counted, Room},
    mirror::Mirrors,
    opaque::asked_address,
    permit::{Judged, Permit},
    plan::{Plan, Planned, Target, choose, plan, route_name, version},
    refusal::Refusal,
    shared::Shared,
    upgrade,
    upstream::{
        Upstream,
        attempt::{Answered, Sending},
        endpoints::Underway,
        pool::Lease,
    },
    websocket::{self, Switch},
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
    authorizers: Authorizers,
    faults: Faults,
}

/// A request as it was received.
struct Asked {
    head: request::Parts,
    body: Streamed,
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
        let (mirrors, authorizers) = (Mirrors::new(upstream.clone()), Authorizers::new(upstream.clone()));
        Self { upstream, mirrors, authorizers, faults: Faults::default() }
    }

    /// What all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        self.upstream.shared()
    }

    /// What sends.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Answers one request of a client. A connection of HTTP/1 is `told` of it.
    pub async fn answer(
        &self,
        tunnel: &Tunnel,
        told: Option<Told>,
        mut request: Request<Incoming>,
    ) -> Response<Answer> {
        let may_switch =
            request.headers().contains_key(header::UPGRADE) || request.method() == Method::CONNECT;
        let wish = may_switch.then(|| hyper::upgrade::on(&mut request));
        // Out of it before anybody else looks.
        let token = debug::take(request.headers_mut());
        let mut record =
            Record::open(&self.shared().records, &tunnel.client, &tunnel.arrival.asked, &request);
        if let Some(token) = token {
            record.shows(debug::examine(self.shared(), &token));
        }
        let is_stream = request.method() == Method::CONNECT;
        let mut room = Room::default();
        let replied = self.story(tunnel, request, told.as_ref(), &mut room, &mut record).await;
        told.iter().for_each(|told| told.interim.close());
        let heads = told.map(|told| told.heads);
        let ending =
            |record| Ending { record, lease: None, underway: None, heads, passed: Passed::default() };
        match replied {
            Ok(Reply::Here(mut response)) => {
                opens_nothing(response.status_mut(), is_stream);
                room.tell(response.headers_mut());
                record.tell_explanation(None, response.headers_mut());
                record.responded(response.status(), response.headers());
                response.map(|()| Answer::whole("", ending(record)))
            }
            Ok(Reply::Upstream(said)) => {
                let Said { mut head, body, switch, lease, underway, deadline } = *said;
                room.tell(&mut head.headers);
                record.tell_explanation(None, &mut head.headers);
                record.responded(head.status, &head.headers);
                let ending = Ending { lease: Some(lease), underway: Some(underway), ..ending(record) };
                if let (Some(client), Some(server)) = (wish, switch) {
                    return Response::from_parts(head, upgrade::answer(client, server, ending));
                }
                let idle = self.shared().settings.limits.idle;
                Response::from_parts(head, Answer::upstream(body, idle, deadline, ending))
            }
            Err(refusal) => {
                // Any other connection goes on.
                wish.filter(|_| is_stream).into_iter().for_each(upgrade::decline);
                refused(refusal, &room, is_stream, ending(record))
            }
        }
    }

    async fn story(
        &self,
        tunnel: &Tunnel,
        request: Request<Incoming>,
        told: Option<&Told>,
        room: &mut Room,
        record: &mut Record,
    ) -> Result<Reply, Refusal> {
        let shared = self.shared();
        let mut asked = receive(shared, tunnel, request, told.map(|told| &told.heads), record.received())?;
        record.read(&asked.head);
        // A client of HTTP/1.0 would take one for the response (RFC 9110, 15.2).
        let interim = told.filter(|_| asked.spoken == Spoken::HTTP_11).map(|told| &told.interim);
        record.explain(|told, _| told.read(&asked.head));
        // One snapshot for the whole request.
        let mesh = shared.mesh.current();
        let target = Target::find(&mesh, &shared.served, shared.namespace(), &tunnel.arrival)?;
        record.meant_for(target.service());
        record.explain(|told, _| told.meant_for(&target, &tunnel.client));
        let rules = target.config().authentication();
        let claims = caller::identify(rules, &shared.keys, &mut asked.head).await?;
        record.explain(|told, _| told.identified(claims.as_ref()));
        let permit = self.permit(&mesh, &target, tunnel, &mut asked, claims.as_ref(), record).await;
        let (permit, mut heard) = permit?;
        record.permitted(&permit);
        let from = tunnel.client.namespace();
        let chosen = choose(&target, &from, &asked.head);
        record.explain(|told, _| {
            let table = target.config().routes(target.port(), &from);
            told.routed(table, chosen.as_ref().ok().and_then(Option::as_ref), &asked.head);
        });
        let chosen = chosen?;
        record.route(chosen.as_ref().map(route_name));
        // To a rule that asks somebody, its path would be another than to the application.
        let asks = || target.config().routes(target.port(), &from).is_some_and(RouteTable::asks);
        if asked.received.path_is_ambiguous && asks() {
            return Err(Refusal::BadRequest(InvalidHead::Ambiguous));
        }
        // What a rule lets a request take includes the time in which others are asked about it (GEP-1742).
        let began = Instant::now();
        // After policies, so that nobody is asked about what is denied anyway; before limits, so that who is denied spends
        // nothing.
        let ask = chosen.as_ref().map(|chosen| asked_by(chosen, &asked.head)).transpose()?;
        if let Some(ask) = ask.flatten() {
            record.explain(|told, _| told.asks(&ask));
            self.ask(&mesh, &target, tunnel, &ask, &mut asked, &mut heard).await?;
        }
        let by = chosen.as_ref().map(|chosen| (&**chosen.origin, &**chosen.rule));
        let going = Going { port: target.port(), by };
        let counted =
            Counted { config: target.config(), client: &tunnel.client, address: asked.address, going };
        record.explain(|told, _| told.counted(limits::counting(&counted, &asked.head)));
        limits::find_room(&self.upstream, &mesh, counted, &mut asked.head, room).await?;
        self.faults.inject(chosen.as_ref(), Instant::now(), &shared.metrics, record).await?;
        let plan = match plan(&mesh, &target, chosen, &mut asked.head, tunnel.client.address.ip())? {
            Planned::Go(plan) => {
                record.explain(|told, _| told.planned(&plan.goal, plan.filters()));
                plan
            }
            Planned::Answer(mut response) => {
                record.explain(|told, _| told.answered_here());
                heard.respond(response.headers_mut());
                return Ok(Reply::Here(response));
            }
        };
        let mut said = self.send(&mesh, *plan, asked, interim, began, record).await?;
        heard.respond(&mut said.head.headers);
        Ok(Reply::Upstream(Box::new(said)))
    }

    /// Judges a request, and asks about it whoever is to be asked. Each of them sees what those before have changed, and
    /// so do routes and policies. He is asked once, so it ends.
    async fn permit(
        &self,
        mesh: &Snapshot,
        target: &Target,
        tunnel: &Tunnel,
        asked: &mut Asked,
        claims: Option<&Claims>,
        record: &mut Record,
    ) -> Result<(Permit, Heard), Refusal> {
        let mut heard = Heard::default();
        loop {
            let request = (&asked.head, &asked.received);
            let client = &tunnel.client;
            record.explain(|told, _| {
                told.judged(Permit::opinions(target.config(), client, asked.address, &asked.head, claims));
            });
            match Permit::request(target.config(), client, asked.address, request, claims, &heard)? {
                Judged::Permitted(permit) => return Ok((permit, heard)),
                Judged::Asks(ask) => {
                    record.explain(|told, _| told.asks(&ask));
                    self.ask(mesh, target, tunnel, &ask, asked, &mut heard).await?;
                }
            }
        }
    }

    /// Asks one authorizer.
    async fn ask(
        &self,
        mesh: &Snapshot,
        target: &Target,
        tunnel: &Tunnel,
        ask: &Ask,
        asked: &mut Asked,
        heard: &mut Heard,
    ) -> Result<(), Refusal> {
        let Asked { head, body, spoken, address, .. } = asked;
        let client = &tunnel.client;
        let question = Question { client, target, address: *address, spoken: *spoken, head, body };
        // Boxed: few requests are asked about, and every request would have room for it.
        Box::pin(self.authorizers.ask(mesh, ask, question, heard)).await
    }

    /// Sends a request as `plan` says, whose time runs since `began`, and its copies; then what the filters have to say of the
    /// response, and of those before it.
    async fn send(
        &self,
        mesh: &Snapshot,
        plan: Plan<'_>,
        asked: Asked,
        interim: Option<&Interim>,
        began: Instant,
        record: &mut Record,
    ) -> Result<Said, Refusal> {
        let Asked { head, body, received, spoken, address } = asked;
        let version = version(&plan.goal, spoken, &head);
        let has_body = !body.is_at_end();
        let switch = |wish| Switch::new(wish, version, &head, has_body, rand::random);
        let switch = received.wish.map(switch).transpose().map_err(Refusal::BadRequest)?;
        let copies = self.mirrors.draw(mesh, plan.config(), plan.filters());
        let keep = plan.retry().is_some() || !copies.is_empty();
        let body = Source::new(body, keep);
        let copied = (!copies.is_empty()).then(|| (head.clone(), body.copy()));
        let deadline = plan.deadline(began);
        let hearing = interim.map(Interim::open);
        let sending = Sending {
            goal: plan.goal.clone(),
            asked: address,
            affinity: plan.tie.affinity.clone(),
            head,
            body,
            version,
            switch: switch.clone(),
            hearing: hearing.clone(),
            retry: plan.retry(),
            attempt: plan.timeouts().backend,
            deadline,
        };
        let sent = self.upstream.send(mesh, sending, record);
        let sent = interim::during(hearing.as_ref(), sent, |head| {
            hygiene::respond(&mut head.headers);
            plan.interim(head);
        });
        let sent = sent.await;
        // Copies go out when the request has, whatever came of it: their bodies are what was kept of its own.
        if let Some((head, body)) = copied {
            self.mirrors.send(copies, &head, &body, spoken, address, record.context());
        }
        let Answered { mut response, lease, underway, workload } = sent?;
        let server = hyper::upgrade::on(&mut response);
        let (mut head, body) = response.into_parts();
        let agreed = websocket::agreed(switch.as_ref(), &head)?;
        let switch = agreed.is_some().then_some(server);
        hygiene::respond(&mut head.headers);
        plan.response(&mut head, &workload.uid);
        agreed.into_iter().for_each(|agreed| agreed.tell(&mut head));
        Ok(Said { head, body, switch, lease, underway, deadline })
    }
}

/// Gives a request its one reading.
fn receive(
    shared: &Shared,
    tunnel: &Tunnel,
    request: Request<Incoming>,
    heads: Option<&Heads>,
    passed: Passed,
) -> Result<Asked, Refusal> {
    let (mut head, body) = request.into_parts();
    let settings = &shared.settings;
    let body = Streamed::new(body, settings.limits.idle, passed, heads);
    let spoken = head.version;
    let client = tunnel.client.identity.as_ref().filter(|_| settings.names_clients);
    let certificate = client.and_then(|client| hygiene::client_certificate(client, &settings.identity));
    let received = hygiene::receive(&mut head, tunnel.client.address.ip(), certificate, rand::random);
    let received = received.map_err(Refusal::BadRequest)?;
    Ok(Asked { head, body, received, spoken, address: asked_address(&tunnel.arrival.asked) })
}

/// The answer to a request that is refused. A gRPC call is answered with a status of its own kind.
fn refused(refusal: Refusal, room: &Room, is_stream: bool, mut ending: Ending) -> Response<Answer> {
    let mut head = Response::new(()).into_parts().0;
    let mut text = Bytes::from_static(refusal.body().as_bytes());
    if let Refusal::DeniedByAuthorizer { denial, .. } = &refusal {
        authz::change(&mut head.headers, &denial.headers);
        text = denial.body.clone().into();
    }
    if let Refusal::Limited(limited) = &refusal {
        limited.tell(&mut head.headers);
    } else {
        room.tell(&mut head.headers);
    }
    if ending.record.is_grpc() {
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        head.headers.insert("grpc-status", HeaderValue::from_static(grpc_status(&refusal)));
        // What an authorizer says may be anything, a page of HTML among it; that is no message of a call.
        if !refusal.body().is_empty() {
            head.headers.insert("grpc-message", HeaderValue::from_static(refusal.body()));
        }
        text.clear();
    } else {
        head.status = refusal.status();
        opens_nothing(&mut head.status, is_stream);
        if !text.is_empty() && !head.headers.contains_key(header::CONTENT_TYPE) {
            head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
    }
    ending.record.tell_explanation(Some(&refusal), &mut head.headers);
    ending.record.responded(head.status, &head.headers);
    ending.record.refused(refusal);
    Response::from_parts(head, Answer::whole(text, ending))
}

/// What is no stream does not say that it is one: to a CONNECT every 2xx would (RFC 9110, 9.3.6). Whom a policy asks may
/// deny with 200, and a fault may abort with it.
fn opens_nothing(status: &mut StatusCode, is_stream: bool) {
    if is_stream && status.is_success() {
        *status = StatusCode::FORBIDDEN;
    }
}

/// The gRPC status of a call that HTTP answers with the status of `refusal` (gRPC over HTTP/2, "HTTP2 to gRPC status
/// codes"); but what is limited says so (RESOURCE_EXHAUSTED): UNAVAILABLE, which that table has, is sent again at once.
fn grpc_status(refusal: &Refusal) -> &'static str {
    if matches!(refusal, Refusal::Limited(_)) {
        return "8";
    }
    if let Refusal::Aborted { with: With::Grpc(code), .. } = refusal {
        return code.number();
    }
    match refusal.status().as_u16() {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502 | 503 | 504 => "14",
        _ => "2",
    }
}
