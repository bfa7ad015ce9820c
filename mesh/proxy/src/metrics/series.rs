//! A bounded collection of metric series, found by labels in one look-up.
//!
//! A connection asks once and keeps what it got: from then on it only adds to atomics. A series that
//! nobody holds and nobody asked for lately gives way when room is needed, so that a long life in a
//! busy cluster does not fill the memory with the past.

use std::{
    hash::{BuildHasher, Hash},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hashbrown::{DefaultHashBuilder, Equivalent, HashTable};

use super::lock::Lock;

/// So that workers, one per core, seldom meet at a lock that is held for a look-up.
const SHARDS: usize = 16;

/// Figures that carry labels.
pub trait Series: Send + Sync + 'static {
    /// The labels, hashed like the questions that find them.
    type Labels: Hash;

    /// The labels of these figures.
    fn labels(&self) -> &Self::Labels;
}

/// The series of one kind.
pub struct Collection<S> {
    shards: [Lock<HashTable<Entry<S>>>; SHARDS],
    hasher: DefaultHashBuilder,
    most_per_shard: usize,
}

struct Entry<S> {
    series: Arc<S>,
    /// Asked for since the last time that room was needed.
    recent: AtomicBool,
}

impl<S> Clone for Entry<S> {
    fn clone(&self) -> Self {
        let recent = AtomicBool::new(self.recent.load(Ordering::Relaxed));
        Self { series: self.series.clone(), recent }
    }
}

impl<S: Series> Collection<S> {
    /// At most about `most` series.
    pub fn new(most: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Lock::new(HashTable::new())),
            hasher: DefaultHashBuilder::default(),
            most_per_shard: most.div_ceil(SHARDS).max(1),
        }
    }

    /// The series with these labels; a new one where there is none. `None` when there is no room,
    /// because all are in use.
    pub fn find<Q>(&self, labels: &Q, make: impl FnOnce() -> S) -> Option<Arc<S>>
    where
        Q: Hash + Equivalent<S::Labels>,
    {
        let hash = self.hasher.hash_one(labels);
        let mut table = self.shard(hash)?.hold();
        if let Some(entry) = table.find(hash, |entry| labels.equivalent(entry.series.labels())) {
            entry.recent.store(true, Ordering::Relaxed);
            return Some(entry.series.clone());
        }
        if table.len() >= self.most_per_shard && !make_room(&mut table) {
            return None;
        }
        let series = Arc::new(make());
        let entry = Entry { series: series.clone(), recent: AtomicBool::new(true) };
        table.insert_unique(hash, entry, |entry| self.hasher.hash_one(entry.series.labels()));
        Some(series)
    }

    /// All series at this moment, in no order.
    pub fn all(&self) -> Vec<Arc<S>> {
        let copy = |shard: &Lock<HashTable<Entry<S>>>| {
            shard.hold().iter().map(|entry| entry.series.clone()).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(copy).collect()
    }

    fn shard(&self, hash: u64) -> Option<&Lock<HashTable<Entry<S>>>> {
        // The table itself uses the low bits for the bucket and the highest seven for its tags.
        let at = usize::try_from((hash >> 40) % u64::try_from(SHARDS).unwrap_or(1)).unwrap_or(0);
        self.shards.get(at)
    }
}

/// Drops what nobody holds and nobody asked for lately; where that is nothing, what nobody holds.
fn make_room<S>(table: &mut HashTable<Entry<S>>) -> bool {
    let before = table.len();
    let is_held = |entry: &Entry<S>| Arc::strong_count(&entry.series) > 1;
    table.retain(|entry| is_held(entry) || entry.recent.swap(false, Ordering::Relaxed));
    if table.len() == before {
        table.retain(|entry| is_held(entry));
    }
    table.len() < before
}

impl<S> std::fmt::Debug for Collection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collection").field("most_per_shard", &self.most_per_shard).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Number(u64);

    impl Series for Number {
        type Labels = u64;

        fn labels(&self) -> &u64 {
            &self.0
        }
    }

    #[test]
    fn the_same_labels_find_the_same_series() {
        let all = Collection::new(100);
        let one = all.find(&7, || Number(7)).unwrap();
        let again = all.find(&7, || panic!("it exists")).unwrap();
        assert!(Arc::ptr_eq(&one, &again));
        assert_eq!(all.all().len(), 1);
    }

    #[test]
    fn what_nobody_holds_gives_way_and_what_is_held_stays() {
        let most = 64;
        let all = Collection::new(most);
        let held = all.find(&0, || Number(0)).unwrap();
        for number in 1..10_000 {
            assert!(all.find(&number, || Number(number)).is_some());
            assert!(all.all().len() <= most);
        }
        assert!(Arc::ptr_eq(&held, &all.find(&0, || Number(0)).unwrap()));
    }

    #[test]
    fn when_all_are_held_there_is_no_room() {
        let all = Collection::new(16);
        let held: Vec<_> = (0..1000).filter_map(|number| all.find(&number, || Number(number))).collect();
        assert!(held.len() <= 16, "{}", held.len());
        assert!(all.find(&2000, || Number(2000)).is_none() || held.len() < 16);
    }
}
