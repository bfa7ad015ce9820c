//! How many certificates of each root may be in use: those signed here that are not over. For the eye only; what
//! decides about a root is the time after which none can be ([`super::rotation`]).

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::in_force::Fingerprint;

/// Certificates that end within the same five minutes are counted together: 90 days are 26,000 numbers.
const BUCKET: u64 = 300;
/// The roots of a few rotations.
const ROOTS: usize = 8;

/// When certificates end: seconds since 1970, and how many.
#[derive(Debug, Default)]
struct Ends(BTreeMap<u64, u64>);

/// What was signed here and is not over, by root.
#[derive(Debug, Default)]
pub struct Issued(Mutex<BTreeMap<Fingerprint, Ends>>);

/// What one root signed and is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse {
    /// How many certificates.
    pub count: u64,
    /// When the last of them is over.
    pub until: SystemTime,
}

impl Issued {
    /// Notes a certificate of `root` that ends at `not_after`.
    pub fn note(&self, root: Fingerprint, not_after: SystemTime, now: SystemTime) {
        let mut roots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = roots.entry(root).or_default();
        forget(ends, now);
        let end = seconds(not_after).div_ceil(BUCKET).saturating_mul(BUCKET);
        let count = ends.0.entry(end).or_default();
        *count = count.saturating_add(1);
        if roots.len() > ROOTS {
            let first_over = roots.iter().min_by_key(|(_, ends)| ends.0.keys().next_back().copied());
            if let Some(over) = first_over.map(|(root, _)| *root) {
                roots.remove(&over);
            }
        }
    }

    /// What may be in use of each root.
    pub fn in_use(&self, now: SystemTime) -> Vec<(Fingerprint, InUse)> {
        let mut roots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        roots.values_mut().for_each(|ends| forget(ends, now));
        roots.retain(|_, ends| !ends.0.is_empty());
        let summed = roots.iter().filter_map(|(root, ends)| {
            let last = ends.0.keys().next_back()?;
            let count = ends.0.values().fold(0_u64, |sum, count| sum.saturating_add(*count));
            Some((*root, InUse { count, until: UNIX_EPOCH + Duration::from_secs(*last) }))
        });
        summed.collect()
    }
}

fn forget(ends: &mut Ends, now: SystemTime) {
    ends.0 = ends.0.split_off(&seconds(now));
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use ambit_wire::cert::authority::{Authority, Serial};

    use super::{super::authority::starting, *};

    fn root() -> Fingerprint {
        let life = starting(SystemTime::now(), Duration::from_secs(3600));
        Fingerprint::of_signer(&Authority::self_signed(&"td".into(), life, Serial::new(1)).unwrap()).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    #[test]
    fn certificates_count_until_they_are_over() {
        let (issued, old, new) = (Issued::default(), root(), root());
        for end in [100, 200, 3600] {
            issued.note(old, at(end), at(0));
        }
        issued.note(new, at(7200), at(0));
        let count = |root, now| {
            let all = issued.in_use(now).into_iter();
            all.filter(|(of, _)| *of == root).map(|(_, in_use)| in_use.count).sum::<u64>()
        };
        assert_eq!((count(old, at(0)), count(new, at(0))), (3, 1));
        assert_eq!(count(old, at(301)), 1, "two ended within the same five minutes");
        assert_eq!((count(old, at(3601)), count(new, at(3601))), (0, 1));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let issued = Issued::default();
        let first = root();
        issued.note(first, at(10), at(0));
        for _ in 0..ROOTS {
            issued.note(root(), at(5000), at(0));
        }
        assert_eq!(issued.in_use(at(0)).len(), ROOTS);
        assert!(issued.in_use(at(0)).iter().all(|(root, _)| *root != first), "the first that is over goes");
        for second in 0..10_000 {
            issued.note(first, at(second), at(second));
        }
        assert!(issued.0.lock().unwrap()[&first].0.len() <= 2);
    }
}
