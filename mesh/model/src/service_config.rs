//! What applies to the connections and requests of one service at its waypoint.
//!
//! A [`ServiceConfig`] is compiled once, when it arrives. For one request:
//!
//! | question | answered by |
//! |---|---|
//! | does this waypoint know what applies at all? | [`ServiceConfig::broken`] |
//! | who is the bearer of its token? | [`ServiceConfig::authentication`], then [`authn`](crate::authn) |
//! | may it be? | [`ServiceConfig::policies`], then [`authz::judge`](crate::authz::judge()) |
//! | which routes compete for it? | [`ServiceConfig::routes`], then [`route::select`](crate::route::select()) |
//! | how are the endpoints used to which it goes? | [`ServiceConfig::traffic`] |
//! | is there room for it? | [`ServiceConfig::limits`], then [`limit`](crate::limit) |
//! | where does a connection go that is no HTTP? | [`ServiceConfig::stream`] |
//!
//! What is addressed to workloads, and not to a service, has a configuration of its own, without routes
//! ([`ServiceConfig::key_of_workloads`]).
//!
//! Routes of the client's own namespace (consumer routes, GEP-1426) stand in place of the service's own.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::{
    authn::TokenRule,
    authz::Policy,
    limit::{Counter, RateLimit},
    name::{Namespace, ServiceKey},
    route::{Route, RouteTable, StreamRoute, StreamTable},
    traffic::Traffic,
};

/// All that applies to one service at a waypoint.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    key: ServiceKey,
    parts: Parts,
    broken: Option<Box<str>>,
    counters: Vec<Vec<Arc<Counter>>>,
    tables: HashMap<(u16, Namespace), RouteTable>,
    streams: HashMap<(u16, Namespace), StreamTable>,
}

/// What a configuration is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// HTTPRoutes and GRPCRoutes.
    pub http: Vec<Attached<Route>>,
    /// TLSRoutes and TCPRoutes.
    pub stream: Vec<Attached<StreamRoute>>,
    /// Who may come in. Their scope is this service, whatever it says.
    pub policies: Vec<Arc<Policy>>,
    /// Whose tokens are believed.
    pub authentication: Vec<TokenRule>,
    /// How many requests are taken.
    pub limits: Vec<RateLimit>,
    /// How the endpoints are used of services to which requests go.
    pub traffic: Vec<(ServiceKey, Arc<Traffic>)>,
}

/// A route, and to what of the service it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached<R> {
    /// To these ports.
    pub ports: Box<[u16]>,
    /// For clients of this namespace alone; empty: for all.
    pub consumers: Namespace,
    /// The route.
    pub route: R,
}

/// Two are equal that are made from the same.
impl PartialEq for ServiceConfig {
    fn eq(&self, other: &Self) -> bool {
        (&self.key, &self.parts, &self.broken) == (&other.key, &other.parts, &other.broken)
    }
}

impl Eq for ServiceConfig {}

/// In place of a host name: what is addressed to workloads by their own addresses. No host has a `_`.
const WORKLOADS: &str = "_workloads";

impl ServiceConfig {
    /// The key under which a waypoint of `namespace` is told what applies to what is addressed to workloads.
    pub fn key_of_workloads(namespace: &Namespace) -> ServiceKey {
        ServiceKey::new(namespace.clone(), WORKLOADS)
    }

    /// Whether `key` is such a key.
    pub fn is_of_workloads(key: &ServiceKey) -> bool {
        key.hostname.as_str() == WORKLOADS
    }

    /// Compiles what applies to the service `key`.
    pub fn new(key: ServiceKey, parts: Parts) -> Self {
        let tables = compiled(&parts.http, RouteTable::compile);
        let streams = compiled(&parts.stream, StreamTable::compile);
        let counters = parts.limits.iter().map(|limit| limit.counters(&key)).collect();
        Self { key, counters, tables, streams, parts, broken: None }
    }

    /// The stand-in for a configuration that could not be understood: nothing is let through.
    pub fn undecodable(key: ServiceKey, reason: &str) -> Self {
        Self { broken: Some(reason.into()), ..Self::new(key, Parts::default()) }
    }

    /// The service.
    pub fn key(&self) -> &ServiceKey {
        &self.key
    }

    /// What it was made from.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Why nothing is let through: what applies could not be understood.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Whose tokens requests to it may bring.
    pub fn authentication(&self) -> &[TokenRule] {
        &self.parts.authentication
    }

    /// The policies that judge connections and requests to it.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.parts.policies.iter().map(Arc::as_ref)
    }

    /// What is said of how the endpoints of `service` are used, to which requests go; `None`: nothing.
    pub fn traffic(&self, service: &ServiceKey) -> Option<&Traffic> {
        self.parts.traffic.iter().find(|(of, _)| of == service).map(|(_, traffic)| &**traffic)
    }

    /// The limits that may count requests to it, each with what its local ones are counted under.
    pub fn limits(&self) -> impl Iterator<Item = (&RateLimit, &[Arc<Counter>])> {
        self.parts.limits.iter().zip(self.counters.iter().map(Vec::as_slice))
    }

    /// The routes that compete for requests of clients of `client` to `port`. `None`: there are none, and
    /// requests go to the service as they come.
    pub fn routes(&self, port: u16, client: &Namespace) -> Option<&RouteTable> {
        applying(&self.tables, &self.streams, port, client)
    }

    /// All tables of routes: port, consumers (empty: all clients), table.
    pub fn tables(&self) -> impl Iterator<Item = (u16, &Namespace, &RouteTable)> {
        self.tables.iter().map(|((port, consumers), table)| (*port, consumers, table))
    }

    /// The route of a connection to `port` that is not looked into, or whose TLS greets `server_name`.
    pub fn stream(&self, port: u16, client: &Namespace, server_name: Option<&str>) -> Streams<'_> {
        match applying(&self.streams, &self.tables, port, client) {
            None if self.routes(port, client).is_some_and(RouteTable::asks) => Streams::Asked,
            None => Streams::None,
            Some(routes) => routes.find(server_name).map_or(Streams::Unmatched, Streams::Route),
        }
    }
}

/// Where a connection goes that is no HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams<'c> {
    /// There are no routes: to the service itself.
    None,
    /// There are routes of requests, some of which somebody is asked about. What is not seen to be a request goes nowhere:
    /// it might be one all the same.
    Asked,
    /// By this one.
    Route(&'c StreamRoute),
    /// There are routes, and none is for it: nowhere.
    Unmatched,
}

/// What applies to a client, in `tables`: routes of its own namespace stand in place of all others, of whatever kind.
fn applying<'t, T, U>(
    tables: &'t HashMap<(u16, Namespace), T>,
    of_other_kind: &HashMap<(u16, Namespace), U>,
    port: u16,
    client: &Namespace,
) -> Option<&'t T> {
    // The commonest case asks for no name to be copied: most services have no routes at all.
    if tables.is_empty() {
        return None;
    }
    let own = (port, client.clone());
    match tables.get(&own) {
        None if !of_other_kind.contains_key(&own) => tables.get(&(port, Namespace::default())),
        found => found,
    }
}

fn compiled<R: Clone, T>(
    attached: &[Attached<R>],
    compile: impl Fn(&[R]) -> T,
) -> HashMap<(u16, Namespace), T> {
    let mut places: HashMap<_, Vec<R>> = HashMap::new();
    for one in attached {
        for port in &one.ports {
            places.entry((*port, one.consumers.clone())).or_default().push(one.route.clone());
        }
    }
    places.into_iter().map(|(place, routes)| (place, compile(&routes))).collect()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::route::{Origin, RouteKey, Rule, select};

    fn origin(name: &str) -> Origin {
        Origin { created: 0, key: RouteKey::new("shop", name) }
    }

    fn http(name: &str, ports: &[u16], consumers: &str) -> Attached<Route> {
        let rule = Rule { name: Some(name.into()), ..Rule::default() };
        let route = Route::new(origin(name), vec![rule]).expect("a route");
        Attached { ports: ports.into(), consumers: consumers.into(), route }
    }

    fn stream(name: &str, names: &[&str]) -> Attached<StreamRoute> {
        let route = StreamRoute::new(origin(name), names, Vec::new()).expect("a route");
        Attached { ports: [443].into(), consumers: Namespace::default(), route }
    }

    fn config(parts: Parts) -> ServiceConfig {
        ServiceConfig::new(ServiceKey::new("shop", "web.shop.svc.cluster.local"), parts)
    }

    fn taken<'c>(config: &'c ServiceConfig, port: u16, client: &str) -> Option<&'c str> {
        let (head, ()) = Request::new(()).into_parts();
        let chosen = select(config.routes(port, &client.into())?, &head)?;
        chosen.rule.name.as_ref().map(|name| name.as_str())
    }

    #[test]
    fn clients_with_routes_of_their_own_do_not_meet_those_of_the_service() {
        let http = vec![http("own", &[80, 81], ""), http("theirs", &[80], "guest")];
        let config = config(Parts { http, ..Parts::default() });
        assert_eq!(taken(&config, 80, "shop"), Some("own"));
        assert_eq!(taken(&config, 80, "guest"), Some("theirs"));
        assert_eq!(taken(&config, 81, "guest"), Some("own"));
        assert_eq!(taken(&config, 82, "shop"), None);
        assert!(config.routes(82, &"shop".into()).is_none());
    }

    #[test]
    fn routes_of_a_client_stand_in_place_of_those_of_any_kind() {
        let ours = vec![stream("own", &[])];
        let theirs = vec![http("theirs", &[443], "guest")];
        let config = config(Parts { http: theirs, stream: ours, ..Parts::default() });
        assert!(config.routes(443, &"shop".into()).is_none());
        assert!(matches!(config.stream(443, &"shop".into(), None), Streams::Route(_)));
        assert_eq!(taken(&config, 443, "guest"), Some("theirs"));
        assert_eq!(config.stream(443, &"guest".into(), None), Streams::None);
    }

    #[test]
    fn tls_goes_by_the_most_specific_server_name() {
        let routes = [
            stream("any", &[]),
            stream("wild", &["*.example.com"]),
            stream("wilder", &["*.com"]),
            stream("exact", &["a.example.com"]),
        ];
        let found = |routes: &[Attached<StreamRoute>], name| {
            let config = config(Parts { stream: routes.to_vec(), ..Parts::default() });
            match config.stream(443, &"shop".into(), name) {
                Streams::Route(route) => route.origin().key.as_str().to_owned(),
                Streams::None => "none".to_owned(),
                Streams::Asked => "asked".to_owned(),
                Streams::Unmatched => "unmatched".to_owned(),
            }
        };
        let table = [
            (Some("a.example.com"), "shop/exact"),
            (Some("A.Example.com"), "shop/exact"),
            (Some("b.example.com"), "shop/wild"),
            (Some("x.b.example.com"), "shop/wild"),
            (Some("example.com"), "shop/wilder"),
            (Some("example.org"), "shop/any"),
            (None, "shop/any"),
        ];
        for (name, expected) in table {
            assert_eq!(found(&routes, name), expected, "{name:?}");
        }
        let [_, named @ ..] = &routes;
        assert_eq!(found(named, Some("example.org")), "unmatched");
        assert_eq!(found(named, None), "unmatched");
        assert_eq!(found(&[], None), "none");
    }
}
