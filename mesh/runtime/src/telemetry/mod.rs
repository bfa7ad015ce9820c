//! Logs: one line an event, in text or JSON, to standard output without ever blocking the one who logs.

mod filter;
mod line;
mod output;

use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

pub use self::filter::{Filter, InvalidFilter};
pub use self::output::Flush;

use self::line::{Lines, Listener};
use self::output::Output;
use crate::admin::{Method, Pages, Request, Response};

/// Starts logging to standard output, for the whole process. Keep the [`Flush`] until the end of `main`.
pub fn init(format: Format, filter: Filter) -> Result<(LogControl, Flush), InitError> {
    let (subscriber, control, flush) = to_writer(format, filter, std::io::stdout());
    subscriber.try_init().map_err(|_| InitError)?;
    Ok((control, flush))
}

/// The same to any writer, and only for those who install the subscriber; tests write to memory.
pub fn to_writer(
    format: Format,
    filter: Filter,
    writer: impl Write + Send + 'static,
) -> (impl Subscriber + Send + Sync, LogControl, Flush) {
    let output = Arc::new(Output::start(writer, move |count| line::dropped(format, count)));
    let (targets, handle) = reload::Layer::new(filter.targets());
    let listener = Arc::<Listener>::default();
    let lines = Lines::new(format, output.clone(), listener.clone());
    let subscriber = tracing_subscriber::registry().with(targets).with(lines);
    let current = Arc::new(Mutex::new(filter.clone()));
    let control = LogControl { handle, initial: filter, current, output: output.clone(), listener };
    (subscriber, control, Flush::new(output))
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Columns separated by tabs: time, level, scope, message, then `key=value` pairs.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// A log format that is neither of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("accepted: text, json")]
pub struct InvalidFormat;

impl FromStr for Format {
    type Err = InvalidFormat;

    fn from_str(text: &str) -> Result<Self, InvalidFormat> {
        match text.trim() {
            "" | "text" | "plain" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(InvalidFormat),
        }
    }
}

/// Logging was already started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("logging was started twice in this process; start it in main only")]
pub struct InitError;

/// Changes what is logged while the process runs.
#[derive(Clone)]
pub struct LogControl {
    handle: reload::Handle<Targets, Registry>,
    initial: Filter,
    current: Arc<Mutex<Filter>>,
    output: Arc<Output>,
    listener: Arc<Listener>,
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl").field("current", &self.current()).finish_non_exhaustive()
    }
}

impl LogControl {
    /// What is logged now.
    pub fn current(&self) -> Filter {
        self.locked().clone()
    }

    /// Changes what `change` names, and nothing else: `debug`, or `access:warn,ambit_wire::xds:trace`.
    pub fn set(&self, change: &str) -> Result<(), SetError> {
        let mut current = self.locked();
        let changed = current.with(change)?;
        self.apply(&mut current, changed)
    }

    /// Back to what was set at the start.
    pub fn reset(&self) -> Result<(), SetError> {
        self.apply(&mut self.locked(), self.initial.clone())
    }

    /// From now on `tell` is told of each access record that is logged, and must not take long. Only the first counts.
    ///
    /// An access record whose first field is `line` is logged as that line, and nothing else.
    pub fn on_access(&self, tell: impl Fn(&Event<'_>) + Send + Sync + 'static) {
        // A second one has no place; nobody asks for it.
        let _ = self.listener.set(Box::new(tell));
    }

    /// Lines that were lost since the start, as nobody took them from us fast enough.
    pub fn dropped(&self) -> u64 {
        self.output.dropped()
    }

    /// Adds `POST /logging` to a server's pages: `?level=…` as for [`LogControl::set`], `?reset`.
    pub fn pages(&self, pages: Pages) -> Pages {
        let control = self.clone();
        let about = "changes what is logged: ?level=debug, ?level=scope:trace,other:info, ?reset";
        pages.page(Method::POST, "/logging", about, move |request| control.answer(&request))
    }

    fn answer(&self, request: &Request) -> Response {
        let reset = request.query("reset").map_or(Ok(()), |_| self.reset());
        let done = reset.and_then(|()| request.query("level").map_or(Ok(()), |level| self.set(&level)));
        match done {
            Ok(()) => Response::text(format!("current log level is {}\n", self.current())),
            Err(error) => Response::text(format!("{error}\n")).with_status(StatusCode::BAD_REQUEST),
        }
    }

    fn apply(&self, current: &mut Filter, changed: Filter) -> Result<(), SetError> {
        self.handle.reload(changed.targets()).map_err(|_| SetError::Ended)?;
        *current = changed;
        Ok(())
    }

    fn locked(&self) -> MutexGuard<'_, Filter> {
        // A filter is replaced whole, so it is good even if a holder panicked.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is logged could not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// The change cannot be read.
    #[error(transparent)]
    Invalid(#[from] InvalidFilter),
    /// The subscriber is gone: the process is about to end.
    #[error("logging has ended")]
    Ended,
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::io;
    use std::time::Duration;
    use tracing::{Level, debug, error, event, info, info_span, trace, warn};

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `scene` logs, line by line, each without its time.
    fn logged(format: Format, scene: impl FnOnce(&LogControl)) -> Vec<String> {
        let memory = Memory::default();
        let (subscriber, control, flush) = to_writer(format, Filter::default(), memory.clone());
        tracing::subscriber::with_default(subscriber, || scene(&control));
        assert!(flush.now(Duration::from_secs(10)), "flushed");
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn without_time(line: &str) -> &str {
        let (time, rest) = line.split_once('\t').unwrap();
        assert_eq!(time.len(), "2026-08-20T10:11:12.123456Z".len(), "{time}");
        assert!(time::OffsetDateTime::parse(time, &time::format_description::well_known::Rfc3339).is_ok());
        rest
    }

    #[test]
    fn a_text_line_has_time_level_scope_message_and_fields() {
        let lines = logged(Format::Text, |_| {
            event!(
                target: "access", Level::INFO, src.addr = %"10.0.0.1:4000", src.workload = "curl-1", bytes_sent = 200_u64,
                duration = "2ms", "connection complete"
            );
            warn!(target: "plain", "No fields");
        });
        let record = "info\taccess\tconnection complete\tsrc.addr=10.0.0.1:4000 src.workload=\"curl-1\" \
            bytes_sent=200 duration=\"2ms\"";
        assert_eq!(without_time(&lines[0]), record);
        assert_eq!(without_time(&lines[1]), "warn\tplain\tNo fields");
    }

    #[test]
    fn one_event_is_one_line_whatever_it_says() {
        let lines = logged(Format::Text, |_| {
            let evil = "a\"b\nc\td";
            error!(target: "t", quoted = evil, shown = %evil, odd = %"two words", "A {evil}");
        });
        assert_eq!(
            without_time(&lines[0]),
            "error\tt\tA a\"b\\nc\\td\tquoted=\"a\\\"b\\nc\\td\" shown=\"a\\\"b\\nc\\td\" odd=\"two words\""
        );
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn spans_add_their_fields_but_not_to_access_records() {
        let lines = logged(Format::Text, |_| {
            let span = info_span!("proxy", pod.uid = "u1", client = tracing::field::Empty);
            span.record("client", 7);
            let _entered = span.entered();
            event!(target: "t", Level::INFO, pod.uid = "mine", "Inside");
            info!(target: "access", "connection opened");
        });
        assert_eq!(without_time(&lines[0]), "info\tt\tInside\tpod.uid=\"mine\" client=7");
        assert_eq!(without_time(&lines[1]), "info\taccess\tconnection opened");
    }

    #[test]
    fn an_access_record_can_bring_its_line_and_somebody_else_is_told() {
        for format in [Format::Text, Format::Json] {
            let heard = Arc::new(Mutex::new(0));
            let count = heard.clone();
            let lines = logged(format, |control| {
                control.on_access(move |_| *count.lock().unwrap() += 1);
                info!(target: "access", line = "GET / 200 \n forged", status = 200);
                info!(target: "access", line = tracing::field::Empty, "request complete");
                info!(target: "other", line = "kept");
                control.set("access:off").unwrap();
                info!(target: "access", line = "not logged");
            });
            assert_eq!(lines[0], "GET / 200 \\n forged");
            assert!(lines[1].contains("request complete") && lines[2].contains("kept"), "{lines:?}");
            assert_eq!((lines.len(), *heard.lock().unwrap()), (3, 2));
        }
    }

    #[test]
    fn a_json_line_is_an_object_with_the_fields() {
        let lines = logged(Format::Json, |_| {
            let _entered = info_span!("proxy", pod.uid = "u1").entered();
            let source = io::Error::other("disk \"full\"");
            let error: &(dyn std::error::Error + 'static) = &source;
            info!(target: "t", n = -3, big = 1.5, yes = true, level = "mine", error, addr = %"[::1]:1", "It \"happens\"");
        });
        let mut line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        let time = line.as_object_mut().unwrap().remove("time").unwrap();
        assert!(time.as_str().unwrap().ends_with('Z'));
        let expected = serde_json::json!({
            "level": "info", "scope": "t", "message": "It \"happens\"", "n": -3, "big": 1.5, "yes": true,
            "level_": "mine", "error": "disk \"full\"", "addr": "[::1]:1", "pod.uid": "u1"
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn levels_change_while_it_runs() {
        let lines = logged(Format::Text, |control| {
            let all = || {
                debug!(target: "mod", "1");
                trace!(target: "mod::inner", "2");
                info!(target: "h2::codec", "3");
                warn!(target: "h2::codec", "4");
            };
            all();
            control.set("debug").unwrap();
            all();
            control.set("mod::inner:trace,h2=error").unwrap();
            all();
            assert!(control.set("mod:loud").is_err());
            control.reset().unwrap();
            assert_eq!(control.current(), Filter::default());
            all();
        });
        let messages: Vec<_> = lines.iter().map(|line| line.rsplit('\t').next().unwrap()).collect();
        assert_eq!(messages, ["4", "1", "4", "1", "2", "4"]);
    }

    #[test]
    fn the_admin_page_sets_and_resets() {
        let post = |control: &LogControl, query: &str| {
            let request = http::Request::post(format!("/logging{query}")).body(Bytes::new()).unwrap();
            let response = control.answer(&request.into());
            (response.status().as_u16(), String::from_utf8(response.body().to_vec()).unwrap())
        };
        logged(Format::Text, |control| {
            let initial = "info,h2=warn,hyper=warn,hyper_util=warn,rustls=warn,tonic=warn,tower=warn\n";
            let said = |level: &str| (200, format!("current log level is {level}"));
            assert_eq!(post(control, ""), said(initial));
            assert_eq!(
                post(control, "?level=access:off").1,
                said(&initial.replace("info,", "info,access=off,")).1
            );
            assert_eq!(post(control, "?reset&level=debug"), said(&initial.replace("info", "debug")));
            assert_eq!(post(control, "?reset"), said(initial));
            let (status, help) = post(control, "?level=loud");
            assert!(status == 400 && help.contains("\"loud\"") && help.contains("trace"), "{help}");
        });
    }

    #[test]
    fn formats_are_named_text_and_json() {
        assert_eq!("".parse(), Ok(Format::Text));
        assert_eq!("plain".parse(), Ok(Format::Text));
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("xml".parse::<Format>(), Err(InvalidFormat));
    }
}
