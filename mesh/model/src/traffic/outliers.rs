//! When an endpoint gets nothing for a while, since it fails.

use std::time::Duration;

use super::SuccessRate;

/// When an endpoint is set aside, and for how long (OutlierDetection).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// How many connections in a row that failed; `None`: they are not counted on their own.
    pub unreachable: Option<u32>,
    /// How many answers in a row with 502, 503 or 504, failed connections among them; `None`: they are not counted.
    pub gateway: Option<u32>,
    /// How many answers in a row with any 5xx, failed connections among them; `None`: they are not counted.
    pub server: Option<u32>,
    /// How long it is set aside the first time; the second time in a row twice that, and so on.
    pub base: Duration,
    /// How long at most.
    pub longest: Duration,
    /// How many of a service's endpoints may be set aside at once, in percent. One may be in any case.
    pub most_percent: u8,
    /// Whether those that could not be reached count on their own alone, and not among answers.
    pub apart: bool,
    /// When its requests go well less often than those of the others; `None`: they are not compared.
    pub success_rate: Option<SuccessRate>,
}

/// Without a rule: whoever cannot be reached five times in a row, for five seconds, up to two minutes. What an
/// application answers says nothing of its endpoint.
impl Default for Outliers {
    fn default() -> Self {
        Self {
            unreachable: Some(5),
            gateway: None,
            server: None,
            base: Duration::from_secs(5),
            longest: Duration::from_secs(120),
            most_percent: 100,
            apart: false,
            success_rate: None,
        }
    }
}

/// What kind of failure an outcome was, as far as an endpoint is judged by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// It could not be connected to, broke off, or did not answer in time.
    Unreachable,
    /// 502, 503 or 504.
    Gateway,
    /// Another 5xx.
    Server,
}

/// Failures in a row, each kind with those that include it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    unreachable: u32,
    gateway: u32,
    server: u32,
}

impl Run {
    /// One more failure; `apart`: one that could not be reached is none of the others.
    #[must_use]
    pub fn and(self, kind: FailureKind, apart: bool) -> Self {
        let is_apart = apart && kind == FailureKind::Unreachable;
        let next = |counts: bool, so_far: u32| if counts { so_far.saturating_add(1) } else { 0 };
        Self {
            unreachable: next(kind == FailureKind::Unreachable, self.unreachable),
            gateway: if is_apart { self.gateway } else { next(kind != FailureKind::Server, self.gateway) },
            server: if is_apart { self.server } else { next(true, self.server) },
        }
    }
}

impl Outliers {
    /// Whether failures of this kind are counted at all.
    pub fn count(&self, kind: FailureKind) -> bool {
        let among_answers = !(self.apart && kind == FailureKind::Unreachable);
        (among_answers && self.server.is_some())
            || (among_answers && kind != FailureKind::Server && self.gateway.is_some())
            || (kind == FailureKind::Unreachable && self.unreachable.is_some())
    }

    /// Whether an outcome is one of those of which success rates are made.
    pub fn rates(&self, kind: FailureKind) -> bool {
        self.success_rate.is_some() && !(self.apart && kind == FailureKind::Unreachable)
    }

    /// Whether `run` is long enough.
    pub fn are(&self, run: Run) -> bool {
        let reached = |limit: Option<u32>, run: u32| limit.is_some_and(|limit| run >= limit);
        reached(self.unreachable, run.unreachable)
            || reached(self.gateway, run.gateway)
            || reached(self.server, run.server)
    }

    /// How long one is set aside that is for the `times`th time in a row.
    pub fn aside_for(&self, times: u32) -> Duration {
        self.base.saturating_mul(times.max(1)).min(self.longest.max(self.base))
    }

    /// Whether one more of `all` endpoints may be set aside, where `aside` are.
    pub fn admit_one_more(&self, aside: usize, all: usize) -> bool {
        aside == 0 || (aside + 1) * 100 <= all * usize::from(self.most_percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failures_has_its_own_run() {
        use FailureKind::{Gateway, Server, Unreachable};
        let outliers =
            |unreachable, gateway, server| Outliers { unreachable, gateway, server, ..Outliers::default() };
        let table: [(&[FailureKind], Outliers, bool); 9] = [
            (&[Unreachable; 2], outliers(Some(2), None, None), true),
            (&[Unreachable; 2], outliers(Some(3), None, None), false),
            (&[Gateway; 9], outliers(Some(2), None, None), false),
            (&[Gateway, Unreachable], outliers(Some(2), Some(2), None), true),
            (&[Gateway, Server, Unreachable], outliers(None, Some(2), None), false),
            (&[Gateway, Server, Unreachable], outliers(None, Some(2), Some(3)), true),
            (&[Unreachable, Server, Unreachable], outliers(Some(2), None, None), false),
            (&[Server; 4], outliers(None, None, Some(5)), false),
            (&[Server; 9], outliers(None, None, None), false),
        ];
        for (run, outliers, expected) in table {
            let counted = run.iter().fold(Run::default(), |counted, kind| counted.and(*kind, false));
            assert_eq!(outliers.are(counted), expected, "{run:?} {outliers:?}");
        }
    }

    #[test]
    fn who_cannot_be_reached_may_be_counted_apart() {
        use FailureKind::{Gateway, Unreachable};
        let outliers =
            Outliers { unreachable: Some(10), server: Some(2), apart: true, ..Outliers::default() };
        let counted = |run: &[FailureKind]| {
            run.iter().fold(Run::default(), |counted, kind| counted.and(*kind, outliers.apart))
        };
        assert!(!outliers.are(counted(&[Unreachable; 9])) && outliers.are(counted(&[Unreachable; 10])));
        assert!(outliers.are(counted(&[Gateway, Unreachable, Gateway])), "it is no answer that went well");
    }

    #[test]
    fn a_floor_of_endpoints_is_kept() {
        let tenth = Outliers { most_percent: 10, ..Outliers::default() };
        assert!(tenth.admit_one_more(0, 2), "one may be set aside in any case");
        assert!(!tenth.admit_one_more(1, 19));
        assert!(tenth.admit_one_more(1, 20));
        assert!(!tenth.admit_one_more(2, 20));
        let all = Outliers::default();
        assert!(all.admit_one_more(1, 2));
    }

    #[test]
    fn each_time_is_longer_up_to_a_limit() {
        let outliers = Outliers::default();
        let seconds: Vec<_> =
            [0, 1, 2, 3, 24, 25, u32::MAX].map(|times| outliers.aside_for(times).as_secs()).into();
        assert_eq!(seconds, [5, 5, 10, 15, 120, 120, 120]);
        let long = Outliers { base: Duration::from_secs(600), ..outliers };
        assert_eq!(long.aside_for(1).as_secs(), 600, "what is asked for first counts");
    }
}
