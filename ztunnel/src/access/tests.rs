//! The lines of the access log, field by field.

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
fn move_bytes(meter: Arc<Meter>, from_app: &[u8], to_app: &[u8]) {
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
        let (source, destination) = ("10.0.0.1:4000".parse().unwrap(), "[fd00::2]:15008".parse().unwrap());
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
