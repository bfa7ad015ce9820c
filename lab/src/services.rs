//! What a kube-proxy does: service addresses lead to ready pods. Pure, up to the one call that applies the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ambit_api::directory::{Document, ObjectKey};
use ambit_api::labels;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::address::{self, Family};
use crate::command::{self, CommandError};
use crate::netns::{Netns, NetnsError};

/// Where a node sends what is neither a pod nor a node: its own dead end.
pub(crate) const DEAD_END: &str = "svc0";

/// A service, as its users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses; none for a headless one.
    pub ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<VirtualPort>,
    /// The addresses of its ready endpoints, whatever the port.
    pub endpoints: BTreeSet<IpAddr>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualPort {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Where it leads.
    pub endpoints: BTreeSet<SocketAddr>,
}

/// The protocols that services have here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn of(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some(_) => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// A reset always reaches the caller; an ICMP message that comes back while it is still in `connect` is forgotten,
    /// and on virtual links it does come back so soon.
    fn refusal(self) -> &'static str {
        match self {
            Self::Tcp => "reject with tcp reset",
            Self::Udp => "reject",
        }
    }
}

/// Rules that could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The node's namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// `nft` refused them.
    #[error(transparent)]
    Nft(#[from] CommandError),
}

/// Puts `ruleset` into force in a node's namespace, in one transaction.
pub fn apply(node: &Netns, ruleset: &str) -> Result<(), ApplyError> {
    node.inside(|| command::run(&["nft", "-f", "-"], ruleset))??;
    Ok(())
}

/// The services in `objects`, with their endpoints: those of their EndpointSlices if there are any, or else the
/// ready pods that they select.
pub fn services(objects: &[Document]) -> Vec<VirtualService> {
    let pods: Vec<(&Document, Pod)> = parsed(objects, "Pod", "");
    let slices: Vec<(&Document, EndpointSlice)> = parsed(objects, "EndpointSlice", "discovery.k8s.io");
    let services: Vec<(&Document, Service)> = parsed(objects, "Service", "");
    let of = |(document, service): (&Document, Service)| {
        let spec = service.spec.unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let mut own = slices.iter().filter(|(slice, parsed)| {
            let label = parsed.metadata.labels.as_ref().and_then(|all| all.get(labels::SERVICE_NAME));
            slice.namespace == document.namespace && label == Some(&document.name)
        });
        let endpoints = match own.clone().next() {
            Some(_) => Endpoints::Slices(own.by_ref().map(|(_, slice)| slice).collect()),
            None => Endpoints::Pods(selected(&pods, &document.namespace, &spec)),
        };
        let ports: Vec<_> = spec.ports.iter().flatten().filter_map(|port| endpoints.port(port)).collect();
        Some(VirtualService {
            namespace: document.namespace.clone(),
            name: document.name.clone(),
            ips: ips(&spec),
            endpoints: endpoints.ips(),
            ports,
        })
    };
    services.into_iter().filter_map(of).collect()
}

/// Overlays that give addresses to the services that have none and want some.
pub fn allocate(objects: &[Document], family: Family) -> Vec<(ObjectKey, Value)> {
    let services: Vec<(&Document, Service)> = parsed(objects, "Service", "");
    let specs = services.iter().filter_map(|(_, service)| service.spec.as_ref());
    let mut taken: BTreeSet<IpAddr> = specs.flat_map(ips).collect();
    let mut overlays = Vec::new();
    for (document, service) in &services {
        let spec = service.spec.clone().unwrap_or_default();
        let wants = spec.cluster_ip.as_deref().is_none_or(str::is_empty)
            && spec.type_.as_deref() != Some("ExternalName");
        if !wants {
            continue;
        }
        let wanted = match spec.ip_families.as_deref() {
            None | Some([]) => family,
            Some(families) => match (has(families, "IPv4"), has(families, "IPv6")) {
                (true, false) => Family::V4,
                (false, true) => Family::V6,
                _ => family,
            },
        };
        let mut ips = address::service(&document.namespace, &document.name, wanted, &taken);
        if spec.ip_family_policy.as_deref() == Some("SingleStack") {
            ips.truncate(1);
        }
        let Some(first) = ips.first() else { continue };
        taken.extend(&ips);
        let families: Vec<_> = ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
        let overlay = json!({ "spec": { "clusterIP": first, "clusterIPs": ips, "ipFamilies": families } });
        overlays.push((document.key(), overlay));
    }
    overlays
}

fn has(families: &[String], family: &str) -> bool {
    families.iter().any(|one| one == family)
}

/// The whole of a node's table, replacing what was there.
///
/// A service's port leads to a random endpoint, for pods and for the node itself; connections already made keep theirs.
/// A port without endpoints is refused at once; so is what leads nowhere.
pub fn ruleset(services: &[VirtualService]) -> String {
    let mut lead = String::new();
    let mut refuse = String::new();
    let mut hairpins = BTreeSet::new();
    for service in services {
        for port in &service.ports {
            for ip in &service.ips {
                let here = port.endpoints.iter().filter(|to| to.is_ipv4() == ip.is_ipv4());
                let to: Vec<_> = here.copied().collect();
                hairpins.extend(to.iter().map(SocketAddr::ip));
                let family = family(*ip);
                let (number, protocol) = (port.port, port.protocol.word());
                let matched = format!("{family} daddr {ip} {protocol} dport {number}");
                let name = format!("comment \"{}/{}\"", service.namespace, service.name);
                // Writing to a String cannot fail.
                let _ = match to.as_slice() {
                    [] => writeln!(refuse, "\t\t{matched} counter {} {name}", port.protocol.refusal()),
                    to => writeln!(lead, "\t\t{matched} counter dnat {family} to {} {name}", random(to)),
                };
            }
        }
    }
    let hairpin = hairpin(&hairpins);
    // A packet that the node itself sent to a service is on its new way, though rules still see the old device: it is
    // let through in `local`. The first line makes the second one valid when there is no table yet.
    format!(
        "\
table inet ambit_lab
delete table inet ambit_lab
table inet ambit_lab {{
	chain services {{
{lead}	}}
	chain refuse {{
{refuse}		oifname \"{DEAD_END}\" meta l4proto {{ tcp, udp }} counter reject with icmpx type host-unreachable
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		jump services
	}}
	chain output {{
		type nat hook output priority -100; policy accept;
		jump services
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
{hairpin}	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		jump refuse
	}}
	chain local {{
		type filter hook output priority filter; policy accept;
		ct status dnat accept
		jump refuse
	}}
}}
"
    )
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ip" } else { "ip6" }
}

fn random(to: &[SocketAddr]) -> String {
    let choices: Vec<_> =
        to.iter().enumerate().map(|(place, to)| format!("{place} : {} . {}", to.ip(), to.port())).collect();
    format!("numgen random mod {} map {{ {} }}", to.len(), choices.join(", "))
}

/// A pod that reaches itself by its service would see its own address as the caller, and answer past us.
fn hairpin(endpoints: &BTreeSet<IpAddr>) -> String {
    let rules = ["ip", "ip6"].into_iter().filter_map(|word| {
        let pairs: Vec<_> =
            endpoints.iter().filter(|ip| family(**ip) == word).map(|ip| format!("{ip} . {ip}")).collect();
        let pairs = (!pairs.is_empty()).then(|| pairs.join(", "))?;
        Some(format!("\t\tct status dnat {word} saddr . {word} daddr {{ {pairs} }} masquerade\n"))
    });
    rules.collect()
}

/// Where a service's endpoints come from.
enum Endpoints<'a> {
    Slices(Vec<&'a EndpointSlice>),
    Pods(Vec<&'a Pod>),
}

impl Endpoints<'_> {
    fn port(&self, port: &ServicePort) -> Option<VirtualPort> {
        let protocol = Protocol::of(port.protocol.as_deref())?;
        let number = u16::try_from(port.port).ok()?;
        let endpoints = match self {
            Self::Pods(pods) => pods
                .iter()
                .filter_map(|pod| Some((pod, target(pod, port)?)))
                .flat_map(|(pod, target)| pod_ips(pod).into_iter().map(move |ip| SocketAddr::new(ip, target)))
                .collect(),
            Self::Slices(slices) => {
                slices.iter().filter_map(|slice| slice_endpoints(slice, port)).flatten().collect()
            }
        };
        Some(VirtualPort { port: number, protocol, endpoints })
    }

    fn ips(&self) -> BTreeSet<IpAddr> {
        match self {
            Self::Pods(pods) => pods.iter().flat_map(|pod| pod_ips(pod)).collect(),
            Self::Slices(slices) => slices.iter().flat_map(|slice| slice_ips(slice)).collect(),
        }
    }
}

fn parsed<'a, T: serde::de::DeserializeOwned>(
    objects: &'a [Document],
    kind: &str,
    group: &str,
) -> Vec<(&'a Document, T)> {
    let wanted = objects.iter().filter(|document| document.kind == kind && document.group() == group);
    // What cannot be read is reported by the controller, field by field.
    wanted.filter_map(|document| Some((document, document.parse().ok()?))).collect()
}

fn ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let all: BTreeSet<IpAddr> =
        spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok()).collect();
    all.into_iter().collect()
}

fn selected<'a>(pods: &'a [(&Document, Pod)], namespace: &str, spec: &ServiceSpec) -> Vec<&'a Pod> {
    let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
        return Vec::new();
    };
    let unready = spec.publish_not_ready_addresses == Some(true);
    let fits = |pod: &Pod| {
        let empty = BTreeMap::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        selector.iter().all(|(label, value)| labels.get(label) == Some(value))
    };
    let here = pods.iter().filter(|(document, _)| document.namespace == namespace).map(|(_, pod)| pod);
    here.filter(|pod| fits(pod) && (unready || is_ready(pod))).collect()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready =
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

fn pod_ips(pod: &Pod) -> BTreeSet<IpAddr> {
    let Some(status) = &pod.status else { return BTreeSet::new() };
    let many = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    many.chain(&status.pod_ip).filter_map(|ip| ip.parse().ok()).collect()
}

fn target(pod: &Pod, port: &ServicePort) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let named = ports.find(|port| port.name.as_ref() == Some(name))?;
            u16::try_from(named.container_port).ok()
        }
    }
}

fn slice_ips(slice: &EndpointSlice) -> Vec<IpAddr> {
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    ready.flat_map(|endpoint| &endpoint.addresses).filter_map(|ip| ip.parse().ok()).collect()
}

fn slice_endpoints(slice: &EndpointSlice, port: &ServicePort) -> Option<Vec<SocketAddr>> {
    let same = |name: &Option<String>| {
        name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
    };
    let own = slice.ports.iter().flatten().find(|own| same(&own.name))?;
    let number = u16::try_from(own.port?).ok()?;
    Some(slice_ips(slice).into_iter().map(|ip| SocketAddr::new(ip, number)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::read;

    const SHOP: &str = "
kind: Service
apiVersion: v1
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.43.1.1
  clusterIPs: [10.43.1.1, 'fd00:43::101']
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}, {name: raw, port: 9090}]
---
kind: Service
apiVersion: v1
metadata: {name: idle, namespace: shop}
spec: {clusterIP: 10.43.1.2, selector: {app: nobody}, ports: [{port: 80}]}
---
kind: Service
apiVersion: v1
metadata: {name: each, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
kind: Service
apiVersion: v1
metadata: {name: manual, namespace: shop}
spec: {clusterIP: 10.43.1.3, ports: [{name: dns, port: 53, protocol: UDP}]}
---
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
metadata: {name: manual-1, namespace: shop, labels: {kubernetes.io/service-name: manual}}
addressType: IPv4
ports: [{name: dns, port: 5353, protocol: UDP}]
endpoints: [{addresses: [10.42.0.9]}, {addresses: [10.42.0.8], conditions: {ready: false}}]
---
kind: Service
apiVersion: v1
metadata: {name: new, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
kind: Service
apiVersion: v1
metadata: {name: new6, namespace: shop}
spec: {ipFamilies: [IPv6], selector: {app: web}, ports: [{port: 80}]}
---
kind: Service
apiVersion: v1
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
";

    fn pod(name: &str, ip: &str, ready: &str) -> String {
        format!(
            "---\nkind: Pod\napiVersion: v1\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}
spec: {{containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]}}
status: {{podIP: 10.42.{ip}, podIPs: [{{ip: 10.42.{ip}}}, {{ip: 'fd00:42::{}'}}], conditions: [{{type: Ready, status: '{ready}'}}]}}\n",
            ip.replace('.', ":")
        )
    }

    fn objects() -> Vec<Document> {
        read(
            &[
                SHOP,
                &pod("web-1", "0.2", "True"),
                &pod("web-2", "1.2", "True"),
                &pod("web-3", "0.3", "False"),
            ]
            .concat(),
        )
    }

    #[test]
    fn services_lead_to_ready_pods_and_to_their_slices() {
        insta::assert_snapshot!(ruleset(&services(&objects())));
    }

    #[test]
    fn a_headless_service_has_endpoints_and_no_address() {
        let services = services(&objects());
        let each = services.iter().find(|service| service.name == "each").unwrap();
        assert_eq!(each.ips, Vec::<IpAddr>::new());
        assert_eq!(each.endpoints.len(), 4);
    }

    #[test]
    fn services_without_an_address_get_one_each_of_their_families() {
        let overlays = allocate(&objects(), Family::Dual);
        let named: Vec<_> = overlays
            .iter()
            .map(|(key, overlay)| (key.name.as_str(), &overlay["spec"]["ipFamilies"]))
            .collect();
        assert_eq!(named, [("new", &json!(["IPv4", "IPv6"])), ("new6", &json!(["IPv6"]))]);
        assert_eq!(overlays, allocate(&objects(), Family::Dual));
    }
}
