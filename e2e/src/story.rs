//! A test that is a story: steps told one after another in one town, each with an outcome of its own.

use std::time::Duration;

use ambit_lab::mesh::{Binaries, Settings};
use anyhow::ensure;

use crate::telling::{Evidence, Telling};
use crate::town::{self, Town};
use crate::wait::Stop;

/// One step.
pub type Tell = fn(&mut Town, &mut Evidence<'_>) -> anyhow::Result<()>;

/// Tells all steps in a town of these documents; fails if one of them does not hold. Without root it is skipped, and
/// says so.
pub fn tell(
    name: &str,
    documents: &str,
    adjust: impl FnOnce(&mut Settings),
    steps: &[(&str, Tell)],
) -> anyhow::Result<()> {
    let stop = Stop::default();
    let mut telling = Telling::aloud(stop.clone());
    if !town::is_root() {
        telling.say("SKIPPED: this test makes network namespaces and must run as root");
        return Ok(());
    }
    let mut town = Town::up(name, documents, Binaries::found()?, &stop, adjust)?;
    for (title, tell) in steps {
        telling.step(title, |seen| tell(&mut town, seen));
    }
    let logs = town.last_words();
    drop(town);
    if telling.outcomes().iter().any(|outcome| outcome.failure.is_some()) {
        telling.say(&logs);
    }
    ensure!(telling.verdict(steps.len()), "a step did not hold; see above");
    Ok(())
}

/// Gigabytes of bulk, fewer in a debug build.
pub const BULK: u64 = if cfg!(debug_assertions) { 256 << 20 } else { 1 << 30 };
/// A debug build moves some tens of megabytes a second.
pub const BULK_LIMIT: Duration = Duration::from_secs(120);
