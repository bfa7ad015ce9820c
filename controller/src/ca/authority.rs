//! For how long a certificate is signed. Pure: the clock is an argument.

use std::time::{Duration, SystemTime};

use ambit_wire::cert::authority::Validity;

use crate::config;

/// A shorter life would be over before the certificate has arrived everywhere and its successor was asked for.
pub const SHORTEST: Duration = Duration::from_secs(3);

/// Clocks differ: a certificate is valid a little before it was signed. But callers renew at half of the whole life
/// (protocols 3.3), so a short one must not be half over when it begins.
const SKEW: Duration = Duration::from_secs(120);
const SKEW_PART: u32 = 10;

/// How long certificates of workloads may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    usual: Duration,
    longest: Duration,
    always: Option<Duration>,
}

impl Terms {
    /// The terms that the operator gave.
    pub fn new(config: &config::Authority) -> Result<Self, TermsError> {
        let usual = config.default_workload_ttl;
        let longest = config.max_workload_ttl;
        for length in [usual, longest].into_iter().chain(config.debug_cert_ttl) {
            if length < SHORTEST {
                return Err(TermsError::TooShort(length));
            }
        }
        for length in std::iter::once(usual).chain(config.debug_cert_ttl) {
            if length > longest {
                return Err(TermsError::BeyondLongest { length, longest });
            }
        }
        Ok(Self { usual, longest, always: config.debug_cert_ttl })
    }

    /// From when until when a certificate is valid that is asked for now. What is too long is refused, not
    /// shortened (protocols 3.4); that nothing outlives its signer, the signer sees to.
    pub fn validity(&self, asked_seconds: i64, now: SystemTime) -> Result<Validity, LifetimeError> {
        let asked = match u64::try_from(asked_seconds) {
            Err(_) | Ok(0) => self.usual,
            Ok(seconds) => Duration::from_secs(seconds),
        };
        if asked > self.longest {
            return Err(LifetimeError::TooLong { asked, longest: self.longest });
        }
        if asked < SHORTEST {
            return Err(LifetimeError::TooShort(asked));
        }
        Ok(starting(now, self.always.unwrap_or(asked)))
    }
}

/// A life of this length from now, and a little before.
pub(super) fn starting(now: SystemTime, length: Duration) -> Validity {
    let skew = SKEW.min(length / SKEW_PART);
    Validity {
        not_before: now.checked_sub(skew).unwrap_or(now),
        not_after: now.checked_add(length).unwrap_or(now),
    }
}

/// Terms that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// Nobody could use such a certificate.
    #[error(
        "certificates cannot live for {0:?} only; give --default-workload-ttl, --max-workload-ttl and --debug-cert-ttl at least {SHORTEST:?}"
    )]
    TooShort(Duration),
    /// More than the most.
    #[error(
        "--default-workload-ttl and --debug-cert-ttl must not be longer than --max-workload-ttl: {length:?} is longer than {longest:?}"
    )]
    BeyondLongest {
        /// The length.
        length: Duration,
        /// The most.
        longest: Duration,
    },
}

/// A caller's wish that is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LifetimeError {
    /// More than the most.
    #[error(
        "a certificate for {asked:?} was asked for, the most is {longest:?}; lower SECRET_TTL, or raise --max-workload-ttl"
    )]
    TooLong {
        /// What was asked.
        asked: Duration,
        /// The most.
        longest: Duration,
    },
    /// Nobody could use such a certificate.
    #[error("a certificate for {0:?} was asked for, the least is {SHORTEST:?}; raise SECRET_TTL")]
    TooShort(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn terms(flags: &[&str]) -> Result<Terms, TermsError> {
        let always = ["controller", "--source=directory:/x", "--tokens=/x"];
        Terms::new(&config::Config::try_parse_from(always.iter().chain(flags)).unwrap().authority)
    }

    fn life(terms: &Terms, asked: i64) -> Result<Duration, LifetimeError> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        terms.validity(asked, now).map(|validity| validity.not_after.duration_since(now).unwrap())
    }

    #[test]
    fn a_caller_gets_what_it_asks_or_the_usual() {
        let terms = terms(&[]).unwrap();
        const DAY: u64 = 86_400;
        for (asked, days) in [(0, 1), (-5, 1), (i64::MIN, 1), (2 * 86_400, 2), (90 * 86_400, 90)] {
            assert_eq!(life(&terms, asked), Ok(Duration::from_secs(days * DAY)), "{asked}");
        }
        assert_eq!(life(&terms, 3), Ok(SHORTEST));
    }

    #[test]
    fn too_much_is_refused_and_not_shortened() {
        let terms = terms(&[]).unwrap();
        for asked in [90 * 86_400 + 1, i64::MAX] {
            assert!(matches!(life(&terms, asked), Err(LifetimeError::TooLong { .. })), "{asked}");
        }
        assert_eq!(life(&terms, 2), Err(LifetimeError::TooShort(Duration::from_secs(2))));
    }

    #[test]
    fn for_debugging_every_life_is_the_same() {
        let terms = terms(&["--debug-cert-ttl=10s"]).unwrap();
        assert_eq!(life(&terms, 0), Ok(Duration::from_secs(10)));
        assert_eq!(life(&terms, 86_400), Ok(Duration::from_secs(10)));
        assert!(life(&terms, i64::MAX).is_err());
    }

    #[test]
    fn a_certificate_is_never_half_over_when_it_begins() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for seconds in [3_u64, 10, 600, 86_400] {
            let Validity { not_before, not_after } = starting(now, Duration::from_secs(seconds));
            let age = now.duration_since(not_before).unwrap();
            assert!(age <= SKEW && age * 4 < not_after.duration_since(not_before).unwrap(), "{seconds}");
        }
        assert_eq!(starting(now, Duration::from_secs(86_400)).not_before, now - SKEW);
    }

    #[test]
    fn terms_that_contradict_each_other_are_refused() {
        assert!(matches!(terms(&["--max-workload-ttl=1h"]), Err(TermsError::BeyondLongest { .. })));
        assert!(matches!(terms(&["--debug-cert-ttl=1s"]), Err(TermsError::TooShort(_))));
        assert!(matches!(terms(&["--debug-cert-ttl=9000h"]), Err(TermsError::BeyondLongest { .. })));
    }
}
