//! How long to wait before trying again: doubling, capped, jittered. Pure: the dice are an argument.

use std::time::Duration;

/// The waits of one thing that is tried again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    upcoming: Duration,
}

impl Backoff {
    /// The first wait is `first`, each next one twice the last, none longer than `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        let first = first.min(cap);
        Self { first, cap, upcoming: first }
    }

    /// The next wait. `jitter` from 0 to 1 takes away up to half of it, so that those who failed together do not return
    /// together.
    pub fn next(&mut self, jitter: f64) -> Duration {
        let wait = self.upcoming;
        self.upcoming = wait.saturating_mul(2).min(self.cap);
        let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
        wait.mul_f64(1.0 - jitter / 2.0)
    }

    /// It worked: the next wait is the first one again.
    pub fn reset(&mut self) {
        self.upcoming = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: Duration = Duration::from_millis(10);
    const CAP: Duration = Duration::from_secs(15);

    #[test]
    fn waits_double_up_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(FIRST, CAP);
        let waits: Vec<_> = (0..14).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000, 15000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0), FIRST);
    }

    #[test]
    fn jitter_takes_away_up_to_half() {
        assert_eq!(Backoff::new(FIRST, CAP).next(1.0), FIRST / 2);
        assert_eq!(Backoff::new(FIRST, CAP).next(0.5), Duration::from_micros(7_500));
    }

    proptest! {
        #[test]
        fn no_dice_make_it_leave_its_bounds(rolls in proptest::collection::vec(any::<f64>(), 1..200)) {
            let mut backoff = Backoff::new(FIRST, CAP);
            for roll in rolls {
                let wait = backoff.next(roll);
                prop_assert!(wait >= FIRST / 2 && wait <= CAP);
            }
        }
    }
}
