//! The rules of routes: `ambit.waypoint.v1.HttpRule` and what is in it.

use std::time::Duration;

use ambit_model::route::{
    Backend, Destination, GrpcCall, Lifetime, MadeOf, Match, Path, QueryMatch, Rule, Session, SessionKey,
    Text, Timeout, Timeouts, Wanted, retry,
};
use ambit_proto::waypoint as pb;
use http::{HeaderName, Method};

use super::{
    Interner, InvalidResource, decode_each, filter,
    service_config::{decode_service, decode_used_port},
};

pub(super) fn decode_rule(message: pb::HttpRule, names: &mut Interner) -> Result<Rule, InvalidResource> {
    let timeout = |written: Option<u64>| Timeout::from(written.map(Duration::from_millis));
    Ok(Rule {
        name: (!message.name.is_empty()).then(|| names.name(&message.name)),
        matches: decode_each("matches", message.matches, decode_match)?,
        filters: filter::decode_filters(message.filters, names)?,
        backends: decode_each("backends", message.backends, |one| decode_backend(one, names))?,
        timeouts: Timeouts {
            request: timeout(message.request_timeout_ms),
            backend: timeout(message.backend_timeout_ms),
        },
        retry: message.retry.map(decode_retry).transpose()?,
        session: message.session.map(decode_session).transpose()?,
    })
}

pub(super) fn encode_rule(rule: &Rule) -> pb::HttpRule {
    pb::HttpRule {
        name: rule.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        matches: rule.matches.iter().map(encode_match).collect(),
        filters: filter::encode_filters(&rule.filters),
        backends: rule.backends.iter().map(encode_backend).collect(),
        request_timeout_ms: encode_timeout(rule.timeouts.request),
        backend_timeout_ms: encode_timeout(rule.timeouts.backend),
        retry: rule.retry.as_ref().map(encode_retry),
        session: rule.session.as_ref().map(encode_session),
    }
}

pub(super) fn decode_match(message: pb::HttpMatch) -> Result<Match, InvalidResource> {
    use pb::http_match::Path as Wire;
    let (field, path) = match message.path.ok_or_else(|| unset("path"))? {
        Wire::Exact(path) => ("exact", Path::exact(&path)),
        Wire::Prefix(path) => ("prefix", Path::prefix(&path)),
        Wire::Beginning(path) => ("beginning", Path::beginning(&path)),
        Wire::Pattern(path) => ("pattern", Path::pattern(&path)),
        Wire::Grpc(call) => {
            let text = |field: &'static str, text: Option<pb::TextMatch>| {
                text.map(|text| decode_text(text).map_err(|error| error.within(field))).transpose()
            };
            let (service, method) = (text("grpc.service", call.service)?, text("grpc.method", call.method)?);
            ("grpc", Path::grpc(service, method))
        }
    };
    let mut matched = Match::path(path.map_err(|error| InvalidResource::field(field, error))?);
    if !message.method.is_empty() {
        let method = Method::from_bytes(message.method.as_bytes());
        let is_none = |_| InvalidResource::field("method", format!("{:?} is not a method", message.method));
        matched = matched.method(method.map_err(is_none)?);
    }
    for (name, value) in decode_each("headers", message.headers, decode_named)? {
        matched = matched.header(decode_header_name("headers", &name)?, value);
    }
    for (name, value) in decode_each("without_headers", message.without_headers, decode_named)? {
        matched = matched.without_header(decode_header_name("without_headers", &name)?, value);
    }
    for (name, value) in decode_each("query", message.query, decode_named)? {
        matched = matched.query(name, value);
    }
    Ok(matched)
}

pub(super) fn encode_match(matched: &Match) -> pb::HttpMatch {
    use pb::http_match::Path as Wire;
    let path = match matched.paths() {
        Path::Exact(path) => Wire::Exact(path.as_str().to_owned()),
        Path::Prefix(path) => match path.made_of() {
            // The prefix of every path is written `/`.
            MadeOf::Segments if path.as_str().is_empty() => Wire::Prefix("/".to_owned()),
            MadeOf::Segments => Wire::Prefix(path.as_str().to_owned()),
            MadeOf::Characters => Wire::Beginning(path.as_str().to_owned()),
        },
        Path::Pattern(path) => Wire::Pattern(path.as_str().to_owned()),
        Path::Grpc(call) => Wire::Grpc(encode_call(call)),
    };
    let headers = |wanted: Wanted| {
        let these = matched.headers().iter().filter(move |one| one.wanted == wanted);
        these.map(|one| encode_named(one.name.as_str(), &one.value)).collect()
    };
    let query = |one: &QueryMatch| encode_named(&one.name, &one.value);
    pb::HttpMatch {
        path: Some(path),
        method: matched.methods().map(ToString::to_string).unwrap_or_default(),
        headers: headers(Wanted::Yes),
        query: matched.queries().iter().map(query).collect(),
        without_headers: headers(Wanted::No),
    }
}

fn encode_call(call: &GrpcCall) -> pb::GrpcCall {
    pb::GrpcCall { service: call.service().map(encode_text), method: call.method().map(encode_text) }
}

fn decode_named(message: pb::NamedMatch) -> Result<(String, Text), InvalidResource> {
    if message.name.is_empty() {
        return Err(InvalidResource::field("name", "is empty"));
    }
    let value = message.value.ok_or_else(|| unset("value"))?;
    Ok((message.name, decode_text(value).map_err(|error| error.within("value"))?))
}

fn encode_named(name: &str, value: &Text) -> pb::NamedMatch {
    pb::NamedMatch { name: name.to_owned(), value: Some(encode_text(value)) }
}

fn decode_text(message: pb::TextMatch) -> Result<Text, InvalidResource> {
    use pb::text_match::Kind;
    match message.kind {
        Some(Kind::Exact(text)) => Ok(Text::exact(text)),
        Some(Kind::Prefix(text)) => Ok(Text::prefix(text)),
        Some(Kind::Present(pb::Present {})) => Ok(Text::Present),
        Some(Kind::Pattern(pattern)) => {
            Text::pattern(&pattern).map_err(|error| InvalidResource::field("pattern", error))
        }
        None => Err(unset("kind")),
    }
}

fn encode_text(text: &Text) -> pb::TextMatch {
    use pb::text_match::Kind;
    let kind = match text {
        Text::Exact(text) => Kind::Exact(text.to_string()),
        Text::Prefix(text) => Kind::Prefix(text.to_string()),
        Text::Present => Kind::Present(pb::Present {}),
        Text::Pattern(pattern) => Kind::Pattern(pattern.as_str().to_owned()),
    };
    pb::TextMatch { kind: Some(kind) }
}

pub(super) fn decode_backend(message: pb::Backend, names: &mut Interner) -> Result<Backend, InvalidResource> {
    Ok(Backend {
        to: decode_destination(message.to, names)?,
        weight: message.weight,
        filters: filter::decode_filters(message.filters, names)?,
    })
}

pub(super) fn encode_backend(backend: &Backend) -> pb::Backend {
    pb::Backend {
        to: Some(encode_destination(&backend.to)),
        weight: backend.weight,
        filters: filter::encode_filters(&backend.filters),
    }
}

pub(super) fn decode_destination(
    message: Option<pb::Destination>,
    names: &mut Interner,
) -> Result<Destination, InvalidResource> {
    use pb::destination::Kind;
    match message.and_then(|message| message.kind) {
        Some(Kind::Service(to)) => {
            let within = |error: InvalidResource| error.within("to.service");
            Ok(Destination::Service {
                service: decode_service(&to.namespace, &to.hostname, names).map_err(within)?,
                port: decode_used_port("port", to.port).map_err(within)?,
                subset: (!to.subset.is_empty()).then(|| names.name(&to.subset)),
            })
        }
        Some(Kind::Invalid(reason)) => Ok(Destination::Invalid { reason: names.name(&reason) }),
        None => Err(unset("to")),
    }
}

pub(super) fn encode_destination(destination: &Destination) -> pb::Destination {
    use pb::destination::Kind;
    let kind = match destination {
        Destination::Service { service, port, subset } => Kind::Service(pb::ServicePort {
            namespace: service.namespace.to_string(),
            hostname: service.hostname.to_string(),
            port: (*port).into(),
            subset: subset.as_ref().map(ToString::to_string).unwrap_or_default(),
        }),
        Destination::Invalid { reason } => Kind::Invalid(reason.to_string()),
    };
    pb::Destination { kind: Some(kind) }
}

fn encode_timeout(timeout: Timeout) -> Option<u64> {
    match timeout {
        Timeout::Default => None,
        Timeout::Never => Some(0),
        Timeout::After(limit) => Some(millis(limit)),
    }
}

/// Rounded up: a limit below a millisecond must not become none at all.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn decode_retry(message: pb::Retry) -> Result<retry::Policy, InvalidResource> {
    let code = |code: &u32| {
        u16::try_from(*code)
            .map_err(|_| InvalidResource::field("retry.codes", format!("{code} is not a status")))
    };
    let codes = message.codes.iter().map(code).collect::<Result<Vec<_>, _>>()?;
    retry::Policy::parse(&codes, message.attempts, message.backoff_ms.map(Duration::from_millis))
        .map_err(|error| InvalidResource::field("retry.codes", error))
}

fn encode_retry(policy: &retry::Policy) -> pb::Retry {
    pb::Retry {
        codes: policy.codes().iter().map(|code| code.as_u16().into()).collect(),
        attempts: Some(policy.attempts()),
        backoff_ms: Some(millis(policy.backoff())),
    }
}

fn decode_session(message: pb::Session) -> Result<Session, InvalidResource> {
    use pb::session::Key;
    let key = match message.key {
        Some(Key::Cookie(name)) if name.is_empty() => {
            return Err(InvalidResource::field("session.cookie", "is empty"));
        }
        Some(Key::Cookie(name)) => SessionKey::Cookie(name.into()),
        Some(Key::Header(name)) => SessionKey::Header(decode_header_name("session.header", &name)?),
        None => return Err(unset("session.key")),
    };
    Ok(Session {
        key,
        absolute: message.absolute_ms.map(Duration::from_millis),
        idle: message.idle_ms.map(Duration::from_millis),
        lifetime: if message.permanent { Lifetime::Permanent } else { Lifetime::Session },
    })
}

fn encode_session(session: &Session) -> pb::Session {
    use pb::session::Key;
    let key = match &session.key {
        SessionKey::Cookie(name) => Key::Cookie(name.to_string()),
        SessionKey::Header(name) => Key::Header(name.to_string()),
    };
    pb::Session {
        key: Some(key),
        absolute_ms: session.absolute.map(millis),
        idle_ms: session.idle.map(millis),
        permanent: session.lifetime == Lifetime::Permanent,
    }
}

pub(super) fn decode_header_name(field: &'static str, name: &str) -> Result<HeaderName, InvalidResource> {
    HeaderName::try_from(name)
        .map_err(|_| InvalidResource::field(field, format!("{name:?} is not the name of a header")))
}

/// Of alternatives none is set, or one that is not known here and may mean anything.
pub(super) fn unset(field: &'static str) -> InvalidResource {
    InvalidResource::field(field, "is not set to anything that is known here")
}
