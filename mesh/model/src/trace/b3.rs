//! B3, in one header and in several (openzipkin/b3-propagation).

use http::{HeaderMap, HeaderValue};

use super::{
    B3, Context, Malformed, Parent, Said, SpanId, TraceId, Wish, X_B3_FLAGS, X_B3_PARENT, X_B3_SAMPLED,
    X_B3_SPAN, X_B3_TRACE, hex, only, value,
};

/// `trace-span`, `trace-span-wish`, `trace-span-wish-parent`, or `wish` alone.
pub(super) fn read_single(headers: &HeaderMap) -> Result<Option<Said>, Malformed> {
    let Some(text) = only(headers, &B3)? else { return Ok(None) };
    let fields: Vec<_> = text.splitn(5, |byte| *byte == b'-').collect();
    let (parent, wish) = match fields.as_slice() {
        [wish] => (None, wish_of(wish)?),
        [trace, span] => (Some(parent(trace, span)?), Wish::Open),
        [trace, span, wish] => (Some(parent(trace, span)?), wish_of(wish)?),
        [trace, span, wish, before] => {
            span_id(before)?;
            (Some(parent(trace, span)?), wish_of(wish)?)
        }
        _ => return Err(Malformed),
    };
    Ok(Some(Said { parent, wish, is_random: false }))
}

fn wish_of(text: &[u8]) -> Result<Wish, Malformed> {
    match text {
        b"0" => Ok(Wish::Drop),
        b"1" => Ok(Wish::Record),
        b"d" => Ok(Wish::Debug),
        _ => Err(Malformed),
    }
}

/// `x-b3-…`. Names of trace and span are both there, or neither; then only the wish is told.
pub(super) fn read_multi(headers: &HeaderMap) -> Result<Option<Said>, Malformed> {
    let sampled = match only(headers, &X_B3_SAMPLED)? {
        None => None,
        // The words are those of an early version, which are still sent.
        Some(b"0" | b"false") => Some(Wish::Drop),
        Some(b"1" | b"true") => Some(Wish::Record),
        Some(_) => return Err(Malformed),
    };
    let is_debug = match only(headers, &X_B3_FLAGS)? {
        None | Some(b"0") => false,
        Some(b"1") => true,
        Some(_) => return Err(Malformed),
    };
    if let Some(before) = only(headers, &X_B3_PARENT)? {
        span_id(before)?;
    }
    let parent = match (only(headers, &X_B3_TRACE)?, only(headers, &X_B3_SPAN)?) {
        (Some(trace), Some(span)) => Some(parent(trace, span)?),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => return Err(Malformed),
    };
    let wish = if is_debug { Wish::Debug } else { sampled.unwrap_or_default() };
    let says_something = parent.is_some() || wish != Wish::Open;
    Ok(says_something.then_some(Said { parent, wish, is_random: false }))
}

fn parent(trace: &[u8], span: &[u8]) -> Result<Parent, Malformed> {
    if trace.len() != 16 && trace.len() != 32 {
        return Err(Malformed);
    }
    let trace = TraceId::new(hex(trace)?).ok_or(Malformed)?;
    Ok(Parent { trace, span: span_id(span)? })
}

fn span_id(text: &[u8]) -> Result<SpanId, Malformed> {
    if text.len() != 16 {
        return Err(Malformed);
    }
    u64::try_from(hex(text)?).ok().and_then(SpanId::new).ok_or(Malformed)
}

pub(super) fn write_single(context: &Context) -> HeaderValue {
    let wish = match (context.is_debug, context.is_recorded) {
        (true, _) => "d",
        (false, true) => "1",
        (false, false) => "0",
    };
    value(&format!("{}-{}-{wish}", trace(context), context.span))
}

pub(super) fn write_multi(context: &Context, headers: &mut HeaderMap) {
    headers.insert(X_B3_TRACE, value(&trace(context)));
    headers.insert(X_B3_SPAN, value(&context.span.to_string()));
    if context.is_debug {
        headers.insert(X_B3_FLAGS, HeaderValue::from_static("1"));
    } else {
        let sampled = if context.is_recorded { "1" } else { "0" };
        headers.insert(X_B3_SAMPLED, HeaderValue::from_static(sampled));
    }
}

/// A name of 64 bits stays one: who began with it may know no longer ones.
fn trace(context: &Context) -> String {
    let text = context.trace.to_string();
    match text.split_at_checked(16) {
        Some((zeros, short)) if zeros.bytes().all(|byte| byte == b'0') => short.to_owned(),
        Some(_) | None => text,
    }
}
