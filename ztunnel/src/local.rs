//! A mesh out of a file instead of a control plane (`LOCAL_XDS_PATH`, `LOCAL_XDS`; protocols 1.8).
//!
//! YAML or JSON in the words of the config dump: `workloads`, `services`, `policies`. A mistake stops
//! the start: a policy that was meant and is not in force would let in whom it should not. When the file
//! changes later, it is read again; a mistake then leaves in force what was.

mod follow;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use ambit_model::{
    address::{NetworkAddress, NetworkRange},
    authz::{AccountMatch, Action, Clause, Content, Match, Policy, Rule, Scope, Text},
    gateway::{GatewayAddress, GatewayDestination},
    identity::TrustDomain,
    name::{Label, PolicyKey, ServiceKey},
    service::{HealthPolicy, LoadBalancing, Mode, PortMap, Service, TargetPort},
    snapshot::Update,
    workload::{Capacity, Health, Locality, NetworkMode, Tunnel, Workload},
};
use ambit_wire::{discovery::Writer, tls::file::WatchedFile};
use ipnet::IpNet;
use serde::Deserialize;

pub use self::follow::Followed;
use crate::config::LocalXds;

/// Why a local mesh cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The file cannot be read.
    #[error("LOCAL_XDS_PATH: cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It is no text.
    #[error("local mesh: not in UTF-8")]
    NotText,
    /// It is not what it should be.
    #[error("local mesh: {0}")]
    Parse(#[from] serde_yaml_ng::Error),
    /// A value means nothing.
    #[error("local mesh: {field}: {value:?} is not {expected}")]
    Value {
        /// Where.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        expected: &'static str,
    },
}

/// Loads the mesh that `source` describes; a file is to be followed.
pub fn load(source: &LocalXds, mesh: Writer) -> Result<Option<Followed>, LocalError> {
    match source {
        LocalXds::Inline(text) => {
            mesh.apply(&[], parse(text)?);
            Ok(None)
        }
        LocalXds::File(path) => {
            let unreadable = |error| LocalError::Read { path: path.clone(), error };
            let (file, content) = WatchedFile::open(path).map_err(unreadable)?;
            let mut followed = Followed::new(file, mesh);
            followed.replace(&content)?;
            Ok(Some(followed))
        }
    }
}

/// What `text` describes.
pub fn parse(text: &str) -> Result<Vec<Update>, LocalError> {
    let mesh: LocalMesh = serde_yaml_ng::from_str(text)?;
    let services = mesh.services.into_iter().map(|one| one.read().map(|one| Update::Service(Arc::new(one))));
    let workloads =
        mesh.workloads.into_iter().map(|one| one.read().map(|one| Update::Workload(Arc::new(one))));
    let policies = mesh.policies.into_iter().map(|one| Ok(Update::Policy(Arc::new(one.read()))));
    services.chain(workloads).chain(policies).collect()
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LocalMesh {
    workloads: Vec<LocalWorkload>,
    services: Vec<LocalService>,
    policies: Vec<LocalPolicy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LocalWorkload {
    uid: String,
    name: String,
    namespace: String,
    workload_ips: Vec<IpAddr>,
    hostname: String,
    network: String,
    protocol: String,
    trust_domain: String,
    service_account: String,
    waypoint: Option<LocalGateway>,
    network_gateway: Option<LocalGateway>,
    node: String,
    canonical_name: String,
    canonical_revision: String,
    workload_name: String,
    native_tunnel: bool,
    authorization_policies: Vec<String>,
    status: String,
    cluster_id: String,
    locality: Place,
    network_mode: String,
    capacity: Option<u32>,
    services: BTreeMap<String, BTreeMap<LocalPort, u16>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Place {
    region: String,
    zone: String,
    subzone: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LocalService {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<String>,
    cidr_vips: Vec<String>,
    ports: BTreeMap<LocalPort, u16>,
    subject_alt_names: Vec<String>,
    waypoint: Option<LocalGateway>,
    load_balancer: Option<LocalBalancing>,
    canonical: bool,
}

/// A port as a key: JSON knows text only, YAML numbers too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "PortKey")]
struct LocalPort(u16);

#[derive(Deserialize)]
#[serde(untagged)]
enum PortKey {
    Number(u16),
    Text(String),
}

impl TryFrom<PortKey> for LocalPort {
    type Error = std::num::ParseIntError;

    fn try_from(key: PortKey) -> Result<Self, Self::Error> {
        match key {
            PortKey::Number(port) => Ok(Self(port)),
            PortKey::Text(text) => text.parse().map(Self),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LocalBalancing {
    #[serde(default)]
    routing_preferences: Vec<ScopeName>,
    #[serde(default)]
    mode: ModeName,
    #[serde(default)]
    health_policy: HealthName,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum ScopeName {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum ModeName {
    #[default]
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum HealthName {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LocalGateway {
    destination: String,
    #[serde(default = "hbone_port")]
    hbone_mtls_port: u16,
}

fn hbone_port() -> u16 {
    15008
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LocalPolicy {
    name: String,
    namespace: String,
    scope: PolicyScope,
    action: PolicyAction,
    #[serde(default)]
    rules: Vec<Vec<Vec<LocalMatch>>>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum PolicyScope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum PolicyAction {
    Allow,
    Deny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LocalMatch {
    namespaces: Vec<LocalText>,
    not_namespaces: Vec<LocalText>,
    service_accounts: Vec<LocalAccount>,
    not_service_accounts: Vec<LocalAccount>,
    principals: Vec<LocalText>,
    not_principals: Vec<LocalText>,
    source_ips: Vec<IpNet>,
    not_source_ips: Vec<IpNet>,
    destination_ips: Vec<IpNet>,
    not_destination_ips: Vec<IpNet>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
enum LocalText {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LocalAccount {
    namespace: String,
    service_account: String,
}

impl LocalWorkload {
    fn read(self) -> Result<Workload, LocalError> {
        let services = self
            .services
            .iter()
            .map(|(key, ports)| Ok((service_key("workloads.services", key)?, port_map(ports))))
            .collect::<Result<Vec<_>, LocalError>>()?;
        let policies = self
            .authorization_policies
            .iter()
            .map(|key| {
                PolicyKey::parse(key)
                    .ok_or_else(|| wrong("workloads.authorizationPolicies", key, "namespace/name"))
            })
            .collect::<Result<_, _>>()?;
        let default = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        Ok(Workload {
            uid: self.uid.into(),
            name: self.name.into(),
            namespace: self.namespace.into(),
            addresses: self.workload_ips.iter().map(IpAddr::to_canonical).collect(),
            hostname: self.hostname.into(),
            network: self.network.into(),
            tunnel: match self.protocol.as_str() {
                "" | "TCP" => Tunnel::None,
                "HBONE" => Tunnel::Hbone,
                other => return Err(wrong("workloads.protocol", other, "HBONE or TCP")),
            },
            trust_domain: TrustDomain::from(self.trust_domain),
            service_account: default(self.service_account, "default").into(),
            waypoint: self.waypoint.map(LocalGateway::read).transpose()?.map(Box::new),
            network_gateway: self.network_gateway.map(LocalGateway::read).transpose()?.map(Box::new),
            node: self.node.into(),
            canonical_name: self.canonical_name.into(),
            canonical_revision: self.canonical_revision.into(),
            workload_name: self.workload_name.into(),
            native_tunnel: self.native_tunnel,
            authorization_policies: policies,
            health: match self.status.as_str() {
                "" | "Healthy" => Health::Healthy,
                "Unhealthy" => Health::Unhealthy,
                other => return Err(wrong("workloads.status", other, "Healthy or Unhealthy")),
            },
            cluster: default(self.cluster_id, "Kubernetes").into(),
            locality: Locality {
                region: self.locality.region.into(),
                zone: self.locality.zone.into(),
                subzone: self.locality.subzone.into(),
            },
            network_mode: match self.network_mode.as_str() {
                "" | "Standard" => NetworkMode::Standard,
                "HostNetwork" => NetworkMode::HostNetwork,
                other => return Err(wrong("workloads.networkMode", other, "Standard or HostNetwork")),
            },
            capacity: self.capacity.map_or_else(Capacity::default, Capacity),
            services: services.into(),
            ..Workload::default()
        })
    }
}

impl LocalService {
    fn read(self) -> Result<Service, LocalError> {
        let vip = |text: &String| {
            let (network, ip) = text.split_once('/').unwrap_or(("", text));
            let ip = ip.parse().map_err(|_| wrong("services.vips", text, "network/ip"))?;
            Ok(NetworkAddress::new(network, ip))
        };
        let range = |text: &String| {
            let invalid = || wrong("services.cidrVips", text, "network/ip/length");
            let (network, range) = text.split_once('/').ok_or_else(invalid)?;
            let range: IpNet = range.parse().map_err(|_| invalid())?;
            Ok(NetworkRange { network: network.into(), range: range.trunc() })
        };
        Ok(Service {
            name: self.name.into(),
            namespace: self.namespace.into(),
            hostname: self.hostname.into(),
            vips: self.vips.iter().map(vip).collect::<Result<_, LocalError>>()?,
            ranges: self.cidr_vips.iter().map(range).collect::<Result<_, LocalError>>()?,
            ports: port_map(&self.ports),
            subject_alt_names: self.subject_alt_names.into_iter().map(Label::from).collect(),
            waypoint: self.waypoint.map(LocalGateway::read).transpose()?,
            load_balancing: self.load_balancer.map(LocalBalancing::read).unwrap_or_default(),
            canonical: self.canonical,
            ..Service::default()
        })
    }
}

impl LocalBalancing {
    fn read(self) -> LoadBalancing {
        use ambit_model::service::Scope;
        let scope = |name: ScopeName| match name {
            ScopeName::Region => Scope::Region,
            ScopeName::Zone => Scope::Zone,
            ScopeName::Subzone => Scope::Subzone,
            ScopeName::Node => Scope::Node,
            ScopeName::Cluster => Scope::Cluster,
            ScopeName::Network => Scope::Network,
        };
        LoadBalancing {
            routing_preferences: self.routing_preferences.into_iter().map(scope).collect(),
            mode: match self.mode {
                ModeName::Standard => Mode::Standard,
                ModeName::Strict => Mode::Strict,
                ModeName::Failover => Mode::Failover,
                ModeName::Passthrough => Mode::Passthrough,
            },
            health_policy: match self.health_policy {
                HealthName::OnlyHealthy => HealthPolicy::OnlyHealthy,
                HealthName::AllowAll => HealthPolicy::AllowAll,
            },
        }
    }
}

impl LocalGateway {
    /// `namespace/hostname`, or `network/ip`.
    fn read(self) -> Result<GatewayAddress, LocalError> {
        let expected = "namespace/hostname or network/ip";
        let (before, after) =
            self.destination.split_once('/').ok_or_else(|| wrong("waypoint", &self.destination, expected))?;
        let destination = match after.parse() {
            Ok(ip) => GatewayDestination::Address(NetworkAddress::new(before, ip)),
            Err(_) => GatewayDestination::Hostname(service_key("waypoint", &self.destination)?),
        };
        Ok(GatewayAddress { destination, hbone_mtls_port: self.hbone_mtls_port })
    }
}

impl LocalPolicy {
    fn read(self) -> Policy {
        let clause = |matches: Vec<LocalMatch>| Clause {
            matches: matches.into_iter().map(LocalMatch::read).collect(),
        };
        let rule =
            |clauses: Vec<Vec<LocalMatch>>| Rule { clauses: clauses.into_iter().map(clause).collect() };
        Policy {
            key: PolicyKey::new(self.namespace, self.name),
            scope: match self.scope {
                PolicyScope::Global => Scope::Global,
                PolicyScope::Namespace => Scope::Namespace,
                PolicyScope::WorkloadSelector => Scope::WorkloadSelector,
            },
            content: Content::Rules {
                action: match self.action {
                    PolicyAction::Allow => Action::Allow,
                    PolicyAction::Deny => Action::Deny,
                },
                rules: self.rules.into_iter().map(rule).collect(),
                dry_run: self.dry_run,
            },
        }
    }
}

impl LocalMatch {
    fn read(self) -> Match {
        let text = |text: LocalText| match text {
            LocalText::Exact(text) => Text::Exact(text.into()),
            LocalText::Prefix(text) => Text::Prefix(text.into()),
            LocalText::Suffix(text) => Text::Suffix(text.into()),
            LocalText::Presence => Text::Presence,
        };
        let texts = |list: Vec<LocalText>| list.into_iter().map(text).collect();
        let account = |one: LocalAccount| AccountMatch {
            namespace: one.namespace.into(),
            service_account: one.service_account.into(),
        };
        let accounts = |list: Vec<LocalAccount>| list.into_iter().map(account).collect();
        Match {
            namespaces: texts(self.namespaces),
            not_namespaces: texts(self.not_namespaces),
            service_accounts: accounts(self.service_accounts),
            not_service_accounts: accounts(self.not_service_accounts),
            principals: texts(self.principals),
            not_principals: texts(self.not_principals),
            source_ips: self.source_ips,
            not_source_ips: self.not_source_ips,
            destination_ips: self.destination_ips,
            not_destination_ips: self.not_destination_ips,
            destination_ports: self.destination_ports,
            not_destination_ports: self.not_destination_ports,
            request: None,
        }
    }
}

fn port_map(ports: &BTreeMap<LocalPort, u16>) -> PortMap {
    ports.iter().map(|(port, target)| (port.0, TargetPort::from_number(*target))).collect()
}

fn service_key(field: &'static str, text: &str) -> Result<ServiceKey, LocalError> {
    ServiceKey::parse(text).ok_or_else(|| wrong(field, text, "namespace/hostname"))
}

fn wrong(field: &'static str, value: &str, expected: &'static str) -> LocalError {
    LocalError::Value { field, value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: &str = r#"
workloads:
  - uid: Kubernetes//Pod/shop/web-1
    name: web-1
    namespace: shop
    serviceAccount: web
    workloadIps: [10.0.0.1]
    protocol: HBONE
    node: node-a
    services: { shop/web.shop.svc.cluster.local: { "80": 8080 } }
services:
  - name: web
    namespace: shop
    hostname: web.shop.svc.cluster.local
    vips: [/10.96.0.1]
    ports: { "80": 8080 }
policies:
  - name: only-web
    namespace: shop
    scope: Namespace
    action: Allow
    rules: [[[{ principals: [!Exact cluster.local/ns/shop/sa/web] }]]]
"#;

    #[test]
    fn a_mesh_is_read_from_yaml() {
        let updates = parse(MESH).expect("a mesh");
        let [Update::Service(service), Update::Workload(workload), Update::Policy(policy)] = &updates[..]
        else {
            panic!("{updates:?}")
        };
        assert_eq!(service.vips[0].to_string(), "/10.96.0.1");
        assert_eq!(workload.services[0].1.get(80), Some(TargetPort::Number(8080)));
        let Content::Rules { action: Action::Allow, rules, .. } = &policy.content else {
            panic!("{policy:?}")
        };
        assert_eq!(rules[0].clauses[0].matches[0].principals.len(), 1);
    }

    #[test]
    fn mistakes_name_the_field() {
        for (text, said) in [
            ("services: [{ nmae: web }]", "nmae"),
            ("workloads: [{ protocol: UDP }]", "workloads.protocol"),
            ("services: [{ vips: [nowhere] }]", "services.vips"),
            ("workloads: [{ services: { web: {} } }]", "workloads.services"),
            ("policies: [{ name: p, namespace: n, scope: Here, action: Deny }]", "Here"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
