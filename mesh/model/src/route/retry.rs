//! Whether a request is sent once more, and when (GEP-1731).
//!
//! # What is repeated
//!
//! | what came of the attempt | repeated |
//! |---|---|
//! | no connection | whatever the method: nothing was sent |
//! | refused before it was processed | whatever the method: the backend says so |
//! | a status that the policy lists | whatever the method: its author chose it for the requests of this rule |
//! | no answer in time, or a broken connection | only what is idempotent (RFC 9110, 9.2.2): it may have been processed |
//! | any other status, or a response of which the client has seen something | never |
//!
//! A request whose body has been given away is never repeated: there is nothing left to send.

use std::time::Duration;

use http::{Method, StatusCode};
use thiserror::Error;

use super::Budget;
use crate::balance::Dice;

/// How often a request is repeated of which nothing is said: as Istio does.
const ATTEMPTS: u32 = 2;

/// The first delay of which nothing is said: as Envoy does.
const BACKOFF: Duration = Duration::from_millis(25);

/// How many times the first delay the longest is, as Envoy does: a client still waits.
const LONGEST: u32 = 10;

/// When requests of a rule are repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    codes: Box<[StatusCode]>,
    attempts: u32,
    backoff: Duration,
}

impl Policy {
    /// Reads what a rule says. `attempts` come after the first; 0 is none at all.
    pub fn parse(
        codes: &[u16],
        attempts: Option<u32>,
        backoff: Option<Duration>,
    ) -> Result<Self, InvalidCode> {
        let code = |code: &u16| match code {
            400..=599 => StatusCode::from_u16(*code).map_err(|_| InvalidCode(*code)),
            _ => Err(InvalidCode(*code)),
        };
        Ok(Self {
            codes: codes.iter().map(code).collect::<Result<_, _>>()?,
            attempts: attempts.unwrap_or(ATTEMPTS),
            backoff: backoff.unwrap_or(BACKOFF),
        })
    }

    /// The statuses that are repeated.
    pub fn codes(&self) -> &[StatusCode] {
        &self.codes
    }

    /// How often a request is repeated at most.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The first delay.
    pub fn backoff(&self) -> Duration {
        self.backoff
    }

    /// How long to wait before the repetition that comes after `repeated` others: the first delay,
    /// doubled each time, [at most tenfold](LONGEST), and up to half of it more by `dice`, so that
    /// requests that failed together do not come back together. Never less than the first delay, which
    /// a route's author may have chosen as the time in which a backend recovers.
    fn delay(&self, repeated: u32, dice: &mut dyn Dice) -> Duration {
        let factor = 1_u32.checked_shl(repeated).unwrap_or(LONGEST).clamp(1, LONGEST);
        let delay = self.backoff.saturating_mul(factor);
        let half = u64::try_from(delay.as_micros() / 2).unwrap_or(u64::MAX);
        let more = dice.below(half.saturating_add(1)).min(half);
        delay.saturating_add(Duration::from_micros(more))
    }
}

/// A status that a policy may not list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} is no status to repeat a request after; 400 to 599 are")]
pub struct InvalidCode(u16);

/// The request that may be sent once more.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// How often it has been repeated already.
    pub repeated: u32,
    /// Its method.
    pub method: &'a Method,
    /// What there is of its body.
    pub body: Body,
    /// What is left of the time for the whole request; `None`: it has no limit.
    pub left: Option<Duration>,
}

/// What there is of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// All of it, or it has none.
    Kept,
    /// Some of it was given to a backend and is gone.
    GivenAway,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was no connection: refused, not in time, or TLS failed.
    NotConnected,
    /// The backend refused it without processing it: `REFUSED_STREAM`, a GOAWAY that leaves it out, or
    /// a gRPC response of trailers alone that say UNAVAILABLE.
    Refused,
    /// The connection broke after something was sent, and before a response.
    Broken,
    /// There was no response in time.
    TimedOut,
    /// A response, of which the client has seen nothing yet.
    Status(StatusCode),
    /// A response, of which the client has seen something.
    Begun,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The request is sent once more, after this time.
    Repeat(Duration),
    /// What there is, is the end of it.
    Stop(Stop),
}

/// Why a request is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The outcome is none after which it would be.
    Outcome,
    /// It may have been processed, and its method is not idempotent.
    NotIdempotent,
    /// Its body is gone.
    Body,
    /// It was repeated as often as it may be.
    Attempts,
    /// The time for the request would be over.
    Time,
    /// Too many requests are repeated already. The client gets 503 (BackendTrafficPolicy).
    Budget,
}

/// Whether a request is sent once more. Only what is allowed otherwise takes from `budget`; `now` is its
/// clock.
pub fn next(
    policy: &Policy,
    attempt: &Attempt<'_>,
    outcome: Outcome,
    budget: Option<&mut Budget>,
    now: Duration,
    dice: &mut dyn Dice,
) -> Next {
    let idempotent = attempt.method.is_idempotent();
    let stop = match outcome {
        Outcome::NotConnected | Outcome::Refused => None,
        Outcome::Status(code) => (!policy.codes.contains(&code)).then_some(Stop::Outcome),
        Outcome::Broken | Outcome::TimedOut => (!idempotent).then_some(Stop::NotIdempotent),
        Outcome::Begun => Some(Stop::Outcome),
    };
    if let Some(stop) = stop {
        return Next::Stop(stop);
    }
    if attempt.body == Body::GivenAway {
        return Next::Stop(Stop::Body);
    }
    if attempt.repeated >= policy.attempts {
        return Next::Stop(Stop::Attempts);
    }
    let delay = policy.delay(attempt.repeated, dice);
    if attempt.left.is_some_and(|left| delay >= left) {
        return Next::Stop(Stop::Time);
    }
    if !budget.is_none_or(|budget| budget.take(now)) {
        return Next::Stop(Stop::Budget);
    }
    Next::Repeat(delay)
}

/// Whether a request is tried once more of whose rule nothing says that it may be: at once, at most `attempts` times,
/// and only if nobody has looked at it.
pub fn untouched(attempt: &Attempt<'_>, outcome: Outcome, attempts: u32) -> Next {
    match outcome {
        Outcome::NotConnected | Outcome::Refused => {}
        Outcome::Broken | Outcome::TimedOut | Outcome::Status(_) | Outcome::Begun => {
            return Next::Stop(Stop::Outcome);
        }
    }
    if attempt.body == Body::GivenAway {
        return Next::Stop(Stop::Body);
    }
    if attempt.left == Some(Duration::ZERO) {
        return Next::Stop(Stop::Time);
    }
    if attempt.repeated >= attempts { Next::Stop(Stop::Attempts) } else { Next::Repeat(Duration::ZERO) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::BudgetPolicy;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> Policy {
        Policy::parse(&[500, 503], Some(2), Some(100 * MS)).expect("a policy")
    }

    fn first(method: &Method) -> Attempt<'_> {
        Attempt { repeated: 0, method, body: Body::Kept, left: None }
    }

    /// Without jitter and budget.
    fn then(attempt: &Attempt<'_>, outcome: Outcome) -> Next {
        next(&policy(), attempt, outcome, None, SECOND, &mut |_: u64| 0)
    }

    #[test]
    fn what_may_have_been_processed_is_repeated_only_if_that_does_no_harm() {
        use Outcome::{Begun, Broken, NotConnected, Refused, Status, TimedOut};
        let (yes, outcome) = (Next::Repeat(100 * MS), Next::Stop(Stop::Outcome));
        let harm = Next::Stop(Stop::NotIdempotent);
        let table = [
            (NotConnected, yes, yes),
            (Refused, yes, yes),
            (Broken, yes, harm),
            (TimedOut, yes, harm),
            (Status(StatusCode::SERVICE_UNAVAILABLE), yes, yes),
            (Status(StatusCode::BAD_GATEWAY), outcome, outcome),
            (Status(StatusCode::OK), outcome, outcome),
            (Begun, outcome, outcome),
        ];
        for (came, of_get, of_post) in table {
            assert_eq!(then(&first(&Method::GET), came), of_get, "GET {came:?}");
            assert_eq!(then(&first(&Method::PUT), came), of_get, "PUT {came:?}");
            assert_eq!(then(&first(&Method::POST), came), of_post, "POST {came:?}");
            assert_eq!(then(&first(&Method::PATCH), came), of_post, "PATCH {came:?}");
        }
    }

    #[test]
    fn without_a_policy_only_what_nobody_looked_at_is_tried_again() {
        let post = first(&Method::POST);
        assert_eq!(untouched(&post, Outcome::NotConnected, 2), Next::Repeat(Duration::ZERO));
        assert_eq!(untouched(&post, Outcome::Refused, 2), Next::Repeat(Duration::ZERO));
        let get = first(&Method::GET);
        for outcome in [Outcome::Broken, Outcome::TimedOut, Outcome::Status(StatusCode::BAD_GATEWAY)] {
            assert_eq!(untouched(&get, outcome, 2), Next::Stop(Stop::Outcome), "{outcome:?}");
        }
        let gone = Attempt { body: Body::GivenAway, ..post };
        assert_eq!(untouched(&gone, Outcome::Refused, 2), Next::Stop(Stop::Body));
        let third = Attempt { repeated: 2, ..post };
        assert_eq!(untouched(&third, Outcome::Refused, 2), Next::Stop(Stop::Attempts));
        let late = Attempt { left: Some(Duration::ZERO), ..post };
        assert_eq!(untouched(&late, Outcome::Refused, 2), Next::Stop(Stop::Time));
    }

    #[test]
    fn a_body_that_is_gone_is_not_repeated() {
        let gone = Attempt { body: Body::GivenAway, ..first(&Method::GET) };
        for outcome in [Outcome::NotConnected, Outcome::Refused, Outcome::Broken, Outcome::TimedOut] {
            assert_eq!(then(&gone, outcome), Next::Stop(Stop::Body), "{outcome:?}");
        }
    }

    #[test]
    fn a_request_is_repeated_as_often_as_is_said() {
        let after = |repeated| then(&Attempt { repeated, ..first(&Method::GET) }, Outcome::NotConnected);
        assert_eq!(after(0), Next::Repeat(100 * MS));
        assert_eq!(after(1), Next::Repeat(200 * MS));
        assert_eq!(after(2), Next::Stop(Stop::Attempts));
        let none = Policy::parse(&[], Some(0), None).expect("a policy");
        let never = next(&none, &first(&Method::GET), Outcome::NotConnected, None, SECOND, &mut |_: u64| 0);
        assert_eq!(never, Next::Stop(Stop::Attempts), "zero disables");
    }

    #[test]
    fn nothing_is_repeated_that_would_be_too_late() {
        let left = |left| then(&Attempt { left: Some(left), ..first(&Method::GET) }, Outcome::NotConnected);
        assert_eq!(left(101 * MS), Next::Repeat(100 * MS));
        assert_eq!(left(100 * MS), Next::Stop(Stop::Time));
        assert_eq!(left(Duration::ZERO), Next::Stop(Stop::Time));
    }

    #[test]
    fn delays_double_up_to_tenfold_and_jitter_adds_half() {
        let delay = |repeated, roll: u64| policy().delay(repeated, &mut |of: u64| roll.min(of - 1));
        let table =
            [(0, 100), (1, 200), (2, 400), (3, 800), (4, 1000), (31, 1000), (32, 1000), (u32::MAX, 1000)];
        for (repeated, expected) in table {
            assert_eq!(delay(repeated, 0), expected * MS, "{repeated}");
            assert_eq!(delay(repeated, u64::MAX), expected * 3 / 2 * MS, "{repeated}");
        }
    }

    #[test]
    fn codes_that_are_no_failure_are_refused() {
        for code in [0, 200, 399, 600, 999] {
            assert_eq!(Policy::parse(&[503, code], None, None), Err(InvalidCode(code)));
        }
        assert!(Policy::parse(&[400, 429, 599], None, None).is_ok());
    }

    #[test]
    fn a_budget_that_is_used_up_stops_and_what_is_not_repeated_takes_nothing() {
        let policy_of_budget = BudgetPolicy { percent: 0, least: 1, ..BudgetPolicy::default() };
        let mut budget = Budget::new(policy_of_budget);
        let mut once = |outcome, body| {
            let attempt = Attempt { body, ..first(&Method::GET) };
            next(&policy(), &attempt, outcome, Some(&mut budget), SECOND, &mut |_: u64| 0)
        };
        assert_eq!(once(Outcome::Begun, Body::Kept), Next::Stop(Stop::Outcome));
        assert_eq!(once(Outcome::Refused, Body::GivenAway), Next::Stop(Stop::Body));
        assert_eq!(once(Outcome::Refused, Body::Kept), Next::Repeat(100 * MS));
        assert_eq!(once(Outcome::Refused, Body::Kept), Next::Stop(Stop::Budget));
    }
}
