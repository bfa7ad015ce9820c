//! `traceparent` and `tracestate` (W3C Trace Context, Level 1, and the random flag of Level 2).

use http::{HeaderMap, HeaderValue};

use super::{Context, Malformed, Parent, Said, SpanId, TRACEPARENT, TRACESTATE, TraceId, Wish, hex, only};

/// The caller records (3.2.2.5.1).
const SAMPLED: u128 = 1;
/// The last 56 bits of the trace's name are random (Level 2, 3.2.2.5.2).
const RANDOM: u128 = 2;
/// Entries of a state (3.3.1.1).
const ENTRIES: usize = 32;
/// What is passed on of a state: as many characters as everybody should (3.3.1.5).
const LONGEST: usize = 512;
/// Longer entries go first (the same).
const LONG_ENTRY: usize = 128;

/// `version-trace-span-flags`. Of versions to come the first four fields are read.
pub(super) fn read(headers: &HeaderMap) -> Result<Option<Said>, Malformed> {
    only(headers, &TRACEPARENT)?.map(parse).transpose()
}

fn parse(text: &[u8]) -> Result<Said, Malformed> {
    let mut fields = text.splitn(5, |byte| *byte == b'-');
    let mut field = |length: usize| {
        let field = fields.next().filter(|field| field.len() == length).ok_or(Malformed)?;
        hex(field)
    };
    let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    let has_more = fields.next().is_some();
    if version == 0xff || (version == 0 && has_more) {
        return Err(Malformed);
    }
    let trace = TraceId::new(trace).ok_or(Malformed)?;
    let span = u64::try_from(span).ok().and_then(SpanId::new).ok_or(Malformed)?;
    let wish = if flags & SAMPLED == 0 { Wish::Drop } else { Wish::Record };
    Ok(Said { parent: Some(Parent { trace, span }), wish, is_random: flags & RANDOM != 0 })
}

pub(super) fn write(context: &Context) -> HeaderValue {
    let flags = if context.is_recorded { SAMPLED } else { 0 } | if context.is_random { RANDOM } else { 0 };
    super::value(&format!("00-{}-{}-{flags:02x}", context.trace, context.span))
}

/// All lines as one list, bounded. A key that stands there twice is malformed, and so is more than what may be there.
pub(super) fn read_state(headers: &HeaderMap) -> Result<Option<HeaderValue>, Malformed> {
    let lines = headers.get_all(&TRACESTATE);
    let mut entries: Vec<(&str, &str)> = Vec::new();
    for line in &lines {
        for entry in line.to_str().map_err(|_| Malformed)?.split(',') {
            let entry = entry.trim_matches([' ', '\t']);
            if entry.is_empty() {
                continue;
            }
            let (key, value) = entry.split_once('=').ok_or(Malformed)?;
            let is_new = entries.iter().all(|(known, _)| *known != key);
            if !is_new || !is_key(key) || !is_value(value) || entries.len() == ENTRIES {
                return Err(Malformed);
            }
            entries.push((key, value));
        }
    }
    shorten(&mut entries);
    if entries.is_empty() {
        return Ok(None);
    }
    let text = entries.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    HeaderValue::from_str(&text).map(Some).map_err(|_| Malformed)
}

fn shorten(entries: &mut Vec<(&str, &str)>) {
    let length = |(key, value): &(&str, &str)| key.len() + value.len() + 1;
    let all = |entries: &[(&str, &str)]| entries.iter().map(|entry| length(entry) + 1).sum::<usize>();
    while all(entries) > LONGEST + 1 {
        match entries.iter().rposition(|entry| length(entry) > LONG_ENTRY) {
            Some(long) => drop(entries.remove(long)),
            None => drop(entries.pop()),
        }
    }
}

fn is_key(key: &str) -> bool {
    let of_vendor = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/".contains(byte);
    let (tenant, system) = match key.split_once('@') {
        Some((tenant, system)) => (tenant, Some(system)),
        None => (key, None),
    };
    let starts = |text: &str, digit: bool| {
        text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || (digit && byte.is_ascii_digit()))
    };
    let well = |text: &str, longest: usize| text.len() <= longest && text.as_bytes().iter().all(of_vendor);
    match system {
        Some(system) => {
            starts(tenant, true) && well(tenant, 241) && starts(system, false) && well(system, 14)
        }
        // Level 2 lets a plain key begin with a digit, too.
        None => starts(tenant, true) && well(tenant, 256),
    }
}

fn is_value(value: &str) -> bool {
    let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b',' && byte != b'=';
    !value.is_empty() && value.len() <= 256 && value.bytes().all(plain)
}
