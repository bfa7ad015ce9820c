//! Whose requests go well less often than those of the others: the success rate of Envoy's outlier detection.
//!
//! Within an interval the requests of each endpoint are counted. Those with enough of them are compared, if there are
//! enough such endpoints: whoever is below the mean of their rates by more than so many standard deviations stands out.
//! No timer is needed: an interval is judged when the first outcome after it comes in.

use std::{collections::HashMap, mem, time::Duration};

use crate::name::Uid;

/// The most endpoints that one window counts; further ones are not judged. As many as a waypoint remembers.
const MOST: usize = 16 * 1024;
/// How far below the threshold a rate must be: sums of floating point numbers are off by less, and equal rates are equal.
const ROUNDING: f64 = 1e-9;

/// When the success rate of an endpoint is too low.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// How many standard deviations below the mean is too low, in thousandths; above zero.
    pub factor: u32,
    /// How many endpoints must have had enough requests, or nobody is judged.
    pub least_endpoints: u32,
    /// How many requests within an interval are enough.
    pub least_requests: u32,
    /// How long requests are counted before they are judged; above zero.
    pub interval: Duration,
}

/// What came of the requests of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many went well.
    pub well: u32,
    /// How many there were.
    pub all: u32,
}

impl Tally {
    fn and(self, went_well: bool) -> Self {
        Self { well: self.well.saturating_add(went_well.into()), all: self.all.saturating_add(1) }
    }

    /// From 0 to 1.
    fn rate(self) -> f64 {
        f64::from(self.well.min(self.all)) / f64::from(self.all.max(1))
    }
}

/// What an interval has shown of those who had enough requests in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Who stands out, the worst first.
    pub low: Vec<Uid>,
    /// Who does not.
    pub fair: Vec<Uid>,
}

impl SuccessRate {
    /// Compares endpoints. Nobody is in the answer if too few of them had enough requests.
    pub fn compare(&self, tallies: impl IntoIterator<Item = (Uid, Tally)>) -> Compared {
        let enough = |(_, tally): &(Uid, Tally)| tally.all >= self.least_requests.max(1);
        let mut rated: Vec<(f64, Uid)> =
            tallies.into_iter().filter(enough).map(|(uid, tally)| (tally.rate(), uid)).collect();
        let Ok(count) = u32::try_from(rated.len()) else { return Compared::default() };
        if count < self.least_endpoints.max(1) {
            return Compared::default();
        }
        rated.sort_by(|(a, one), (b, other)| a.total_cmp(b).then_with(|| one.cmp(other)));
        let count = f64::from(count);
        let mean = rated.iter().map(|(rate, _)| rate).sum::<f64>() / count;
        let variance = rated.iter().map(|(rate, _)| (rate - mean).powi(2)).sum::<f64>() / count;
        let threshold = mean - variance.sqrt() * f64::from(self.factor) / 1000.0;
        let (low, fair): (Vec<_>, Vec<_>) =
            rated.into_iter().partition(|(rate, _)| rate + ROUNDING < threshold);
        let uids = |rated: Vec<(f64, Uid)>| rated.into_iter().map(|(_, uid)| uid).collect();
        Compared { low: uids(low), fair: uids(fair) }
    }
}

/// What came of the requests of some endpoints within the interval that is now.
#[derive(Clone, Debug, Default)]
pub struct Window {
    since: Duration,
    tallies: HashMap<Uid, Tally>,
}

impl Window {
    /// Counts a request of `uid` that ended at `now`. If an interval is over, it is judged first, and another begins; one
    /// that is over for as long as it was is forgotten, for it says nothing of today.
    pub fn count(&mut self, uid: &Uid, went_well: bool, now: Duration, by: &SuccessRate) -> Option<Compared> {
        let age = now.saturating_sub(self.since);
        let over = age >= by.interval || self.tallies.is_empty();
        let ended = over.then(|| mem::take(&mut self.tallies));
        if over {
            self.since = now;
        }
        if let Some(tally) = self.tallies.get_mut(uid) {
            *tally = tally.and(went_well);
        } else if self.tallies.len() < MOST {
            self.tallies.insert(uid.clone(), Tally::default().and(went_well));
        }
        let is_fresh = age < by.interval.saturating_mul(2);
        ended.filter(|tallies| is_fresh && !tallies.is_empty()).map(|tallies| by.compare(tallies))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn usual() -> SuccessRate {
        SuccessRate { factor: 1900, least_endpoints: 5, least_requests: 100, interval: 10 * S }
    }

    fn uid(number: usize) -> Uid {
        format!("web-{number}").into()
    }

    /// Endpoints by number, of so many requests of which so many went well.
    fn compared(by: &SuccessRate, tallies: &[(u32, u32)]) -> Compared {
        by.compare(
            tallies.iter().enumerate().map(|(at, (well, all))| (uid(at), Tally { well: *well, all: *all })),
        )
    }

    #[test]
    fn who_is_far_below_the_others_stands_out() {
        type Case<'a> = (&'a [(u32, u32)], &'a [usize], usize);
        let table: [Case<'_>; 9] = [
            (&[(100, 100), (100, 100), (100, 100), (100, 100), (50, 100)], &[4], 4),
            // Deviations count, and not how low a rate is.
            (&[(100, 100), (100, 100), (100, 100), (100, 100), (99, 100)], &[4], 4),
            (&[(90, 100), (70, 100), (80, 100), (60, 100), (50, 100)], &[], 5),
            (&[(90, 100); 5], &[], 5),
            (&[(0, 100); 5], &[], 5),
            // Too few endpoints, or too few with enough requests.
            (&[(100, 100), (100, 100), (100, 100), (0, 100)], &[], 0),
            (&[(100, 100), (100, 100), (100, 100), (0, 100), (99, 99)], &[], 0),
            // Who had too few requests is not judged.
            (&[(100, 100), (100, 100), (100, 100), (100, 100), (0, 99), (40, 100)], &[5], 4),
            (
                &[
                    (5, 100),
                    (100, 100),
                    (100, 100),
                    (0, 100),
                    (100, 100),
                    (100, 100),
                    (100, 100),
                    (100, 100),
                    (100, 100),
                    (100, 100),
                ],
                &[3, 0],
                8,
            ),
        ];
        for (tallies, low, fair) in table {
            let found = compared(&usual(), tallies);
            let low: Vec<_> = low.iter().map(|at| uid(*at)).collect();
            assert_eq!((found.low, found.fair.len()), (low, fair), "{tallies:?}");
        }
        let strict = SuccessRate { factor: 500, ..usual() };
        let found = compared(&strict, &[(90, 100), (70, 100), (80, 100), (60, 100), (50, 100)]);
        assert_eq!(found.low, [uid(4), uid(3)], "the worst first");
    }

    #[test]
    fn an_interval_is_judged_by_what_comes_after_it() {
        let by = SuccessRate { least_requests: 1, least_endpoints: 3, factor: 1000, ..usual() };
        let fill = |window: &mut Window, at: Duration| {
            (0..3).map(|number| window.count(&uid(number), number > 0, at, &by)).collect::<Vec<_>>()
        };
        let mut window = Window::default();
        assert_eq!(fill(&mut window, S), [None, None, None]);
        assert_eq!(window.count(&uid(1), true, 11 * S - Duration::from_millis(1), &by), None);
        let judged = window.count(&uid(0), true, 11 * S, &by).expect("the interval is over");
        assert_eq!(judged.low, [uid(0)]);
        assert_eq!(window.count(&uid(0), true, 12 * S, &by), None, "the next one has begun");
        let next = window.count(&uid(0), true, 21 * S, &by).expect("it is over, too");
        assert_eq!(next, Compared::default(), "one endpoint alone is not compared");
        fill(&mut window, 21 * S);
        assert_eq!(window.count(&uid(0), true, 41 * S, &by), None, "what is long over is forgotten");
    }

    proptest! {
        /// Nobody stands out whose rate is the mean or above it, nor more of them than a distribution can have so far
        /// from its mean (Cantelli), nor anybody where all are alike.
        #[test]
        fn only_few_and_only_the_lowest_stand_out(
            tallies in vec((0..300u32, 1..300u32), 0..40),
            factor in 1..4000u32,
            least_requests in 0..50u32,
        ) {
            let by = SuccessRate { factor, least_requests, least_endpoints: 2, interval: S };
            let found = compared(&by, &tallies);
            let judged = found.low.len() + found.fair.len();
            let enough = tallies.iter().filter(|(_, all)| *all >= least_requests.max(1)).count();
            prop_assert_eq!(judged, if enough < 2 { 0 } else { enough });
            let (low, all, factor) = (u64::try_from(found.low.len())?, u64::try_from(judged)?, u64::from(factor));
            prop_assert!(low * (1_000_000 + factor * factor) <= all * 1_000_000, "{low} of {all}");
            let rate = |uid: &Uid| {
                let at: usize = uid.as_str()["web-".len()..].parse().expect("a number");
                f64::from(tallies[at].0.min(tallies[at].1)) / f64::from(tallies[at].1)
            };
            let worst_kept = found.fair.iter().map(rate).fold(2.0, f64::min);
            prop_assert!(found.low.iter().all(|uid| rate(uid) < worst_kept));
        }

        #[test]
        fn where_all_are_alike_nobody_stands_out(well in 0..1000u32, more in 1..1000u32, count in 1..60usize) {
            let by = SuccessRate { factor: 1, least_requests: 1, least_endpoints: 1, interval: S };
            let found = compared(&by, &vec![(well, well + more); count]);
            prop_assert!(found.low.is_empty());
        }
    }
}
