//! Lines of the access log as their user wants them: text with Envoy's command operators. Pure.
//!
//! `%OPERATOR%`, `%OPERATOR(ARGUMENT)%`, each also with `:LENGTH` before the last `%`; `%%` is `%`. What there is nothing
//! to say of is `-`. Whatever a client may have chosen is escaped as in JSON strings, so that it forges neither a line nor
//! the end of a quotation.

mod operator;
#[cfg(test)]
mod tests;

use std::{
    fmt::Write as _,
    net::SocketAddr,
    str::FromStr,
    time::{Duration, SystemTime},
};

use ambit_model::{
    address::Target,
    identity::Identity,
    trace::{SpanId, TraceId},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

pub use self::operator::{Header, Operator};

/// What is written of one value if the template does not say: a head has 64 KiB, a line should not.
const LONGEST: usize = 4096;
/// What there is nothing to say of.
const NOTHING: &str = "-";

/// A template, read once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    request: Vec<HeaderName>,
    response: Vec<HeaderName>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value { of: Operator, longest: usize },
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// An operator that is not known here.
    #[error("%{0}% is no operator that is known here; docs/tasks/tracing.md lists those that are")]
    Unknown(String),
    /// A `%` without another.
    #[error("the % before {0:?} begins no operator; write %% for a percent sign")]
    Unclosed(String),
    /// An operator that needs an argument has none, or the other way round.
    #[error("%{0}%: {1}")]
    Argument(String, &'static str),
    /// What may not stand in a log.
    #[error("%{0}%: {1} is a secret, which logs must not have")]
    Secret(String, HeaderName),
}

/// What a line tells. Whoever knows nothing of something leaves it out.
#[derive(Debug)]
pub struct Facts<'a> {
    /// When it began.
    pub began: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// The method of a request.
    pub method: Option<&'a Method>,
    /// Its host, path and query.
    pub uri: Option<&'a Uri>,
    /// `HTTP/1.1` and so on.
    pub protocol: Option<&'static str>,
    /// The status of the response; 0: it had none.
    pub status: u16,
    /// The status of a gRPC call.
    pub grpc: Option<u16>,
    /// Who made the response, in a word.
    pub details: Option<&'static str>,
    /// The response flag.
    pub flag: &'static str,
    /// Why the endpoint could not be reached.
    pub failure: Option<String>,
    /// Why a connection ended.
    pub termination: Option<String>,
    /// Bytes of the client.
    pub received: u64,
    /// Bytes for the client.
    pub sent: u64,
    /// The endpoint.
    pub upstream: Option<SocketAddr>,
    /// How often it was sent.
    pub attempts: u32,
    /// The service.
    pub service: Option<&'a str>,
    /// Who asked.
    pub client: Option<SocketAddr>,
    /// What for.
    pub asked: Option<&'a Target>,
    /// Which route was taken.
    pub route: Option<&'a str>,
    /// What the client's TLS greeted.
    pub server_name: Option<&'a str>,
    /// Who the client proved to be.
    pub peer: Option<&'a Identity>,
    /// The trace.
    pub trace: Option<TraceId>,
    /// The waypoint's own span in it.
    pub span: Option<SpanId>,
    /// Headers of the request, as [`Template::of_request`] took them.
    pub request: &'a [Option<HeaderValue>],
    /// Headers of the response, as [`Template::of_response`] took them.
    pub response: &'a [Option<HeaderValue>],
}

impl<'a> Facts<'a> {
    /// Of something of which hardly anything is known yet.
    pub fn new(took: Duration, flag: &'static str) -> Self {
        let now = SystemTime::now();
        Self {
            began: now.checked_sub(took).unwrap_or(now),
            took,
            method: None,
            uri: None,
            protocol: None,
            status: 0,
            grpc: None,
            details: None,
            flag,
            failure: None,
            termination: None,
            received: 0,
            sent: 0,
            upstream: None,
            attempts: 0,
            service: None,
            client: None,
            asked: None,
            route: None,
            server_name: None,
            peer: None,
            trace: None,
            span: None,
            request: &[],
            response: &[],
        }
    }
}

impl FromStr for Template {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        // A line ends where it ends; Envoy's templates say so themselves.
        let text = text.strip_suffix("\\n").unwrap_or(text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        let mut template = Self::default();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            template.text(before);
            if let Some(after) = after.strip_prefix('%') {
                template.text("%");
                rest = after;
                continue;
            }
            let unclosed = || InvalidTemplate::Unclosed(after.chars().take(20).collect());
            let (written, after) = after.split_once('%').ok_or_else(unclosed)?;
            let part = template.value(written)?;
            template.parts.push(part);
            rest = after;
        }
        template.text(rest);
        Ok(template)
    }
}

impl Template {
    fn text(&mut self, text: &str) {
        match self.parts.last_mut() {
            Some(Part::Text(before)) => before.push_str(text),
            Some(Part::Value { .. }) | None if text.is_empty() => {}
            Some(Part::Value { .. }) | None => self.parts.push(Part::Text(text.to_owned())),
        }
    }

    fn value(&mut self, written: &str) -> Result<Part, InvalidTemplate> {
        let (name, longest) = match written.rsplit_once(':') {
            // A colon in brackets is of a header: `REQ(:PATH)`.
            Some((name, length)) if !length.contains(')') => {
                let wrong = "the length after the colon is no number";
                let length =
                    length.parse().map_err(|_| InvalidTemplate::Argument(written.to_owned(), wrong))?;
                (name, LONGEST.min(length))
            }
            Some(_) | None => (written, LONGEST),
        };
        let of = Operator::read(name, &mut self.request, &mut self.response)?;
        Ok(Part::Value { of, longest })
    }

    /// The headers of a request that the template has.
    pub fn of_request(&self, headers: &HeaderMap) -> Box<[Option<HeaderValue>]> {
        self.request.iter().map(|name| headers.get(name).cloned()).collect()
    }

    /// The headers of a response that the template has.
    pub fn of_response(&self, headers: &HeaderMap) -> Box<[Option<HeaderValue>]> {
        self.response.iter().map(|name| headers.get(name).cloned()).collect()
    }

    /// Whether the trace has to be known even if nobody records it.
    pub fn has_trace(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Value { of: Operator::TraceId, .. }))
    }

    /// The line, without its end.
    pub fn line(&self, facts: &Facts<'_>) -> String {
        let mut line = String::with_capacity(256);
        for part in &self.parts {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Value { of, longest } => {
                    of.write(facts, &mut Value { line: &mut line, longest: *longest })
                }
            }
        }
        line
    }
}

/// Where one value of a line is written.
pub struct Value<'l> {
    line: &'l mut String,
    longest: usize,
}

impl Value<'_> {
    /// Text that is ours.
    fn plain(&mut self, text: &str) {
        self.line.extend(text.chars().take(self.longest));
    }

    /// A number of ours.
    fn number(&mut self, number: u64) {
        // Writing to a string cannot fail.
        let _ = write!(self.line, "{number}");
    }

    /// Nothing to say.
    fn nothing(&mut self) {
        self.line.push_str(NOTHING);
    }

    /// Text that somebody else chose.
    fn foreign(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().take(self.longest) {
            match byte {
                b'"' => self.line.push_str("\\\""),
                b'\\' => self.line.push_str("\\\\"),
                b' '..=b'~' => self.line.push(char::from(*byte)),
                other => {
                    let _ = write!(self.line, "\\u{other:04x}");
                }
            }
        }
    }
}
