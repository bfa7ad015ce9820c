//! DestinationRule: what a waypoint is told of the endpoints of a service, and what authors are told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[macro_use]
mod support;

use std::sync::Arc;
use std::time::Duration;

use ambit_controller::cluster::Cluster;
use ambit_controller::cluster::object::{Kind, Parsed};
use ambit_controller::impact;
use ambit_controller::source::Event;
use ambit_controller::translate::Output;
use ambit_model::name::{Label, ServiceKey};
use ambit_model::service::{Mode, Scope};
use ambit_model::traffic::{
    Algorithm, HashOn, Members, Outliers, Subset, SuccessRate, Traffic, TrafficPolicy,
};
use support::{GATE, at_the_door, cluster, conditions, config, pod_yaml};

const WEB: &str = "shop/web.shop.svc.cluster.local";
const API: &str = "shop/api.shop.svc.cluster.local";

/// Two services at a waypoint, one of which sends to the other; one at none, and an entry.
const SHOP: &str = concat!(
    shop_at_gate!(", labels: {istio.io/waypoint-for: all}"),
    "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80}, {name: admin, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.1.0.2, selector: {app: api}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop, labels: {istio.io/use-waypoint: none}}
spec: {clusterIP: 10.1.0.3, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far, namespace: shop}
spec:
  hosts: [far.example]
  resolution: STATIC
  ports: [{number: 80, name: http}]
  endpoints: [{address: 192.0.2.1, labels: {version: v1}}, {address: 192.0.2.2, labels: {version: v2}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: api, port: 80}]}]
---
"
);

fn named(namespace: &str, name: &str, created: u32, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: '20{created}-01-01T00:00:00Z'}}\nspec: {{{spec}}}\n---\n"
    )
}

fn rule(spec: &str) -> String {
    named("shop", "r", 20, spec)
}

fn shop(more: &str) -> Cluster {
    let pods = [("web-1", "v1"), ("web-2", "v2"), ("web-3", "v1")];
    let pods = pods
        .map(|(name, version)| pod_yaml("shop", name, "10.0.0.1", &format!("app: web, version: {version}")));
    let other = pod_yaml("shop", "api-1", "10.0.0.9", "app: api, version: v1");
    cluster(&format!("{SHOP}{}\n---\n{other}\n---\n{more}", pods.join("\n---\n")))
}

/// What the waypoint knows of `of` when it serves `service`.
fn traffic(cluster: &Cluster, service: &str, of: &str) -> Option<Traffic> {
    config(cluster, GATE, service).unwrap().traffic(&ServiceKey::parse(of).unwrap()).cloned()
}

/// What holds of `web` at a port, by one rule.
fn policy(spec: &str, subset: Option<&str>, port: u16) -> Arc<TrafficPolicy> {
    let traffic = traffic(&shop(&rule(spec)), WEB, WEB).unwrap();
    traffic.policy(subset.map(Label::from).as_ref(), port).unwrap().clone()
}

fn general(policy_spec: &str) -> Arc<TrafficPolicy> {
    policy(&format!("host: web, trafficPolicy: {{{policy_spec}}}"), None, 80)
}

fn told(cluster: &Cluster, name: &str) -> String {
    conditions(cluster, Kind::DestinationRule, "shop", name).remove(0)
}

#[test]
fn subsets_are_the_workloads_of_the_service_with_their_labels() {
    let spec = "host: web, subsets: [{name: v1, labels: {version: v1}}, {name: all}, {name: none, labels: {version: v9}}]";
    let traffic_of_web = traffic(&shop(&rule(spec)), WEB, WEB).unwrap();
    let members = |name: &str| {
        let subset = traffic_of_web.subset(&name.into()).unwrap();
        subset.members.clone()
    };
    let named = |name: &str| match members(name) {
        Members::All => vec!["all".to_owned()],
        Members::These(uids) => {
            uids.iter().map(|uid| uid.as_str().rsplit('/').next().unwrap().to_owned()).collect()
        }
    };
    assert_eq!(named("v1"), ["web-1", "web-3"]);
    assert_eq!(members("all"), Members::All);
    assert!(named("none").is_empty());
    assert!(traffic_of_web.subset(&"v2".into()).is_none());
    let far = rule("host: far.example, subsets: [{name: v2, labels: {version: v2}}]");
    let key = "shop/far.example";
    let far = traffic(&shop(&far), key, key).unwrap();
    let uid = "Kubernetes/networking.istio.io/ServiceEntry/shop/far/192.0.2.2";
    assert_eq!(far.subset(&"v2".into()).unwrap(), &Subset::new("v2".into(), vec![uid.into()]));
}

#[test]
fn a_waypoint_knows_of_those_to_whom_it_sends() {
    let cluster = shop(&rule("host: api, trafficPolicy: {loadBalancer: {simple: RANDOM}}"));
    let random =
        |of: &str| traffic(&cluster, of, API).unwrap().policy(None, 80).unwrap().balancing.algorithm.clone();
    assert_eq!(random(API), Algorithm::Random);
    assert_eq!(random(WEB), Algorithm::Random, "the route of web leads to it");
    assert_eq!(traffic(&cluster, WEB, WEB), None);
}

#[test]
fn the_nearest_rule_governs() {
    let by = |name: &str, policy: &str| {
        format!("host: {name}, trafficPolicy: {{loadBalancer: {{simple: {policy}}}}}")
    };
    let chosen = |rules: &[String]| {
        let traffic = traffic(&shop(&rules.concat()), WEB, WEB)?;
        Some(format!("{:?}", traffic.policy(None, 80)?.balancing.algorithm))
    };
    let full = "web.shop.svc.cluster.local";
    let root = named("istio-system", "root", 10, &by(full, "RANDOM"));
    let other = named("other", "other", 10, &by(full, "RANDOM"));
    let wild = named("shop", "wild", 10, &by("'*.shop.svc.cluster.local'", "RANDOM"));
    let old = named("shop", "old", 19, &by("web", "ROUND_ROBIN"));
    let new = named("shop", "new", 21, &by(full, "RANDOM"));
    assert_eq!(chosen(&[]), None);
    assert_eq!(chosen(std::slice::from_ref(&other)), None, "a client's namespace has no say");
    assert_eq!(chosen(std::slice::from_ref(&root)).as_deref(), Some("Random"));
    assert_eq!(chosen(std::slice::from_ref(&wild)).as_deref(), Some("Random"));
    assert_eq!(chosen(&[root, wild, new.clone(), old.clone()]).as_deref(), Some("RoundRobin"));
    let hidden = named("istio-system", "root", 10, &format!("{}, exportTo: ['.']", by(full, "RANDOM")));
    assert_eq!(chosen(&[hidden]), None);
    let cluster = shop(&format!("{old}{new}"));
    assert_eq!(told(&cluster, "old"), "WaypointAccepted=true Accepted");
    assert_eq!(told(&cluster, "new"), "WaypointAccepted=false Conflicted");
}

#[test]
fn subsets_and_ports_override_what_is_said_of_all() {
    let spec = "host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 1}}, \
                portLevelSettings: [{port: {number: 81}, connectionPool: {tcp: {maxConnections: 2}}}]}, \
                subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}}, \
                          {name: v2, labels: {version: v2}}]";
    let holds = |subset, port| {
        let policy = policy(spec, subset, port);
        (policy.connections.most, policy.balancing.algorithm.clone())
    };
    assert_eq!(holds(None, 80), (Some(1), Algorithm::Random));
    assert_eq!(holds(None, 81), (Some(2), Algorithm::LeastRequest), "a port inherits nothing");
    assert_eq!(holds(Some("v1"), 80), (Some(3), Algorithm::Random), "a subset inherits what it does not say");
    assert_eq!(
        holds(Some("v1"), 81),
        (Some(3), Algorithm::LeastRequest),
        "a subset goes before a port of the rule"
    );
    assert_eq!(holds(Some("v2"), 80), (Some(1), Algorithm::Random));
}

#[test]
fn every_field_is_read() {
    let hash = |spec: &str| {
        let policy = general(&format!("loadBalancer: {{consistentHash: {{{spec}}}}}"));
        let Algorithm::Hash(on) = &policy.balancing.algorithm else { panic!("{policy:?}") };
        on.clone()
    };
    assert_eq!(hash("httpHeaderName: X-User"), HashOn::Header("x-user".parse().unwrap()));
    assert_eq!(hash("useSourceIp: true, maglev: {tableSize: 65537}"), HashOn::Source);
    assert_eq!(hash("httpQueryParameterName: user"), HashOn::Query("user".into()));
    let cookie =
        HashOn::Cookie { name: "id".into(), path: Some("/".into()), ttl: Some(Duration::from_millis(1500)) };
    assert_eq!(hash("httpCookie: {name: id, path: /, ttl: 1.5s}"), cookie);
    let near = general("loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}");
    let preferences = near.balancing.preferences.clone().unwrap();
    assert_eq!(*preferences.routing_preferences, [Scope::Region, Scope::Zone, Scope::Subzone]);
    assert_eq!(near.balancing.regions, [("a".into(), "b".into())]);
    let by = general(
        "loadBalancer: {localityLbSetting: {failoverPriority: [topology.istio.io/network, kubernetes.io/hostname]}}",
    );
    let preferences = by.balancing.preferences.clone().unwrap();
    assert_eq!(
        (&*preferences.routing_preferences, preferences.mode),
        (&[Scope::Network, Scope::Node][..], Mode::Failover)
    );
    let off = general("loadBalancer: {localityLbSetting: {enabled: false}}");
    assert_eq!(off.balancing.preferences.clone().unwrap().mode, Mode::Standard);
    assert_eq!(general("loadBalancer: {}").balancing.preferences, None, "as the service says");
    let warm = general("loadBalancer: {warmup: {duration: 30s, minimumPercent: 5, aggression: 2.5}}");
    let warm = warm.balancing.warmup.clone().unwrap();
    assert_eq!((warm.duration.as_secs(), warm.least_percent, warm.aggression), (30, 5, 2500));
    let old = general("loadBalancer: {warmupDurationSecs: 45s}").balancing.warmup.clone().unwrap();
    assert_eq!((old.duration.as_secs(), old.least_percent, old.aggression), (45, 10, 1000));
    let pool = general(
        "connectionPool: {tcp: {maxConnections: 1, connectTimeout: 2s}, http: {http1MaxPendingRequests: 3, \
         http2MaxRequests: 4, maxRequestsPerConnection: 5, maxRetries: 6, idleTimeout: 7s}}",
    );
    let limits = &pool.connections;
    let counts = [limits.most, limits.waiting, limits.requests, limits.requests_each, limits.retries];
    assert_eq!(counts, [1, 3, 4, 5, 6].map(Some));
    assert_eq!((limits.connect, limits.idle), (Some(Duration::from_secs(2)), Some(Duration::from_secs(7))));
    let usual = general("outlierDetection: {}").outliers.clone();
    let (server, base) = (Some(5), Duration::from_secs(30));
    assert_eq!((usual.server, usual.gateway, usual.base, usual.most_percent), (server, None, base, 10));
    let said = general(
        "outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 7, splitExternalLocalOriginErrors: true, \
         consecutiveLocalOriginFailures: 3, baseEjectionTime: 1m, maxEjectionPercent: 50, interval: 5s}",
    );
    let said = said.outliers.clone();
    assert_eq!((said.server, said.gateway, said.unreachable), (None, Some(7), Some(3)));
    assert_eq!((said.base.as_secs(), said.most_percent), (60, 50));
    assert_eq!(general("loadBalancer: {}").outliers, Outliers::default());
    assert!(!general("tls: {mode: DISABLE}").needs_tunnel);
    assert!(
        general("tls: {mode: ISTIO_MUTUAL}").needs_tunnel
            && general("tls: {mode: SIMPLE, sni: a}").needs_tunnel
    );
    assert!(!general("loadBalancer: {}").introduces);
    assert!(general("proxyProtocol: {version: V2}").introduces);
}

#[test]
fn what_cannot_be_done_is_refused_by_its_field() {
    let balancer = |spec: &str| format!("host: web, trafficPolicy: {{loadBalancer: {{{spec}}}}}");
    let outliers = |spec: &str| format!("host: web, trafficPolicy: {{outlierDetection: {{{spec}}}}}");
    let at = |field: &str| format!("spec.trafficPolicy.{field}");
    let proxied = |spec: &str| format!("host: web, trafficPolicy: {{proxyProtocol: {{{spec}}}}}");
    let table = [
        (proxied(""), at("proxyProtocol.version")),
        (proxied("version: V1"), at("proxyProtocol.version")),
        (String::new(), "spec.host".to_owned()),
        ("host: a.*.b".to_owned(), "spec.host".to_owned()),
        ("host: web, workloadSelector: {}".to_owned(), "spec.workloadSelector".to_owned()),
        ("host: web, subsets: [{name: a}, {name: a}]".to_owned(), "spec.subsets[1]".to_owned()),
        ("host: web, subsets: [{labels: {a: b}}]".to_owned(), "spec.subsets[0].name".to_owned()),
        ("host: web, trafficPolicy: {tunnel: {}}".to_owned(), at("tunnel")),
        ("host: web, trafficPolicy: {tls: {mode: NONE}}".to_owned(), at("tls.mode")),
        ("host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, sni: a}}".to_owned(), at("tls.sni")),
        (
            "host: web, trafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {}}}}".to_owned(),
            at("connectionPool.tcp.tcpKeepalive"),
        ),
        (
            "host: web, trafficPolicy: {connectionPool: {http: {useClientProtocol: false}}}".to_owned(),
            at("connectionPool.http.useClientProtocol"),
        ),
        (
            "host: web, trafficPolicy: {portLevelSettings: [{port: {number: 0}}]}".to_owned(),
            at("portLevelSettings[0].port.number"),
        ),
        (
            "host: web, trafficPolicy: {portLevelSettings: [{port: {number: 1}}, {port: {number: 1}}]}"
                .to_owned(),
            at("portLevelSettings[1]"),
        ),
        (balancer("simple: PASSTHROUGH"), at("loadBalancer.simple")),
        (balancer("simple: RANDOM, consistentHash: {useSourceIp: true}"), at("loadBalancer")),
        (balancer("consistentHash: {}"), at("loadBalancer.consistentHash")),
        (
            balancer("consistentHash: {useSourceIp: true, httpHeaderName: a}"),
            at("loadBalancer.consistentHash"),
        ),
        (
            balancer("consistentHash: {httpCookie: {name: 'a b'}}"),
            at("loadBalancer.consistentHash.httpCookie.name"),
        ),
        (balancer("localityLbSetting: {distribute: []}"), at("loadBalancer.localityLbSetting.distribute")),
        (
            balancer("localityLbSetting: {failoverPriority: [app]}"),
            at("loadBalancer.localityLbSetting.failoverPriority[0]"),
        ),
        (
            balancer("localityLbSetting: {failover: [{from: a, to: a}]}"),
            at("loadBalancer.localityLbSetting.failover[0]"),
        ),
        (balancer("warmup: {duration: soon}"), at("loadBalancer.warmup.duration")),
        (balancer("warmup: {duration: 1s, aggression: 0.5}"), at("loadBalancer.warmup.aggression")),
        (balancer("warmup: {duration: 1s, minimumPercent: 101}"), at("loadBalancer.warmup.minimumPercent")),
        (outliers("minHealthPercent: 50"), at("outlierDetection.minHealthPercent")),
        (outliers("maxEjectionPercent: 101"), at("outlierDetection.maxEjectionPercent")),
        (outliers("baseEjectionTime: x"), at("outlierDetection.baseEjectionTime")),
        (outliers("interval: 0s"), at("outlierDetection.interval")),
        (outliers("consecutiveErrors: 5"), at("outlierDetection.consecutiveErrors")),
    ];
    for (spec, field) in table {
        let parsed = at_the_door(&rule(&spec));
        let Parsed::Bad { rejection, instead: None } = parsed else { panic!("{spec}: {parsed:?}") };
        assert_eq!(rejection.field, field, "{spec}");
    }
}

#[test]
fn authors_are_told_what_became_of_it() {
    let of = |spec: &str| told(&shop(&rule(spec)), "r");
    assert_eq!(of("host: web"), "WaypointAccepted=true Accepted");
    assert_eq!(of("host: nobody"), "WaypointAccepted=false TargetNotFound");
    assert_eq!(of("host: bare"), "WaypointAccepted=false AncestorNotBound");
    assert_eq!(of("host: '*.example'"), "WaypointAccepted=true Accepted");
    assert_eq!(
        of("host: far.example, trafficPolicy: {tls: {mode: SIMPLE}}"),
        "WaypointAccepted=true PartiallyInvalid"
    );
}

#[test]
fn a_subset_of_everything_is_not_written_anew_when_endpoints_come() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: bare-1, namespace: shop, labels: \
                 {kubernetes.io/service-name: api}}\naddressType: IPv4\nports: [{name: http, port: 80}]\n\
                 endpoints: [{addresses: [192.0.2.7]}]\n";
    let spec = "host: api, subsets: [{name: all}]";
    let known = traffic(&shop(&format!("{}{slice}", rule(spec))), API, API).unwrap();
    assert!(known.subset(&"all".into()).unwrap().members.admit(&"whoever it is".into()));
    let configs = |spec: &str, object: &str| {
        let mut cluster = shop(&rule(spec));
        let touched = cluster.apply(Event::Upsert(support::objects(object).remove(0))).unwrap();
        let outputs = impact::of(&cluster, &touched).into_iter();
        outputs.filter(|one| matches!(one, Output::ServiceConfig { .. })).count()
    };
    let pod = pod_yaml("shop", "api-2", "10.0.0.7", "app: api, version: v1");
    assert_eq!((configs(spec, slice), configs(spec, &pod)), (0, 0));
    let named = "host: api, subsets: [{name: v1, labels: {version: v1}}]";
    assert!(configs(named, &pod) >= 2, "of api, and of web, whose route leads to it");
}

fn rated(annotations: &str, spec: &str) -> String {
    rule(spec).replace("metadata: {", &format!("metadata: {{annotations: {{{annotations}}}, "))
}

#[test]
fn success_rates_are_asked_for_by_annotations() {
    let spec = "host: web, trafficPolicy: {outlierDetection: {interval: 5s}}, subsets: [{name: v1, labels: {version: v1}, \
                trafficPolicy: {outlierDetection: {}}}]";
    let of = |annotations: &str, subset: Option<&str>| {
        let traffic = traffic(&shop(&rated(annotations, spec)), WEB, WEB).unwrap();
        let policy = traffic.policy(subset.map(Label::from).as_ref(), 80).unwrap();
        policy.outliers.success_rate.clone()
    };
    let rate = |factor, least_endpoints, least_requests, seconds| {
        let interval = Duration::from_secs(seconds);
        Some(SuccessRate { factor, least_endpoints, least_requests, interval })
    };
    let usual = "ambit.io/success-rate-stdev-factor: '1.9'";
    assert_eq!(of(usual, None), rate(1900, 5, 100, 5));
    assert_eq!(of(usual, Some("v1")), rate(1900, 5, 100, 10), "of every outlierDetection in the rule");
    let all = "ambit.io/success-rate-stdev-factor: '0.125', ambit.io/success-rate-minimum-hosts: '3', \
               ambit.io/success-rate-request-volume: '20'";
    assert_eq!(of(all, None), rate(125, 3, 20, 5));
    assert_eq!(of("ambit.io/success-rate-stdev-factor: '2'", None), rate(2000, 5, 100, 5));
    assert_eq!(of("example.com/other: x", None), None);
}

#[test]
fn annotations_that_make_no_sense_are_refused() {
    let factor = "ambit.io/success-rate-stdev-factor";
    let (hosts, volume) = ("ambit.io/success-rate-minimum-hosts", "ambit.io/success-rate-request-volume");
    let with_factor = |name: &str, value: &str| format!("{factor}: '1.9', {name}: '{value}'");
    let detects = "host: web, trafficPolicy: {outlierDetection: {}}";
    let values =
        ["", "0", "0.0", "-1", "+1", "1.", ".5", "1.2345", "129", "99999999999", "1,9", "1e1", "many"];
    let factors = values.map(|value| (format!("{factor}: '{value}'"), detects, factor));
    let table = [
        (with_factor(hosts, "1"), detects, hosts),
        (with_factor(hosts, "+5"), detects, hosts),
        (with_factor(hosts, ""), detects, hosts),
        (with_factor(volume, "0"), detects, volume),
        (with_factor(volume, "1.5"), detects, volume),
        (format!("{hosts}: '5'"), detects, hosts),
        (format!("{volume}: '5'"), detects, volume),
        (
            with_factor("ambit.io/success-rate-minimum-host", "5"),
            detects,
            "ambit.io/success-rate-minimum-host",
        ),
        (format!("{factor}: '1.9'"), "host: web", factor),
    ];
    for (annotations, spec, name) in factors.into_iter().chain(table) {
        let parsed = at_the_door(&rated(&annotations, spec));
        let Parsed::Bad { rejection, instead: None } = parsed else { panic!("{annotations}: {parsed:?}") };
        assert_eq!(rejection.field, format!("metadata.annotations[{name}]"), "{annotations}");
    }
}
