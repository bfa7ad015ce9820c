//! What is printed: aligned tables, JSON and YAML, ages, and colours where a person looks.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Standard output and error.
#[derive(Debug)]
pub(crate) struct Out {
    colours: bool,
    terminal: bool,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table.
    #[default]
    #[value(alias = "short")]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// How a word is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it is.
    Plain,
    /// All is well.
    Good,
    /// It may become well by itself.
    Wait,
    /// Someone has to do something.
    Bad,
    /// Beside the point.
    Faint,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Wait => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Faint => "\x1b[2m",
        }
    }
}

impl Out {
    /// Colours only for people, and only for those who have not said no (<https://no-color.org>).
    pub(crate) fn new(no_color: Option<&str>) -> Self {
        let terminal = io::stdout().is_terminal();
        Self { colours: terminal && no_color.is_none_or(str::is_empty), terminal }
    }

    /// Whether a person looks.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A line.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> anyhow::Result<()> {
        self.text(format!("{}\n", text.as_ref()))
    }

    /// Text as it is.
    pub(crate) fn text(&mut self, text: impl AsRef<str>) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_ref().as_bytes()).and_then(|()| stdout.flush()).context("cannot print")
    }

    /// A table, or the word for there being nothing in it.
    pub(crate) fn table(&mut self, table: &Table) -> anyhow::Result<()> {
        self.text(table.render(self.colours))
    }

    /// A value for machines.
    pub(crate) fn value(&mut self, value: &Value, format: Format) -> anyhow::Result<()> {
        let text = match format {
            Format::Yaml => serde_yaml_ng::to_string(value)?,
            Format::Json | Format::Table => format!("{}\n", serde_json::to_string_pretty(value)?),
        };
        self.text(text)
    }

    /// A word in its colour.
    pub(crate) fn toned(&self, tone: Tone, text: &str) -> String {
        toned(self.colours, tone, text)
    }

    /// What went wrong, on standard error.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let colours = self.colours && io::stderr().is_terminal();
        // Standard error may be closed: then there is nobody to tell.
        let _ = writeln!(io::stderr(), "{} {error:#}", toned(colours, Tone::Bad, "error:"));
    }
}

/// Whether the reader of a pipe has had enough.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .or_else(|| error.root_cause().downcast_ref())
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn toned(colours: bool, tone: Tone, text: &str) -> String {
    if colours && tone != Tone::Plain { format!("{}{text}\x1b[0m", tone.code()) } else { text.to_owned() }
}

/// Aligned columns. The last one is not padded.
#[derive(Debug)]
pub(crate) struct Table {
    gap: usize,
    rows: Vec<Vec<(String, Tone)>>,
}

impl Table {
    /// Columns with that many spaces between them.
    pub(crate) fn new(gap: usize, head: &[&str]) -> Self {
        let head = head.iter().map(|title| ((*title).to_owned(), Tone::Plain));
        Self { gap, rows: vec![head.collect()] }
    }

    /// Adds a row.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|cell| (cell.into(), Tone::Plain)).collect());
    }

    /// Adds a row with tones.
    pub(crate) fn toned_row(&mut self, cells: Vec<(String, Tone)>) {
        self.rows.push(cells);
    }

    /// The text.
    pub(crate) fn render(&self, colours: bool) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|(cell, _)| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (place, ((cell, tone), width)) in row.iter().zip(&widths).enumerate() {
                line.push_str(&toned(colours, *tone, cell));
                if place + 1 < row.len() {
                    line.push_str(&" ".repeat(width - cell.chars().count() + self.gap));
                }
            }
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

/// `a, b and 3 more`: a list that may be long, in a sentence.
pub(crate) fn few(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let (shown, rest) = names.split_at(names.len().min(SHOWN));
    match rest.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A moment as it is written in JSON.
pub(crate) fn rfc3339(moment: OffsetDateTime) -> String {
    moment.replace_nanosecond(0).unwrap_or(moment).format(&Rfc3339).unwrap_or_default()
}

/// A moment from JSON.
pub(crate) fn moment(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// `35s`, `4m`, `3h12m`, `2d5h`: how long it is from `then` to `now`.
pub(crate) fn age(then: OffsetDateTime, now: OffsetDateTime) -> String {
    let seconds = (now - then).whole_seconds().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) if minutes < 10 => format!("{minutes}m{:02}s", seconds % 60),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        (_, _, _) => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_the_last_is_not_padded() {
        let mut table = Table::new(1, &["NAME", "IP", "NODE"]);
        table.row(["web-1", "10.0.0.1", "a"]);
        table.row(["é", "", "node-b"]);
        assert_eq!(table.render(false), "NAME  IP       NODE\nweb-1 10.0.0.1 a\né              node-b\n");
    }

    #[test]
    fn colours_do_not_disturb_the_columns() {
        let mut table = Table::new(2, &["STATE", "X"]);
        table.toned_row(vec![("ok".to_owned(), Tone::Good), ("1".to_owned(), Tone::Plain)]);
        assert_eq!(table.render(true), "STATE  X\n\x1b[32mok\x1b[0m     1\n");
        assert!(!table.render(false).contains('\x1b'));
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<_> = ["a", "b", "c", "d", "e", "f"].map(str::to_owned).into();
        assert_eq!(few(&names), "a, b, c, d and 2 more");
        assert_eq!(few(&names[..1]), "a");
        assert_eq!(few(&[]), "");
    }

    #[test]
    fn ages_are_short() {
        let now = moment("2026-01-10T12:00:00Z").unwrap();
        for (then, age_said) in [
            ("2026-01-10T11:59:25Z", "35s"),
            ("2026-01-10T11:55:55Z", "4m05s"),
            ("2026-01-10T11:15:00Z", "45m"),
            ("2026-01-10T08:48:00Z", "3h12m"),
            ("2026-01-08T07:00:00Z", "2d05h"),
            ("2026-01-10T12:00:09Z", "0s"),
        ] {
            assert_eq!(age(moment(then).unwrap(), now), age_said);
        }
    }
}
