//! Whether an endpoint is trusted, by what came of the last requests to it. Pure.
//!
//! ```text
//!             enough failures in a row          time is over
//!  trusted ─────────────────────► set aside ──────────────────► on trial ── success ─► trusted
//!                                     ▲                             │
//!                                     └──────────── failure ────────┘ (longer each time)
//!
//!             too low a success rate            time is over
//!  trusted ─────────────────────► set aside ──────────────────► trusted
//!                                     ▲                             │
//!                                     └──── too low once more ──────┘ (longer each time)
//! ```

use std::time::Duration;

use ambit_model::traffic::{FailureKind, Outliers, Run};

/// What came of a request, as far as the endpoint is to be judged by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, with nothing that counts against it.
    Answered,
    /// It failed.
    Failed(FailureKind),
    /// That says nothing of it: it did not look at the request.
    Nothing,
}

impl Outcome {
    /// Whether it went well, as far as success rates are made of it.
    pub fn went_well(self, outliers: &Outliers) -> Option<bool> {
        match self {
            Self::Answered => Some(true),
            Self::Failed(kind) => outliers.rates(kind).then_some(false),
            Self::Nothing => None,
        }
    }
}

/// Why one is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It failed several times in a row.
    Failures,
    /// Its requests go well less often than those of the others.
    SuccessRate,
}

impl Reason {
    /// The value of labels.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::SuccessRate => "success_rate",
        }
    }
}

/// How far an endpoint is trusted. `now` is the time since any moment, always the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It gets requests.
    Trusted {
        /// Failures in a row.
        failures: Run,
        /// How many times in a row it was set aside for its success rate, until one that was not too low.
        stood_out: u32,
    },
    /// It gets none, unless all others are set aside too.
    Aside {
        /// Until then.
        until: Duration,
        /// How many times in a row it was set aside.
        times: u32,
        /// Why it is.
        why: Reason,
    },
}

impl Default for Health {
    fn default() -> Self {
        Self::Trusted { failures: Run::default(), stood_out: 0 }
    }
}

impl Health {
    /// Whether it gets requests. After its time one that was set aside for failures is on trial: the next outcome decides.
    pub fn is_trusted(self, now: Duration) -> bool {
        match self {
            Self::Trusted { .. } => true,
            Self::Aside { until, .. } => now >= until,
        }
    }

    /// How it is after `outcome`, judged by `outliers`. It is set aside only if it `may_be`.
    #[must_use]
    pub fn after(self, outcome: Outcome, now: Duration, outliers: &Outliers, may_be: bool) -> Self {
        let counted = match outcome {
            Outcome::Failed(kind) if outliers.count(kind) => Some(kind),
            Outcome::Nothing => return self,
            Outcome::Failed(_) | Outcome::Answered => None,
        };
        match (self.awake(now), counted) {
            // What was under way when it was set aside says nothing new.
            (aside @ Self::Aside { until, .. }, _) if now < until => aside,
            (Self::Aside { .. }, None) => Self::default(),
            (Self::Trusted { stood_out, .. }, None) => Self::Trusted { failures: Run::default(), stood_out },
            (Self::Trusted { failures, stood_out }, Some(kind)) => {
                let failures = failures.and(kind, outliers.apart);
                if outliers.are(failures) && may_be {
                    Self::aside(1, Reason::Failures, now, outliers)
                } else {
                    Self::Trusted { failures, stood_out }
                }
            }
            (Self::Aside { times, .. }, Some(_)) if may_be => {
                Self::aside(times.saturating_add(1), Reason::Failures, now, outliers)
            }
            (aside @ Self::Aside { .. }, Some(_)) => aside,
        }
    }

    /// How it is after an interval in which its success rate was too low. It is set aside only if it `may_be`.
    #[must_use]
    pub fn stands_out(self, now: Duration, outliers: &Outliers, may_be: bool) -> Self {
        match self.awake(now) {
            Self::Trusted { stood_out, .. } if may_be => {
                Self::aside(stood_out.saturating_add(1), Reason::SuccessRate, now, outliers)
            }
            // One on trial has failed already; the next outcome decides.
            other @ (Self::Trusted { .. } | Self::Aside { .. }) => other,
        }
    }

    /// How it is after an interval in which its success rate was as good as the others'.
    #[must_use]
    pub fn keeps_up(self, now: Duration) -> Self {
        match self.awake(now) {
            Self::Trusted { failures, .. } => Self::Trusted { failures, stood_out: 0 },
            aside @ Self::Aside { .. } => aside,
        }
    }

    /// One failure says nothing of a rate: after its time, who was set aside for that is trusted.
    fn awake(self, now: Duration) -> Self {
        match self {
            Self::Aside { until, times, why: Reason::SuccessRate } if now >= until => {
                Self::Trusted { failures: Run::default(), stood_out: times }
            }
            other @ (Self::Trusted { .. } | Self::Aside { .. }) => other,
        }
    }

    fn aside(times: u32, why: Reason, now: Duration, outliers: &Outliers) -> Self {
        Self::Aside { until: now.saturating_add(outliers.aside_for(times)), times, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const GONE: Outcome = Outcome::Failed(FailureKind::Unreachable);

    fn after(health: Health, outcome: Outcome, now: Duration) -> Health {
        health.after(outcome, now, &Outliers::default(), true)
    }

    fn fail(health: Health, times: u32, now: Duration) -> Health {
        (0..times).fold(health, |health, _| after(health, GONE, now))
    }

    #[test]
    fn failures_in_a_row_set_an_endpoint_aside() {
        let nearly = fail(Health::default(), 4, S);
        assert!(nearly.is_trusted(S));
        let aside = after(nearly, GONE, S);
        assert!(!aside.is_trusted(S) && !aside.is_trusted(6 * S - Duration::from_millis(1)));
        assert!(aside.is_trusted(6 * S), "then it is on trial");
        let forgiven = after(nearly, Outcome::Answered, S);
        assert!(fail(forgiven, 4, S).is_trusted(S), "only those in a row count");
        let kept = nearly.after(GONE, S, &Outliers::default(), false);
        assert!(kept.is_trusted(S), "a floor of endpoints is kept");
        assert!(!after(kept, GONE, S).is_trusted(S), "and it goes when there is room");
    }

    #[test]
    fn who_fails_on_trial_is_set_aside_for_longer_up_to_a_limit() {
        let mut health = fail(Health::default(), 5, Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..30 {
            let Health::Aside { until, .. } = health else { panic!("{health:?}") };
            health = after(health, GONE, until);
            let Health::Aside { until: next, .. } = health else { panic!("{health:?}") };
            waits.push((next - until).as_secs());
        }
        assert_eq!(waits[..4], [10, 15, 20, 25]);
        assert_eq!(waits[25..], [120; 5]);
        assert_eq!(after(health, Outcome::Answered, 10_000 * S), Health::default());
    }

    #[test]
    fn what_was_under_way_changes_nothing() {
        let aside = fail(Health::default(), 5, S);
        assert_eq!(fail(aside, 10, S), aside);
        assert_eq!(after(aside, Outcome::Answered, S), aside, "nor does a success");
        assert_eq!(aside.stands_out(S, &Outliers::default(), true), aside, "nor its success rate");
    }

    #[test]
    fn a_trial_that_fails_keeps_the_floor() {
        let aside = fail(Health::default(), 5, Duration::ZERO);
        let kept = aside.after(GONE, 6 * S, &Outliers::default(), false);
        assert!(kept.is_trusted(6 * S));
        let Health::Aside { until, .. } = after(kept, GONE, 6 * S) else { panic!("{kept:?}") };
        assert_eq!(until, 16 * S, "and how often it was is not forgotten");
    }

    #[test]
    fn answers_count_where_a_rule_says_so() {
        let server = Outcome::Failed(FailureKind::Server);
        let judged = |outliers: &Outliers, outcome, times: u32| {
            let after = |health: Health, _| health.after(outcome, S, outliers, true);
            (0..times).fold(Health::default(), after).is_trusted(S)
        };
        assert!(judged(&Outliers::default(), server, 100), "without a rule an answer is an answer");
        let counted = Outliers { server: Some(3), ..Outliers::default() };
        assert!(judged(&counted, server, 2) && !judged(&counted, server, 3));
        let gateway = Outliers { gateway: Some(3), ..Outliers::default() };
        assert!(judged(&gateway, server, 100));
        assert!(!judged(&gateway, Outcome::Failed(FailureKind::Gateway), 3));
    }

    #[test]
    fn a_success_rate_that_stays_too_low_sets_aside_for_longer_each_time() {
        let outliers = Outliers::default();
        let low = |health: Health, now| health.stands_out(now, &outliers, true);
        let first = low(Health::default(), S);
        assert!(!first.is_trusted(6 * S - Duration::from_millis(1)) && first.is_trusted(6 * S));
        // Neither a success nor a failure afterwards decides, for neither says anything of a rate.
        let awake = after(after(first, GONE, 6 * S), Outcome::Answered, 6 * S);
        assert!(awake.is_trusted(6 * S) && fail(first, 4, 6 * S).is_trusted(6 * S));
        let Health::Aside { until, times: 2, why: Reason::SuccessRate } = low(awake, 10 * S) else {
            panic!("{awake:?}")
        };
        assert_eq!(until, 20 * S);
        let Health::Aside { until, .. } = low(awake.keeps_up(10 * S), 10 * S) else { panic!("{awake:?}") };
        assert_eq!(until, 15 * S, "an interval in which it was not too low is a new beginning");
        assert!(Health::default().stands_out(S, &outliers, false).is_trusted(S), "a floor is kept");
        let on_trial = fail(Health::default(), 5, S);
        assert_eq!(low(on_trial, 6 * S), on_trial);
        let failing = fail(awake, 5, 6 * S);
        assert!(matches!(failing, Health::Aside { times: 1, why: Reason::Failures, .. }), "{failing:?}");
    }
}
