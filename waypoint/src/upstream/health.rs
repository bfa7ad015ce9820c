//! Whether an endpoint is trusted, by what came of the last requests to it. Pure.
//!
//! ```text
//!             enough failures in a row          time is over
//!  trusted ─────────────────────► set aside ──────────────────► on trial ── success ─► trusted
//!                                     ▲                             │
//!                                     └──────────── failure ────────┘ (longer each time)
//! ```

use std::time::Duration;

use ambit_model::traffic::{FailureKind, Outliers, Run};

/// What came of a request, as far as the endpoint is to be judged by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, with nothing that counts against it.
    Answered,
    /// It failed.
    Failed {
        /// How.
        kind: FailureKind,
        /// For how long it asked to be left alone (Retry-After).
        rest: Option<Duration>,
    },
}

/// How far an endpoint is trusted. `now` is the time since any moment, always the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It gets requests.
    Trusted {
        /// Failures in a row.
        failures: Run,
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
        Self::Trusted { failures: Run::default() }
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

    /// How it is after `outcome`, judged by `outliers`. It is set aside only if it `may_be`, which is asked then alone.
    #[must_use]
    pub fn after(
        self,
        outcome: Outcome,
        now: Duration,
        outliers: &Outliers,
        may_be: impl FnOnce() -> bool,
    ) -> Self {
        match (self, outcome) {
            // What was under way when it was set aside says nothing new.
            (Self::Aside { until, .. }, _) if now < until => self,
            (_, Outcome::Answered) => Self::default(),
            (_, Outcome::Failed { kind, rest }) => {
                let rest = rest.filter(|_| outliers.heeds_retry_after).map(|rest| rest.min(outliers.longest));
                let counts = outliers.count(kind);
                if !counts && rest.is_none() {
                    return Self::default();
                }
                let (stays, times) = match self {
                    Self::Trusted { failures } => {
                        let failures = failures.and(kind, outliers.apart);
                        (Self::Trusted { failures }, outliers.are(failures).then_some(1))
                    }
                    Self::Aside { times, .. } => (self, counts.then_some(times.saturating_add(1))),
                };
                let wait = times.map(|times| outliers.aside_for(times)).max(rest);
                match wait {
                    Some(wait) if may_be() => {
                        Self::Aside { until: now.saturating_add(wait), times: times.unwrap_or_default() }
                    }
                    Some(_) | None => stays,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const GONE: Outcome = Outcome::Failed { kind: FailureKind::Unreachable, rest: None };

    fn after(health: Health, outcome: Outcome, now: Duration) -> Health {
        health.after(outcome, now, &Outliers::default(), || true)
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
        let kept = nearly.after(GONE, S, &Outliers::default(), || false);
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
    }

    #[test]
    fn a_trial_that_fails_keeps_the_floor() {
        let aside = fail(Health::default(), 5, Duration::ZERO);
        let kept = aside.after(GONE, 6 * S, &Outliers::default(), || false);
        assert!(kept.is_trusted(6 * S));
        let Health::Aside { until, .. } = after(kept, GONE, 6 * S) else { panic!("{kept:?}") };
        assert_eq!(until, 16 * S, "and how often it was is not forgotten");
    }

    #[test]
    fn answers_count_where_a_rule_says_so() {
        let server = Outcome::Failed { kind: FailureKind::Server, rest: None };
        let judged = |outliers: &Outliers, outcome, times: u32| {
            let after = |health: Health, _| health.after(outcome, S, outliers, || true);
            (0..times).fold(Health::default(), after).is_trusted(S)
        };
        assert!(judged(&Outliers::default(), server, 100), "without a rule an answer is an answer");
        let counted = Outliers { server: Some(3), ..Outliers::default() };
        assert!(judged(&counted, server, 2) && !judged(&counted, server, 3));
        let gateway = Outliers { gateway: Some(3), ..Outliers::default() };
        assert!(judged(&gateway, server, 100));
        assert!(!judged(&gateway, Outcome::Failed { kind: FailureKind::Gateway, rest: None }, 3));
    }

    #[test]
    fn who_asks_to_be_left_alone_is_where_a_rule_says_so() {
        let asked = |rest: u32| Outcome::Failed { kind: FailureKind::Gateway, rest: Some(rest * S) };
        assert_eq!(after(Health::default(), asked(30), S), Health::default());
        let heeds = Outliers { heeds_retry_after: true, server: Some(3), ..Outliers::default() };
        let judged = |health: Health, rest| health.after(asked(rest), S, &heeds, || true);
        let aside = judged(Health::default(), 30);
        assert!(!aside.is_trusted(30 * S) && aside.is_trusted(31 * S));
        assert!(judged(Health::default(), 9_000).is_trusted(121 * S), "no longer than anybody is set aside");
        assert!(Health::default().after(asked(30), S, &heeds, || false).is_trusted(S));
        // It is a failure, too, however short it asks for.
        let third = judged(judged(judged(Health::default(), 0), 0), 0);
        assert!(!third.is_trusted(S + S) && third.is_trusted(6 * S), "{third:?}");
    }
}
