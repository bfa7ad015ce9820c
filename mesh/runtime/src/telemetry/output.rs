//! A bounded buffer between those who log and a thread that writes: nobody waits for a slow reader of the log.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::debug;

/// Text that may wait to be written: some thousand records, a second of a busy node.
const LIMIT: usize = 1024 * 1024;

/// With this much waiting, the writer does not linger.
const PLENTY: usize = 64 * 1024;

/// How long the writer waits for company to the first line: one wake-up then serves a hundred records
/// of a busy tunnel, and nobody sees the delay.
const LINGER: Duration = Duration::from_millis(10);

/// How long a writer that cannot take more is left alone.
const RETRY: Duration = Duration::from_millis(5);

/// What the end of the process may take to bring the last lines out.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The buffer, and the thread that empties it. The thread ends when this is dropped.
pub(super) struct Output {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    writing: bool,
    unreported: u64,
    hurry: bool,
    ended: bool,
}

impl Output {
    /// Starts the thread. `report` makes the line that tells of dropped ones.
    pub(super) fn start(
        writer: impl Write + Send + 'static,
        report: impl Fn(u64) -> String + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let theirs = shared.clone();
        let started = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || theirs.write_all_to(writer, &report));
        if let Err(error) = started {
            // Without the thread every line counts as dropped once the buffer is full; nothing else suffers.
            debug!(%error, "Log thread could not be started");
        }
        Self { shared }
    }

    /// Adds a line, or drops it when too much waits already.
    pub(super) fn push(&self, line: &str) {
        let mut state = self.shared.locked();
        let (before, after) = (state.waiting.len(), state.waiting.len() + line.len());
        if after > LIMIT {
            state.unreported += 1;
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.waiting.extend_from_slice(line.as_bytes());
        drop(state);
        if before == 0 || (before < PLENTY && after >= PLENTY) {
            self.shared.filled.notify_one();
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all is written, but not longer than `limit`. Says whether it is.
    fn flush(&self, limit: Duration) -> bool {
        let mut state = self.shared.locked();
        state.hurry = true;
        self.shared.filled.notify_one();
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        let waited = self.shared.emptied.wait_timeout_while(state, limit, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.shared.locked().ended = true;
        self.shared.filled.notify_one();
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole, so it is good even if a holder panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all_to(&self, mut writer: impl Write, report: &impl Fn(u64) -> String) {
        let mut batch = Vec::new();
        while self.take(&mut batch, report) {
            if let Err(lost) = write_patiently(&mut writer, &batch) {
                self.dropped.fetch_add(lost, Ordering::Relaxed);
                self.locked().unreported += lost;
            }
            batch.clear();
            // A burst should not cost memory for ever.
            batch.shrink_to(PLENTY);
            self.locked().writing = false;
            self.emptied.notify_all();
        }
    }

    /// Waits for lines and takes them all; false when there are none and there will be none.
    fn take(&self, batch: &mut Vec<u8>, report: &impl Fn(u64) -> String) -> bool {
        let empty = |state: &mut State| state.waiting.is_empty() && !state.ended;
        let state = self.filled.wait_while(self.locked(), empty).unwrap_or_else(PoisonError::into_inner);
        let few = |state: &mut State| state.waiting.len() < PLENTY && !state.hurry && !state.ended;
        let lingered = self.filled.wait_timeout_while(state, LINGER, few);
        let (mut state, _) = lingered.unwrap_or_else(PoisonError::into_inner);
        if state.waiting.is_empty() {
            return false;
        }
        std::mem::swap(&mut state.waiting, batch);
        (state.writing, state.hurry) = (true, false);
        let unreported = std::mem::take(&mut state.unreported);
        drop(state);
        if unreported > 0 {
            batch.extend_from_slice(report(unreported).as_bytes());
        }
        true
    }
}

/// Writes all of `batch`, waiting for a writer that is full for now; on an error, the number of lines that were lost.
fn write_patiently(writer: &mut impl Write, batch: &[u8]) -> Result<(), u64> {
    let mut rest = batch;
    loop {
        let result =
            if rest.is_empty() { writer.flush().map(|()| None) } else { writer.write(rest).map(Some) };
        match result {
            Ok(None) => return Ok(()),
            Ok(Some(0)) => return Err(lines(rest)),
            Ok(Some(written)) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::park_timeout(RETRY),
            Err(_) => return Err(lines(rest)),
        }
    }
}

fn lines(text: &[u8]) -> u64 {
    let count = text.iter().filter(|byte| **byte == b'\n').count();
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Brings the last lines out when it is dropped, at the end of `main`.
#[derive(Debug)]
#[must_use = "the last lines are lost unless this is kept until the end of main"]
pub struct Flush {
    output: Arc<Output>,
}

impl Flush {
    pub(super) fn new(output: Arc<Output>) -> Self {
        Self { output }
    }

    /// Waits until all that was logged is written, but not longer than `limit`. Says whether it is.
    pub fn now(&self, limit: Duration) -> bool {
        self.output.flush(limit)
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.output.flush(LAST_LINES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// A writer that says when it was entered, and writes when it is let.
    struct Gated {
        entered: mpsc::Sender<()>,
        gate: mpsc::Receiver<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.entered.send(());
            // A closed gate is an open one.
            let _ = self.gate.recv();
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_logs_never_waits_and_what_is_lost_is_reported() {
        let ((entered, seen), (open, gate), (written, texts)) =
            (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let output = Output::start(Gated { entered, gate, written }, |count| format!("dropped {count}\n"));
        output.push("first\n");
        seen.recv_timeout(DEADLINE).unwrap();
        // The writer is stuck with the first line; a megabyte fits behind it, the rest does not.
        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..1024 + 5 {
            output.push(&line);
        }
        assert_eq!(output.dropped(), 5);
        drop(open);
        assert!(output.flush(DEADLINE));
        let text: Vec<u8> = texts.try_iter().flatten().collect();
        assert_eq!(lines(&text), 1 + 1024 + 1);
        assert!(text.ends_with(b"x\ndropped 5\n"));
    }

    #[test]
    fn a_flush_gives_up_on_a_writer_that_is_stuck() {
        let ((entered, seen), (open, gate), (written, _texts)) =
            (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let output = Output::start(Gated { entered, gate, written }, |_| String::new());
        output.push("line\n");
        seen.recv_timeout(DEADLINE).unwrap();
        assert!(!output.flush(Duration::from_millis(20)));
        drop(open);
        assert!(output.flush(DEADLINE));
    }

    #[test]
    fn what_was_logged_is_written_after_the_end() {
        let ((entered, _seen), (_, gate), (written, texts)) =
            (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let output = Output::start(Gated { entered, gate, written }, |_| String::new());
        output.push("last\n");
        drop(output);
        assert_eq!(texts.recv_timeout(DEADLINE).unwrap(), b"last\n");
        assert!(texts.recv_timeout(DEADLINE).is_err(), "the thread has ended");
    }

    struct Moody {
        moods: Vec<io::Result<usize>>,
        written: Vec<u8>,
    }

    impl Write for Moody {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = self.moods.pop().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
            self.written.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_pipe_is_waited_for_and_a_broken_one_is_not() {
        let moods =
            vec![Ok(2), Err(io::ErrorKind::WouldBlock.into()), Err(io::ErrorKind::Interrupted.into()), Ok(1)];
        let mut writer = Moody { moods, written: Vec::new() };
        assert_eq!(write_patiently(&mut writer, b"a\nbc\n"), Ok(()));
        assert_eq!(writer.written, b"a\nbc\n");
        let moods = vec![Err(io::ErrorKind::BrokenPipe.into()), Ok(2)];
        let mut writer = Moody { moods, written: Vec::new() };
        assert_eq!(write_patiently(&mut writer, b"a\nb\nc\n"), Err(2));
    }
}
