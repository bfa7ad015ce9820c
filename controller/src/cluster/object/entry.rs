//! ServiceEntry and WorkloadEntry: services and workloads that Kubernetes does not know.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ambit_api::{service_entry as api, workload_entry as api_workload};
use ambit_model::{
    name::{Hostname, Label, Namespace, Network, ServiceAccount},
    service::AppProtocol,
    workload::Locality,
};
use ipnet::IpNet;

use super::{Labels, Meta, Rejection, Selector, protocol};

/// What the mesh needs of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// Its names; each is a service.
    pub hosts: Vec<Hostname>,
    /// Its virtual addresses and ranges.
    pub addresses: Vec<IpNet>,
    /// Its ports.
    pub ports: Vec<EntryPort>,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// Endpoints written in it.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints found by label.
    pub selector: Option<Selector>,
    /// Identities that its endpoints may have, beside their own.
    pub subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPort {
    /// Its name, which endpoints refer to.
    pub name: Label,
    /// The number that clients use.
    pub number: u16,
    /// The number at the endpoint, when it is another.
    pub target: Option<u16>,
    /// What it carries, if that is said.
    pub protocol: Option<AppProtocol>,
}

impl EntryPort {
    /// The number at an endpoint that says nothing else.
    pub fn default_target(&self) -> u16 {
        self.target.unwrap_or(self.number)
    }
}

/// How the endpoints of a ServiceEntry are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// They are not: a connection goes where it was going.
    None,
    /// They are written down or selected.
    Static,
    /// By DNS, of the endpoints' names or the host's own.
    Dns,
    /// By DNS of whatever name is asked for, at a waypoint.
    DynamicDns,
}

/// What the mesh needs of a WorkloadEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Name, labels and annotations of the object; selectors see the endpoint's labels too.
    pub meta: Meta,
    /// The workload.
    pub endpoint: Endpoint,
    /// The labels of the object and of the endpoint.
    pub labels: Labels,
}

/// A workload that is not a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub address: EntryAddress,
    /// Its ports by name.
    pub ports: BTreeMap<String, u16>,
    /// Its labels.
    pub labels: Labels,
    /// Its network, when it is not the cluster's.
    pub network: Option<Network>,
    /// Where in the world it is.
    pub locality: Locality,
    /// Its share of the load.
    pub weight: Option<u32>,
    /// The account of its identity.
    pub service_account: ServiceAccount,
}

/// Where a workload is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryAddress {
    /// At this address.
    Ip(IpAddr),
    /// Where DNS says.
    Host(Hostname),
}

impl std::fmt::Display for EntryAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Host(host) => host.fmt(f),
        }
    }
}

impl ServiceEntry {
    pub(super) fn parse(namespace: Namespace, object: api::ServiceEntry) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let spec = object.spec;
        if spec.hosts.is_empty() {
            return Err(Rejection::new("spec.hosts", "is empty", "name at least one host"));
        }
        let mut hosts: Vec<Hostname> = Vec::new();
        for host in &spec.hosts {
            let host = parse_host("spec.hosts", host)?;
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let addresses = spec.addresses.iter().map(|text| parse_range("spec.addresses", text));
        let ports = spec.ports.into_iter().map(|port| {
            let said = Some(port.protocol.as_str()).filter(|word| !word.is_empty());
            Ok(EntryPort {
                protocol: protocol::of_port(said, &port.name),
                name: port.name.into(),
                number: super::port("spec.ports[].number", port.number)?,
                target: match port.target_port {
                    None | Some(0) => None,
                    Some(target) => Some(super::port("spec.ports[].targetPort", target)?),
                },
            })
        });
        Ok(Self {
            hosts,
            addresses: addresses.collect::<Result<_, _>>()?,
            ports: ports.collect::<Result<_, Rejection>>()?,
            resolution: match spec.resolution {
                api::Resolution::None => Resolution::None,
                api::Resolution::Static => Resolution::Static,
                api::Resolution::Dns | api::Resolution::DnsRoundRobin => Resolution::Dns,
                api::Resolution::DynamicDns => Resolution::DynamicDns,
            },
            endpoints: spec
                .endpoints
                .into_iter()
                .map(|endpoint| Endpoint::parse("spec.endpoints[]", endpoint))
                .collect::<Result<_, _>>()?,
            selector: spec.workload_selector.and_then(|selector| Selector::new(selector.labels)),
            subject_alt_names: spec.subject_alt_names,
            meta,
        })
    }

    /// Whether `host` stands for many.
    pub fn is_wildcard(host: &Hostname) -> bool {
        host.as_str().starts_with('*')
    }
}

impl WorkloadEntry {
    pub(super) fn parse(
        namespace: Namespace,
        object: api_workload::WorkloadEntry,
    ) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let endpoint = Endpoint::parse("spec", object.spec)?;
        let mut labels = meta.labels.clone();
        labels.0.extend(endpoint.labels.0.clone());
        Ok(Self { meta, endpoint, labels })
    }
}

impl Endpoint {
    fn parse(field: &str, spec: api_workload::WorkloadEntrySpec) -> Result<Self, Rejection> {
        let address = match spec.address.parse::<IpAddr>() {
            Ok(ip) => EntryAddress::Ip(ip.to_canonical()),
            Err(_) => EntryAddress::Host(parse_host(&format!("{field}.address"), &spec.address)?),
        };
        let ports = spec
            .ports
            .into_iter()
            .map(|(name, number)| Ok((name.clone(), super::port(format!("{field}.ports.{name}"), number)?)))
            .collect::<Result<_, Rejection>>()?;
        let mut parts = spec.locality.splitn(3, '/');
        let mut part = || Label::from(parts.next().unwrap_or_default());
        Ok(Self {
            address,
            ports,
            labels: Labels(spec.labels),
            network: parse_network(field, spec.network)?,
            locality: Locality { region: part(), zone: part(), subzone: part() },
            weight: (spec.weight > 0).then_some(spec.weight),
            service_account: parse_account(field, spec.service_account)?,
        })
    }
}

/// A host name: letters, digits, `-`, `_` and `.`, perhaps with `*.` in front. It becomes part of a resource's
/// name, where a `/` would be read as the end of a namespace.
pub(super) fn parse_host(field: &str, text: &str) -> Result<Hostname, Rejection> {
    let labels = text.strip_prefix("*.").unwrap_or(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (!labels.is_empty() && labels.len() <= 253 && labels.chars().all(plain)) || text == "*" {
        return Ok(text.to_ascii_lowercase().into());
    }
    Err(Rejection::new(
        field,
        format!("{text:?} is neither an IP address nor a host name"),
        "write one of the two",
    ))
}

/// It becomes part of names of resources, `network/address`.
fn parse_network(field: &str, text: String) -> Result<Option<Network>, Rejection> {
    if text.contains('/') {
        let what = format!("{text:?} is not the name of a network");
        return Err(Rejection::new(format!("{field}.network"), what, "take the '/' out of it"));
    }
    Ok((!text.is_empty()).then(|| text.into()))
}

/// It becomes part of an identity, where a `/` would be read as the end of it.
fn parse_account(field: &str, text: String) -> Result<ServiceAccount, Rejection> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if !text.chars().all(plain) {
        let what = format!("{text:?} is not the name of a service account");
        let remedy = "use lower-case letters, digits, '-' and '.'";
        return Err(Rejection::new(format!("{field}.serviceAccount"), what, remedy));
    }
    Ok(if text.is_empty() { "default".into() } else { text.into() })
}

fn parse_range(field: &str, text: &str) -> Result<IpNet, Rejection> {
    let single = text.parse::<IpAddr>().map(|ip| IpNet::from(ip.to_canonical()));
    single.or_else(|_| text.parse::<IpNet>().map(|range| range.trunc())).map_err(|_| {
        Rejection::new(
            field,
            format!("{text:?} is neither an IP address nor a range"),
            "write 10.0.0.1 or 10.0.0.0/24",
        )
    })
}
