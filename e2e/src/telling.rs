//! Tells a story: each step with what was done and what was seen, and at the end whether all of it held.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::wait::Stop;

/// A story being told.
#[must_use = "a story ends with a verdict"]
pub struct Telling {
    out: Box<dyn Write>,
    stop: Stop,
    colours: bool,
    begun: Instant,
    outcomes: Vec<Outcome>,
}

/// What came of a step.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What it is about.
    pub title: String,
    /// Why its evidence does not hold; `None` when it does.
    pub failure: Option<String>,
    /// How long it took.
    pub took: Duration,
}

/// What a step has done and seen so far.
pub struct Evidence<'a> {
    out: &'a mut dyn Write,
    colours: bool,
}

#[derive(Clone, Copy)]
enum Ink {
    Bold,
    Dim,
    Green,
    Red,
}

impl Telling {
    /// Tells on standard output. Colours are for terminals.
    pub fn aloud(stop: Stop) -> Self {
        let colours = io::IsTerminal::is_terminal(&io::stdout());
        Self { out: Box::new(io::stdout()), stop, colours, begun: Instant::now(), outcomes: Vec::new() }
    }

    /// One step. One that fails is told, and the next begins; only what was asked to stop stops.
    pub fn step(&mut self, title: &str, tell: impl FnOnce(&mut Evidence<'_>) -> anyhow::Result<()>) {
        if self.stop.asked() {
            return;
        }
        let number = self.outcomes.len() + 1;
        let head = painted(self.colours, Ink::Bold, &format!("{number}. {title}"));
        line(&mut self.out, &format!("\n{head}"));
        let begun = Instant::now();
        let told = tell(&mut Evidence { out: &mut self.out, colours: self.colours });
        if self.stop.asked() {
            return line(&mut self.out, "   Stopped on request.");
        }
        let took = begun.elapsed();
        let failure = told.err().map(|err| format!("{err:#}"));
        if let Some(failure) = &failure {
            let word = painted(self.colours, Ink::Red, "FAILED");
            line(&mut self.out, &format!("   {word} {}", failure.replace('\n', "\n     ")));
        }
        let took_shown = painted(self.colours, Ink::Dim, &format!("({:.1} s)", took.as_secs_f64()));
        line(&mut self.out, &format!("   {took_shown}"));
        self.outcomes.push(Outcome { title: title.to_owned(), failure, took });
    }

    /// Says something between the steps.
    pub fn say(&mut self, text: &str) {
        line(&mut self.out, text);
    }

    /// The story so far.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// Ends the story: every step again in one line, and whether all `expected` of them were told and held.
    pub fn verdict(mut self, expected: usize) -> bool {
        let failed = self.outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
        let untold = expected.saturating_sub(self.outcomes.len());
        let mut text = String::from("\n");
        for (place, outcome) in self.outcomes.iter().enumerate() {
            let word = match outcome.failure {
                None => painted(self.colours, Ink::Green, "held  "),
                Some(_) => painted(self.colours, Ink::Red, "FAILED"),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {word} {:>2}. {}", place + 1, outcome.title);
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        let verdict = match (failed, untold) {
            (0, 0) => format!("All {expected} steps held, in {seconds:.0} seconds."),
            (0, _) => format!("Not finished: {untold} of {expected} steps were not told."),
            _ => format!("{failed} of {expected} steps did not hold."),
        };
        let ink = if failed + untold == 0 { Ink::Green } else { Ink::Red };
        line(&mut self.out, &format!("{text}{}", painted(self.colours, ink, &verdict)));
        failed + untold == 0
    }
}

impl Evidence<'_> {
    /// Tells what is done.
    pub fn did(&mut self, text: impl AsRef<str>) {
        line(self.out, &format!("   {}", text.as_ref()));
    }

    /// Tells what was seen.
    pub fn saw(&mut self, text: impl AsRef<str>) {
        let mark = painted(self.colours, Ink::Green, "✓");
        line(self.out, &format!("   {mark} {}", text.as_ref()));
    }

    /// Shows the words of a program.
    pub fn quote(&mut self, text: &str) {
        for quoted in text.lines() {
            line(self.out, &format!("     {}", painted(self.colours, Ink::Dim, quoted)));
        }
    }
}

/// Whoever closed our output wants no more of it; the exit status still tells.
fn line(out: &mut dyn Write, text: &str) {
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn painted(colours: bool, ink: Ink, text: &str) -> String {
    let code = match ink {
        Ink::Bold => "1",
        Ink::Dim => "2",
        Ink::Green => "32",
        Ink::Red => "31",
    };
    if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Telling {
        let out: Box<dyn Write> = Box::new(io::sink());
        Telling { out, stop: Stop::default(), colours: false, begun: Instant::now(), outcomes: Vec::new() }
    }

    #[test]
    fn a_story_holds_when_every_step_was_told_and_held() {
        let mut telling = silent();
        telling.step("one", |_| Ok(()));
        telling.step("two", |_| Ok(()));
        assert!(telling.verdict(2));

        let mut telling = silent();
        telling.step("one", |_| Ok(()));
        assert!(!telling.verdict(2), "a step is missing");

        let mut telling = silent();
        telling.step("one", |_| anyhow::bail!("no"));
        telling.step("two", |_| Ok(()));
        assert_eq!(telling.outcomes()[0].failure.as_deref(), Some("no"));
        assert!(!telling.verdict(2));
    }
}
