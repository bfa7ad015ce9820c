//! A table in which a key finds its endpoint (Maglev, NSDI 2016, section 3.4): every endpoint has about the same share of
//! it, and when one goes, few keys find another one than before.

use std::iter;

use xxhash_rust::xxh64::xxh64;

use crate::name::Uid;

/// How large tables are: primes, so that every step walks through all of a table.
const SIZES: [u32; 3] = [1021, 16_381, 65_537];
/// How many slots an endpoint has at least, where there is a table large enough: shares differ by about a hundredth.
const SLOTS_EACH: usize = 100;

/// The hash of a key, the same at every replica of a waypoint.
pub fn hash(key: &[u8]) -> u64 {
    xxh64(key, 0)
}

/// Which of some endpoints a key finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maglev {
    members: Vec<Uid>,
    slots: Vec<u32>,
}

impl Maglev {
    /// The table of `members`, whose order does not matter.
    pub fn new(mut members: Vec<Uid>) -> Self {
        members.sort_unstable();
        let slots = filled(&members);
        Self { members, slots }
    }

    /// Whether it is the table of these, which are sorted.
    pub fn is_of<'a>(&self, members: impl Iterator<Item = &'a Uid>) -> bool {
        self.members.iter().eq(members)
    }

    /// The endpoint of a key, and after it those that stand in for it, in an order that depends on the key alone. One may
    /// come several times.
    pub fn find(&self, hash: u64) -> impl Iterator<Item = &Uid> {
        let size = u64::try_from(self.slots.len()).unwrap_or(u64::MAX);
        let first = hash.checked_rem(size).and_then(|first| usize::try_from(first).ok()).unwrap_or_default();
        let (before, after) = self.slots.split_at(first.min(self.slots.len()));
        let slots = after.iter().chain(before);
        slots.filter_map(|slot| self.members.get(usize::try_from(*slot).ok()?))
    }
}

fn filled(members: &[Uid]) -> Vec<u32> {
    let enough = |size: &&u32| usize::try_from(**size).is_ok_and(|size| size >= members.len() * SLOTS_EACH);
    let [.., largest] = SIZES;
    let size = SIZES.iter().find(enough).copied().unwrap_or(largest);
    // Each walks through the table in steps of its own, from a place of its own, and takes what is free in turn.
    let mut walks: Vec<_> = members
        .iter()
        .map(|member| {
            let at = |seed: u64, below: u32| {
                u32::try_from(xxh64(member.as_str().as_bytes(), seed) % u64::from(below)).unwrap_or_default()
            };
            let step = u64::from(at(2, size - 1) + 1);
            iter::successors(Some(at(1, size)), move |place| {
                u32::try_from((u64::from(*place) + step) % u64::from(size)).ok()
            })
        })
        .collect();
    if walks.is_empty() {
        return Vec::new();
    }
    let mut slots: Vec<Option<u32>> = vec![None; usize::try_from(size).unwrap_or_default()];
    let mut free = slots.len();
    // More members than slots cannot all have one; the rest get nothing, as with any table of that size.
    'full: loop {
        for (number, walk) in (0u32..).zip(&mut walks) {
            if free == 0 {
                break 'full;
            }
            let taken = walk.find_map(|place| {
                let slot = slots.get_mut(usize::try_from(place).ok()?)?;
                slot.is_none().then(|| *slot = Some(number))
            });
            free -= usize::from(taken.is_some());
        }
    }
    slots.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn members(count: usize) -> Vec<Uid> {
        (0..count).map(|number| format!("cluster//Pod/shop/web-{number}").into()).collect()
    }

    fn found(table: &Maglev, key: u64) -> Uid {
        table.find(hash(&key.to_be_bytes())).next().expect("an endpoint").clone()
    }

    #[test]
    fn keys_are_spread_evenly_and_stay_where_they_are() {
        const KEYS: u64 = 20_000;
        let ten = Maglev::new(members(10));
        let mut shares: BTreeMap<Uid, u64> = BTreeMap::new();
        (0..KEYS).for_each(|key| *shares.entry(found(&ten, key)).or_default() += 1);
        assert_eq!(shares.len(), 10);
        let even = KEYS / 10;
        assert!(shares.values().all(|share| share.abs_diff(even) < even / 10), "{shares:?}");
        let nine = Maglev::new(members(9));
        let gone = &members(10)[9];
        let moved = (0..KEYS).filter(|key| {
            let before = found(&ten, *key);
            before != *gone && before != found(&nine, *key)
        });
        let moved = moved.count();
        assert!(moved < 1_000, "{moved} of {KEYS} keys moved from an endpoint that stayed");
    }

    #[test]
    fn the_order_of_members_does_not_matter() {
        let mut reversed = members(7);
        reversed.reverse();
        assert_eq!(Maglev::new(members(7)), Maglev::new(reversed));
    }

    #[test]
    fn whoever_stands_in_is_found_after_the_first() {
        let table = Maglev::new(members(3));
        let order: Vec<_> = table.find(7).collect();
        assert_eq!(order.len(), 1021, "every slot is looked at once");
        for member in &members(3) {
            assert!(order.contains(&member));
        }
    }

    #[test]
    fn odd_sizes_have_tables() {
        assert_eq!(Maglev::new(Vec::new()).find(7).next(), None);
        assert_eq!(found(&Maglev::new(members(1)), 7), members(1)[0]);
        let many = Maglev::new(members(2_000));
        assert_eq!(many.slots.len(), 65_537);
        let found = many.slots.iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(found.len(), 2_000, "each has a share");
    }
}
