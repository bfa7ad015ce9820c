//! What is told while a playground is brought up: on a terminal each step with a running clock, elsewhere plain lines.
//! The supervisor tells the one who started it through a pipe, a JSON line an event.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::output::{Out, Tone};

/// How often the clock moves.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Event {
    /// A step begins, and with it the one before ends.
    Step(String),
    /// All is up.
    Up { summary: String },
    /// It will not be.
    Failed(String),
}

/// Shows events to a person, or to a file.
#[derive(Debug)]
pub(super) struct Progress {
    step: Option<(String, Instant)>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { step: None }
    }

    /// Shows an event.
    pub(super) fn event(&mut self, event: &Event, out: &mut Out) -> anyhow::Result<()> {
        match event {
            Event::Step(words) => {
                self.finish(true, out)?;
                self.step = Some((words.clone(), Instant::now()));
                self.tick(out)
            }
            Event::Up { .. } => self.finish(true, out),
            Event::Failed(_) => self.finish(false, out),
        }
    }

    /// Moves the clock, where there is one.
    pub(super) fn tick(&self, out: &mut Out) -> anyhow::Result<()> {
        match &self.step {
            Some((words, since)) if out.is_terminal() => {
                let mark = out.toned(Tone::Wait, "…");
                out.text(format!("\r{mark} {words}  {}\x1b[K", seconds(since.elapsed())))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn finish(&mut self, well: bool, out: &mut Out) -> anyhow::Result<()> {
        let Some((words, since)) = self.step.take() else { return Ok(()) };
        let took = seconds(since.elapsed());
        if out.is_terminal() {
            let mark = if well { out.toned(Tone::Good, "✓") } else { out.toned(Tone::Bad, "✗") };
            return out.text(format!("\r{mark} {words}  {took}\x1b[K\n"));
        }
        out.line(format!("{words}: {} after {took}", if well { "done" } else { "failed" }))
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1}s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_the_pipe() {
        for event in [
            Event::Step("controller".to_owned()),
            Event::Up { summary: "2 nodes".to_owned() },
            Event::Failed("a\nb".to_owned()),
        ] {
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        }
    }
}
