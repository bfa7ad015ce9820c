//! What the application says: JSON objects, one a line, on standard output.

use std::io::{self, Write as _};

use tokio::signal::unix::{SignalKind, signal};

/// What a client found; its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All went well: status 0.
    Good,
    /// Something failed, and was reported: status 1.
    Bad,
}

impl Verdict {
    /// Good if `all_well`.
    pub(crate) fn of(all_well: bool) -> Self {
        if all_well { Self::Good } else { Self::Bad }
    }
}

/// Prints one object. Whoever closed our output wants no more of it.
pub(crate) fn line(value: &serde_json::Value) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

/// Completes when someone asks us to stop.
pub(crate) async fn stopped() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Milliseconds, with three places.
pub(crate) fn millis(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
