//! Does the mesh own a name, and what are its addresses? Pure (protocols 9).

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use ambit_model::{
    name::{Hostname, Namespace},
    service::{IpFamilies, Service},
    snapshot::Snapshot,
    workload::Workload,
};
use rand::{Rng, seq::SliceRandom};

use super::names::{Alias, IsWildcard, aliases, with_wildcards};

/// The most addresses in an answer: more of the larger family would not fit the 64 KiB of a message.
/// A client takes the first few, and those are drawn by lot.
const MOST_ADDRESSES: usize = 2000;

/// What the operator decides about names.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What service names end in: `cluster.local`.
    pub cluster_domain: String,
    /// Whose services win where neither the client's own nor a canonical one does.
    pub preferred_namespace: Option<Namespace>,
    /// Whether IPv6 is used.
    pub ipv6: bool,
}

/// A family of addresses, as a question asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A.
    V4,
    /// AAAA.
    V6,
}

/// What is to be done with a question for addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The mesh owns the name.
    Owned(Owned),
    /// It does not: others are to be asked.
    Forward,
    /// It is not known who asks, and so not what the name means.
    Refuse,
}

/// What the mesh knows of a name that it owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The name that the addresses belong to, when it is not the one that was asked for.
    pub canonical: Option<String>,
    /// The addresses; none when the service has none of the family, which is not an error.
    pub addresses: Vec<IpAddr>,
}

/// What a `client` is answered who asks for the addresses of `name`. The name is in lower case,
/// without a final dot.
pub fn answer(
    mesh: &Snapshot,
    settings: &Settings,
    client: Option<&Workload>,
    name: &str,
    family: Family,
    dice: &mut impl Rng,
) -> Answer {
    let Some(client) = client else { return Answer::Refuse };
    let all = aliases(name, client.namespace.as_str(), &settings.cluster_domain);
    let found = all.into_iter().find_map(|alias| {
        let (service, by_wildcard) = find(mesh, settings, client, &alias)?;
        let canonical = if by_wildcard == IsWildcard(true) { None } else { alias.stripped };
        Some((service, canonical))
    });
    let Some((service, canonical)) = found else { return Answer::Forward };
    let mut addresses = addresses(mesh, settings, client, service, family);
    addresses.shuffle(dice);
    addresses.truncate(MOST_ADDRESSES);
    Answer::Owned(Owned { canonical, addresses })
}

fn find<'s>(
    mesh: &'s Snapshot,
    settings: &Settings,
    client: &Workload,
    alias: &Alias,
) -> Option<(&'s Arc<Service>, IsWildcard)> {
    with_wildcards(&alias.name).find_map(|(hostname, by_wildcard)| {
        let candidates = mesh
            .services_named(&hostname)
            .iter()
            .filter(|service| service.visible_to(&client.namespace) && is_answerable(service, settings));
        Some((preferred(candidates, settings, client)?, by_wildcard))
    })
}

/// A service without an address of its own is answered only if it is headless in Kubernetes; any
/// other has its addresses elsewhere.
fn is_answerable(service: &Service, settings: &Settings) -> bool {
    !service.vips.is_empty() || is_in_cluster(&service.hostname, &settings.cluster_domain)
}

fn is_in_cluster(hostname: &Hostname, domain: &str) -> bool {
    hostname.as_str().strip_suffix(domain).is_some_and(|rest| rest.ends_with(".svc."))
}

fn preferred<'s>(
    candidates: impl Iterator<Item = &'s Arc<Service>>,
    settings: &Settings,
    client: &Workload,
) -> Option<&'s Arc<Service>> {
    let rank = |(at, service): &(usize, &Arc<Service>)| {
        let is_preferred = settings.preferred_namespace.as_ref() == Some(&service.namespace);
        (service.namespace == client.namespace, service.canonical, is_preferred, Reverse(*at))
    };
    candidates.enumerate().max_by_key(rank).map(|(_, service)| service)
}

fn addresses(
    mesh: &Snapshot,
    settings: &Settings,
    client: &Workload,
    service: &Service,
    family: Family,
) -> Vec<IpAddr> {
    let has_family = match (service.ip_families, family) {
        (IpFamilies::Ipv4Only, Family::V6) | (IpFamilies::Ipv6Only, Family::V4) => false,
        (_, Family::V6) => settings.ipv6,
        (_, Family::V4) => true,
    };
    if !has_family {
        return Vec::new();
    }
    let is_of_family = |ip: &IpAddr| match family {
        Family::V4 => ip.is_ipv4(),
        Family::V6 => ip.is_ipv6(),
    };
    if service.vips.is_empty() {
        let endpoints = mesh.endpoints(&service.key()).map_or(&[][..], |all| all.as_slice());
        let one_each = endpoints
            .iter()
            .filter_map(|endpoint| endpoint.workload.addresses.iter().find(|ip| is_of_family(ip)));
        return one_each.copied().collect();
    }
    let reachable = service.vips.iter().filter(|vip| vip.network == client.network);
    reachable.map(|vip| vip.ip).filter(is_of_family).collect()
}

#[cfg(test)]
mod tests;
