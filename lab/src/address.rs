//! The lab's address plan: which node, pod and service has which address. Pure, and the same for every lab:
//! labs live in namespaces of their own, so their addresses never meet.
//!
//! | what | IPv4 | IPv6 |
//! |---|---|---|
//! | node *i* on the wire | `10.41.0.(i+1)/24` | `fd00:41::(i+1)/64` |
//! | pods of node *i* | `10.42.i.0/24` | `fd00:42:0:i::/64` |
//! | services | `10.43.0.0/16` | `fd00:43::/112` |
//! | cluster DNS (on every node) | `10.43.0.10` | `fd00:43::a` |

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where pods ask for names: an address that every node answers itself.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);
/// The IPv6 twin of [`DNS_V4`].
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x43, 0, 0, 0, 0, 0, 0xa);
/// The gateway of every pod in IPv6; on each pod's link, so it needs no plan.
pub const GATEWAY_V6: &str = "fe80::1";
/// A node index is one octet of its pods' addresses; a lab is far smaller.
pub const MAX_NODES: usize = 64;
/// Host numbers 2..=254 of a node's IPv4 range.
pub const MAX_PODS_PER_NODE: usize = 253;

const FIRST_POD: u8 = 2;
const LAST_POD: u8 = 254;
/// Service numbers below are left to fixed addresses such as DNS.
const FIRST_SERVICE: u16 = 256;

/// Which IP families the lab speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// IPv4 only; IPv6 is switched off in every namespace.
    V4,
    /// IPv6 only; loopback keeps 127.0.0.1.
    V6,
    /// Both; IPv4 is the primary address.
    #[default]
    Dual,
}

impl Family {
    /// Whether pods and nodes have IPv4 addresses.
    pub fn v4(self) -> bool {
        matches!(self, Self::V4 | Self::Dual)
    }

    /// Whether pods and nodes have IPv6 addresses.
    pub fn v6(self) -> bool {
        matches!(self, Self::V6 | Self::Dual)
    }

    fn pick(self, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<IpAddr> {
        let v4 = self.v4().then_some(IpAddr::V4(v4));
        let v6 = self.v6().then_some(IpAddr::V6(v6));
        v4.into_iter().chain(v6).collect()
    }
}

/// A node's place in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeIndex(pub(crate) u8);

impl NodeIndex {
    pub(crate) fn wire(self, family: Family) -> Vec<IpAddr> {
        let host = self.0 + 1;
        family.pick(Ipv4Addr::new(10, 41, 0, host), Ipv6Addr::new(0xfd00, 0x41, 0, 0, 0, 0, 0, host.into()))
    }

    pub(crate) fn gateway_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.0, 1)
    }

    pub(crate) fn pods_v4(self) -> String {
        format!("10.42.{}.0/24", self.0)
    }

    pub(crate) fn pods_v6(self) -> String {
        format!("fd00:42:0:{:x}::/64", self.0)
    }

    pub(crate) fn pod(self, host: u8, family: Family) -> Vec<IpAddr> {
        family.pick(
            Ipv4Addr::new(10, 42, self.0, host),
            Ipv6Addr::new(0xfd00, 0x42, 0, self.0.into(), 0, 0, 0, host.into()),
        )
    }
}

/// The next free host number after `last`, going round, so that an address is not taken up again at once by
/// another pod (as in real clusters). `None` when the node is full.
pub(crate) fn next_pod(last: Option<u8>, taken: &BTreeSet<u8>) -> Option<u8> {
    let start = last.map_or(FIRST_POD, |last| if last >= LAST_POD { FIRST_POD } else { last + 1 });
    (start..=LAST_POD).chain(FIRST_POD..start).find(|host| !taken.contains(host))
}

/// The cluster DNS addresses in the lab's families.
pub fn dns(family: Family) -> Vec<IpAddr> {
    family.pick(DNS_V4, DNS_V6)
}

/// Addresses for a service without any: derived from its name, the next free one if that is taken.
pub fn service(namespace: &str, name: &str, family: Family, taken: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let room = u16::MAX - FIRST_SERVICE;
    let start = u16::try_from(hash(&[namespace, "/", name]) % u64::from(room)).unwrap_or(0);
    (0..room)
        .map(|step| {
            let offset = u32::from(start) + u32::from(step);
            let number = FIRST_SERVICE + u16::try_from(offset % u32::from(room)).unwrap_or(0);
            let [high, low] = number.to_be_bytes();
            family.pick(Ipv4Addr::new(10, 43, high, low), Ipv6Addr::new(0xfd00, 0x43, 0, 0, 0, 0, 0, number))
        })
        .find(|ips| ips.iter().all(|ip| !taken.contains(ip)))
        .unwrap_or_default()
}

/// FNV-1a: stable between builds and releases, unlike the standard hasher.
pub(crate) fn hash(parts: &[&str]) -> u64 {
    parts
        .iter()
        .flat_map(|part| part.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_one_address_per_family() {
        let node = NodeIndex(1);
        assert_eq!(node.pod(2, Family::V4), ["10.42.1.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            node.pod(2, Family::Dual),
            ["10.42.1.2".parse::<IpAddr>().unwrap(), "fd00:42:0:1::2".parse().unwrap()]
        );
    }

    #[test]
    fn an_address_just_given_back_is_not_the_next_one() {
        let taken = BTreeSet::from([2]);
        assert_eq!(next_pod(None, &BTreeSet::new()), Some(2));
        assert_eq!(next_pod(Some(3), &taken), Some(4));
        assert_eq!(next_pod(Some(254), &taken), Some(3));
        assert_eq!(next_pod(Some(9), &(2..=254).collect()), None);
    }

    #[test]
    fn a_service_keeps_its_address_and_yields_to_a_taken_one() {
        let free = BTreeSet::new();
        let first = service("shop", "web", Family::Dual, &free);
        assert_eq!(first, service("shop", "web", Family::Dual, &free));
        let taken = first.iter().copied().collect();
        let second = service("shop", "web", Family::Dual, &taken);
        assert_eq!(second.len(), 2);
        assert_ne!(first, second);
    }
}
