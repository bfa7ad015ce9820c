//! What becomes of a request: where it goes, and what is done to it, by configuration alone. Pure but for the dice.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use ambit_model::{
    name::{Namespace, ServiceKey, Uid},
    route::{
        Backend, Chosen, Drawn, Filters, Front, Granted, Scheme, Step, Timeout, Timeouts, retry, select,
    },
    service::{AppProtocol, Service},
    service_config::ServiceConfig,
    snapshot::Snapshot,
    workload::Workload,
};
use http::{Response, Version as Spoken, header, request, response};
use tokio::time::Instant;

use crate::{
    accept::arrival::{Arrival, To},
    refusal::Refusal,
    served::Served,
    shared::dice,
    tie::{Tie, Visit},
    upstream::{choose::Goal, destinations::Terms, pool::Version},
};

/// What a stream is for, as the mesh is now.
#[derive(Debug)]
pub enum Target {
    /// A service, and what applies to it.
    Service {
        /// The service.
        service: Arc<Service>,
        /// What applies.
        config: Arc<ServiceConfig>,
        /// Its port.
        port: u16,
    },
    /// A workload.
    Workload {
        /// The workload.
        workload: Arc<Workload>,
        /// What applies to workloads here.
        config: Arc<ServiceConfig>,
        /// Its port.
        port: u16,
    },
}

impl Target {
    /// Finds what `arrival` names; it may have gone since the stream was opened.
    ///
    /// `namespace` is the waypoint's own.
    pub fn find(
        mesh: &Snapshot,
        served: &Served,
        namespace: &Namespace,
        arrival: &Arrival,
    ) -> Result<Self, Refusal> {
        let gone = || Refusal::NotServed(arrival.asked.clone());
        let port = arrival.port;
        match &arrival.to {
            To::Service(key) => {
                let service = mesh.service(key).ok_or_else(gone)?.clone();
                let config = served.find(mesh, key).ok_or_else(gone)?;
                Ok(Self::Service { service, config, port })
            }
            To::Workload(uid) => {
                let workload = mesh.workload(uid).ok_or_else(gone)?.clone();
                let key = ServiceConfig::key_of_workloads(namespace);
                let config = served.find(mesh, &key).ok_or_else(gone)?;
                Ok(Self::Workload { workload, config, port })
            }
        }
    }

    /// The service, if it is one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::Workload { .. } => None,
        }
    }

    /// What applies to it.
    pub fn config(&self) -> &ServiceConfig {
        match self {
            Self::Service { config, .. } | Self::Workload { config, .. } => config,
        }
    }

    /// Without any route.
    pub fn goal(&self) -> Goal {
        match self {
            Self::Service { service, port, config } => {
                // Without a subset nothing is missing.
                let terms = Terms::find(config, config.key(), *port, None).unwrap_or_default();
                Goal::Service { service: service.clone(), port: *port, terms }
            }
            Self::Workload { workload, port, .. } => {
                Goal::Workload { workload: workload.clone(), port: *port }
            }
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Service { port, .. } | Self::Workload { port, .. } => *port,
        }
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Planned<'m> {
    /// It is sent.
    Go(Box<Plan<'m>>),
    /// It is answered at once.
    Answer(Response<()>),
}

/// Where a request goes, and what else is to be done.
#[derive(Debug)]
pub struct Plan<'m> {
    /// Where it goes.
    pub goal: Goal,
    /// What ties it to an endpoint there.
    pub tie: Tie<'m>,
    config: &'m ServiceConfig,
    by: Option<By<'m>>,
}

/// The rule that a request takes.
#[derive(Debug)]
struct By<'m> {
    chosen: Chosen<'m>,
    backend: &'m Backend,
    of_rule: Granted,
    of_backend: Granted,
}

/// Chooses the rule of a request of a client of `from`; `None`: there are no routes.
pub fn choose<'m>(
    target: &'m Target,
    from: &Namespace,
    head: &request::Parts,
) -> Result<Option<Chosen<'m>>, Refusal> {
    let config = target.config();
    let Some(table) = config.routes(target.port(), from) else { return Ok(None) };
    let no_route = || Refusal::NoRoute(config.key().to_string());
    select(table, head).ok_or_else(no_route).map(Some)
}

/// Does to the head of a request of `client` what the rule says that was `chosen` for it.
pub fn plan<'m>(
    mesh: &Snapshot,
    target: &'m Target,
    chosen: Option<Chosen<'m>>,
    head: &mut request::Parts,
    client: IpAddr,
) -> Result<Planned<'m>, Refusal> {
    let Some(chosen) = chosen else { return Ok(direct(target, head, client)) };
    let front = Front { scheme: Scheme::Http, port: target.port() };
    let of_rule = match chosen.rule.filters.request(head, chosen.prefix(), front) {
        Step::Continue(granted) => granted,
        Step::Answer(response) => return Ok(Planned::Answer(response)),
    };
    let visit = Visit::of(&chosen, head, unix_seconds());
    let (drawn, session) = match visit.as_ref().and_then(|visit| visit.drawn(mesh, &chosen)) {
        Some((drawn, endpoint)) => (drawn, Some(endpoint)),
        None => (chosen.rule.draw(&mut dice()), None),
    };
    let terms = Terms::of_drawn(target.config(), &drawn)?;
    let (backend, service, port) = match drawn {
        Drawn::To { backend, service, port, .. } => (backend, service, port),
        Drawn::Invalid(_) | Drawn::Nobody => return Err(nowhere(&chosen)),
    };
    let of_backend = match backend.filters.request(head, chosen.prefix(), front) {
        Step::Continue(granted) => granted,
        Step::Answer(response) => return Ok(Planned::Answer(response)),
    };
    let goal = goal(mesh, service, port, terms)?;
    let tie = Tie::of(&goal, head, client, (visit, session), &mut dice());
    let by = Some(By { chosen, backend, of_rule, of_backend });
    Ok(Planned::Go(Box::new(Plan { goal, tie, config: target.config(), by })))
}

/// A port of a service by its name. One that is not known here, and may come, is one without endpoints.
pub fn goal(mesh: &Snapshot, service: &ServiceKey, port: u16, terms: Terms) -> Result<Goal, Refusal> {
    let unknown = || Refusal::NoEndpoint { service: service.to_string(), port };
    Ok(Goal::Service { service: mesh.service(service).ok_or_else(unknown)?.clone(), port, terms })
}

fn direct<'m>(target: &'m Target, head: &request::Parts, client: IpAddr) -> Planned<'m> {
    let goal = target.goal();
    let tie = Tie::of(&goal, head, client, (None, None), &mut dice());
    Planned::Go(Box::new(Plan { goal, tie, config: target.config(), by: None }))
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn nowhere(chosen: &Chosen<'_>) -> Refusal {
    Refusal::InvalidBackend(chosen.origin.key.as_str().to_owned())
}

/// `namespace/name` of the route, and the name of its rule.
pub fn route_name(chosen: &Chosen<'_>) -> String {
    let route = chosen.origin.key.as_str();
    match &chosen.rule.name {
        Some(rule) => format!("{route}/{rule}"),
        None => route.to_owned(),
    }
}

impl Plan<'_> {
    /// When it is repeated.
    pub fn retry(&self) -> Option<&retry::Policy> {
        self.by.as_ref()?.chosen.rule.retry.as_ref().filter(|policy| policy.attempts() > 0)
    }

    /// How long it may take.
    pub fn timeouts(&self) -> Timeouts {
        self.by.as_ref().map(|by| by.chosen.rule.timeouts).unwrap_or_default()
    }

    /// When all is over, if its time runs since `began`.
    pub fn deadline(&self, began: Instant) -> Option<Instant> {
        match self.timeouts().request {
            Timeout::After(limit) => Some(began + limit),
            Timeout::Default | Timeout::Never => None,
        }
    }

    /// The filters of the rule, and of the backend.
    pub fn filters(&self) -> impl Iterator<Item = &Filters> {
        self.by.iter().flat_map(|by| [&by.chosen.rule.filters, &by.backend.filters])
    }

    /// What applies to the service that was asked for.
    pub fn config(&self) -> &ServiceConfig {
        self.config
    }

    /// Does to the head of an interim response what the filters say.
    pub fn interim(&self, head: &mut response::Parts) {
        if let Some(by) = &self.by {
            by.backend.filters.response(head, &by.of_backend);
            by.chosen.rule.filters.response(head, &by.of_rule);
        }
    }

    /// Does to the head of a response of `endpoint` what the filters say, and tells the client how to come back to it.
    pub fn response(&self, head: &mut response::Parts, endpoint: &Uid) {
        self.tie.tell(endpoint, &mut head.headers);
        self.interim(head);
    }
}

/// How a request is spoken to an endpoint: as its port says, else as the client does, who would speak so to the
/// endpoint itself. A gRPC call is HTTP/2 in any case.
pub fn version(goal: &Goal, spoken: Spoken, head: &request::Parts) -> Version {
    let content = head.headers.get(header::CONTENT_TYPE);
    let is_grpc = content.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let said = match goal {
        Goal::Service { service, port, .. } => {
            let ports = service.app_protocols.iter();
            ports.into_iter().find(|(of, _)| of == port).map(|(_, protocol)| *protocol)
        }
        Goal::Workload { .. } => None,
    };
    let by_client = if spoken == Spoken::HTTP_2 { Version::Http2 } else { Version::Http1 };
    match said {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => Version::Http2,
        Some(AppProtocol::Http11) if is_grpc => Version::Http2,
        Some(AppProtocol::Http11) => Version::Http1,
        Some(AppProtocol::Tcp | AppProtocol::Tls) | None => by_client,
    }
}
