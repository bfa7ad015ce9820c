//! Spans and records as OTLP writes them.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    logs::v1::{LogRecord as LogMessage, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource as ResourceMessage,
    trace::v1::{ResourceSpans, ScopeSpans, Span as SpanMessage, SpanFlags, Status, span::SpanKind, status},
};

use super::{Attributes, Kind, LONGEST_LINE, LogRecord, Resource, Severity, Span, Value, shortened};

/// The flag of W3C Trace Context that says: recorded. What is exported was.
const SAMPLED: u32 = 1;

pub(super) fn spans(resource: &Resource, batch: Vec<Span>) -> ExportTraceServiceRequest {
    let spans = batch.into_iter().map(span).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, ..ScopeSpans::default() }];
    let all = ResourceSpans { resource: Some(who(resource)), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![all] }
}

pub(super) fn records(resource: &Resource, batch: Vec<LogRecord>) -> ExportLogsServiceRequest {
    let log_records = batch.into_iter().map(record).collect();
    let scope_logs = vec![ScopeLogs { scope: Some(scope()), log_records, ..ScopeLogs::default() }];
    let all = ResourceLogs { resource: Some(who(resource)), scope_logs, ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![all] }
}

fn span(span: Span) -> SpanMessage {
    let remote = match (span.parent, span.parent_is_remote) {
        (Some(_), true) => flag(SpanFlags::ContextHasIsRemoteMask) | flag(SpanFlags::ContextIsRemoteMask),
        (Some(_), false) | (None, _) => flag(SpanFlags::ContextHasIsRemoteMask),
    };
    let kind = match span.kind {
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
    };
    // What went well is left unset: whether it is OK is for the application to say.
    let failed = |message| Status { code: status::StatusCode::Error.into(), message };
    SpanMessage {
        trace_id: span.trace.bits().to_be_bytes().into(),
        span_id: span.id.bits().to_be_bytes().into(),
        trace_state: span.state,
        parent_span_id: span.parent.map(|parent| parent.bits().to_be_bytes().into()).unwrap_or_default(),
        flags: SAMPLED | remote,
        name: shortened(&span.name, LONGEST_LINE).to_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanoseconds(span.began),
        end_time_unix_nano: nanoseconds(span.ended),
        attributes: attributes(span.attributes),
        status: Some(span.failed.map_or_else(Status::default, failed)),
        ..SpanMessage::default()
    }
}

fn flag(flag: SpanFlags) -> u32 {
    u32::try_from(i32::from(flag)).unwrap_or(0)
}

fn record(record: LogRecord) -> LogMessage {
    let (severity, word) = match record.severity {
        Severity::Debug => (SeverityNumber::Debug, "DEBUG"),
        Severity::Info => (SeverityNumber::Info, "INFO"),
        Severity::Warn => (SeverityNumber::Warn, "WARN"),
        Severity::Error => (SeverityNumber::Error, "ERROR"),
    };
    let at = nanoseconds(record.at);
    LogMessage {
        time_unix_nano: at,
        observed_time_unix_nano: at,
        severity_number: severity.into(),
        severity_text: word.to_owned(),
        body: Some(text(shortened(&record.body, LONGEST_LINE).to_owned())),
        attributes: attributes(record.attributes),
        trace_id: record.trace.map(|trace| trace.bits().to_be_bytes().into()).unwrap_or_default(),
        span_id: record.span.map(|span| span.bits().to_be_bytes().into()).unwrap_or_default(),
        ..LogMessage::default()
    }
}

fn who(resource: &Resource) -> ResourceMessage {
    let attributes = resource.0.iter().map(|(key, value)| pair(key, text(value.clone()))).collect();
    ResourceMessage { attributes, ..ResourceMessage::default() }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "ambit".to_owned(), ..InstrumentationScope::default() }
}

fn attributes(attributes: Attributes) -> Vec<KeyValue> {
    let all = attributes.into_iter().map(|(key, value)| {
        let value = match value {
            Value::Text(value) => any_value::Value::StringValue(value.into_owned()),
            Value::Number(value) => any_value::Value::IntValue(value),
            Value::Real(value) => any_value::Value::DoubleValue(value),
            Value::Flag(value) => any_value::Value::BoolValue(value),
        };
        pair(key, AnyValue { value: Some(value) })
    });
    all.collect()
}

fn pair(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn text(text: String) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(text)) }
}

/// Since 1970; whoever was born before has no clock.
fn nanoseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
