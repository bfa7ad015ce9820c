//! Automatic virtual addresses, for hosts of ServiceEntries that have none of their own (protocols 9).
//!
//! An address follows from the name of the service, so that it is the same after a restart and in every replica. When
//! two names want the same one, the older entry gets it, and the other tries its next choice. All of it is a function
//! of the entries that there are, not of the order in which they came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ambit_model::name::ServiceKey;
use xxhash_rust::xxh64::xxh64;

use super::object::{Resolution, ServiceEntry};
use super::{Cluster, HostOwner};

/// Choices that differ before the next free address is taken in order.
const TRIES: u64 = 16;
/// Usable addresses of 240.240.0.0/16: without the first and the last.
const ROOM: u64 = 65_534;

/// The automatic addresses of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    /// In 240.240.0.0/16.
    pub v4: Ipv4Addr,
    /// In 2001:2::/48.
    pub v6: Ipv6Addr,
}

impl Vip {
    /// Both of them, IPv4 first.
    pub fn ips(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    fn of_slot(slot: u16) -> Self {
        let [high, low] = slot.to_be_bytes();
        Self { v4: Ipv4Addr::new(240, 240, high, low), v6: Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, slot) }
    }
}

/// Who has which automatic address.
#[derive(Clone, Debug, Default)]
pub struct Vips {
    by_service: BTreeMap<ServiceKey, Vip>,
    disturbed: bool,
}

impl Vips {
    /// The addresses of a service.
    pub fn get(&self, service: &ServiceKey) -> Option<Vip> {
        self.by_service.get(service).copied()
    }

    pub(super) fn disturb(&mut self) {
        self.disturbed = true;
    }

    pub(super) fn is_disturbed(&self) -> bool {
        self.disturbed
    }

    /// Takes a fresh allocation and says who is affected by the difference.
    pub(super) fn replace(&mut self, fresh: BTreeMap<ServiceKey, Vip>) -> Vec<ServiceKey> {
        let keys: BTreeSet<_> = self.by_service.keys().chain(fresh.keys()).collect();
        let moved =
            keys.into_iter().filter(|key| self.by_service.get(*key) != fresh.get(*key)).cloned().collect();
        *self = Self { by_service: fresh, disturbed: false };
        moved
    }
}

/// Gives every service that wants one an address. When all are taken, the youngest get none.
pub(super) fn allocate(cluster: &Cluster) -> BTreeMap<ServiceKey, Vip> {
    let mut wanting = Vec::new();
    for (name, entry) in cluster.service_entries.iter() {
        for host in entry.hosts.iter().filter(|host| wants(entry, ServiceEntry::is_wildcard(host))) {
            let key = ServiceKey { namespace: name.namespace.clone(), hostname: host.clone() };
            if cluster.winner(&key) == Some(HostOwner::ServiceEntry(name.clone())) {
                wanting.push((entry.meta.created, key));
            }
        }
    }
    wanting.sort();
    let mut taken = BTreeSet::new();
    let mut given = BTreeMap::new();
    for (_, key) in wanting {
        if let Some(slot) = choices(&key).find(|slot| taken.insert(*slot)) {
            given.insert(key, Vip::of_slot(slot));
        }
    }
    given
}

/// Entries without addresses want some; where nothing is balanced none are needed, and a name that stands for many
/// can have one only where a waypoint resolves it.
fn wants(entry: &ServiceEntry, wildcard: bool) -> bool {
    let resolved = match entry.resolution {
        Resolution::None => false,
        Resolution::Static | Resolution::Dns => !wildcard,
        Resolution::DynamicDns => true,
    };
    entry.addresses.is_empty() && resolved
}

/// The addresses that a service would like, best first, and at last any.
fn choices(key: &ServiceKey) -> impl Iterator<Item = u16> + use<> {
    let text = key.to_string();
    let slot = |n: u64| u16::try_from(n % ROOM + 1).unwrap_or(1);
    let liked = (0..TRIES).map(move |seed| slot(xxh64(text.as_bytes(), seed)));
    liked.chain((0..ROOM).map(slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_is_a_usable_address_and_all_are_reached() {
        let key = ServiceKey::new("shop", "example.com");
        let slots: BTreeSet<u16> = choices(&key).collect();
        assert_eq!(slots.len(), usize::try_from(ROOM).unwrap());
        assert!(!slots.contains(&0) && !slots.contains(&u16::MAX));
        assert_eq!(choices(&key).next(), choices(&key).next());
    }

    #[test]
    fn an_address_is_of_its_range_in_both_families() {
        let vip = Vip::of_slot(0x1234);
        assert_eq!(vip.ips().map(|ip| ip.to_string()), ["240.240.18.52", "2001:2::1234"]);
    }
}
