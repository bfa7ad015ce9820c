//! `ambit.waypoint.v1.Traffic`: how the endpoints of a service are used.

use std::{sync::Arc, time::Duration};

use ambit_model::{
    name::{Label, ServiceKey, Uid},
    service::{LoadBalancing, Mode, Scope},
    traffic::{
        Algorithm, Balancing, Connections, HashOn, Members, Outliers, PolicyAt, Subset, SuccessRate, Traffic,
        TrafficPolicy, Warmup,
    },
};
use ambit_proto::waypoint as pb;

use super::{
    Interner, InvalidResource, decode_each,
    route::{decode_header_name, millis, unset},
    service_config::{decode_service, decode_used_port},
};

pub(super) fn decode(
    message: pb::Traffic,
    names: &mut Interner,
) -> Result<(ServiceKey, Arc<Traffic>), InvalidResource> {
    let service = decode_service(&message.namespace, &message.hostname, names)?;
    let policies = decode_each("policies", message.policies, |one| decode_at(one, names))?;
    let subsets = decode_each("subsets", message.subsets, |one| {
        let name: Label = named("name", &one.name, names)?;
        match (one.all, one.workloads.is_empty()) {
            (true, true) => Ok(Subset::of_all(name)),
            (true, false) => Err(InvalidResource::field("workloads", "are named beside all of them")),
            // Nothing said is nobody: what is not known here must not widen a subset.
            (false, _) => Ok(Subset::new(name, one.workloads.into_iter().map(Uid::from).collect())),
        }
    })?;
    Ok((service, Arc::new(Traffic { policies, subsets })))
}

pub(super) fn encode((service, traffic): &(ServiceKey, Arc<Traffic>)) -> pb::Traffic {
    let subset = |subset: &Subset| pb::Subset {
        name: subset.name.to_string(),
        workloads: match &subset.members {
            Members::All => Vec::new(),
            Members::These(workloads) => workloads.iter().map(ToString::to_string).collect(),
        },
        all: subset.members == Members::All,
    };
    pb::Traffic {
        namespace: service.namespace.to_string(),
        hostname: service.hostname.to_string(),
        policies: traffic.policies.iter().map(encode_at).collect(),
        subsets: traffic.subsets.iter().map(subset).collect(),
    }
}

fn named(field: &'static str, text: &str, names: &mut Interner) -> Result<Label, InvalidResource> {
    if text.is_empty() {
        return Err(InvalidResource::field(field, "is empty"));
    }
    Ok(names.name(text))
}

fn decode_at(message: pb::TrafficPolicyAt, names: &mut Interner) -> Result<PolicyAt, InvalidResource> {
    let policy = message.policy.ok_or_else(|| unset("policy"))?;
    let port = (message.port != 0).then(|| decode_used_port("port", message.port)).transpose()?;
    let subset = (!message.subset.is_empty()).then(|| names.name(&message.subset));
    Ok(PolicyAt { subset, port, policy: Arc::new(decode_policy(policy, names)?) })
}

fn encode_at(at: &PolicyAt) -> pb::TrafficPolicyAt {
    pb::TrafficPolicyAt {
        subset: at.subset.as_ref().map(ToString::to_string).unwrap_or_default(),
        port: at.port.unwrap_or_default().into(),
        policy: Some(encode_policy(&at.policy)),
    }
}

fn decode_policy(message: pb::TrafficPolicy, names: &mut Interner) -> Result<TrafficPolicy, InvalidResource> {
    use pb::traffic_policy::Algorithm as Wire;
    let algorithm = match message.algorithm.ok_or_else(|| unset("algorithm"))? {
        Wire::LeastRequest(_) => Algorithm::LeastRequest,
        Wire::RoundRobin(_) => Algorithm::RoundRobin,
        Wire::Random(_) => Algorithm::Random,
        Wire::Hash(on) => Algorithm::Hash(decode_hash(on).map_err(|error| error.within("hash"))?),
    };
    let (preferences, regions) = match message.locality {
        None => (None, Vec::new()),
        Some(locality) => {
            let scopes = decode_each("locality.preferences", locality.preferences, decode_scope)?;
            let regions = decode_each("locality.regions", locality.regions, |one| {
                Ok((named("from", &one.from, names)?, named("to", &one.to, names)?))
            })?;
            let mode = if scopes.is_empty() { Mode::Standard } else { Mode::Failover };
            let balancing =
                LoadBalancing { routing_preferences: scopes.into(), mode, ..LoadBalancing::default() };
            (Some(balancing), regions)
        }
    };
    Ok(TrafficPolicy {
        balancing: Balancing {
            algorithm,
            preferences,
            regions,
            warmup: message.warmup.map(decode_warmup).transpose()?,
        },
        connections: message.connections.map(decode_connections).unwrap_or_default(),
        outliers: message.outliers.map(decode_outliers).transpose()?.unwrap_or_default(),
        needs_tunnel: message.needs_tunnel,
        introduces: message.proxy_header,
    })
}

fn encode_policy(policy: &TrafficPolicy) -> pb::TrafficPolicy {
    use pb::traffic_policy::Algorithm as Wire;
    let balancing = &policy.balancing;
    let algorithm = match &balancing.algorithm {
        Algorithm::LeastRequest => Wire::LeastRequest(pb::LeastRequest {}),
        Algorithm::RoundRobin => Wire::RoundRobin(pb::RoundRobin {}),
        Algorithm::Random => Wire::Random(pb::RandomEndpoint {}),
        Algorithm::Hash(on) => Wire::Hash(encode_hash(on)),
    };
    let stand_in = |(from, to): &(Label, Label)| pb::StandIn { from: from.to_string(), to: to.to_string() };
    let locality = balancing.preferences.as_ref().map(|preferences| pb::Locality {
        preferences: preferences
            .routing_preferences
            .iter()
            .map(|scope| encode_scope(*scope).into())
            .collect(),
        regions: balancing.regions.iter().map(stand_in).collect(),
    });
    let warmup = balancing.warmup.as_ref().map(|warmup| pb::Warmup {
        duration_ms: millis(warmup.duration),
        least_percent: warmup.least_percent.into(),
        aggression: warmup.aggression,
    });
    pb::TrafficPolicy {
        algorithm: Some(algorithm),
        locality,
        warmup,
        connections: Some(encode_connections(&policy.connections)),
        outliers: Some(encode_outliers(&policy.outliers)),
        needs_tunnel: policy.needs_tunnel,
        proxy_header: policy.introduces,
    }
}

fn decode_hash(message: pb::HashOn) -> Result<HashOn, InvalidResource> {
    use pb::hash_on::Kind;
    let full = |field: &'static str, text: String| {
        if text.is_empty() { Err(InvalidResource::field(field, "is empty")) } else { Ok(text) }
    };
    Ok(match message.kind.ok_or_else(|| unset("kind"))? {
        Kind::Header(name) => HashOn::Header(decode_header_name("header", &name)?),
        Kind::Cookie(cookie) => HashOn::Cookie {
            name: full("cookie.name", cookie.name)?.into(),
            path: (!cookie.path.is_empty()).then(|| cookie.path.into()),
            ttl: cookie.ttl_ms.map(Duration::from_millis),
        },
        Kind::Source(_) => HashOn::Source,
        Kind::Query(name) => HashOn::Query(full("query", name)?.into()),
    })
}

fn encode_hash(on: &HashOn) -> pb::HashOn {
    use pb::hash_on::Kind;
    let kind = match on {
        HashOn::Header(name) => Kind::Header(name.to_string()),
        HashOn::Cookie { name, path, ttl } => Kind::Cookie(pb::HashCookie {
            name: name.to_string(),
            path: path.as_deref().unwrap_or_default().to_owned(),
            ttl_ms: ttl.map(millis),
        }),
        HashOn::Source => Kind::Source(pb::SourceAddress {}),
        HashOn::Query(name) => Kind::Query(name.to_string()),
    };
    pb::HashOn { kind: Some(kind) }
}

fn decode_scope(number: i32) -> Result<Scope, InvalidResource> {
    match pb::Nearness::try_from(number) {
        Ok(pb::Nearness::Region) => Ok(Scope::Region),
        Ok(pb::Nearness::Zone) => Ok(Scope::Zone),
        Ok(pb::Nearness::Subzone) => Ok(Scope::Subzone),
        Ok(pb::Nearness::Node) => Ok(Scope::Node),
        Ok(pb::Nearness::Cluster) => Ok(Scope::Cluster),
        Ok(pb::Nearness::Network) => Ok(Scope::Network),
        Ok(pb::Nearness::Unspecified) | Err(_) => Err(unset("preference")),
    }
}

fn encode_scope(scope: Scope) -> pb::Nearness {
    match scope {
        Scope::Region => pb::Nearness::Region,
        Scope::Zone => pb::Nearness::Zone,
        Scope::Subzone => pb::Nearness::Subzone,
        Scope::Node => pb::Nearness::Node,
        Scope::Cluster => pb::Nearness::Cluster,
        Scope::Network => pb::Nearness::Network,
    }
}

fn decode_percent(field: &'static str, percent: u32) -> Result<u8, InvalidResource> {
    let percent = u8::try_from(percent).ok().filter(|percent| *percent <= 100);
    percent.ok_or_else(|| InvalidResource::field(field, "is more than 100 percent"))
}

fn decode_warmup(message: pb::Warmup) -> Result<Warmup, InvalidResource> {
    if message.aggression < 1000 {
        return Err(InvalidResource::field("warmup.aggression", "is less than 1000"));
    }
    Ok(Warmup {
        duration: Duration::from_millis(message.duration_ms),
        least_percent: decode_percent("warmup.least_percent", message.least_percent)?,
        aggression: message.aggression,
    })
}

fn decode_connections(message: pb::ConnectionLimits) -> Connections {
    Connections {
        most: message.most,
        waiting: message.waiting,
        requests: message.requests,
        retries: message.retries,
        requests_each: message.requests_each,
        connect: message.connect_ms.map(Duration::from_millis),
        idle: message.idle_ms.map(Duration::from_millis),
    }
}

fn encode_connections(connections: &Connections) -> pb::ConnectionLimits {
    pb::ConnectionLimits {
        most: connections.most,
        waiting: connections.waiting,
        requests: connections.requests,
        retries: connections.retries,
        requests_each: connections.requests_each,
        connect_ms: connections.connect.map(millis),
        idle_ms: connections.idle.map(millis),
    }
}

fn decode_outliers(message: pb::Outliers) -> Result<Outliers, InvalidResource> {
    Ok(Outliers {
        unreachable: message.unreachable,
        gateway: message.gateway,
        server: message.server,
        base: Duration::from_millis(message.base_ms),
        longest: Duration::from_millis(message.longest_ms),
        most_percent: decode_percent("outliers.most_percent", message.most_percent)?,
        apart: message.apart,
        success_rate: message.success_rate.map(decode_success_rate).transpose()?,
    })
}

fn decode_success_rate(message: pb::SuccessRate) -> Result<SuccessRate, InvalidResource> {
    if message.factor == 0 || message.interval_ms == 0 {
        return Err(InvalidResource::field("outliers.success_rate", "has a factor or an interval of zero"));
    }
    Ok(SuccessRate {
        factor: message.factor,
        least_endpoints: message.least_endpoints,
        least_requests: message.least_requests,
        interval: Duration::from_millis(message.interval_ms),
    })
}

fn encode_outliers(outliers: &Outliers) -> pb::Outliers {
    pb::Outliers {
        unreachable: outliers.unreachable,
        gateway: outliers.gateway,
        server: outliers.server,
        base_ms: millis(outliers.base),
        longest_ms: millis(outliers.longest),
        most_percent: outliers.most_percent.into(),
        apart: outliers.apart,
        success_rate: outliers.success_rate.as_ref().map(|rate| pb::SuccessRate {
            factor: rate.factor,
            least_endpoints: rate.least_endpoints,
            least_requests: rate.least_requests,
            interval_ms: millis(rate.interval),
        }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use http::HeaderName;
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use super::*;

    fn time() -> impl Strategy<Value = Duration> {
        (0..1_000_000u64).prop_map(Duration::from_millis)
    }

    fn algorithm() -> impl Strategy<Value = Algorithm> {
        let cookie =
            ("[a-z]{1,4}", option::of("/[a-z]{0,3}"), option::of(time())).prop_map(|(name, path, ttl)| {
                HashOn::Cookie { name: name.into(), path: path.map(Into::into), ttl }
            });
        let hash = prop_oneof![
            Just(HashOn::Header(HeaderName::from_static("x-user"))),
            cookie,
            Just(HashOn::Source),
            "[a-z]{1,4}".prop_map(|name| HashOn::Query(name.into())),
        ];
        prop_oneof![
            Just(Algorithm::LeastRequest),
            Just(Algorithm::RoundRobin),
            Just(Algorithm::Random),
            hash.prop_map(Algorithm::Hash),
        ]
    }

    fn balancing() -> impl Strategy<Value = Balancing> {
        let scopes = select(vec![
            Scope::Region,
            Scope::Zone,
            Scope::Subzone,
            Scope::Node,
            Scope::Cluster,
            Scope::Network,
        ]);
        let label = || "[a-z]{1,3}".prop_map(Label::from);
        let locality = (vec(scopes, 0..4), vec((label(), label()), 0..3));
        let warmup = (time(), 0..=100u8, 1000..5000u32)
            .prop_map(|(duration, least_percent, aggression)| Warmup { duration, least_percent, aggression });
        (algorithm(), option::of(locality), option::of(warmup)).prop_map(|(algorithm, locality, warmup)| {
            let (preferences, regions) = locality.map_or((None, Vec::new()), |(scopes, regions)| {
                let mode = if scopes.is_empty() { Mode::Standard } else { Mode::Failover };
                let balancing =
                    LoadBalancing { routing_preferences: scopes.into(), mode, ..LoadBalancing::default() };
                (Some(balancing), regions)
            });
            Balancing { algorithm, preferences, regions, warmup }
        })
    }

    fn policy() -> impl Strategy<Value = TrafficPolicy> {
        let number = || option::of(0..9u32);
        let numbers = (number(), number(), number(), number(), number());
        let connections = (numbers, option::of(time()), option::of(time())).prop_map(
            |((most, waiting, requests, retries, requests_each), connect, idle)| Connections {
                most,
                waiting,
                requests,
                retries,
                requests_each,
                connect,
                idle,
            },
        );
        let success_rate = (1..9u32, 0..9u32, 0..9u32, 1..9u64).prop_map(
            |(factor, least_endpoints, least_requests, interval)| SuccessRate {
                factor,
                least_endpoints,
                least_requests,
                interval: Duration::from_millis(interval),
            },
        );
        let judged = (0..=100u8, any::<bool>(), option::of(success_rate));
        let outliers = ((number(), number(), number()), time(), time(), judged).prop_map(
            |((unreachable, gateway, server), base, longest, (most_percent, apart, success_rate))| Outliers {
                unreachable,
                gateway,
                server,
                base,
                longest,
                most_percent,
                apart,
                success_rate,
            },
        );
        (balancing(), connections, outliers, any::<bool>(), any::<bool>()).prop_map(
            |(balancing, connections, outliers, needs_tunnel, introduces)| TrafficPolicy {
                balancing,
                connections,
                outliers,
                needs_tunnel,
                introduces,
            },
        )
    }

    pub(in crate::codec) fn traffic() -> impl Strategy<Value = (ServiceKey, Arc<Traffic>)> {
        let at =
            (option::of("v[0-9]"), option::of(1..=u16::MAX), policy()).prop_map(|(subset, port, policy)| {
                PolicyAt { subset: subset.map(Label::from), port, policy: Arc::new(policy) }
            });
        let subset = ("v[0-9]", option::of(vec("[a-z]{1,3}", 0..4))).prop_map(|(name, uids)| match uids {
            None => Subset::of_all(name.into()),
            Some(uids) => Subset::new(name.into(), uids.into_iter().map(Into::into).collect()),
        });
        ("[a-z]{1,4}", "[a-z]{1,4}", vec(at, 0..3), vec(subset, 0..3)).prop_map(
            |(namespace, host, policies, subsets)| {
                (ServiceKey::new(namespace, host), Arc::new(Traffic { policies, subsets }))
            },
        )
    }

    fn decoded(subset: pb::Subset) -> Result<Members, InvalidResource> {
        let message = pb::Traffic {
            namespace: "shop".to_owned(),
            hostname: "web".to_owned(),
            policies: Vec::new(),
            subsets: vec![subset],
        };
        decode(message, &mut Interner::default()).map(|(_, traffic)| traffic.subsets[0].members.clone())
    }

    #[test]
    fn a_subset_is_never_wider_than_it_says() {
        let subset = |workloads: &[&str], all| pb::Subset {
            name: "v1".to_owned(),
            workloads: workloads.iter().map(ToString::to_string).collect(),
            all,
        };
        assert_eq!(decoded(subset(&[], true)).expect("all"), Members::All);
        assert_eq!(decoded(subset(&[], false)).expect("nobody"), Members::These([].into()));
        assert_eq!(decoded(subset(&["a"], false)).expect("one"), Members::These(["a".into()].into()));
        assert!(decoded(subset(&["a"], true)).is_err(), "it cannot be both");
    }
}
