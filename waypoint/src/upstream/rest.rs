//! For how long an endpoint asks to be passed over: 429 (RFC 6585, section 4), and 503 with Retry-After (RFC 9110, section
//! 10.2.3). Pure.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode, header};

/// For how long one is passed over that answers 429 and does not say: long enough for a bucket of tokens to have some.
const UNSAID: Duration = Duration::from_secs(1);
/// For how long at most after 429: it is about one client, and what others lose by it is to be small.
const LONGEST_429: Duration = Duration::from_secs(30);
/// For how long at most after 503: as long as one is set aside at most that cannot be reached.
const LONGEST_503: Duration = Duration::from_secs(120);

/// For how long whoever answers with `status` and `headers` is passed over; `None`: it is not.
pub fn asked(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let rest = match status {
        StatusCode::TOO_MANY_REQUESTS => said(headers).unwrap_or(UNSAID).min(LONGEST_429),
        StatusCode::SERVICE_UNAVAILABLE => said(headers)?.min(LONGEST_503),
        _ => return None,
    };
    (!rest.is_zero()).then_some(rest)
}

/// What Retry-After says. A date is counted from that of the same response, for clocks differ; without one it says nothing.
fn said(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let after = text(header::RETRY_AFTER)?;
    if !after.is_empty() && after.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than fits is as long as may be.
        return Some(Duration::from_secs(after.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(after).ok()?;
    let from = httpdate::parse_http_date(text(header::DATE)?).ok()?;
    Some(at.duration_since(from).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_rests_for_as_long_as_it_says_within_bounds() {
        const NOON: &str = "Sun, 06 Nov 1994 12:00:00 GMT";
        type Case<'a> = (u16, &'a [(&'a str, &'a str)], Option<u64>);
        let table: [Case<'_>; 19] = [
            (429, &[], Some(1)),
            (429, &[("retry-after", "7")], Some(7)),
            (429, &[("retry-after", "31")], Some(30)),
            (429, &[("retry-after", "99999999999999999999999")], Some(30)),
            (429, &[("retry-after", "0")], None),
            (429, &[("retry-after", "-5")], Some(1)),
            (429, &[("retry-after", "")], Some(1)),
            (429, &[("retry-after", "soon")], Some(1)),
            (429, &[("retry-after", "Sun, 06 Nov 1994 12:00:09 GMT"), ("date", NOON)], Some(9)),
            (429, &[("retry-after", "Sunday, 06-Nov-94 12:00:09 GMT"), ("date", NOON)], Some(9)),
            (429, &[("retry-after", "Tue, 09 Nov 1999 12:00:09 GMT"), ("date", NOON)], Some(30)),
            (429, &[("retry-after", "Sun, 06 Nov 1994 11:00:00 GMT"), ("date", NOON)], None),
            (429, &[("retry-after", "Sun, 06 Nov 1994 12:00:09 GMT")], Some(1)),
            (503, &[], None),
            (503, &[("retry-after", "60")], Some(60)),
            (503, &[("retry-after", "600")], Some(120)),
            (503, &[("retry-after", "soon")], None),
            (500, &[("retry-after", "60")], None),
            (200, &[("retry-after", "60")], None),
        ];
        for (status, fields, seconds) in table {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().expect("a value"));
            }
            let status = StatusCode::from_u16(status).expect("a status");
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(asked(status, &headers), expected, "{status} {fields:?}");
        }
    }
}
