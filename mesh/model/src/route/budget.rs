//! How many of the requests to a service may be repetitions (GEP-3388), so that a service that fails is
//! not asked more the more it fails.

use std::time::Duration;

/// How many of the requests to a service may be repetitions (GEP-3388).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetPolicy {
    /// Of a hundred requests; more than that is all.
    pub percent: u32,
    /// In which time they are counted.
    pub interval: Duration,
    /// As many as this are allowed in any case…
    pub least: u32,
    /// …in this time.
    pub least_interval: Duration,
}

impl Default for BudgetPolicy {
    /// A fifth of the requests of ten seconds, and ten in a second.
    fn default() -> Self {
        let (ten, one) = (Duration::from_secs(10), Duration::from_secs(1));
        Self { percent: 20, interval: ten, least: 10, least_interval: one }
    }
}

/// What was sent to a service of late, as far as its [`BudgetPolicy`] depends on it.
#[derive(Clone, Debug)]
pub struct Budget {
    policy: BudgetPolicy,
    /// First attempts and repetitions.
    requests: Window,
    repetitions: Window,
    /// Repetitions in the time of the least.
    least: Window,
}

impl Budget {
    /// Nothing was sent yet.
    pub fn new(policy: BudgetPolicy) -> Self {
        Self {
            policy,
            requests: Window::new(policy.interval),
            repetitions: Window::new(policy.interval),
            least: Window::new(policy.least_interval),
        }
    }

    /// A request is sent for the first time. `now` is the time since any moment, always the same one.
    pub fn sent(&mut self, now: Duration) {
        self.requests.add(now);
    }

    /// Takes one repetition, if there is one. Of 1000 requests in the interval, repetitions and all, 200
    /// may be repetitions at 20 percent.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        let requests = self.requests.sum(now).saturating_add(1);
        let repetitions = self.repetitions.sum(now).saturating_add(1);
        let within = u128::from(repetitions).saturating_mul(100)
            <= u128::from(requests).saturating_mul(u128::from(self.policy.percent.min(100)));
        let below_least = self.least.sum(now) < u64::from(self.policy.least);
        if !(within || below_least) {
            return false;
        }
        self.requests.add(now);
        self.repetitions.add(now);
        self.least.add(now);
        true
    }
}

/// In how many parts a window of time moves on: what was counted falls out of it a tenth early at most.
const SLOTS: usize = 10;

/// What was counted in the last stretch of time.
#[derive(Clone, Debug)]
struct Window {
    /// The newest first.
    slots: [u64; SLOTS],
    /// How long one slot is; never zero.
    slot: Duration,
    /// The number of the newest slot.
    newest: u128,
}

impl Window {
    fn new(span: Duration) -> Self {
        let slot = (span / 10).max(Duration::from_millis(1));
        Self { slots: [0; SLOTS], slot, newest: 0 }
    }

    /// Time that runs backwards stands still.
    fn advance(&mut self, now: Duration) {
        let number = now.as_nanos().checked_div(self.slot.as_nanos()).unwrap_or(0);
        let passed = usize::try_from(number.saturating_sub(self.newest)).unwrap_or(SLOTS).min(SLOTS);
        self.slots.rotate_right(passed);
        self.slots.iter_mut().take(passed).for_each(|slot| *slot = 0);
        self.newest = self.newest.max(number);
    }

    fn add(&mut self, now: Duration) {
        self.advance(now);
        if let Some(newest) = self.slots.first_mut() {
            *newest = newest.saturating_add(1);
        }
    }

    fn sum(&mut self, now: Duration) -> u64 {
        self.advance(now);
        self.slots.iter().fold(0, |sum: u64, slot| sum.saturating_add(*slot))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn budget(percent: u32, least: u32) -> Budget {
        Budget::new(BudgetPolicy { percent, least, ..BudgetPolicy::default() })
    }

    #[test]
    fn a_fifth_of_the_requests_may_be_repetitions() {
        let mut budget = budget(20, 0);
        (0..800).for_each(|_| budget.sent(SECOND));
        let taken = (0..1000).filter(|_| budget.take(2 * SECOND)).count();
        assert_eq!(taken, 200, "200 of the 1000 that were sent are repetitions");
    }

    #[test]
    fn what_was_sent_long_ago_does_not_count() {
        let mut budget = budget(20, 0);
        (0..100).for_each(|_| budget.sent(SECOND));
        assert!(budget.take(9 * SECOND));
        assert!(!budget.take(12 * SECOND));
        assert!(!budget.take(SECOND), "time that runs backwards brings nothing back");
    }

    #[test]
    fn some_repetitions_are_allowed_without_traffic() {
        let mut budget = budget(0, 3);
        let at = |budget: &mut Budget, now| (0..10).filter(|_| budget.take(now)).count();
        assert_eq!(at(&mut budget, SECOND), 3);
        assert_eq!(at(&mut budget, SECOND + 900 * MS), 0);
        assert_eq!(at(&mut budget, 2 * SECOND), 3, "each second anew");
    }

    proptest! {
        #[test]
        fn repetitions_never_exceed_their_share(
            percent in 0_u32..=100,
            events in prop::collection::vec((any::<bool>(), 0_u64..900), 1..300),
        ) {
            let mut budget = budget(percent, 0);
            let (mut now, mut sent) = (Duration::ZERO, Vec::new());
            for (is_first, pause) in events {
                now += Duration::from_millis(pause);
                if is_first {
                    budget.sent(now);
                    sent.push((now, false));
                } else if budget.take(now) {
                    sent.push((now, true));
                }
            }
            // Where nothing has fallen out of the window yet, the share is exact.
            if now < 9 * SECOND {
                let repetitions = u64::try_from(sent.iter().filter(|(_, repeated)| *repeated).count()).unwrap();
                let all = u64::try_from(sent.len()).unwrap();
                prop_assert!(repetitions * 100 <= all * u64::from(percent));
            }
        }
    }
}
