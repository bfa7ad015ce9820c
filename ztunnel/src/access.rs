//! One record per connection: counted while it lives, written to the access log once, at its end
//! (protocols 10.1, 10.2).

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_model::{address::Target, identity::Identity, service::Service, workload::Workload};
use ambit_wire::copy::Meter;

use crate::{
    metrics::{AppIs, Direction, Ends, Labels, Metrics, Peer, Traffic},
    refusal::{Flag, Refusal},
};

/// The record of an open connection. It must be [closed](Self::close): dropped without, the
/// connection counts as open for ever.
#[derive(Debug)]
#[must_use = "a record is written when it is closed"]
pub struct Record(Box<Open>);

/// What is known when a connection is about to be carried: before authorization, before the next
/// hop is called.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Which end of it the local pod is.
    pub direction: Direction,
    /// Who opened it.
    pub source: Party,
    /// Where it goes: the next hop.
    pub destination: Party,
    /// What the tunnel is asked to reach, when there is a tunnel.
    pub hbone_addr: Option<Target>,
    /// The service that it is meant for.
    pub service: Option<Arc<Service>>,
    /// Whether it travels in mutual TLS.
    pub mutual_tls: bool,
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct Party {
    /// Its address.
    pub addr: SocketAddr,
    /// The workload there, if it is one.
    pub workload: Option<Arc<Workload>>,
    /// The identity that it proved.
    pub identity: Option<Identity>,
}

#[derive(Debug)]
struct Open {
    metrics: Arc<Metrics>,
    traffic: Arc<Traffic>,
    meter: Arc<Meter>,
    /// Which end the application is that the meter speaks of.
    app: AppIs,
    at: Instant,
    connection: Opened,
}

/// Writes the fields of protocols 10.2, in that order; `None` leaves a field out.
macro_rules! write_record {
    ($level:expr, $connection:expr, $end:expr, $message:literal) => {{
        let (connection, end): (&Opened, Option<&End>) = ($connection, $end);
        let Opened { source, destination, .. } = connection;
        tracing::event!(
            target: "access",
            parent: None,
            $level,
            src.addr = %source.addr,
            src.workload = source.name(),
            src.namespace = source.namespace(),
            src.identity = connection.identity(source).as_deref(),
            src.cluster = source.cluster(),
            dst.addr = %destination.addr,
            dst.hbone_addr = connection.hbone_addr.as_ref().map(tracing::field::display),
            dst.service = connection.service.as_ref().map(|service| service.hostname.as_str()),
            dst.workload = destination.name(),
            dst.namespace = destination.namespace(),
            dst.identity = connection.identity(destination).as_deref(),
            dst.cluster = destination.cluster(),
            direction = connection.direction.word(),
            bytes_sent = end.map(|end| end.sent),
            bytes_recv = end.map(|end| end.received),
            duration = end.map(|end| format!("{}ms", end.duration.as_millis())).as_deref(),
            error = end.and_then(|end| end.error.as_deref()),
            $message
        )
    }};
}

impl Record {
    /// Counts a connection as opened.
    pub fn open(metrics: &Arc<Metrics>, connection: Opened) -> Self {
        let app = match connection.direction {
            Direction::Outbound => AppIs::Client,
            Direction::Inbound => AppIs::Server,
        };
        Self::metered(metrics, connection, Arc::default(), app)
    }

    /// Counts the other end of a connection that stays on the node as opened: its bytes are moved
    /// once, and counted by the meter of the `outbound` record.
    pub fn same_node(outbound: &Self, connection: Opened) -> Self {
        Self::metered(&outbound.0.metrics, connection, outbound.0.meter.clone(), outbound.0.app)
    }

    fn metered(metrics: &Arc<Metrics>, connection: Opened, meter: Arc<Meter>, app: AppIs) -> Self {
        write_record!(tracing::Level::DEBUG, &connection, None, "connection opened");
        let traffic = metrics.traffic.opened(&connection.labels(), meter.clone(), app);
        let metrics = metrics.clone();
        Self(Box::new(Open { metrics, traffic, meter, app, at: Instant::now(), connection }))
    }

    /// Counts the bytes of this connection. The metrics see them at once.
    pub fn meter(&self) -> Arc<Meter> {
        self.0.meter.clone()
    }

    /// What was known when it was opened.
    pub fn connection(&self) -> &Opened {
        &self.0.connection
    }

    /// Counts the connection as closed, and writes it to the log.
    pub fn close(self, outcome: Result<(), &Refusal>) {
        let Open { metrics, traffic, meter, app, at, connection } = *self.0;
        let flag = outcome.map_or_else(Refusal::flag, |()| Flag::None);
        metrics.traffic.closed(&traffic, &meter, flag.label());
        if let Err(refusal) = outcome {
            metrics.refused(refusal);
        }
        let (sent, received) = match (connection.direction, app) {
            (Direction::Outbound, AppIs::Client) | (Direction::Inbound, AppIs::Server) => {
                (meter.from_app(), meter.to_app())
            }
            (Direction::Outbound, AppIs::Server) | (Direction::Inbound, AppIs::Client) => {
                (meter.to_app(), meter.from_app())
            }
        };
        let error = outcome.err().map(ToString::to_string);
        let end = End { sent, received, duration: at.elapsed(), error };
        match outcome {
            Ok(()) => write_record!(tracing::Level::INFO, &connection, Some(&end), "connection complete"),
            Err(_) => write_record!(tracing::Level::ERROR, &connection, Some(&end), "connection complete"),
        }
    }
}

/// How a connection ended, as the local pod sees it.
struct End {
    sent: u64,
    received: u64,
    duration: Duration,
    error: Option<String>,
}

/// A connection that is refused before it is known what it is: one line, and no traffic is counted
/// (protocols 4.4).
pub fn refused_early(
    metrics: &Metrics,
    direction: Direction,
    source: SocketAddr,
    destination: SocketAddr,
    refusal: &Refusal,
) {
    metrics.refused(refusal);
    let error = refusal.to_string();
    tracing::event!(
        target: "access",
        parent: None,
        tracing::Level::WARN,
        src.addr = %source,
        dst.addr = %destination,
        direction = direction.word(),
        error = error.as_str(),
        "connection failed"
    );
}

impl Opened {
    fn labels(&self) -> Labels<'_> {
        Labels {
            reporter: self.direction.reporter(),
            ends: Ends {
                source: self.source.peer(),
                destination: self.destination.peer(),
                service: self.service.as_ref(),
            },
            mutual_tls: self.mutual_tls,
            flag: Flag::None.label(),
        }
    }

    /// An identity is worth telling only when it was proven.
    fn identity(&self, of: &Party) -> Option<String> {
        of.identity.as_ref().filter(|_| self.mutual_tls).map(ToString::to_string)
    }
}

impl Party {
    fn peer(&self) -> Peer<'_> {
        Peer { workload: self.workload.as_ref(), identity: self.identity.as_ref() }
    }

    /// The pod's name, else the name that telemetry knows it by.
    fn name(&self) -> Option<&str> {
        let workload = self.workload.as_ref()?;
        [&workload.name, &workload.canonical_name]
            .into_iter()
            .find(|name| !name.is_empty())
            .map(|name| name.as_str())
    }

    fn namespace(&self) -> Option<&str> {
        let workload = self.workload.as_ref()?;
        Some(workload.namespace.as_str()).filter(|name| !name.is_empty())
    }

    fn cluster(&self) -> Option<&str> {
        let workload = self.workload.as_ref()?;
        Some(workload.cluster.as_str()).filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests;
