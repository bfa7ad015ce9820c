//! Whether an endpoint is trusted, by what came of the last requests to it. Pure.
//!
//! ```text
//!             FAILURES in a row                 time is over
//!  trusted ─────────────────────► set aside ──────────────────► on trial ── success ─► trusted
//!                                     ▲                             │
//!                                     └──────────── failure ────────┘ (longer each time)
//! ```

use std::time::Duration;

/// How many failures in a row set an endpoint aside.
const FAILURES: u32 = 5;
/// How long it is set aside the first time.
const FIRST: Duration = Duration::from_secs(5);
/// How long at most.
const LONGEST: Duration = Duration::from_secs(120);

/// What came of a request, as far as the endpoint is to be judged by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, whatever it said.
    Answered,
    /// It could not be connected to, or broke off.
    Failed,
}

/// How far an endpoint is trusted. `now` is the time since any moment, always the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It gets requests.
    Trusted {
        /// Failures in a row.
        failures: u32,
    },
    /// It gets none, unless all others are set aside too.
    Aside {
        /// Until then.
        until: Duration,
        /// How many times in a row it was set aside.
        times: u32,
    },
}

impl Default for Health {
    fn default() -> Self {
        Self::Trusted { failures: 0 }
    }
}

impl Health {
    /// Whether it gets requests. After its time one that was set aside is on trial: the next outcome decides.
    pub fn is_trusted(self, now: Duration) -> bool {
        match self {
            Self::Trusted { .. } => true,
            Self::Aside { until, .. } => now >= until,
        }
    }

    /// How it is after `outcome`.
    #[must_use]
    pub fn after(self, outcome: Outcome, now: Duration) -> Self {
        match (self, outcome) {
            (Self::Trusted { .. } | Self::Aside { .. }, Outcome::Answered) => Self::default(),
            (Self::Trusted { failures }, Outcome::Failed) if failures + 1 < FAILURES => {
                Self::Trusted { failures: failures + 1 }
            }
            (Self::Trusted { .. }, Outcome::Failed) => Self::aside(1, now),
            // Requests that were under way when it was set aside say nothing new.
            (Self::Aside { until, .. }, Outcome::Failed) if now < until => self,
            (Self::Aside { times, .. }, Outcome::Failed) => Self::aside(times.saturating_add(1), now),
        }
    }

    fn aside(times: u32, now: Duration) -> Self {
        let doubled = FIRST.saturating_mul(1 << times.saturating_sub(1).min(10));
        Self::Aside { until: now.saturating_add(doubled.min(LONGEST)), times }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn fail(health: Health, times: u32, now: Duration) -> Health {
        (0..times).fold(health, |health, _| health.after(Outcome::Failed, now))
    }

    #[test]
    fn failures_in_a_row_set_an_endpoint_aside() {
        let nearly = fail(Health::default(), FAILURES - 1, S);
        assert!(nearly.is_trusted(S));
        let aside = nearly.after(Outcome::Failed, S);
        assert!(!aside.is_trusted(S) && !aside.is_trusted(S + FIRST - Duration::from_millis(1)));
        assert!(aside.is_trusted(S + FIRST), "then it is on trial");
        let forgiven = nearly.after(Outcome::Answered, S);
        assert!(fail(forgiven, FAILURES - 1, S).is_trusted(S), "only those in a row count");
    }

    #[test]
    fn who_fails_on_trial_is_set_aside_for_longer_up_to_a_limit() {
        let mut health = fail(Health::default(), FAILURES, Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let Health::Aside { until, .. } = health else { panic!("{health:?}") };
            health = health.after(Outcome::Failed, until);
            let Health::Aside { until: next, .. } = health else { panic!("{health:?}") };
            waits.push((next - until).as_secs());
        }
        assert_eq!(waits, [10, 20, 40, 80, 120, 120, 120, 120]);
        assert_eq!(health.after(Outcome::Answered, 10_000 * S), Health::default());
    }

    #[test]
    fn what_was_under_way_changes_nothing() {
        let aside = fail(Health::default(), FAILURES, S);
        assert_eq!(fail(aside, 10, S), aside);
    }
}
