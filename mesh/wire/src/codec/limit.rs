//! How many requests are taken: `ambit.waypoint.v1.RateLimit`.

use std::{sync::Arc, time::Duration};

use ambit_model::{
    limit::{
        Attribute, Entry, EntryValue, GlobalLimit, InvalidLimit, InvalidRate, LocalLimit, OnError, Rate,
        RateLimit, Scope, header,
    },
    name::PolicyKey,
    route::RouteKey,
};
use ambit_proto::waypoint as pb;

use super::{
    Interner, InvalidResource, decode_each, decode_enum,
    route::{decode_destination, decode_match, encode_destination, encode_match, unset},
    service_config::decode_used_port,
};

pub(super) fn decode(message: pb::RateLimit, names: &mut Interner) -> Result<RateLimit, InvalidResource> {
    Ok(RateLimit {
        policy: PolicyKey { namespace: names.name(&message.namespace), name: names.name(&message.name) },
        scope: decode_scope(message.scope)?,
        local: decode_each("local", message.local, |one| decode_local(one).map(Arc::new))?,
        global: message
            .global
            .map(|global| decode_global(global, names).map_err(|error| error.within("global")))
            .transpose()?
            .map(Arc::new),
    })
}

fn decode_scope(message: Option<pb::rate_limit::Scope>) -> Result<Scope, InvalidResource> {
    use pb::rate_limit::Scope as Wire;
    let ports = |field, ports: Vec<u32>| {
        ports.into_iter().map(|port| decode_used_port(field, port)).collect::<Result<_, _>>()
    };
    Ok(match message.ok_or_else(|| unset("scope"))? {
        Wire::Waypoint(pb::WholeWaypoint {}) => Scope::Waypoint,
        Wire::Service(service) => Scope::Service { ports: ports("service.ports", service.ports)? },
        Wire::Route(route) => {
            for (field, text) in [("route.namespace", &route.namespace), ("route.name", &route.name)] {
                if text.is_empty() || text.contains('/') {
                    return Err(InvalidResource::field(field, format!("{text:?} is not a name")));
                }
            }
            if route.ports.is_empty() {
                return Err(InvalidResource::field("route.ports", "is empty"));
            }
            Scope::Route {
                rule: (!route.rule.is_empty()).then(|| route.rule.into()),
                ports: ports("route.ports", route.ports)?,
                route: RouteKey::new(route.namespace, route.name),
            }
        }
    })
}

fn decode_local(message: pb::LocalLimit) -> Result<LocalLimit, InvalidResource> {
    let per = Duration::from_millis(message.per_ms);
    let rate = Rate::new(message.requests, per, message.burst).map_err(|error| {
        let field = match error {
            InvalidRate::Requests => "requests",
            InvalidRate::Per => "per_ms",
            InvalidRate::Burst => "burst",
        };
        InvalidResource::field(field, error)
    })?;
    let by = decode_each("by", message.by, decode_attribute)?;
    let matches = decode_each("matches", message.matches, decode_match)?;
    LocalLimit::new(rate, by, matches).map_err(invalid)
}

fn decode_attribute(message: pb::RequestAttribute) -> Result<Attribute, InvalidResource> {
    use pb::request_attribute::Kind;
    Ok(match message.kind.ok_or_else(|| unset("kind"))? {
        Kind::Header(name) => {
            let named = header(&name);
            let unnamed =
                || InvalidResource::field("header", format!("{name:?} is not the name of a header"));
            Attribute::Header(named.ok_or_else(unnamed)?)
        }
        Kind::Fact(fact) => match decode_enum("fact", fact)? {
            pb::Fact::Principal => Attribute::Principal,
            pb::Fact::Namespace => Attribute::Namespace,
            pb::Fact::Address => Attribute::Address,
            pb::Fact::Path => Attribute::Path,
            pb::Fact::Method => Attribute::Method,
            pb::Fact::Unspecified => return Err(unset("fact")),
        },
    })
}

fn decode_global(message: pb::GlobalLimit, names: &mut Interner) -> Result<GlobalLimit, InvalidResource> {
    let to = decode_destination(message.to, names)?;
    let descriptors = decode_each("descriptors", message.descriptors, |descriptor| {
        decode_each("entries", descriptor.entries, decode_entry)
    })?;
    let timeout = Duration::from_millis(message.timeout_ms);
    let on_error = if message.fail_open { OnError::Take } else { OnError::Refuse };
    GlobalLimit::new(to, &message.domain, timeout, on_error, descriptors).map_err(invalid)
}

fn decode_entry(message: pb::LimitEntry) -> Result<Entry, InvalidResource> {
    use pb::limit_entry::Value;
    let value = match message.value.ok_or_else(|| unset("value"))? {
        Value::Fixed(text) => EntryValue::Fixed(text.into()),
        Value::Of(attribute) => {
            EntryValue::Of(decode_attribute(attribute).map_err(|error| error.within("of"))?)
        }
    };
    Ok(Entry { key: message.key.into(), value })
}

fn invalid(error: InvalidLimit) -> InvalidResource {
    let field = match error {
        InvalidLimit::Attributes => "by".to_owned(),
        InvalidLimit::Matches => "matches".to_owned(),
        InvalidLimit::Domain => "domain".to_owned(),
        InvalidLimit::Timeout => "timeout_ms".to_owned(),
        InvalidLimit::Descriptors => "descriptors".to_owned(),
        InvalidLimit::Entries(at) => format!("descriptors[{at}].entries"),
        InvalidLimit::Entry(at, entry) => format!("descriptors[{at}].entries[{entry}]"),
    };
    InvalidResource::field(field, error)
}

pub(super) fn encode(limit: &RateLimit) -> pb::RateLimit {
    use pb::rate_limit::Scope as Wire;
    let ports = |ports: &[u16]| ports.iter().map(|port| u32::from(*port)).collect();
    let scope = match &limit.scope {
        Scope::Waypoint => Wire::Waypoint(pb::WholeWaypoint {}),
        Scope::Service { ports: all } => Wire::Service(pb::ServicePorts { ports: ports(all) }),
        Scope::Route { route, rule, ports: all } => Wire::Route(pb::RouteRule {
            namespace: route.namespace().to_owned(),
            name: route.name().to_owned(),
            rule: rule.as_ref().map(ToString::to_string).unwrap_or_default(),
            ports: ports(all),
        }),
    };
    pb::RateLimit {
        namespace: limit.policy.namespace.to_string(),
        name: limit.policy.name.to_string(),
        scope: Some(scope),
        local: limit.local.iter().map(|one| encode_local(one)).collect(),
        global: limit.global.as_deref().map(encode_global),
    }
}

fn encode_local(limit: &LocalLimit) -> pb::LocalLimit {
    let rate = limit.rate();
    pb::LocalLimit {
        requests: rate.requests(),
        per_ms: millis(rate.per()),
        burst: rate.burst(),
        by: limit.by().iter().map(encode_attribute).collect(),
        matches: limit.matches().iter().map(encode_match).collect(),
    }
}

fn encode_attribute(attribute: &Attribute) -> pb::RequestAttribute {
    use pb::request_attribute::Kind;
    let kind = match attribute {
        Attribute::Header(name) => Kind::Header(name.to_string()),
        Attribute::Principal => Kind::Fact(pb::Fact::Principal.into()),
        Attribute::Namespace => Kind::Fact(pb::Fact::Namespace.into()),
        Attribute::Address => Kind::Fact(pb::Fact::Address.into()),
        Attribute::Path => Kind::Fact(pb::Fact::Path.into()),
        Attribute::Method => Kind::Fact(pb::Fact::Method.into()),
    };
    pb::RequestAttribute { kind: Some(kind) }
}

fn encode_global(limit: &GlobalLimit) -> pb::GlobalLimit {
    use pb::limit_entry::Value;
    let entry = |entry: &Entry| pb::LimitEntry {
        key: entry.key.to_string(),
        value: Some(match &entry.value {
            EntryValue::Fixed(text) => Value::Fixed(text.to_string()),
            EntryValue::Of(attribute) => Value::Of(encode_attribute(attribute)),
        }),
    };
    let descriptor =
        |entries: &Vec<Entry>| pb::LimitDescriptor { entries: entries.iter().map(entry).collect() };
    pb::GlobalLimit {
        to: Some(encode_destination(limit.to())),
        domain: limit.domain().to_owned(),
        timeout_ms: millis(limit.timeout()),
        fail_open: limit.on_error() == OnError::Take,
        descriptors: limit.descriptors().iter().map(descriptor).collect(),
    }
}

/// No time of a limit is shorter than a millisecond, nor has it a part of one: so it is read.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use super::*;
    use crate::codec::service_config::tests::{destination, matched};

    fn attribute() -> impl Strategy<Value = Attribute> {
        let header = |name| header(name).expect("a name");
        select(vec![
            Attribute::Header(header("x-user")),
            Attribute::Header(header("cookie")),
            Attribute::Principal,
            Attribute::Namespace,
            Attribute::Address,
            Attribute::Path,
            Attribute::Method,
        ])
    }

    fn scope() -> impl Strategy<Value = Scope> {
        let ports = |least| vec(1..=u16::MAX, least..3).prop_map(Into::into);
        let rule = option::of("[a-z]{1,3}".prop_map(Into::into));
        prop_oneof![
            Just(Scope::Waypoint),
            ports(0).prop_map(|ports| Scope::Service { ports }),
            ("[a-z]{1,3}", "[a-z]{1,3}", rule, ports(1)).prop_map(|(namespace, name, rule, ports)| {
                Scope::Route { route: RouteKey::new(namespace, name), rule, ports }
            }),
        ]
    }

    fn local() -> impl Strategy<Value = LocalLimit> {
        let rate = (1..1000_u32, 1..=86_400_000_u64, 1..1000_u32);
        (rate, vec(attribute(), 0..4), vec(matched(), 0..3)).prop_map(
            |((requests, per, burst), by, matches)| {
                let rate = Rate::new(requests, Duration::from_millis(per), burst).expect("a rate");
                LocalLimit::new(rate, by, matches).expect("a limit")
            },
        )
    }

    fn global() -> impl Strategy<Value = GlobalLimit> {
        let value = prop_oneof![
            "[a-z]{1,4}".prop_map(|text| EntryValue::Fixed(text.into())),
            attribute().prop_map(EntryValue::Of),
        ];
        let entry = ("[a-z]{1,4}", value).prop_map(|(key, value)| Entry { key: key.into(), value });
        let on_error = select(vec![OnError::Take, OnError::Refuse]);
        (destination(), "[a-z]{1,4}", 1..=10_000_u64, on_error, vec(vec(entry, 1..3), 1..3)).prop_map(
            |(to, domain, timeout, on_error, descriptors)| {
                let timeout = Duration::from_millis(timeout);
                GlobalLimit::new(to, &domain, timeout, on_error, descriptors).expect("a limit")
            },
        )
    }

    /// Any limit.
    pub(in crate::codec) fn limit() -> impl Strategy<Value = RateLimit> {
        let global = option::of(global().prop_map(Arc::new));
        (("[a-z]{1,4}", "[a-z]{1,4}"), scope(), vec(local().prop_map(Arc::new), 0..3), global).prop_map(
            |((namespace, name), scope, local, global)| RateLimit {
                policy: PolicyKey::new(namespace, name),
                scope,
                local,
                global,
            },
        )
    }

    fn message() -> pb::RateLimit {
        let header = pb::request_attribute::Kind::Header("x-user".into());
        let attribute = pb::RequestAttribute { kind: Some(header) };
        let entry =
            pb::LimitEntry { key: "user".into(), value: Some(pb::limit_entry::Value::Of(attribute.clone())) };
        pb::RateLimit {
            namespace: "shop".into(),
            name: "p".into(),
            scope: Some(pb::rate_limit::Scope::Waypoint(pb::WholeWaypoint {})),
            local: vec![pb::LocalLimit {
                requests: 1,
                per_ms: 1000,
                burst: 1,
                by: vec![attribute],
                matches: Vec::new(),
            }],
            global: Some(pb::GlobalLimit {
                to: Some(pb::Destination { kind: Some(pb::destination::Kind::Invalid("why".into())) }),
                domain: "shop".into(),
                timeout_ms: 100,
                fail_open: true,
                descriptors: vec![pb::LimitDescriptor { entries: vec![entry] }],
            }),
        }
    }

    #[test]
    fn every_part_of_a_limit_that_makes_no_sense_is_named() {
        fn local(change: impl FnOnce(&mut pb::LocalLimit)) -> pb::RateLimit {
            let mut message = message();
            change(&mut message.local[0]);
            message
        }
        fn global(change: impl FnOnce(&mut pb::GlobalLimit)) -> pb::RateLimit {
            let mut message = message();
            change(message.global.as_mut().expect("one"));
            message
        }
        let fact = |number| pb::RequestAttribute { kind: Some(pb::request_attribute::Kind::Fact(number)) };
        let route = |name: &str, ports| {
            let route = pb::RouteRule {
                namespace: "shop".into(),
                name: name.into(),
                ports,
                ..pb::RouteRule::default()
            };
            pb::RateLimit { scope: Some(pb::rate_limit::Scope::Route(route)), ..message() }
        };
        assert!(decode(message(), &mut Interner::default()).is_ok());
        for (field, message) in [
            ("scope", pb::RateLimit { scope: None, ..message() }),
            ("route.name", route("a/b", vec![80])),
            ("route.ports", route("a", Vec::new())),
            ("route.ports", route("a", vec![0])),
            ("local[0].requests", local(|one| one.requests = 0)),
            ("local[0].per_ms", local(|one| one.per_ms = u64::MAX)),
            ("local[0].burst", local(|one| one.burst = u32::MAX)),
            ("local[0].by[0].kind", local(|one| one.by = vec![Default::default()])),
            ("local[0].by[0].fact", local(|one| one.by = vec![fact(0)])),
            ("local[0].by[0].fact", local(|one| one.by = vec![fact(99)])),
            ("local[0].by", local(|one| one.by = vec![fact(1); 5])),
            ("local[0].matches[0].path", local(|one| one.matches = vec![Default::default()])),
            ("global.to", global(|one| one.to = None)),
            ("global.domain", global(|one| one.domain.clear())),
            ("global.timeout_ms", global(|one| one.timeout_ms = 0)),
            ("global.descriptors", global(|one| one.descriptors.clear())),
            ("global.descriptors[0].entries", global(|one| one.descriptors[0].entries.clear())),
            ("global.descriptors[0].entries[0]", global(|one| one.descriptors[0].entries[0].key.clear())),
            (
                "global.descriptors[0].entries[0].value",
                global(|one| one.descriptors[0].entries[0].value = None),
            ),
        ] {
            match decode(message, &mut Interner::default()) {
                Err(InvalidResource::Field { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }
}
