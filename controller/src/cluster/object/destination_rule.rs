//! DestinationRule: which part of a service's endpoints is called what, and how they are used.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ambit_api::{destination_rule as api, labels};
use ambit_model::{
    name::{Hostname, Label, Namespace},
    service::{LoadBalancing, Mode, Scope},
    traffic::{Algorithm, Balancing, Connections, HashOn, Outliers, TrafficPolicy, Warmup},
};
use http::HeaderName;

use super::{
    Meta, Rejection, Selector,
    mesh_config::parse_istio_duration,
    peer_authentication::refuse_unknown,
    port,
    success_rate::{Rate, annotation},
};

/// The most subsets, and the most ports with settings of their own: each is looked through for each request.
const MOST: usize = 64;
/// How long an endpoint is set aside at most (Envoy's `max_ejection_time`).
const LONGEST_EJECTION: Duration = Duration::from_secs(300);
/// What is meant by outlier detection of which nothing is said (`OutlierDetection`).
const ERRORS: u32 = 5;
const EJECTION: Duration = Duration::from_secs(30);
const MOST_EJECTED: u8 = 10;
const INTERVAL: Duration = Duration::from_secs(10);
/// Times are told to waypoints in milliseconds.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);
/// How much a new endpoint gets at first of which nothing is said (`WarmupConfiguration`).
const LEAST_AT_FIRST: u8 = 10;

/// What the mesh needs of a DestinationRule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRule {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// The host as it is written: a host name, a short one, or one that begins with `*`.
    pub host: Hostname,
    /// For all endpoints.
    pub policy: EndpointPolicies,
    /// Parts of them.
    pub subsets: Vec<Subset>,
    /// Who sees it; empty: everybody.
    export_to: Vec<Label>,
}

/// A part of the endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    /// Its name.
    pub name: Label,
    /// Those with these labels; `None`: all.
    pub labels: Option<Selector>,
    /// How they are used, where that is another way.
    pub policy: Option<EndpointPolicies>,
}

/// What is said of endpoints, at every port and at some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointPolicies {
    /// At every port.
    pub general: EndpointPolicy,
    /// At these, in place of all that.
    pub ports: BTreeMap<u16, EndpointPolicy>,
}

/// What is said of endpoints. What is not said may be said elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointPolicy {
    balancing: Option<Arc<Balancing>>,
    connections: Option<Arc<Connections>>,
    outliers: Option<Arc<Outliers>>,
    tls: Option<Tls>,
    /// A PROXY header is asked for.
    introduces: Option<bool>,
}

/// How endpoints are spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tls {
    /// As the mesh does.
    Mesh,
    /// Through a tunnel or not at all.
    Mutual,
    /// With a TLS of their own, which a waypoint does not speak: through a tunnel or not at all.
    Own,
}

impl EndpointPolicy {
    /// What is said here, and what is said in `other` where nothing is said here.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            balancing: self.balancing.clone().or_else(|| other.balancing.clone()),
            connections: self.connections.clone().or_else(|| other.connections.clone()),
            outliers: self.outliers.clone().or_else(|| other.outliers.clone()),
            tls: self.tls.or(other.tls),
            introduces: self.introduces.or(other.introduces),
        }
    }

    /// As a waypoint is told.
    pub fn compiled(&self) -> TrafficPolicy {
        TrafficPolicy {
            balancing: self.balancing.as_deref().cloned().unwrap_or_default(),
            connections: self.connections.as_deref().cloned().unwrap_or_default(),
            outliers: self.outliers.as_deref().cloned().unwrap_or_default(),
            needs_tunnel: matches!(self.tls, Some(Tls::Mutual | Tls::Own)),
            introduces: self.introduces.unwrap_or(false),
        }
    }
}

impl DestinationRule {
    pub(super) fn parse(namespace: Namespace, object: api::DestinationRule) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let rate = Rate::parse(&meta.annotations)?;
        let spec = object.spec;
        refuse_unknown("spec", &spec.unknown)?;
        if spec.host.is_empty() || spec.host.trim_start_matches("*.").contains('*') {
            let what = format!("{:?} is no host", spec.host);
            return Err(Rejection::new("spec.host", what, "name a service, or *.example.com for many"));
        }
        let policy = spec.traffic_policy.as_ref();
        let policy = policy.map(|policy| parse_policies("spec.trafficPolicy", policy, rate)).transpose()?;
        refuse_many("spec.subsets", spec.subsets.len())?;
        let mut subsets: Vec<Subset> = Vec::with_capacity(spec.subsets.len());
        for (at, subset) in spec.subsets.into_iter().enumerate() {
            let field = format!("spec.subsets[{at}]");
            let subset = parse_subset(&field, subset, rate)?;
            if subsets.iter().any(|other| other.name == subset.name) {
                return Err(Rejection::new(field, "has the name of another", "rename it"));
            }
            subsets.push(subset);
        }
        let policies = subsets.iter().filter_map(|subset| subset.policy.as_ref()).chain(&policy);
        if rate.is_some() && !policies.flat_map(EndpointPolicies::all).any(|one| one.outliers.is_some()) {
            let remedy = "write outlierDetection, be it empty";
            return Err(Rejection::new(
                annotation(labels::SUCCESS_RATE_STDEV_FACTOR),
                "has no outlierDetection to belong to",
                remedy,
            ));
        }
        let export_to = spec.export_to.iter().map(|name| Label::from(name.as_str())).collect();
        Ok(Self {
            meta,
            host: spec.host.as_str().into(),
            policy: policy.unwrap_or_default(),
            subsets,
            export_to,
        })
    }

    /// Whether those of `namespace` see it.
    pub fn is_seen_in(&self, namespace: &Namespace) -> bool {
        let own = *namespace == self.meta.name.namespace;
        let sees = |name: &Label| match name.as_str() {
            "*" => true,
            "." => own,
            other => other == namespace.as_str(),
        };
        self.export_to.is_empty() || self.export_to.iter().any(sees)
    }

    /// Whether it asks for a TLS that no waypoint speaks.
    pub fn asks_for_tls(&self) -> bool {
        let of_subsets = self.subsets.iter().filter_map(|subset| subset.policy.as_ref());
        let policies = of_subsets.chain([&self.policy]);
        policies.flat_map(EndpointPolicies::all).any(|policy| policy.tls == Some(Tls::Own))
    }

    /// Whether it asks that connections begin with a PROXY header.
    pub fn asks_for_introductions(&self) -> bool {
        let of_subsets = self.subsets.iter().filter_map(|subset| subset.policy.as_ref());
        let policies = of_subsets.chain([&self.policy]);
        policies.flat_map(EndpointPolicies::all).any(|policy| policy.introduces == Some(true))
    }
}

impl EndpointPolicies {
    /// Those of ports, and the one for every port.
    fn all(&self) -> impl Iterator<Item = &EndpointPolicy> {
        self.ports.values().chain([&self.general])
    }
}

fn refuse_many(field: &str, count: usize) -> Result<(), Rejection> {
    if count <= MOST {
        return Ok(());
    }
    Err(Rejection::new(field, format!("has {count} entries"), format!("write {MOST} at most")))
}

fn parse_subset(field: &str, subset: api::Subset, rate: Option<Rate>) -> Result<Subset, Rejection> {
    refuse_unknown(field, &subset.unknown)?;
    if subset.name.is_empty() {
        return Err(Rejection::new(format!("{field}.name"), "is missing", "name the subset"));
    }
    let policy = subset.traffic_policy.as_ref();
    let policy =
        policy.map(|policy| parse_policies(&format!("{field}.trafficPolicy"), policy, rate)).transpose()?;
    Ok(Subset { name: subset.name.into(), labels: Selector::new(subset.labels), policy })
}

fn parse_policies(
    field: &str,
    policy: &api::TrafficPolicy,
    rate: Option<Rate>,
) -> Result<EndpointPolicies, Rejection> {
    refuse_unknown(field, &policy.unknown)?;
    let header = policy.proxy_protocol.as_ref();
    let introduces = header.map(|one| parse_proxy(&format!("{field}.proxyProtocol"), one)).transpose()?;
    let general = parse_policy(
        field,
        policy.load_balancer.as_ref(),
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref().map(|outliers| (outliers, rate)),
        policy.tls.as_ref(),
    )?;
    let general = EndpointPolicy { introduces, ..general };
    refuse_many(&format!("{field}.portLevelSettings"), policy.port_level_settings.len())?;
    let mut ports = BTreeMap::new();
    for (at, one) in policy.port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{at}]");
        refuse_unknown(&field, &one.unknown)?;
        let number = port(format!("{field}.port.number"), one.port.number)?;
        let policy = parse_policy(
            &field,
            one.load_balancer.as_ref(),
            one.connection_pool.as_ref(),
            one.outlier_detection.as_ref().map(|outliers| (outliers, rate)),
            one.tls.as_ref(),
        )?;
        // A port has no word of its own for it.
        let policy = EndpointPolicy { introduces, ..policy };
        if ports.insert(number, policy).is_some() {
            return Err(Rejection::new(field, format!("is for port {number} again"), "remove one of them"));
        }
    }
    Ok(EndpointPolicies { general, ports })
}

fn parse_policy(
    field: &str,
    balancer: Option<&api::LoadBalancer>,
    pool: Option<&api::ConnectionPool>,
    outliers: Option<(&api::OutlierDetection, Option<Rate>)>,
    tls: Option<&api::ClientTls>,
) -> Result<EndpointPolicy, Rejection> {
    let balancer = balancer.map(|one| parse_balancer(&format!("{field}.loadBalancer"), one));
    let pool = pool.map(|one| parse_pool(&format!("{field}.connectionPool"), one));
    let outliers =
        outliers.map(|(one, rate)| parse_outliers(&format!("{field}.outlierDetection"), one, rate));
    Ok(EndpointPolicy {
        balancing: balancer.transpose()?.map(Arc::new),
        connections: pool.transpose()?.map(Arc::new),
        outliers: outliers.transpose()?.map(Arc::new),
        tls: tls.map(|one| parse_tls(&format!("{field}.tls"), one)).transpose()?,
        introduces: None,
    })
}

/// Version 1 is what is meant where none is written (`TrafficPolicy.ProxyProtocol`), and is not written here.
fn parse_proxy(field: &str, header: &api::ProxyProtocol) -> Result<bool, Rejection> {
    refuse_unknown(field, &header.unknown)?;
    match header.version.as_deref() {
        Some("V2") => Ok(true),
        other => {
            let what = format!("{:?} is not written here", other.unwrap_or("V1"));
            Err(Rejection::new(format!("{field}.version"), what, "write V2"))
        }
    }
}

fn parse_tls(field: &str, tls: &api::ClientTls) -> Result<Tls, Rejection> {
    match tls.mode.as_deref() {
        // Whatever else it says is part of what is not spoken.
        Some("SIMPLE" | "MUTUAL") => Ok(Tls::Own),
        None | Some("DISABLE") => refuse_unknown(field, &tls.unknown).map(|()| Tls::Mesh),
        Some("ISTIO_MUTUAL") => refuse_unknown(field, &tls.unknown).map(|()| Tls::Mutual),
        Some(other) => {
            let remedy = "write ISTIO_MUTUAL or DISABLE, or leave it out: the mesh encrypts by itself";
            Err(Rejection::new(format!("{field}.mode"), format!("{other:?} is no mode"), remedy))
        }
    }
}

fn parse_balancer(field: &str, balancer: &api::LoadBalancer) -> Result<Balancing, Rejection> {
    refuse_unknown(field, &balancer.unknown)?;
    let algorithm = match (balancer.simple.as_deref(), &balancer.consistent_hash) {
        (Some(_), Some(_)) => {
            return Err(Rejection::new(field, "has two rules", "write one of simple and consistentHash"));
        }
        (None, Some(hash)) => Algorithm::Hash(parse_hash(&format!("{field}.consistentHash"), hash)?),
        (None | Some("UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN"), None) => Algorithm::LeastRequest,
        (Some("ROUND_ROBIN"), None) => Algorithm::RoundRobin,
        (Some("RANDOM"), None) => Algorithm::Random,
        (Some(other), None) => {
            let what = format!("{other:?} is no rule that a waypoint has");
            let remedy = "write LEAST_REQUEST, ROUND_ROBIN or RANDOM";
            return Err(Rejection::new(format!("{field}.simple"), what, remedy));
        }
    };
    let (preferences, regions) = match &balancer.locality_lb_setting {
        None => (None, Vec::new()),
        Some(locality) => parse_locality(&format!("{field}.localityLbSetting"), locality)?,
    };
    let warmup = match (&balancer.warmup, &balancer.warmup_duration_secs) {
        (Some(warmup), _) => Some(parse_warmup(&format!("{field}.warmup"), warmup)?),
        (None, Some(duration)) => Some(Warmup {
            duration: parse_istio_duration(format!("{field}.warmupDurationSecs"), duration)?,
            least_percent: LEAST_AT_FIRST,
            aggression: 1000,
        }),
        (None, None) => None,
    };
    Ok(Balancing { algorithm, preferences, regions, warmup })
}

fn parse_hash(field: &str, hash: &api::ConsistentHash) -> Result<HashOn, Rejection> {
    refuse_unknown(field, &hash.unknown)?;
    let cookie = |cookie: &api::HttpCookie| {
        let field = format!("{field}.httpCookie");
        refuse_unknown(&field, &cookie.unknown)?;
        // What a token may not have in it would end the cookie, or the header.
        if HeaderName::try_from(cookie.name.as_str()).is_err() {
            let what = format!("{:?} is no name of a cookie", cookie.name);
            return Err(Rejection::new(format!("{field}.name"), what, "write letters, digits, '-' and '_'"));
        }
        let ttl = cookie.ttl.as_ref().map(|ttl| parse_istio_duration(format!("{field}.ttl"), ttl));
        Ok(HashOn::Cookie {
            name: cookie.name.as_str().into(),
            path: cookie.path.as_deref().filter(|path| !path.is_empty()).map(Into::into),
            ttl: ttl.transpose()?,
        })
    };
    let header = |name: &String| {
        let what = |_| {
            Rejection::new(format!("{field}.httpHeaderName"), format!("{name:?} is no header"), "name one")
        };
        HeaderName::try_from(name.as_str()).map(HashOn::Header).map_err(what)
    };
    let query = hash.http_query_parameter_name.as_deref().filter(|name| !name.is_empty());
    let keys = [
        hash.http_header_name.as_ref().map(header),
        hash.http_cookie.as_ref().map(cookie),
        hash.use_source_ip.filter(|used| *used).map(|_| Ok(HashOn::Source)),
        query.map(|name| Ok(HashOn::Query(name.into()))),
    ];
    let mut keys = keys.into_iter().flatten();
    match (keys.next(), keys.next()) {
        (Some(one), None) => one,
        (None, _) | (Some(_), Some(_)) => {
            let remedy = "write one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName";
            Err(Rejection::new(field, "says not by what, or several times", remedy))
        }
    }
}

type Preferred = (Option<LoadBalancing>, Vec<(Label, Label)>);

fn parse_locality(field: &str, locality: &api::LocalityLb) -> Result<Preferred, Rejection> {
    if locality.unknown.contains_key("distribute") {
        let remedy = "write failover or failoverPriority";
        return Err(Rejection::new(format!("{field}.distribute"), "is not supported", remedy));
    }
    refuse_unknown(field, &locality.unknown)?;
    if locality.enabled == Some(false) {
        return Ok((Some(LoadBalancing::default()), Vec::new()));
    }
    let scopes = if locality.failover_priority.is_empty() {
        vec![Scope::Region, Scope::Zone, Scope::Subzone]
    } else {
        let labels = locality.failover_priority.iter().enumerate();
        let scope =
            |(at, label): (usize, &String)| parse_scope(format!("{field}.failoverPriority[{at}]"), label);
        labels.map(scope).collect::<Result<_, _>>()?
    };
    let mut regions = Vec::with_capacity(locality.failover.len());
    for (at, one) in locality.failover.iter().enumerate() {
        let field = format!("{field}.failover[{at}]");
        refuse_unknown(&field, &one.unknown)?;
        if one.from.is_empty() || one.to.is_empty() || one.from == one.to || one.to.contains('/') {
            return Err(Rejection::new(field, "names no two regions", "write from and to, each a region"));
        }
        regions.push((one.from.as_str().into(), one.to.as_str().into()));
    }
    let preferences = LoadBalancing {
        routing_preferences: scopes.into(),
        mode: Mode::Failover,
        ..LoadBalancing::default()
    };
    Ok((Some(preferences), regions))
}

fn parse_scope(field: String, label: &str) -> Result<Scope, Rejection> {
    match label {
        "topology.kubernetes.io/region" => Ok(Scope::Region),
        "topology.kubernetes.io/zone" => Ok(Scope::Zone),
        "topology.istio.io/subzone" => Ok(Scope::Subzone),
        "topology.istio.io/network" => Ok(Scope::Network),
        "topology.istio.io/cluster" => Ok(Scope::Cluster),
        "kubernetes.io/hostname" => Ok(Scope::Node),
        other => {
            let remedy = "name a label of region, zone, subzone, network, cluster or host name";
            Err(Rejection::new(field, format!("{other:?} says not where an endpoint is"), remedy))
        }
    }
}

fn parse_warmup(field: &str, warmup: &api::Warmup) -> Result<Warmup, Rejection> {
    refuse_unknown(field, &warmup.unknown)?;
    let least = warmup.minimum_percent.unwrap_or(LEAST_AT_FIRST.into());
    let least_percent = (0..=100u8).rev().find(|percent| f64::from(*percent) <= least);
    let least_percent = least_percent.filter(|_| least <= 100.0).ok_or_else(|| {
        let what = format!("{least} is no percentage");
        Rejection::new(format!("{field}.minimumPercent"), what, "write 0 to 100")
    })?;
    let factor = warmup.aggression.unwrap_or(1.0);
    // In tenths, as far as a curve can be told from another.
    let tenths = (10..=1000u32).rev().find(|tenths| f64::from(*tenths) <= factor * 10.0);
    let tenths = tenths.ok_or_else(|| {
        let what = format!("{factor} is less than 1");
        Rejection::new(format!("{field}.aggression"), what, "write 1, or more to be faster at first")
    })?;
    let duration = parse_istio_duration(format!("{field}.duration"), &warmup.duration)?;
    Ok(Warmup { duration, least_percent, aggression: tenths * 100 })
}

fn parse_pool(field: &str, pool: &api::ConnectionPool) -> Result<Connections, Rejection> {
    refuse_unknown(field, &pool.unknown)?;
    let (tcp, http) = (pool.tcp.clone().unwrap_or_default(), pool.http.clone().unwrap_or_default());
    let (of_tcp, of_http) = (format!("{field}.tcp"), format!("{field}.http"));
    refuse_unknown(&of_tcp, &tcp.unknown)?;
    refuse_unknown(&of_http, &http.unknown)?;
    if http.use_client_protocol == Some(false) {
        let remedy = "leave it out: endpoints are spoken to as the client speaks, or as the port says";
        return Err(Rejection::new(format!("{of_http}.useClientProtocol"), "cannot be false", remedy));
    }
    let time = |field: String, text: &Option<String>| {
        text.as_ref().map(|text| parse_istio_duration(field, text)).transpose()
    };
    // In Envoy, too, 0 is no limit of its own.
    let some = |limit: Option<u32>| limit.filter(|limit| *limit > 0);
    Ok(Connections {
        most: some(tcp.max_connections),
        waiting: some(http.http1_max_pending_requests),
        requests: some(http.http2_max_requests),
        retries: some(http.max_retries),
        requests_each: some(http.max_requests_per_connection),
        connect: time(format!("{of_tcp}.connectTimeout"), &tcp.connect_timeout)?
            .filter(|time| !time.is_zero()),
        idle: time(format!("{of_http}.idleTimeout"), &http.idle_timeout)?.filter(|time| !time.is_zero()),
    })
}

fn parse_outliers(
    field: &str,
    outliers: &api::OutlierDetection,
    rate: Option<Rate>,
) -> Result<Outliers, Rejection> {
    refuse_unknown(field, &outliers.unknown)?;
    if outliers.min_health_percent.is_some_and(|percent| percent > 0) {
        let remedy = "leave it out: where all endpoints are set aside, all are asked";
        return Err(Rejection::new(format!("{field}.minHealthPercent"), "is not supported", remedy));
    }
    let percent = match outliers.max_ejection_percent {
        None => MOST_EJECTED,
        Some(percent) => u8::try_from(percent).ok().filter(|percent| *percent <= 100).ok_or_else(|| {
            let what = format!("{percent} is no percentage");
            Rejection::new(format!("{field}.maxEjectionPercent"), what, "write 0 to 100")
        })?,
    };
    let time = |name: &str, text: &Option<String>| {
        text.as_ref().map(|text| parse_istio_duration(format!("{field}.{name}"), text)).transpose()
    };
    let interval = time("interval", &outliers.interval)?.unwrap_or(INTERVAL);
    if interval < SHORTEST_INTERVAL {
        let what = format!("{interval:?} is too short");
        return Err(Rejection::new(format!("{field}.interval"), what, "write 1ms or more"));
    }
    let some = |limit: u32| (limit > 0).then_some(limit);
    let apart = outliers.split_external_local_origin_errors == Some(true);
    Ok(Outliers {
        unreachable: if apart {
            some(outliers.consecutive_local_origin_failures.unwrap_or(ERRORS))
        } else {
            None
        },
        gateway: outliers.consecutive_gateway_errors.and_then(some),
        server: some(outliers.consecutive_5xx_errors.unwrap_or(ERRORS)),
        base: time("baseEjectionTime", &outliers.base_ejection_time)?.unwrap_or(EJECTION),
        longest: LONGEST_EJECTION,
        most_percent: percent,
        apart,
        success_rate: rate.map(|rate| rate.over(interval)),
    })
}
