//! `ambit.waypoint.v1.ServiceConfig`: what applies to one service at its waypoint.

use std::sync::Arc;

use ambit_model::{
    name::{Namespace, ServiceKey},
    route::{Origin, Precedence, Route, RouteKey, StreamRoute},
    service_config::{Attached, Parts, ServiceConfig},
};
use ambit_proto::waypoint as pb;
use bytes::Bytes;
use prost::Message;

use super::{
    Interner, InvalidResource, authn, decode_each, decode_enum, decode_port, limit, policy, route, traffic,
};

/// The name of the resource with what applies to `service` at the waypoint `gateway_name`.
pub fn service_config_name(gateway_namespace: &str, gateway_name: &str, service: &ServiceKey) -> String {
    format!("{gateway_namespace}/{gateway_name}/{service}")
}

/// The service that the name of such a resource stands for, at whichever waypoint.
pub fn service_config_key(name: &str) -> Option<ServiceKey> {
    let (_gateway_namespace, rest) = name.split_once('/')?;
    let (_gateway_name, service) = rest.split_once('/')?;
    ServiceKey::parse(service)
}

pub(super) fn decode(body: Bytes, names: &mut Interner) -> Result<ServiceConfig, InvalidResource> {
    let message =
        pb::ServiceConfig::decode(body).map_err(|error| InvalidResource::Message(error.to_string()))?;
    let key = decode_service(&message.namespace, &message.hostname, names)?;
    if !message.broken.is_empty() {
        return Ok(ServiceConfig::undecodable(key, &message.broken));
    }
    let parts = Parts {
        http: decode_each("http_routes", message.http_routes, |one| decode_http(one, names))?,
        stream: decode_each("stream_routes", message.stream_routes, |one| decode_stream(one, names))?,
        authentication: decode_each("authentication", message.authentication, authn::decode)?,
        policies: message.policies.into_iter().map(|one| Arc::new(policy::decode(one, names))).collect(),
        limits: decode_each("limits", message.limits, |one| limit::decode(one, names))?,
        traffic: decode_each("traffic", message.traffic, |one| traffic::decode(one, names))?,
    };
    Ok(ServiceConfig::new(key, parts))
}

/// A service is found by its key in names of resources, so neither part is empty or has a slash.
pub(super) fn decode_service(
    namespace: &str,
    hostname: &str,
    names: &mut Interner,
) -> Result<ServiceKey, InvalidResource> {
    for (field, text) in [("namespace", namespace), ("hostname", hostname)] {
        check_name(field, text)?;
    }
    Ok(ServiceKey { namespace: names.name(namespace), hostname: names.name(hostname) })
}

fn check_name(field: &'static str, text: &str) -> Result<(), InvalidResource> {
    if text.is_empty() || text.contains('/') {
        return Err(InvalidResource::field(field, format!("{text:?} is not a name")));
    }
    Ok(())
}

fn decode_http(message: pb::HttpRoute, names: &mut Interner) -> Result<Attached<Route>, InvalidResource> {
    let origin = decode_origin(message.origin)?;
    let rules = decode_each("rules", message.rules, |rule| route::decode_rule(rule, names))?;
    let route = match decode_enum("precedence", message.precedence)? {
        pb::Precedence::Specificity => Route::new(origin, rules),
        pb::Precedence::Order => Route::in_order(origin, rules),
    };
    let route = route.map_err(|error| InvalidResource::field(format!("rules[{}]", error.rule), error.why))?;
    attach(&message.ports, &message.consumers, names, route)
}

fn decode_stream(
    message: pb::StreamRoute,
    names: &mut Interner,
) -> Result<Attached<StreamRoute>, InvalidResource> {
    let origin = decode_origin(message.origin)?;
    let backends = decode_each("backends", message.backends, |one| route::decode_backend(one, names))?;
    let server_names: Vec<_> = message.server_names.iter().map(String::as_str).collect();
    let route = StreamRoute::new(origin, &server_names, backends).map_err(|error| {
        use ambit_model::route::InvalidStreamRoute::{Filters, ServerName};
        let field = match error {
            ServerName(_) => "server_names",
            Filters(_) => "backends.filters",
        };
        InvalidResource::field(field, error)
    })?;
    attach(&message.ports, &message.consumers, names, route)
}

fn decode_origin(message: Option<pb::Origin>) -> Result<Origin, InvalidResource> {
    let message = message.ok_or_else(|| InvalidResource::field("origin", "is not set"))?;
    check_name("origin.namespace", &message.namespace)?;
    check_name("origin.name", &message.name)?;
    Ok(Origin { created: message.created, key: RouteKey::new(message.namespace, message.name) })
}

fn attach<R>(
    ports: &[u32],
    consumers: &str,
    names: &mut Interner,
    route: R,
) -> Result<Attached<R>, InvalidResource> {
    if ports.is_empty() {
        // Attached to nothing, the route of a service would silently not apply.
        return Err(InvalidResource::field("ports", "is empty"));
    }
    let ports = ports.iter().map(|port| decode_used_port("ports", *port)).collect::<Result<_, _>>()?;
    let consumers: Namespace = names.name(consumers);
    Ok(Attached { ports, consumers, route })
}

/// A port that something can listen on.
pub(super) fn decode_used_port(field: &'static str, port: u32) -> Result<u16, InvalidResource> {
    match decode_port(field, port)? {
        0 => Err(InvalidResource::field(field, "0 is not a port that is listened on")),
        port => Ok(port),
    }
}

pub(super) fn encode(config: &ServiceConfig) -> pb::ServiceConfig {
    let parts = config.parts();
    pb::ServiceConfig {
        namespace: config.key().namespace.to_string(),
        hostname: config.key().hostname.to_string(),
        http_routes: parts.http.iter().map(encode_http).collect(),
        stream_routes: parts.stream.iter().map(encode_stream).collect(),
        authentication: config.authentication().iter().map(authn::encode).collect(),
        policies: config.policies().map(policy::encode).collect(),
        limits: parts.limits.iter().map(limit::encode).collect(),
        traffic: parts.traffic.iter().map(traffic::encode).collect(),
        broken: config.broken().unwrap_or_default().to_owned(),
    }
}

fn encode_http(attached: &Attached<Route>) -> pb::HttpRoute {
    let Attached { ports, consumers, route } = attached;
    pb::HttpRoute {
        origin: Some(encode_origin(route.origin())),
        ports: ports.iter().map(|port| u32::from(*port)).collect(),
        consumers: consumers.to_string(),
        rules: route.rules().iter().map(|rule| route::encode_rule(rule)).collect(),
        precedence: match route.precedence() {
            Precedence::Specificity => pb::Precedence::Specificity,
            Precedence::Order => pb::Precedence::Order,
        }
        .into(),
    }
}

fn encode_stream(attached: &Attached<StreamRoute>) -> pb::StreamRoute {
    let Attached { ports, consumers, route } = attached;
    pb::StreamRoute {
        origin: Some(encode_origin(route.origin())),
        ports: ports.iter().map(|port| u32::from(*port)).collect(),
        consumers: consumers.to_string(),
        server_names: route.server_names().collect(),
        backends: route.backends().iter().map(route::encode_backend).collect(),
    }
}

fn encode_origin(origin: &Origin) -> pb::Origin {
    pb::Origin {
        namespace: origin.key.namespace().to_owned(),
        name: origin.key.name().to_owned(),
        created: origin.created,
    }
}

#[cfg(test)]
pub(super) mod tests;
