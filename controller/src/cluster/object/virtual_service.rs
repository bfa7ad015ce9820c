//! VirtualService: for which hosts, for whose clients, and its rules as far as they do not depend on whom they refer to.
//!
//! What Istio means and Gateway API does not: rules are tried in their order, a `prefix` is one of characters, and a rule
//! that rewrites does so by the prefix of the match that took the request.

use std::collections::{BTreeMap, BTreeSet};

use ambit_api::virtual_service as api;
use ambit_model::{
    name::{Hostname, Label, Namespace},
    route::{
        Destination, Filter, Match, NewHost, NewPath, Origin, Path, Rewrite, Route, Rule, Timeouts, retry,
    },
};
use serde_json::Value;

use super::{
    Meta, Name, Rejection, Written,
    entry::parse_host,
    peer_authentication::bare_meta,
    route::{Reference, RouteBackend, RouteFilter, origin_of, refused, unresolved},
    route_rules::{compile_backends, compile_filters},
    virtual_rule,
};

/// Where requests within the mesh are, beside gateways.
pub(super) const MESH: &str = "mesh";

/// What the mesh needs of a VirtualService.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualService {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// Whose requests it is for.
    pub hosts: Vec<HostName>,
    /// Whose clients it is for.
    pub exported: Exported,
    /// What it says.
    pub content: VirtualContent,
}

/// A host as a VirtualService names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostName {
    /// A Service, by its name without dots.
    Service(Name),
    /// Any service, by the whole of its host name.
    Host(Hostname),
}

impl HostName {
    /// The whole of the host name; `hostname_of` names Services.
    pub fn whole(&self, hostname_of: impl Fn(&Name) -> Hostname) -> Hostname {
        match self {
            Self::Service(name) => hostname_of(name),
            Self::Host(host) => host.clone(),
        }
    }

    pub(super) fn parse(field: &str, text: &str, namespace: &Namespace) -> Result<Self, Rejection> {
        let host = parse_host(field, text)?;
        if host.as_str().starts_with('*') {
            let remedy = "name each host that is meant";
            return Err(Rejection::new(field, format!("{text:?} stands for many hosts"), remedy));
        }
        Ok(if host.as_str().contains('.') {
            Self::Host(host)
        } else {
            Self::Service(Name::new(namespace.clone(), host.as_str()))
        })
    }
}

/// Whose clients a VirtualService is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exported {
    /// Those of every namespace.
    Everywhere,
    /// Those of these; perhaps nobody's.
    To(BTreeSet<Namespace>),
}

impl Exported {
    /// Whether clients of a namespace are among them.
    pub fn includes(&self, namespace: &Namespace) -> bool {
        match self {
            Self::Everywhere => true,
            Self::To(namespaces) => namespaces.contains(namespace),
        }
    }
}

/// What a VirtualService says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtualContent {
    /// It is for gateways alone, so it was not looked into.
    Elsewhere,
    /// What is done to requests, in order.
    Rules(Vec<VirtualRule>),
    /// It could not be understood, and was never understood before.
    Undecodable(String),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualRule {
    /// Where it stands, `spec.http[0]`.
    pub(super) field: String,
    pub(super) name: Option<Label>,
    /// Never empty, unless it is for gateways alone.
    pub(super) matches: Vec<VirtualMatch>,
    pub(super) filters: Vec<RouteFilter>,
    pub(super) rewrite: Option<NewTarget>,
    pub(super) backends: Vec<RouteBackend>,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Option<retry::Policy>,
}

/// What is asked of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualMatch {
    pub(super) matched: Match,
    /// To this port of the service alone.
    pub(super) port: Option<u16>,
    /// From this namespace alone.
    pub(super) source: Option<Namespace>,
}

/// Another path and host for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewTarget {
    pub(super) uri: Option<String>,
    pub(super) host: Option<NewHost>,
}

impl NewTarget {
    /// What it does to a request that `matched` took: the prefix, if there is one, else the whole path is replaced.
    fn rewrite(&self, field: &str, matched: Option<&VirtualMatch>) -> Result<Rewrite, Rejection> {
        let by_prefix = matched.is_some_and(|one| matches!(one.matched.paths(), Path::Prefix(_)));
        let path = |uri: &String| if by_prefix { NewPath::prefix(uri) } else { NewPath::full(uri) };
        let path = self.uri.as_ref().map(path).transpose();
        let path = path.map_err(|error| refused(format!("{field}.rewrite.uri"), error))?;
        Ok(Rewrite { host: self.host.clone(), path })
    }
}

impl VirtualService {
    pub(super) fn parse(namespace: Namespace, object: api::VirtualService) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let spec = object.spec;
        let gateways = spec.gateways.iter();
        let namespace = &meta.name.namespace;
        if !spec.gateways.is_empty() && !gateways.clone().any(|name| name == MESH) {
            // What a gateway makes of it is not judged here.
            let hosts = parse_hosts(&spec.hosts, namespace).unwrap_or_default();
            let (exported, content) = (Exported::Everywhere, VirtualContent::Elsewhere);
            return Ok(Self { meta, hosts, exported, content });
        }
        refuse("spec", &spec.unknown)?;
        let hosts = parse_hosts(&spec.hosts, namespace)?;
        let exported = parse_exported(&spec.export_to, namespace);
        if spec.http.is_empty() {
            return Err(Rejection::new("spec.http", "is missing", "write at least one rule"));
        }
        let rules = spec.http.iter().enumerate();
        let rules = rules.map(|(at, rule)| virtual_rule::parse(format!("spec.http[{at}]"), rule, namespace));
        let content = VirtualContent::Rules(rules.collect::<Result<_, _>>()?);
        let parsed = Self { meta, hosts, exported, content };
        parsed.compiled(|_| true, unresolved)?;
        Ok(parsed)
    }

    /// What one that cannot be understood is taken for: nothing, but its author is told.
    pub(super) fn undecodable(written: &Written<'_>, reason: String) -> Self {
        let hosts = written.value.pointer("/spec/hosts").cloned();
        let hosts = hosts.and_then(|hosts| serde_json::from_value::<Vec<String>>(hosts).ok());
        let hosts = hosts.and_then(|hosts| parse_hosts(&hosts, &Namespace::from(written.namespace)).ok());
        Self {
            meta: bare_meta(written),
            hosts: hosts.unwrap_or_default(),
            exported: Exported::Everywhere,
            content: VirtualContent::Undecodable(reason),
        }
    }

    /// Its rules; none if it was not understood, or is for gateways.
    pub fn rules(&self) -> &[VirtualRule] {
        match &self.content {
            VirtualContent::Rules(rules) => rules,
            VirtualContent::Elsewhere | VirtualContent::Undecodable(_) => &[],
        }
    }

    /// Whether it has rules that could apply.
    pub fn is_understood(&self) -> bool {
        matches!(self.content, VirtualContent::Rules(_))
    }

    /// Its age and name.
    pub fn origin(&self) -> Origin {
        origin_of(&self.meta)
    }

    /// The namespaces whose clients some rule is for alone.
    pub fn sources(&self) -> BTreeSet<&Namespace> {
        self.rules().iter().flat_map(|rule| &rule.matches).filter_map(|one| one.source.as_ref()).collect()
    }

    /// Every host that it sends something to.
    pub fn references(&self) -> Vec<&Reference> {
        let mut all = Vec::new();
        for rule in self.rules() {
            all.extend(rule.filters.iter().filter_map(RouteFilter::reference));
            all.extend(rule.backends.iter().map(|backend| &backend.to));
        }
        all
    }

    /// The route of requests to `port` of clients of `client`; `None`: of those of whom no rule speaks alone. It has no
    /// rules if none is for them.
    pub fn route(
        &self,
        port: u16,
        client: Option<&Namespace>,
        resolve: impl Fn(&Reference) -> Destination,
    ) -> Result<Route, Rejection> {
        let applies = |one: &VirtualMatch| {
            one.port.is_none_or(|wanted| wanted == port)
                && one.source.as_ref().is_none_or(|wanted| Some(wanted) == client)
        };
        self.compiled(applies, resolve)
    }

    /// What passed the door compiles: it does not depend on whom rules refer to.
    fn compiled(
        &self,
        applies: impl Fn(&VirtualMatch) -> bool,
        resolve: impl Fn(&Reference) -> Destination,
    ) -> Result<Route, Rejection> {
        let (mut fields, mut rules) = (Vec::new(), Vec::new());
        for rule in self.rules() {
            let matches: Vec<_> = rule.matches.iter().filter(|one| applies(one)).collect();
            for some in rule.parts(&matches) {
                fields.push(rule.field.as_str());
                rules.push(rule.compiled(some, &resolve)?);
            }
        }
        Route::in_order(self.origin(), rules)
            .map_err(|error| refused(fields.get(error.rule).copied().unwrap_or("spec.http"), error.why))
    }
}

impl VirtualRule {
    /// The matches that can be those of one rule: what a rewrite does depends on the match.
    fn parts<'m>(&self, matches: &'m [&'m VirtualMatch]) -> impl Iterator<Item = &'m [&'m VirtualMatch]> {
        let rewrites = self.rewrite.as_ref().is_some_and(|rewrite| rewrite.uri.is_some());
        matches.chunks(if rewrites { 1 } else { usize::MAX })
    }

    fn compiled(
        &self,
        matches: &[&VirtualMatch],
        resolve: &impl Fn(&Reference) -> Destination,
    ) -> Result<Rule, Rejection> {
        let rewrite = self.rewrite.as_ref();
        let rewrite = rewrite.map(|one| one.rewrite(&self.field, matches.first().copied())).transpose()?;
        let rewrite = rewrite.map(|rewrite| RouteFilter::Plain(Filter::Rewrite(rewrite)));
        let filters: Vec<_> = self.filters.iter().cloned().chain(rewrite).collect();
        Ok(Rule {
            name: self.name.clone(),
            matches: matches.iter().map(|one| one.matched.clone()).collect(),
            filters: compile_filters(&self.field, &filters, resolve)?,
            backends: compile_backends(&self.field, &self.backends, resolve)?,
            timeouts: self.timeouts,
            retry: self.retry.clone(),
            session: None,
        })
    }
}

fn parse_hosts(hosts: &[String], namespace: &Namespace) -> Result<Vec<HostName>, Rejection> {
    let mut parsed = Vec::with_capacity(hosts.len());
    for (at, host) in hosts.iter().enumerate() {
        let host = HostName::parse(&format!("spec.hosts[{at}]"), host, namespace)?;
        if !parsed.contains(&host) {
            parsed.push(host);
        }
    }
    if parsed.is_empty() {
        return Err(Rejection::new("spec.hosts", "is empty", "name the service whose requests it is for"));
    }
    Ok(parsed)
}

fn parse_exported(export_to: &[String], namespace: &Namespace) -> Exported {
    if export_to.is_empty() || export_to.iter().any(|one| one == "*") {
        return Exported::Everywhere;
    }
    let one = |name: &String| if name == "." { namespace.clone() } else { Namespace::from(name.as_str()) };
    // `~` is nobody.
    Exported::To(export_to.iter().filter(|name| *name != "~").map(one).collect())
}

/// What Istio has and waypoints do not do.
const NOT_SUPPORTED: [&str; 19] = [
    "tcp",
    "tls",
    "delegate",
    "directResponse",
    "sourceLabels",
    "scheme",
    "statPrefix",
    "uriRegexRewrite",
    "percent",
    "exponentialDelay",
    "http2Error",
    "mirrorPercent",
    "mirror_percent",
    "retryRemoteLocalities",
    "retryIgnorePreviousHosts",
    "allowOrigin",
    "unmatchedPreflights",
    "websocketUpgrade",
    "appendHeaders",
];

/// Refuses what is not known, or not supported: a rule without it would do something else.
pub(super) fn refuse(field: &str, unknown: &BTreeMap<String, Value>) -> Result<(), Rejection> {
    let Some(name) = unknown.keys().next() else { return Ok(()) };
    let field = format!("{field}.{name}");
    Err(if NOT_SUPPORTED.contains(&name.as_str()) {
        Rejection::new(field, "is not supported by waypoints", "do without it, or remove the VirtualService")
    } else {
        Rejection::new(field, "is not a known field", "correct or remove it")
    })
}
