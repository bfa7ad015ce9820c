//! Traffic series: their labels, and bytes counted while they flow.

use ambit_model::{
    identity::Identity,
    service::Service,
    workload::{Locality, Workload},
};
use ambit_runtime::metrics::{Format, Registry};

use super::*;
use crate::metrics::Peer;

fn pod(name: &str, deployment: &str) -> Arc<Workload> {
    Arc::new(Workload {
        name: name.into(),
        workload_name: deployment.into(),
        canonical_name: deployment.into(),
        canonical_revision: "v1".into(),
        namespace: "shop".into(),
        cluster: "Kubernetes".into(),
        locality: Locality { region: "r".into(), zone: "z".into(), subzone: "".into() },
        ..Workload::default()
    })
}

fn rendered(all: AllTraffic) -> String {
    let mut registry = Registry::new();
    registry.collect(all);
    registry.share().render(Format::Prometheus)
}

#[test]
fn a_connection_has_exactly_the_labels_of_the_protocol() {
    let (client, server) = (pod("web-1", "web"), pod("db-1", "db"));
    let identity = Identity::new("cluster.local", "shop", "web");
    let service = Arc::new(Service {
        name: "db".into(),
        namespace: "shop".into(),
        hostname: "db.shop.svc.cluster.local".into(),
        ..Service::default()
    });
    let all = AllTraffic::told_by(&["source"]);
    let meter = Arc::new(Meter::default());
    let described = Labels {
        reporter: "source",
        ends: Ends {
            source: Peer { workload: Some(&client), identity: Some(&identity) },
            destination: Peer { workload: Some(&server), identity: None },
            service: Some(&service),
        },
        mutual_tls: true,
        flag: WELL,
    };
    let traffic = all.opened(&described, meter.clone(), AppIs::Client);
    all.closed(&traffic, &meter, WELL);
    let labels = "reporter=\"source\",source_workload=\"web\",source_canonical_service=\"web\",\
        source_canonical_revision=\"v1\",source_workload_namespace=\"shop\",\
        source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",source_app=\"web\",source_version=\"v1\",\
        source_cluster=\"Kubernetes\",destination_service=\"db.shop.svc.cluster.local\",\
        destination_service_namespace=\"shop\",destination_service_name=\"db\",destination_workload=\"db\",\
        destination_canonical_service=\"db\",destination_canonical_revision=\"v1\",\
        destination_workload_namespace=\"shop\",destination_principal=\"unknown\",destination_app=\"db\",\
        destination_version=\"v1\",destination_cluster=\"Kubernetes\",request_protocol=\"tcp\",\
        response_flags=\"-\",connection_security_policy=\"mutual_tls\",source_region=\"r\",source_zone=\"z\",\
        destination_region=\"r\",destination_zone=\"z\"";
    let text = rendered(all);
    for (name, value) in [
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_received_bytes_total", 0),
        ("istio_tcp_sent_bytes_total", 0),
    ] {
        let line = format!("{name}{{{labels}}} {value}\n");
        assert!(text.contains(&line), "{line} is missing in {text}");
    }
    assert!(!text.contains("istio_tcp_connections_failed_total{"), "{text}");
}

#[test]
fn pods_of_one_deployment_share_their_figures() {
    let all = AllTraffic::told_by(&["source"]);
    let opened = |client: &Arc<Workload>| open(&all, Peer { workload: Some(client), identity: None }).0;
    assert!(Arc::ptr_eq(&opened(&pod("web-1", "web")), &opened(&pod("web-2", "web"))));
    assert!(!Arc::ptr_eq(&opened(&pod("web-1", "web")), &opened(&pod("api-1", "api"))));
}

#[test]
fn a_denied_connection_is_opened_closed_and_failed() {
    let all = AllTraffic::told_by(&["source"]);
    let (traffic, meter) = open(&all, Peer::default());
    all.closed(&traffic, &meter, "DENY");
    assert!(traffic.bytes.hold().open.is_empty());
    let text = rendered(all);
    let value = |name: &str, flag: &str| {
        let flag = format!("response_flags=\"{flag}\"");
        let mut lines = text.lines().filter(|line| line.starts_with(name) && line.contains(&flag));
        lines.next().and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
    };
    assert_eq!(value("istio_tcp_connections_opened_total{", "-").as_deref(), Some("1"));
    assert_eq!(value("istio_tcp_connections_closed_total{", "-").as_deref(), Some("0"));
    assert_eq!(value("istio_tcp_connections_closed_total{", "DENY").as_deref(), Some("1"));
    assert_eq!(value("istio_tcp_connections_failed_total{", "DENY").as_deref(), Some("1"));
    assert_eq!(value("istio_tcp_connections_opened_total{", "DENY"), None);
}

#[test]
fn labels_beyond_the_limit_are_counted_as_unknown() {
    let all = AllTraffic::at_most(16, &["source"]);
    let held: Vec<_> = (0..200)
        .map(|number| {
            let client = pod("p", &format!("d{number}"));
            open(&all, Peer { workload: Some(&client), identity: None })
        })
        .collect();
    assert!(all.series.all().len() <= 16);
    let opened: u64 =
        all.series.all().iter().chain(&all.overflow).map(|one| one.opened.load(Ordering::Relaxed)).sum();
    assert_eq!(opened, 200);
    drop(held);
    let client = pod("p", "later");
    let (later, _) = open(&all, Peer { workload: Some(&client), identity: None });
    assert!(later.labels.ends.view().source.workload.is_some(), "room is made when connections have ended");
}

fn open(all: &AllTraffic, source: Peer<'_>) -> (Arc<Traffic>, Arc<Meter>) {
    let labels = Labels {
        reporter: "source",
        ends: Ends { source, destination: Peer::default(), service: None },
        mutual_tls: false,
        flag: WELL,
    };
    let meter = Arc::new(Meter::default());
    (all.opened(&labels, meter.clone(), AppIs::Client), meter)
}
