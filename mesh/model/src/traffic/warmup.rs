//! How an endpoint that is new gets its share: little at first, so that caches and compilers have time.

use std::time::Duration;

use crate::balance::Dice;

/// A whole share, in millionths.
const WHOLE: u32 = 1_000_000;

/// How the share of a new endpoint grows (WarmupConfiguration).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warmup {
    /// For how long it is new.
    pub duration: Duration,
    /// Its share at first, in percent of a whole one, 0 to 100.
    pub least_percent: u8,
    /// How it grows, in thousandths: 1000 evenly; the more, the faster at first. At least 1000.
    pub aggression: u32,
}

impl Warmup {
    /// Whether one gets a request that it was drawn for, `age` after it was seen first.
    pub fn admits(&self, age: Duration, dice: &mut dyn Dice) -> bool {
        let drawn = f64::from(u32::try_from(dice.below(WHOLE.into())).unwrap_or(u32::MAX));
        age >= self.duration || drawn < self.share(age)
    }

    /// In millionths.
    fn share(&self, age: Duration) -> f64 {
        let part = age.as_secs_f64() / self.duration.as_secs_f64().max(f64::MIN_POSITIVE);
        let grown = part.clamp(0.0, 1.0).powf(1000.0 / f64::from(self.aggression.max(1000)));
        grown.max(f64::from(self.least_percent) / 100.0).min(1.0) * f64::from(WHOLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(warmup: &Warmup, seconds: u64) -> usize {
        let admits = |percent: &u64| warmup.admits(Duration::from_secs(seconds), &mut |_| percent * 10_000);
        (0..100).filter(admits).count()
    }

    #[test]
    fn the_share_grows_with_age() {
        let even = Warmup { duration: Duration::from_secs(100), least_percent: 10, aggression: 1000 };
        let shares: Vec<_> = [0, 5, 10, 50, 100, 200].map(|seconds| percent(&even, seconds)).into();
        assert_eq!(shares, [10, 10, 10, 50, 100, 100]);
        let fast = Warmup { aggression: 2000, ..even.clone() };
        assert_eq!(percent(&fast, 25), 50);
        let none = Warmup { duration: Duration::ZERO, ..even };
        assert!(none.admits(Duration::ZERO, &mut |_| 999_999));
    }

    #[test]
    fn who_is_new_is_passed_over_by_chance() {
        let half = Warmup { duration: Duration::from_secs(10), least_percent: 0, aggression: 1000 };
        let age = Duration::from_secs(5);
        assert!(half.admits(age, &mut |_| 499_999));
        assert!(!half.admits(age, &mut |_| 500_000));
        assert!(!half.admits(Duration::ZERO, &mut |_| 0));
        assert!(half.admits(Duration::from_secs(10), &mut |_| 999_999));
    }
}
