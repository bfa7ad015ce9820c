//! A bucket of tokens: one for each request, refilled at a steady rate, exact to the nanosecond.

use std::time::Duration;

use thiserror::Error;

/// The most requests that a limit names, at once or in its time: more is no limit.
const MOST_REQUESTS: u32 = 1_000_000;
/// The longest time in which they are counted: a bucket is kept until it is full again.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// How many requests, in what time, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    requests: u32,
    per: Duration,
    burst: u32,
}

/// Why a rate is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidRate {
    /// How many.
    #[error("is not between 1 and {MOST_REQUESTS}")]
    Requests,
    /// In what time.
    #[error("is not between 1ms and 24h")]
    Per,
    /// How many at once.
    #[error("is not between 1 and {MOST_REQUESTS}")]
    Burst,
}

impl Rate {
    /// `requests` in every `per`, of which `burst` may come at once.
    pub fn new(requests: u32, per: Duration, burst: u32) -> Result<Self, InvalidRate> {
        let most = 1..=MOST_REQUESTS;
        if !most.contains(&requests) {
            return Err(InvalidRate::Requests);
        }
        if !(Duration::from_millis(1)..=LONGEST).contains(&per) {
            return Err(InvalidRate::Per);
        }
        if !most.contains(&burst) {
            return Err(InvalidRate::Burst);
        }
        Ok(Self { requests, per, burst })
    }

    /// How many in [`per`](Self::per).
    pub fn requests(&self) -> u32 {
        self.requests
    }

    /// In what time.
    pub fn per(&self) -> Duration {
        self.per
    }

    /// How many at once.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// What one request costs. A nanosecond brings [`requests`](Self::requests), so nothing is ever rounded.
    fn price(&self) -> u128 {
        self.per.as_nanos()
    }

    fn capacity(&self) -> u128 {
        self.price().saturating_mul(u128::from(self.burst))
    }

    /// How long it takes until there is so much; rounded up.
    fn until(&self, credit: u128) -> Duration {
        let nanos = credit.div_ceil(u128::from(self.requests.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What is left of a rate. It belongs to one rate, which is handed in each time.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    credit: u128,
    at: Duration,
}

impl Bucket {
    /// A full one. Times are those since any one moment.
    pub fn full(rate: &Rate, now: Duration) -> Self {
        Self { credit: rate.capacity(), at: now }
    }

    /// Adds what the time has brought. A clock that is behind, as another thread's may be, brings nothing.
    pub fn refill(&mut self, rate: &Rate, now: Duration) {
        let elapsed = now.saturating_sub(self.at).as_nanos();
        let brought = elapsed.saturating_mul(u128::from(rate.requests));
        self.credit = self.credit.saturating_add(brought).min(rate.capacity());
        self.at = self.at.max(now);
    }

    /// Whether there is room for one request.
    pub fn has_room(&self, rate: &Rate) -> bool {
        self.credit >= rate.price()
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, rate: &Rate) -> bool {
        let rest = self.credit.checked_sub(rate.price());
        self.credit = rest.unwrap_or(self.credit);
        rest.is_some()
    }

    /// How many requests there is room for.
    pub fn remaining(&self, rate: &Rate) -> u32 {
        let whole = self.credit.checked_div(rate.price()).unwrap_or_default();
        u32::try_from(whole).unwrap_or(u32::MAX)
    }

    /// How long until there is room for one.
    pub fn wait(&self, rate: &Rate) -> Duration {
        rate.until(rate.price().saturating_sub(self.credit))
    }

    /// How long until it is full, and as good as a new one.
    pub fn until_full(&self, rate: &Rate) -> Duration {
        rate.until(rate.capacity().saturating_sub(self.credit))
    }

    /// Whether it is full.
    pub fn is_full(&self, rate: &Rate) -> bool {
        self.credit >= rate.capacity()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn rate() -> impl Strategy<Value = Rate> {
        let per = prop_oneof![1..2000_u64, Just(60_000), Just(3_600_000), Just(86_400_000)];
        (1..50_u32, per, 1..20_u32).prop_map(|(requests, per, burst)| {
            Rate::new(requests, Duration::from_millis(per), burst).expect("a rate")
        })
    }

    proptest! {
        /// The promise itself, over every stretch of time and without rounding: never more than the burst and what
        /// the time in between brought.
        #[test]
        fn no_stretch_of_time_sees_more_than_burst_and_rate(
            rate in rate(),
            steps in vec(prop_oneof![Just(0), 0..1_000_u64, 0..3_000_000_000_u64], 1..80),
        ) {
            let mut now = Duration::from_secs(7);
            let mut bucket = Bucket::full(&rate, now);
            let mut taken: Vec<Duration> = Vec::new();
            for step in steps {
                now += Duration::from_nanos(step);
                bucket.refill(&rate, now);
                if bucket.take(&rate) {
                    taken.push(now);
                }
            }
            for (first, from) in taken.iter().enumerate() {
                for (count, to) in (1_u128..).zip(taken.iter().skip(first)) {
                    let brought = (*to - *from).as_nanos() * u128::from(rate.requests());
                    let allowed = u128::from(rate.burst()) * rate.per().as_nanos() + brought;
                    prop_assert!(count * rate.per().as_nanos() <= allowed);
                }
            }
        }

        /// Nor less: who waits as he is told is let in then, and not a nanosecond before.
        #[test]
        fn the_wait_is_exact(rate in rate(), spent in 0..40_u32, later in 0..2_000_000_000_u64) {
            let mut bucket = Bucket::full(&rate, Duration::ZERO);
            for _ in 0..spent {
                bucket.take(&rate);
            }
            let mut now = Duration::from_nanos(later);
            bucket.refill(&rate, now);
            let wait = bucket.wait(&rate);
            prop_assert_eq!(wait.is_zero(), bucket.has_room(&rate));
            if !wait.is_zero() {
                let mut early = bucket;
                early.refill(&rate, now + wait - Duration::from_nanos(1));
                prop_assert!(!early.take(&rate));
            }
            now += wait;
            bucket.refill(&rate, now);
            prop_assert!(bucket.take(&rate));
            bucket.refill(&rate, now + bucket.until_full(&rate));
            prop_assert!(bucket.is_full(&rate));
            prop_assert_eq!(bucket.remaining(&rate), rate.burst());
        }

        /// It does not matter how often somebody looks.
        #[test]
        fn looking_brings_nothing(rate in rate(), looks in vec(0..1_000_u64, 0..40)) {
            let (mut often, mut once) = (Bucket::full(&rate, Duration::ZERO), Bucket::full(&rate, Duration::ZERO));
            while often.take(&rate) && once.take(&rate) {}
            let mut now = Duration::ZERO;
            for look in looks {
                now += Duration::from_nanos(look);
                often.refill(&rate, now);
            }
            once.refill(&rate, now);
            prop_assert_eq!(often.credit, once.credit);
        }
    }

    #[test]
    fn a_clock_that_is_behind_brings_nothing() {
        let rate = Rate::new(1, Duration::from_secs(1), 1).expect("a rate");
        let mut bucket = Bucket::full(&rate, Duration::from_secs(10));
        assert!(bucket.take(&rate));
        for now in [9, 10, 3] {
            bucket.refill(&rate, Duration::from_secs(now));
            assert!(!bucket.take(&rate), "{now}");
        }
        bucket.refill(&rate, Duration::from_secs(11));
        assert!(bucket.take(&rate));
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        let second = Duration::from_secs(1);
        let cases = [
            (0, second, 1, InvalidRate::Requests),
            (MOST_REQUESTS + 1, second, 1, InvalidRate::Requests),
            (1, Duration::ZERO, 1, InvalidRate::Per),
            (1, LONGEST + second, 1, InvalidRate::Per),
            (1, second, 0, InvalidRate::Burst),
            (1, second, MOST_REQUESTS + 1, InvalidRate::Burst),
        ];
        for (requests, per, burst, error) in cases {
            assert_eq!(Rate::new(requests, per, burst), Err(error));
        }
        assert!(Rate::new(MOST_REQUESTS, LONGEST, MOST_REQUESTS).is_ok());
    }
}
