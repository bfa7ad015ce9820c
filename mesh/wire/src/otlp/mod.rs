//! Spans and log records to a collector (OpenTelemetry Protocol over gRPC).
//!
//! Whoever has something to tell puts it into a [`Queue`], never waits, and loses it, counted, when the queue is full. An
//! [`Exporter`] sends batches, each within one limit of time, whatever the collector does.

mod encode;
mod export;
mod queue;

use std::{borrow::Cow, time::SystemTime};

use ambit_model::trace::{SpanId, TraceId};

pub use self::{
    export::{Exporter, Limits, Signal, exporter},
    queue::{Counts, Queue},
};

/// What is sent of one value: some client chose it.
const LONGEST: usize = 1024;
/// What is sent of a line of a log, which is made of several.
const LONGEST_LINE: usize = 4096;

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text, of which at most 1024 bytes are sent.
    Text(Cow<'static, str>),
    /// A whole number.
    Number(i64),
    /// A number.
    Real(f64),
    /// Yes or no.
    Flag(bool),
}

impl Value {
    /// A text, shortened.
    pub fn text(text: &str) -> Self {
        Self::Text(Cow::Owned(shortened(text, LONGEST).to_owned()))
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

/// What is said of something, by name.
pub type Attributes = Vec<(&'static str, Value)>;

/// The first bytes of a text, at most `longest`.
fn shortened(text: &str, longest: usize) -> &str {
    let mut end = longest.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Which side of a call a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was asked.
    Server,
    /// It asks.
    Client,
}

/// Something that was done for a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its trace.
    pub trace: TraceId,
    /// Itself.
    pub id: SpanId,
    /// Within which other it was done.
    pub parent: Option<SpanId>,
    /// Whether that is of another process.
    pub parent_is_remote: bool,
    /// What tracing systems say to each other.
    pub state: String,
    /// Of few values.
    pub name: String,
    /// Which side.
    pub kind: Kind,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What is said of it.
    pub attributes: Attributes,
    /// Why it failed, if it did; may be empty.
    pub failed: Option<String>,
}

/// How grave it is what a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// For those who look for something.
    Debug,
    /// Life as it is.
    Info,
    /// Somebody may have to act.
    Warn,
    /// Something broke.
    Error,
}

/// A line of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// When.
    pub at: SystemTime,
    /// How grave.
    pub severity: Severity,
    /// Its text, of which at most 4096 bytes are sent.
    pub body: String,
    /// What else is said.
    pub attributes: Attributes,
    /// The trace that it belongs to.
    pub trace: Option<TraceId>,
    /// The span.
    pub span: Option<SpanId>,
}

/// Who tells: names and values, such as `service.name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource(pub Vec<(String, String)>);
