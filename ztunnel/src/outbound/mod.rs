//! Outgoing connections: the story of one of them.

pub mod dial;
pub mod plan;

use std::{net::SocketAddr, sync::Arc};

use ambit_model::{address::canonical, answer::Answer, name::Uid, workload::Workload};
use ambit_runtime::drain::Watch;
use ambit_wire::copy;
use dial::{Dial, Onward};
use futures_util::FutureExt as _;
use plan::{Call, Hop, Plan, Route};
use tokio::net::TcpStream;

use crate::{
    access::{Opened, Party, Record, refused_early},
    connections::{Registration, until_ended},
    dump::Travels,
    inbound::arrive::Arrived,
    metrics::Direction,
    pods::Pod,
    refusal::Refusal,
    socket::original_destination,
    story::{self, Carrying, Story},
};

/// How many endpoints are tried for one connection. The first may be dead and not known to be; two
/// more, and the fault is unlikely to be with the endpoint.
const MAX_ATTEMPTS: usize = 3;

/// Everything that one pod opens, on one worker.
#[derive(Debug)]
pub struct Outbound {
    pod: Arc<Pod>,
    dial: Dial,
}

/// A connection on its way: recorded, counted, connected.
struct Carried {
    onward: Onward,
    record: Record,
    registration: Registration,
}

impl Outbound {
    /// The connections of `pod`.
    pub fn new(pod: Arc<Pod>) -> Arc<Self> {
        let dial = Dial::new(pod.clone());
        Arc::new(Self { pod, dial })
    }

    /// What connects.
    pub fn dial(&self) -> &Dial {
        &self.dial
    }

    /// Serves one connection that was redirected here, until it ends; `held` has the drain wait for it.
    pub fn serve(self: Arc<Self>, client: TcpStream, held: Watch) -> impl Future<Output = ()> {
        Story::new(self.begin(client, held))
    }

    async fn begin(self: Arc<Self>, client: TcpStream, held: Watch) -> Option<Carrying> {
        let ends = (client.peer_addr(), client.local_addr(), original_destination(&client));
        let (Ok(source), Ok(at), Ok(to)) = ends else {
            // The application has reset it already (protocols 12, line 3).
            return None;
        };
        let (source, at) = (canonical(source), canonical(at));
        // With the last of us goes the pool, and with it the tunnels.
        let guard = (self.pod.tunnel.metrics.socket(Direction::Outbound), held, self.clone());
        let Carried { onward, record, registration } = self.carry(source, at, to).await?;
        let meter = record.meter();
        Some(match onward {
            Onward::Plain(server) => {
                story::carry(copy::both_ways(client, server, meter), registration, record, guard)
            }
            Onward::Tunnel(tunnel) => {
                story::carry(copy::both_ways(client, tunnel, meter), registration, record, guard)
            }
            Onward::Inner { stream, connection, end: _ } => {
                let copying = copy::both_ways(client, stream, meter);
                let carrying = story::carry(copying, registration, record, guard);
                Box::pin(carrying.map(move |()| connection.close()))
            }
            Onward::Neighbour(arrived) => {
                let Arrived { permit, opened, app, .. } = *arrived;
                let arrival = Record::same_node(&record, opened);
                let copying = copy::both_ways(client, app, meter);
                story::carry_to_neighbour(copying, (registration, record), (permit.into(), arrival), guard)
            }
        })
    }

    /// Decides and connects; what is refused is recorded here.
    async fn carry(&self, source: SocketAddr, at: SocketAddr, to: SocketAddr) -> Option<Carried> {
        let metrics = &self.pod.tunnel.metrics;
        let early = |refusal: &Refusal| refused_early(metrics, Direction::Outbound, source, to, refusal);
        if plan::is_recursive(to, at, &self.pod.tunnel.settings.own_ports) {
            early(&Refusal::Recursive(to.port()));
            return None;
        }
        let registration = match self.pod.connections.register(Direction::Outbound, source, to, None) {
            Ok(registration) => registration,
            Err(refusal) => {
                early(&refusal);
                return None;
            }
        };
        let workload = match self.pod.workload().await {
            Ok(workload) => workload,
            Err(refusal) => {
                early(&refusal);
                return None;
            }
        };
        match until_ended(&registration, self.connect(&workload, source, to)).await {
            Ok(Ok((plan, onward))) => {
                registration.carried(address_of(&plan, to), travels(&plan));
                let connection = met(opened(&workload, source, to, &plan), &onward);
                let record = Record::open(metrics, connection);
                Some(Carried { onward, record, registration })
            }
            Ok(Err(Failed { plan: Some(plan), refusal })) => {
                let record = Record::open(metrics, opened(&workload, source, to, &plan));
                record.close(Err(&refusal));
                None
            }
            Ok(Err(Failed { plan: None, refusal })) | Err(refusal) => {
                early(&refusal);
                None
            }
        }
    }

    /// Plans and dials, on another endpoint when the one that was chosen cannot be reached: nothing
    /// has been sent yet.
    async fn connect(
        &self,
        source: &Arc<Workload>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<(Plan, Onward), Failed> {
        let mut tried: Vec<Uid> = Vec::new();
        let mut last: Option<Failed> = None;
        loop {
            let plan = match self.plan(source, to, &tried).await {
                Ok(plan) => plan,
                // Nobody else is left: why the last one could not be reached is the better answer.
                Err(refusal) => return Err(last.unwrap_or(Failed { plan: None, refusal })),
            };
            let refusal = match self.dial.connect(&plan, source, from).await {
                Ok(onward) => return Ok((plan, onward)),
                Err(refusal) => refusal,
            };
            let others = plan.service.is_some() && refusal.is_unreachable() && tried.len() + 1 < MAX_ATTEMPTS;
            tried.extend(plan.workload.as_ref().map(|workload| workload.uid.clone()));
            let failed = Failed { plan: Some(plan), refusal };
            if !others {
                return Err(failed);
            }
            self.pod.tunnel.metrics.retries.inc();
            last = Some(failed);
        }
    }

    async fn plan(&self, source: &Workload, to: SocketAddr, tried: &[Uid]) -> Result<Plan, Refusal> {
        let tunnel = &self.pod.tunnel;
        let call = Call { source, network: &tunnel.settings.network, to, tried };
        let plan = |mesh: &_, asked: &_| -> Answer<_> {
            plan::outbound(mesh, asked, &call, &mut |bound: u64| match bound {
                0 => 0,
                bound => rand::random_range(0..bound),
            })
        };
        match tunnel.mesh.decide(plan).await {
            Ok(decided) => decided,
            Err(undecided) => Err(Refusal::Undecided(undecided.to_string())),
        }
    }
}

/// A connection that was not made, and how it would have gone.
struct Failed {
    plan: Option<Plan>,
    refusal: Refusal,
}

/// How a connection travels, for the admin page.
fn travels(plan: &Plan) -> Travels {
    match &plan.route {
        Route::Plain { .. } => Travels::Plain,
        Route::Tunnel { .. } => Travels::Tunnel,
        Route::TunnelInTunnel { .. } => Travels::TunnelInTunnel,
    }
}

/// The next hop's address; a name's is not known before it is resolved.
fn address_of(plan: &Plan, to: SocketAddr) -> SocketAddr {
    let (Route::Plain { to: hop }
    | Route::Tunnel { to: hop, .. }
    | Route::TunnelInTunnel { gateway: hop, .. }) = &plan.route;
    match hop {
        Hop::Address(address) => *address,
        Hop::Name(_, port) => SocketAddr::new(to.ip(), *port),
    }
}

/// Who was found at the other end, where that was not known before.
fn met(mut opened: Opened, onward: &Onward) -> Opened {
    match onward {
        Onward::Plain(_) | Onward::Tunnel(_) | Onward::Neighbour(_) => {}
        Onward::Inner { end, .. } => {
            let planned = opened.destination.workload.take();
            opened.destination.workload = end.workload.clone().or(planned);
            opened.destination.identity.clone_from(&end.identity);
        }
    }
    opened
}

fn opened(source: &Arc<Workload>, from: SocketAddr, to: SocketAddr, plan: &Plan) -> Opened {
    let target = match &plan.route {
        Route::Plain { .. } => None,
        Route::Tunnel { target, .. } | Route::TunnelInTunnel { target, .. } => Some(target.clone()),
    };
    let identified = target.is_some();
    let identity = |workload: &Workload| identified.then(|| workload.identity());
    Opened {
        direction: Direction::Outbound,
        source: Party { addr: from, workload: Some(source.clone()), identity: identity(source) },
        destination: Party {
            addr: address_of(plan, to),
            workload: plan.workload.clone(),
            identity: plan.workload.as_deref().and_then(identity),
        },
        hbone_addr: target,
        service: plan.service.clone(),
        mutual_tls: identified,
    }
}
