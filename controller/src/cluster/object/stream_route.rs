//! TLSRoute and TCPRoute: where connections go.

use ambit_api::stream_route as api;
use ambit_model::name::Namespace;

use super::{
    Rejection, http_route::parse_backends, peer_authentication::refuse_unknown, route::Connections,
    route_filter::Has,
};

pub(super) fn parse_tls(spec: api::TlsRouteSpec, namespace: &Namespace) -> Result<Connections, Rejection> {
    refuse_unknown("spec", &spec.unknown)?;
    parse(spec.hostnames, &spec.rules, namespace)
}

pub(super) fn parse_tcp(spec: api::TcpRouteSpec, namespace: &Namespace) -> Result<Connections, Rejection> {
    refuse_unknown("spec", &spec.unknown)?;
    parse(Vec::new(), &spec.rules, namespace)
}

/// There is nothing by which one rule could be preferred to another, so there is one.
fn parse(
    server_names: Vec<String>,
    rules: &[api::StreamRule],
    namespace: &Namespace,
) -> Result<Connections, Rejection> {
    let [rule] = rules else {
        let remedy = "write one rule; several backends share its connections by weight";
        return Err(Rejection::new("spec.rules", format!("has {} rules", rules.len()), remedy));
    };
    let field = "spec.rules[0]";
    refuse_unknown(field, &rule.unknown)?;
    Ok(Connections {
        server_names,
        backends: parse_backends(field, &rule.backend_refs, namespace, Has::All)?,
    })
}
