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
    metrics::{AppIs, Direction, Labels, Metrics, Peer, Traffic},
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
    pub fn meter(&self) -> &Meter {
        &self.0.meter
    }

    /// What was known when it was opened.
    pub fn connection(&self) -> &Opened {
        &self.0.connection
    }

    /// Counts the connection as closed, and writes it to the log.
    pub fn close(self, outcome: Result<(), &Refusal>) {
        let Open { metrics, traffic, meter, app, at, connection } = *self.0;
        let flag = outcome.map_or_else(Refusal::flag, |()| Flag::None);
        metrics.traffic.closed(&traffic, &meter, flag);
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
            direction: self.direction,
            source: self.source.peer(),
            destination: self.destination.peer(),
            service: self.service.as_ref(),
            mutual_tls: self.mutual_tls,
            flag: Flag::None,
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
mod tests {
    use std::{
        fmt,
        sync::{Mutex, PoisonError},
    };

    use ambit_model::name::PolicyKey;
    use tracing::{Event, Metadata, Subscriber, field::Field, span};

    use super::*;
    use crate::refusal::Denial;

    /// Keeps what is logged, as it is logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl Subscriber for Log {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "access"
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut line = Line(vec![event.metadata().level().to_string()]);
            event.record(&mut line);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line.0.join(" "));
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    struct Line(Vec<String>);

    impl tracing::field::Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.push(format!("{field}={value:?}"));
        }
    }

    fn logged(run: impl FnOnce()) -> Vec<String> {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), run);
        let lines = log.0.lock().unwrap();
        lines.clone()
    }

    fn opened(direction: Direction) -> Opened {
        let pod = |name: &str, namespace: &str| {
            Some(Arc::new(Workload {
                name: name.into(),
                namespace: namespace.into(),
                canonical_name: "canonical".into(),
                cluster: "Kubernetes".into(),
                ..Workload::default()
            }))
        };
        Opened {
            direction,
            source: Party {
                addr: "10.0.0.1:4000".parse().unwrap(),
                workload: pod("web-1", "shop"),
                identity: Some(Identity::new("cluster.local", "shop", "web")),
            },
            destination: Party {
                addr: "10.0.0.2:15008".parse().unwrap(),
                workload: pod("", "data"),
                identity: Some(Identity::new("cluster.local", "data", "db")),
            },
            hbone_addr: Some(Target::Ip("10.0.0.2:5432".parse().unwrap())),
            service: Some(Arc::new(Service { hostname: "db.data.svc".into(), ..Service::default() })),
            mutual_tls: true,
        }
    }

    /// The line without its duration, which no two runs share.
    fn timeless(line: &str) -> String {
        let at = line.find("duration=\"").expect("a duration");
        let (before, rest) = line.split_at(at + "duration=\"".len());
        let (number, after) = rest.split_once("ms\"").expect("milliseconds");
        number.parse::<u64>().expect("a number");
        format!("{before}Nms\"{after}")
    }

    #[test]
    fn a_complete_connection_is_written_in_the_order_of_the_protocol() {
        let metrics = Arc::new(Metrics::new());
        for direction in [Direction::Outbound, Direction::Inbound] {
            let lines = logged(|| {
                let record = Record::open(&metrics, opened(direction));
                move_bytes(record.meter(), b"0123456789", &[7; 30]);
                record.close(Ok(()));
            });
            let fields = "src.addr=10.0.0.1:4000 src.workload=\"web-1\" src.namespace=\"shop\" \
                src.identity=\"spiffe://cluster.local/ns/shop/sa/web\" src.cluster=\"Kubernetes\" \
                dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:5432 dst.service=\"db.data.svc\" \
                dst.workload=\"canonical\" dst.namespace=\"data\" \
                dst.identity=\"spiffe://cluster.local/ns/data/sa/db\" dst.cluster=\"Kubernetes\"";
            let word = direction.word();
            let [first, last] = &lines[..] else { panic!("{lines:?}") };
            assert_eq!(*first, format!("DEBUG message=connection opened {fields} direction=\"{word}\""));
            let expected = format!(
                "INFO message=connection complete {fields} direction=\"{word}\" bytes_sent=10 bytes_recv=30 duration=\"Nms\""
            );
            assert_eq!(timeless(last), expected);
        }
    }

    /// Copies what the application sends, and what it gets, over real sockets.
    fn move_bytes(meter: &Meter, from_app: &[u8], to_app: &[u8]) {
        use tokio::{io::AsyncWriteExt, net::TcpListener, net::TcpStream};

        async fn pair() -> (TcpStream, TcpStream) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
            (client.unwrap(), server.unwrap().0)
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ((mut app, near), (far, mut other)) = (pair().await, pair().await);
            app.write_all(from_app).await.unwrap();
            app.shutdown().await.unwrap();
            other.write_all(to_app).await.unwrap();
            other.shutdown().await.unwrap();
            ambit_wire::copy::both_ways(near, far, meter).await;
        });
    }

    #[test]
    fn the_metrics_see_bytes_from_client_to_server_as_received_at_both_ends() {
        for direction in [Direction::Outbound, Direction::Inbound] {
            let metrics = Arc::new(Metrics::new());
            let record = Record::open(&metrics, opened(direction));
            move_bytes(record.meter(), b"0123456789", &[7; 30]);
            let (to_server, to_client) = match direction {
                Direction::Outbound => (10, 30),
                Direction::Inbound => (30, 10),
            };
            let figures = || {
                let mut registry = ambit_runtime::metrics::Registry::new();
                registry.collect(metrics.traffic.clone());
                let text = registry.share().render(ambit_runtime::metrics::Format::Prometheus);
                let value = |name: &str| {
                    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
                    line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
                };
                (value("istio_tcp_received_bytes_total{"), value("istio_tcp_sent_bytes_total{"))
            };
            assert_eq!(figures(), (to_server, to_client), "while it is open");
            record.close(Ok(()));
            assert_eq!(figures(), (to_server, to_client), "after it was closed");
        }
    }

    #[test]
    fn both_ends_on_one_node_share_a_meter() {
        let metrics = Arc::new(Metrics::new());
        let lines = logged(|| {
            let outbound = Record::open(&metrics, opened(Direction::Outbound));
            let inbound = Record::same_node(&outbound, opened(Direction::Inbound));
            move_bytes(outbound.meter(), b"0123456789", &[7; 30]);
            inbound.close(Ok(()));
            outbound.close(Ok(()));
        });
        let [.., inbound, outbound] = &lines[..] else { panic!("{lines:?}") };
        assert!(inbound.contains("direction=\"inbound\" bytes_sent=30 bytes_recv=10"), "{inbound}");
        assert!(outbound.contains("direction=\"outbound\" bytes_sent=10 bytes_recv=30"), "{outbound}");
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let connection = Opened {
            source: Party { workload: None, ..opened(Direction::Inbound).source },
            hbone_addr: None,
            service: None,
            mutual_tls: false,
            ..opened(Direction::Inbound)
        };
        let metrics = Arc::new(Metrics::new());
        let lines = logged(|| {
            let denied =
                Refusal::Denied(Denial(ambit_model::authz::By::Policy(PolicyKey::new("data", "only-web"))));
            Record::open(&metrics, connection).close(Err(&denied));
        });
        let last = timeless(lines.last().unwrap());
        assert_eq!(
            last,
            "ERROR message=connection complete src.addr=10.0.0.1:4000 dst.addr=10.0.0.2:15008 \
             dst.workload=\"canonical\" dst.namespace=\"data\" dst.cluster=\"Kubernetes\" direction=\"inbound\" \
             bytes_sent=0 bytes_recv=0 duration=\"Nms\" \
             error=\"connection closed due to policy rejection: explicitly denied by: data/only-web\""
        );
    }

    #[test]
    fn an_early_refusal_is_one_warning_and_no_traffic() {
        let metrics = Metrics::new();
        let lines = logged(|| {
            let (source, destination) =
                ("10.0.0.1:4000".parse().unwrap(), "[fd00::2]:15008".parse().unwrap());
            let refusal = Refusal::NotConnect("GET".to_owned());
            refused_early(&metrics, Direction::Inbound, source, destination, &refusal);
        });
        let expected = "WARN message=connection failed src.addr=10.0.0.1:4000 dst.addr=[fd00::2]:15008 \
            direction=\"inbound\" error=\"method GET is not CONNECT\"";
        assert_eq!(lines, [expected]);
        let mut registry = ambit_runtime::metrics::Registry::new();
        registry.collect(metrics.traffic.clone());
        let text = registry.share().render(ambit_runtime::metrics::Format::Prometheus);
        assert!(!text.contains("reporter="), "{text}");
    }

    #[test]
    fn a_record_stays_small_in_the_connection_that_carries_it() {
        assert_eq!(size_of::<Record>(), 8);
        // On the heap, once per open connection.
        assert!(size_of::<Open>() <= 320, "{}", size_of::<Open>());
    }
}
