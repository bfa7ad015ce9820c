//! When a certificate is renewed, and when a failed attempt is repeated. Pure: clock and dice are
//! arguments, a die being a number from 0 up to 1.

use std::time::{Duration, SystemTime};

/// The first pause after a failure, and the longest (protocols 3.3).
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(150);

/// How far pauses are spread around their length.
const SPREAD: f64 = 0.2;

/// The certificates of a node are asked for together; without this they would be renewed together
/// for ever. At most this part of the life is given away.
const EARLY: f64 = 0.05;

/// At half of its life, or a little earlier. If that has passed already (CAs date certificates
/// back, and a short life may be half over when it begins), at half of what is left; but never so
/// soon that the CA is asked without a pause.
pub fn renew_at(now: SystemTime, not_before: SystemTime, not_after: SystemTime, die: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let half = not_before + life.mul_f64(0.5 - EARLY * die.clamp(0.0, 1.0));
    if half > now {
        return half.max(now + FIRST_PAUSE);
    }
    let left = not_after.duration_since(now).unwrap_or_default();
    now + (left / 2).max(FIRST_PAUSE)
}

/// When to try again after `failures` failures in a row (this one counted): after a pause that
/// doubles, but not later than the end of what is still held.
pub fn retry_at(now: SystemTime, failures: u32, expiry: Option<SystemTime>, die: f64) -> SystemTime {
    let after = now + pause(failures, die);
    match expiry {
        Some(expiry) if expiry > now => after.min(expiry),
        Some(_) | None => after,
    }
}

fn pause(failures: u32, die: f64) -> Duration {
    let doublings = failures.saturating_sub(1);
    let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
    let plain = FIRST_PAUSE.checked_mul(factor).unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
    plain.mul_f64(1.0 - SPREAD + 2.0 * SPREAD * die.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn renewal_is_at_half_life_or_a_little_earlier() {
        let end = UNIX_EPOCH + 20 * HOUR;
        assert_eq!(renew_at(UNIX_EPOCH, UNIX_EPOCH, end, 0.0), UNIX_EPOCH + 10 * HOUR);
        assert_eq!(renew_at(UNIX_EPOCH, UNIX_EPOCH, end, 1.0), UNIX_EPOCH + 9 * HOUR);
    }

    #[test]
    fn a_life_that_is_half_over_when_it_begins_does_not_hurry_the_ca() {
        let now = UNIX_EPOCH + HOUR;
        let second = Duration::from_secs(1);
        let dated_back = now - 10 * second;
        assert_eq!(renew_at(now, dated_back, now + 8 * second, 0.5), now + 4 * second);
        for end in [now, now + Duration::from_millis(1), now - HOUR] {
            assert_eq!(renew_at(now, dated_back, end, 0.5), now + FIRST_PAUSE);
        }
        assert_eq!(renew_at(now, now, now + second / 10, 0.0), now + FIRST_PAUSE);
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pause = |failures| pause(failures, 0.5).as_millis();
        assert_eq!([1, 2, 3, 4].map(pause), [500, 1000, 2000, 4000]);
        assert_eq!([9, 10, 40, u32::MAX].map(pause), [128_000, 150_000, 150_000, 150_000]);
    }

    #[test]
    fn pauses_are_spread_by_a_fifth() {
        assert_eq!(pause(1, 0.0), Duration::from_millis(400));
        assert_eq!(pause(1, 1.0), Duration::from_millis(600));
    }

    #[test]
    fn a_retry_does_not_wait_beyond_what_is_held() {
        let now = UNIX_EPOCH + HOUR;
        let soon = now + Duration::from_secs(3);
        assert_eq!(retry_at(now, 10, Some(soon), 0.5), soon);
        assert_eq!(retry_at(now, 1, Some(now + HOUR), 0.5), now + Duration::from_millis(500));
        assert_eq!(retry_at(now, 1, None, 0.5), now + Duration::from_millis(500));
        let gone = now - HOUR;
        assert_eq!(retry_at(now, 1, Some(gone), 0.5), now + Duration::from_millis(500));
    }
}
