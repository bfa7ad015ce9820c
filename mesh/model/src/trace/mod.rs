//! Which trace a request belongs to, who in it asked, and whether that is recorded. Pure.
//!
//! | headers | read, and written as they came |
//! |---|---|
//! | `traceparent`, `tracestate` | W3C Trace Context, in [`w3c`] |
//! | `b3`; or `x-b3-traceid`, `x-b3-spanid`, `x-b3-sampled`, `x-b3-flags` | B3, in [`b3`] |
//!
//! Of several forms in one request the first in this table counts. One that is malformed is as if it were not there.

mod b3;
mod sample;
#[cfg(test)]
mod tests;
mod w3c;

use std::{
    fmt,
    num::{NonZeroU64, NonZeroU128},
};

use http::{HeaderMap, HeaderName, HeaderValue};

pub use self::sample::{InvalidRatio, Ratio, Sampler};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const X_B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const X_B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const X_B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const X_B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const X_B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// All that say something of a trace.
const ALL: [HeaderName; 8] =
    [TRACEPARENT, TRACESTATE, B3, X_B3_TRACE, X_B3_SPAN, X_B3_PARENT, X_B3_SAMPLED, X_B3_FLAGS];

/// The name of a trace; never zero, which means none. Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

/// The name of a span in its trace; never zero. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

impl TraceId {
    /// Of these bits; of none, if all are zero.
    pub fn new(bits: u128) -> Option<Self> {
        NonZeroU128::new(bits).map(Self)
    }

    /// Of drawn bits, which may be zero once in 2^128 times.
    pub fn drawn(bits: u128) -> Self {
        Self(NonZeroU128::new(bits).unwrap_or(NonZeroU128::MIN))
    }

    /// Its bits.
    pub fn bits(self) -> u128 {
        self.0.get()
    }
}

impl SpanId {
    /// Of these bits; of none, if all are zero.
    pub fn new(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }

    /// Of drawn bits, which may be zero once in 2^64 times.
    pub fn drawn(bits: u64) -> Self {
        Self(NonZeroU64::new(bits).unwrap_or(NonZeroU64::MIN))
    }

    /// Its bits.
    pub fn bits(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What the caller wants to become of the trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// He leaves it to whoever comes next (B3 knows that).
    #[default]
    Open,
    /// He does not record.
    Drop,
    /// He records.
    Record,
    /// He records, and asks everybody to (B3's debug).
    Debug,
}

/// A form in which a trace is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `traceparent`.
    W3c,
    /// `tracestate`.
    State,
    /// `b3`.
    B3,
    /// `x-b3-…`.
    B3Multi,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::W3c, Self::State, Self::B3, Self::B3Multi];

    /// One word for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::W3c => "traceparent",
            Self::State => "tracestate",
            Self::B3 => "b3",
            Self::B3Multi => "x-b3",
        }
    }
}

/// Some forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms(u8);

impl Forms {
    /// These and this one.
    #[must_use]
    pub fn and(self, form: Form) -> Self {
        Self(self.0 | Self::bit(form))
    }

    /// Whether this is one of them.
    pub fn has(self, form: Form) -> bool {
        self.0 & Self::bit(form) != 0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn bit(form: Form) -> u8 {
        match form {
            Form::W3c => 1,
            Form::State => 2,
            Form::B3 => 4,
            Form::B3Multi => 8,
        }
    }
}

/// The span of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its trace.
    pub trace: TraceId,
    /// Itself.
    pub span: SpanId,
}

/// What the headers of a request say of its trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Who asked.
    pub parent: Option<Parent>,
    /// What becomes of the trace.
    pub wish: Wish,
    /// The last bits of the trace's name were drawn at random (W3C Trace Context Level 2).
    is_random: bool,
    /// What tracing systems say to each other, passed on as it is.
    state: Option<HeaderValue>,
    /// The forms that it came in.
    pub forms: Forms,
    /// Forms that were there and malformed.
    pub malformed: Forms,
}

/// What one form says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    parent: Option<Parent>,
    wish: Wish,
    is_random: bool,
}

/// A form is there, and is not well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Malformed;

impl Received {
    /// Reads the headers of a request.
    pub fn read(headers: &HeaderMap) -> Self {
        let mut received = Self::default();
        let readings = [
            (Form::W3c, w3c::read(headers)),
            (Form::B3, b3::read_single(headers)),
            (Form::B3Multi, b3::read_multi(headers)),
        ];
        for (form, read) in readings {
            match read {
                Ok(None) => {}
                Ok(Some(said)) => received.hear(form, said),
                Err(Malformed) => received.malformed = received.malformed.and(form),
            }
        }
        // A state is of a traceparent; without one it says nothing.
        if received.forms.has(Form::W3c) {
            match w3c::read_state(headers) {
                Ok(state) => received.state = state,
                Err(Malformed) => received.malformed = received.malformed.and(Form::State),
            }
        }
        received
    }

    fn hear(&mut self, form: Form, said: Said) {
        self.forms = self.forms.and(form);
        if self.parent.is_none() && said.parent.is_some() {
            (self.parent, self.wish, self.is_random) = (said.parent, said.wish, said.is_random);
        } else if self.parent.is_none() && self.wish == Wish::Open {
            self.wish = said.wish;
        }
    }
}

/// The span in which something is done, as it is told to those who are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Its trace.
    pub trace: TraceId,
    /// Itself.
    pub span: SpanId,
    /// Whether it is recorded.
    pub is_recorded: bool,
    is_debug: bool,
    is_random: bool,
    state: Option<HeaderValue>,
    forms: Forms,
}

impl Context {
    /// A span of who was asked so: in the caller's trace if there is one, else in a fresh one, told in `traceparent`.
    ///
    /// `bits` are drawn: for the trace, and for the span.
    pub fn of(received: &Received, sampler: &Sampler, bits: impl FnOnce() -> u128, span: u64) -> Self {
        let trace = received.parent.as_ref().map(|parent| parent.trace);
        let trace = trace.unwrap_or_else(|| TraceId::drawn(bits()));
        let forms = if received.forms.is_empty() { received.forms.and(Form::W3c) } else { received.forms };
        Self {
            trace,
            span: SpanId::drawn(span),
            is_recorded: sampler.records(received.wish, trace),
            is_debug: received.wish == Wish::Debug,
            is_random: received.is_random,
            state: received.state.clone(),
            forms,
        }
    }

    /// Another span of this trace; `span` is drawn.
    #[must_use]
    pub fn child(&self, span: u64) -> Self {
        Self { span: SpanId::drawn(span), ..self.clone() }
    }

    /// What tracing systems say to each other.
    pub fn state(&self) -> Option<&str> {
        self.state.as_ref()?.to_str().ok()
    }

    /// Tells whoever is asked with these headers, in the forms that the caller used; what he said is gone.
    pub fn write(&self, headers: &mut HeaderMap) {
        for name in &ALL {
            headers.remove(name);
        }
        if self.forms.has(Form::W3c) {
            headers.insert(TRACEPARENT, w3c::write(self));
            if let Some(state) = &self.state {
                headers.insert(TRACESTATE, state.clone());
            }
        }
        if self.forms.has(Form::B3) {
            headers.insert(B3, b3::write_single(self));
        }
        if self.forms.has(Form::B3Multi) {
            b3::write_multi(self, headers);
        }
    }
}

/// The only line of a header; several are malformed, as nobody knows which one counts.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h [u8]>, Malformed> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(line), None) => Ok(Some(line.as_bytes())),
        (Some(_), Some(_)) => Err(Malformed),
    }
}

/// Lower-case hexadecimal digits, as many as `text` has, at most 32.
fn hex(text: &[u8]) -> Result<u128, Malformed> {
    if text.is_empty() || text.len() > 32 {
        return Err(Malformed);
    }
    text.iter().try_fold(0_u128, |number, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return Err(Malformed),
        };
        Ok(number << 4 | u128::from(digit))
    })
}

/// A text of our own, of digits and dashes.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("0"))
}
