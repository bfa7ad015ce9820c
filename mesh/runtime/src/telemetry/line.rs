//! Turns an event into a line.

use std::error::Error;
use std::fmt::{Debug, Write};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::Format;
use super::output::Output;

/// The scope of access records, whose fields are fixed: spans add none to them.
const ACCESS: &str = "access";

/// The first field of an access record that is the whole line already, as its user wants it.
const WHOLE: &str = "line";

/// Who else is told of access records.
pub(super) type Listener = OnceLock<Box<dyn Fn(&Event<'_>) + Send + Sync>>;

/// What a JSON line says itself; a field of such a name gets an underscore.
const OWN_NAMES: [&str; 4] = ["level", "time", "scope", "message"];

/// The layer that writes a line for each event.
pub(super) struct Lines {
    format: Format,
    output: Arc<Output>,
    listener: Arc<Listener>,
}

impl Lines {
    pub(super) fn new(format: Format, output: Arc<Output>, listener: Arc<Listener>) -> Self {
        Self { format, output, listener }
    }

    fn access_record(&self, event: &Event<'_>) {
        if let Some(tell) = self.listener.get() {
            tell(event);
        }
        // The first field alone is looked at: this is done for each request.
        let has_whole = event.fields().next().is_some_and(|field| field.name() == WHOLE);
        let mut whole = Whole(None);
        if has_whole {
            event.record(&mut whole);
        }
        match whole.0 {
            Some(line) => self.output.push(&line),
            None => {
                let mut fields = Fields::new(self.format);
                event.record(&mut fields);
                let level = *event.metadata().level();
                self.output.push(&line(self.format, level, ACCESS, &fields));
            }
        }
    }
}

/// A line that is made already. Whoever made it escaped what is in it; that it stays one line is seen to here.
struct Whole(Option<String>);

impl Visit for Whole {
    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == WHOLE {
            let mut line = String::with_capacity(value.len() + 1);
            escape_into(&mut line, value);
            line.push('\n');
            self.0 = Some(line);
        }
    }
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::new(self.format);
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target() == ACCESS {
            return self.access_record(event);
        }
        let mut fields = Fields::new(self.format);
        event.record(&mut fields);
        if let Some(spans) = context.event_scope(event) {
            for span in spans.from_root() {
                if let Some(outer) = span.extensions().get::<Fields>() {
                    fields.add_missing(outer);
                }
            }
        }
        self.output.push(&line(self.format, *metadata.level(), metadata.target(), &fields));
    }
}

/// The line that says how many could not be written.
pub(super) fn dropped(format: Format, count: u64) -> String {
    let mut fields = Fields::new(format);
    "Log lines were dropped, nobody reads them fast enough".clone_into(&mut fields.message);
    fields.add("count", count.to_string());
    line(format, Level::WARN, module_path!(), &fields)
}

fn line(format: Format, level: Level, scope: &str, fields: &Fields) -> String {
    let mut line = String::with_capacity(512);
    let (time, level) = (timestamp(SystemTime::now()), level_word(level));
    match format {
        Format::Text => {
            line.extend([&time, "\t", level, "\t", scope, "\t"]);
            escape_into(&mut line, &fields.message);
            for (at, (name, value)) in fields.values.iter().enumerate() {
                line.extend([if at == 0 { "\t" } else { " " }, name, "=", value]);
            }
        }
        Format::Json => {
            line.extend(["{\"level\":\"", level, "\",\"time\":\"", &time, "\",\"scope\":"]);
            line.extend([&quoted_json(scope), ",\"message\":", &quoted_json(&fields.message)]);
            for (name, value) in &fields.values {
                line.extend([",", &quoted_json(name), ":", value]);
            }
            line.push('}');
        }
    }
    line.push('\n');
    line
}

/// The fields of an event or a span, their values written already.
struct Fields {
    format: Format,
    message: String,
    values: Vec<(&'static str, String)>,
}

impl Fields {
    fn new(format: Format) -> Self {
        Self { format, message: String::new(), values: Vec::new() }
    }

    fn add(&mut self, name: &'static str, value: String) {
        match self.values.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.values.push((name, value)),
        }
    }

    fn add_missing(&mut self, outer: &Self) {
        for (name, value) in &outer.values {
            if !self.values.iter().any(|(known, _)| known == name) {
                self.values.push((name, value.clone()));
            }
        }
    }

    /// A string is always quoted; what was only shown (`%`, `?`) is when it would not be one word otherwise.
    fn add_text(&mut self, field: &Field, text: &str, always_quoted: bool) {
        let value = match self.format {
            Format::Json => quoted_json(text),
            Format::Text if always_quoted || !is_word(text) => format!("{text:?}"),
            Format::Text => text.to_owned(),
        };
        self.add(self.name(field), value);
    }

    fn name(&self, field: &Field) -> &'static str {
        let name = field.name();
        match (self.format, OWN_NAMES.iter().position(|own| *own == name)) {
            (Format::Text, _) | (Format::Json, None) => name,
            (Format::Json, Some(own)) => {
                ["level_", "time_", "scope_", "message_"].get(own).copied().unwrap_or(name)
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = text } else { self.add_text(field, &text, false) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.add_text(field, value, true);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(source) = cause {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {source}");
            cause = source.source();
        }
        self.add_text(field, &text, true);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(self.name(field), value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(self.name(field), value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(self.name(field), value.to_string());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON knows no infinity.
        if value.is_finite() {
            self.add(self.name(field), value.to_string());
        } else {
            self.add_text(field, &value.to_string(), false);
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '"')
}

fn escape_into(line: &mut String, message: &str) {
    for c in message.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
}

fn quoted_json(text: &str) -> String {
    // A string always has a JSON form.
    serde_json::to_string(text).unwrap_or_default()
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn timestamp(now: SystemTime) -> String {
    let now = OffsetDateTime::from(now);
    let (year, month, day) = (now.year(), u8::from(now.month()), now.day());
    let (hour, minute, second, micros) = (now.hour(), now.minute(), now.second(), now.microsecond());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times_have_six_digits_after_the_second() {
        assert_eq!(timestamp(UNIX_EPOCH), "1970-01-01T00:00:00.000000Z");
        let later = UNIX_EPOCH + Duration::new(1_709_210_096, 7_089_999);
        assert_eq!(timestamp(later), "2024-02-29T12:34:56.007089Z");
    }

    #[test]
    fn dropped_lines_are_told_in_both_formats() {
        assert!(dropped(Format::Text, 3).ends_with("\tcount=3\n"));
        let json: serde_json::Value = serde_json::from_str(&dropped(Format::Json, 3)).unwrap();
        assert_eq!(json["count"], 3);
    }
}
