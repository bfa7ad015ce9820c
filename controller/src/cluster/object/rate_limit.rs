//! RateLimitPolicy: what it limits, and how many requests are taken.

use std::{fmt, sync::Arc, time::Duration};

use ambit_api::{CustomKind as _, rate_limit_policy as api, route::BackendRef};
use ambit_model::{
    limit::{
        Attribute, Entry, EntryValue, GlobalLimit, InvalidLimit, InvalidRate, LocalLimit, OnError, Rate,
        header,
    },
    name::{Label, Namespace},
    route::Destination,
};
use serde_json::Value;

use super::{
    Key, Kind, Meta, Name, Rejection, Written,
    http_route::{parse_duration, parse_match},
    peer_authentication::{bare_meta, refuse_unknown},
    route::{GATEWAY_API, ISTIO_NETWORKING, Reference, parse_reference},
};
use crate::cluster::HostOwner;

/// The most targets: as many as a status may tell of (PolicyStatus, `maxItems`).
const TARGETS: usize = 16;
/// The most local limits of a policy: each is looked up for each request.
const LIMITS: usize = 16;
/// How long is waited for a limit service of which nothing is said: longer than it takes, shorter than a person notices.
const TIMEOUT: Duration = Duration::from_millis(100);

/// What the mesh needs of a RateLimitPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitPolicy {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// What it limits.
    pub targets: Vec<LimitTargetRef>,
    /// What it says.
    pub content: LimitContent,
}

/// One reference to what is limited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitTargetRef {
    /// The reference as it is written, by which its status is known.
    pub written: Value,
    /// What it names.
    pub to: LimitTarget,
    /// Of that this port or rule.
    pub section: Option<Label>,
}

/// What is limited, of the policy's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitTarget {
    /// A service of either kind.
    Service(HostOwner),
    /// A waypoint: all that comes to it.
    Gateway(Name),
    /// An HTTPRoute or GRPCRoute.
    Route(Key),
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitContent {
    /// How many requests are taken.
    Limits {
        /// What each waypoint counts.
        local: Vec<Arc<LocalLimit>>,
        /// What a service counts.
        global: Option<LimitAtService>,
    },
    /// It could not be understood, and was never understood before: it limits nothing.
    Undecodable(String),
}

/// A limit that a service counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitAtService {
    /// The service.
    pub to: Reference,
    limit: GlobalLimit,
}

impl LimitAtService {
    /// The limit, with the service that its reference leads to.
    pub fn resolved(&self, to: Destination) -> GlobalLimit {
        self.limit.clone().asked_of(to)
    }
}

impl fmt::Display for LimitTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(HostOwner::Service(name)) => write!(f, "Service {}", name.name),
            Self::Service(HostOwner::ServiceEntry(name)) => write!(f, "ServiceEntry {}", name.name),
            Self::Gateway(name) => write!(f, "Gateway {}", name.name),
            Self::Route(key) => write!(f, "{} {}", key.kind.word(), key.name.name),
        }
    }
}

impl RateLimitPolicy {
    pub(super) fn parse(namespace: Namespace, object: api::RateLimitPolicy) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let spec = object.spec;
        refuse_unknown("spec", &spec.unknown)?;
        let targets = parse_targets(&meta.name.namespace, &spec.target_refs)?;
        if spec.local.is_empty() && spec.global.is_none() {
            return Err(Rejection::new("spec", "limits nothing", "write local, global or both"));
        }
        refuse_many("spec.local", spec.local.len(), 0, LIMITS)?;
        let local = spec.local.iter().enumerate();
        let local = local.map(|(at, limit)| parse_local(&format!("spec.local[{at}]"), limit).map(Arc::new));
        let local = local.collect::<Result<_, _>>()?;
        let global = spec.global.map(|global| parse_global(&global, &meta.name.namespace)).transpose()?;
        Ok(Self { meta, targets, content: LimitContent::Limits { local, global } })
    }

    /// What one that cannot be understood is taken for: nothing, but those whom it names are told.
    pub(super) fn undecodable(written: &Written<'_>, reason: String) -> Self {
        let targets = written.value.pointer("/spec/targetRefs").cloned();
        let targets = targets.and_then(|targets| serde_json::from_value::<Vec<_>>(targets).ok());
        let targets =
            targets.and_then(|targets| parse_targets(&Namespace::from(written.namespace), &targets).ok());
        let content = LimitContent::Undecodable(reason);
        Self { meta: bare_meta(written), targets: targets.unwrap_or_default(), content }
    }

    /// The service that counts, if there is one.
    pub fn limit_service(&self) -> Option<&Reference> {
        match &self.content {
            LimitContent::Limits { global, .. } => global.as_ref().map(|global| &global.to),
            LimitContent::Undecodable(_) => None,
        }
    }
}

fn refuse_many(field: &str, count: usize, least: usize, most: usize) -> Result<(), Rejection> {
    if (least..=most).contains(&count) {
        return Ok(());
    }
    Err(Rejection::new(field, format!("has {count} entries"), format!("write {least} to {most}")))
}

fn parse_targets(
    namespace: &Namespace,
    targets: &[api::LimitTargetRef],
) -> Result<Vec<LimitTargetRef>, Rejection> {
    refuse_many("spec.targetRefs", targets.len(), 1, TARGETS)?;
    let mut parsed: Vec<LimitTargetRef> = Vec::with_capacity(targets.len());
    for (at, target) in targets.iter().enumerate() {
        let field = format!("spec.targetRefs[{at}]");
        let target = parse_target(&field, namespace, target)?;
        if parsed.iter().any(|one| one.to == target.to && one.section == target.section) {
            return Err(Rejection::new(field, "is the same as another", "remove one of them"));
        }
        parsed.push(target);
    }
    Ok(parsed)
}

fn parse_target(
    field: &str,
    namespace: &Namespace,
    target: &api::LimitTargetRef,
) -> Result<LimitTargetRef, Rejection> {
    refuse_unknown(field, &target.unknown)?;
    let name = Name::new(namespace.clone(), target.name.as_str());
    let (group, to) = match target.kind.as_str() {
        "Service" => ("", LimitTarget::Service(HostOwner::Service(name))),
        "ServiceEntry" => (ISTIO_NETWORKING, LimitTarget::Service(HostOwner::ServiceEntry(name))),
        "Gateway" => (GATEWAY_API, LimitTarget::Gateway(name)),
        "HTTPRoute" => (GATEWAY_API, LimitTarget::Route(Key { kind: Kind::HttpRoute, name })),
        "GRPCRoute" => (GATEWAY_API, LimitTarget::Route(Key { kind: Kind::GrpcRoute, name })),
        other => {
            let remedy = "name a Service, ServiceEntry, Gateway, HTTPRoute or GRPCRoute";
            let what = format!("{other:?} cannot be limited");
            return Err(Rejection::new(format!("{field}.kind"), what, remedy));
        }
    };
    let is_group = target.group == group || (group.is_empty() && target.group == "core");
    if !is_group {
        let what = format!("{:?} has no {}", target.group, target.kind);
        return Err(Rejection::new(format!("{field}.group"), what, format!("write {group:?}")));
    }
    if target.name.is_empty() {
        return Err(Rejection::new(format!("{field}.name"), "is missing", format!("name a {}", target.kind)));
    }
    let section = target.section_name.as_deref().filter(|name| !name.is_empty()).map(Label::from);
    if section.is_some() && matches!(to, LimitTarget::Gateway(_)) {
        let remedy = "remove it: a waypoint has one listener for all services";
        return Err(Rejection::new(format!("{field}.sectionName"), "is for a waypoint", remedy));
    }
    let written = serde_json::to_value(target)
        .map_err(|error| Rejection::new(field, error.to_string(), "write it anew"))?;
    Ok(LimitTargetRef { written, to, section })
}

fn parse_local(field: &str, limit: &api::LocalLimit) -> Result<LocalLimit, Rejection> {
    refuse_unknown(field, &limit.unknown)?;
    let per = parse_duration(&format!("{field}.per"), &limit.per)?;
    let rate = Rate::new(limit.requests, per, limit.burst.unwrap_or(limit.requests));
    let rate = rate.map_err(|error| {
        let (place, remedy) = match error {
            InvalidRate::Requests => ("requests", "write how many requests are taken"),
            InvalidRate::Per => ("per", "write in what time: 1s, 1m"),
            InvalidRate::Burst => ("burst", "write how many may come at once, or remove it"),
        };
        Rejection::new(format!("{field}.{place}"), error.to_string(), remedy)
    })?;
    let by = limit.by.iter().enumerate().map(|(at, key)| {
        let field = format!("{field}.by[{at}]");
        refuse_unknown(&field, &key.unknown)?;
        parse_attribute(&field, key.header.as_deref(), key.from)?
            .ok_or_else(|| Rejection::new(field, "names nothing", "write header or from"))
    });
    let matches = limit.matches.iter().enumerate();
    let matches = matches.map(|(at, one)| parse_match(&format!("{field}.matches[{at}]"), one));
    let (by, matches) = (by.collect::<Result<_, _>>()?, matches.collect::<Result<_, _>>()?);
    LocalLimit::new(rate, by, matches).map_err(|error| refused(field, error))
}

/// `None`: it names neither.
fn parse_attribute(
    field: &str,
    name: Option<&str>,
    from: Option<api::LimitFact>,
) -> Result<Option<Attribute>, Rejection> {
    let fact = |fact| match fact {
        api::LimitFact::Principal => Attribute::Principal,
        api::LimitFact::Namespace => Attribute::Namespace,
        api::LimitFact::Address => Attribute::Address,
        api::LimitFact::Path => Attribute::Path,
        api::LimitFact::Method => Attribute::Method,
    };
    match (name, from) {
        (Some(_), Some(_)) => Err(Rejection::new(field, "has header and from", "remove one of the two")),
        (None, from) => Ok(from.map(fact)),
        (Some(name), None) => match header(name) {
            Some(name) => Ok(Some(Attribute::Header(name))),
            None => {
                let what = format!("{name:?} is not the name of a header");
                Err(Rejection::new(format!("{field}.header"), what, "write letters, digits and '-'"))
            }
        },
    }
}

fn parse_global(global: &api::GlobalLimit, namespace: &Namespace) -> Result<LimitAtService, Rejection> {
    let field = "spec.global";
    refuse_unknown(field, &global.unknown)?;
    let to = parse_service(&global.service, namespace)?;
    let timeout = global.timeout.as_deref();
    let timeout = timeout.map(|text| parse_duration(&format!("{field}.timeout"), text)).transpose()?;
    let on_error = if global.fail_open.unwrap_or(true) { OnError::Take } else { OnError::Refuse };
    let descriptors = global.descriptors.iter().enumerate().map(|(at, descriptor)| {
        let field = format!("{field}.descriptors[{at}]");
        refuse_unknown(&field, &descriptor.unknown)?;
        let entries = descriptor.entries.iter().enumerate();
        entries.map(|(at, entry)| parse_entry(&format!("{field}.entries[{at}]"), entry)).collect()
    });
    let descriptors = descriptors.collect::<Result<_, Rejection>>()?;
    // Whether it makes sense does not depend on whom it leads to.
    let nobody = Destination::Invalid { reason: Label::default() };
    let limit = GlobalLimit::new(nobody, &global.domain, timeout.unwrap_or(TIMEOUT), on_error, descriptors);
    Ok(LimitAtService { to, limit: limit.map_err(|error| refused(field, error))? })
}

fn parse_service(service: &api::LimitService, namespace: &Namespace) -> Result<Reference, Rejection> {
    let field = "spec.global.service";
    if service.name.is_empty() {
        return Err(Rejection::new(format!("{field}.name"), "is missing", "name the service that counts"));
    }
    let reference = BackendRef {
        group: service.group.clone(),
        kind: service.kind.clone(),
        name: service.name.clone(),
        namespace: service.namespace.clone(),
        port: service.port,
        unknown: service.unknown.clone(),
        ..BackendRef::default()
    };
    parse_reference(field, &reference, namespace)
}

fn parse_entry(field: &str, entry: &api::LimitEntry) -> Result<Entry, Rejection> {
    refuse_unknown(field, &entry.unknown)?;
    let value = match (&entry.value, parse_attribute(field, entry.header.as_deref(), entry.from)?) {
        (Some(text), None) => EntryValue::Fixed(text.as_str().into()),
        (None, Some(attribute)) => EntryValue::Of(attribute),
        (Some(_), Some(_)) => {
            return Err(Rejection::new(field, "has two values", "write one of value, header and from"));
        }
        (None, None) => {
            return Err(Rejection::new(field, "has no value", "write value, header or from"));
        }
    };
    Ok(Entry { key: entry.key.as_str().into(), value })
}

fn refused(field: &str, error: InvalidLimit) -> Rejection {
    let (place, remedy) = match error {
        InvalidLimit::Attributes => (".by".to_owned(), "remove some"),
        InvalidLimit::Matches => (".matches".to_owned(), "split the limit"),
        InvalidLimit::Domain => (".domain".to_owned(), "write the domain as the service has it"),
        InvalidLimit::Timeout => (".timeout".to_owned(), "write a duration such as 50ms"),
        InvalidLimit::Descriptors => (".descriptors".to_owned(), "write what the service is asked about"),
        InvalidLimit::Entries(at) => (format!(".descriptors[{at}].entries"), "write what is counted by"),
        InvalidLimit::Entry(at, entry) => {
            (format!(".descriptors[{at}].entries[{entry}]"), "write key and value as the service has them")
        }
    };
    Rejection::new(format!("{field}{place}"), error.to_string(), remedy)
}

/// The group of our own kinds.
pub(super) fn group() -> &'static str {
    api::RateLimitPolicy::GROUP
}
