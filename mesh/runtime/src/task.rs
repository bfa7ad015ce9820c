//! The one place where tasks are started: named, in the caller's span, their panics logged and counted.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};
use tracing::{Instrument, error};

/// Panics of tasks since the process started. A global, because a panic is a fact about the process: a task that
/// had to be handed a counter could be started without one.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Starts a task on the current runtime, in the current span. A panic in it is logged and counted, and ends only it.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn spawn<F>(name: &'static str, future: F) -> Task
where
    F: Future<Output = ()> + Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "this is the supervised spawn that all others must use")]
    let handle = tokio::spawn(Supervised { name, future }.in_current_span());
    Task { handle }
}

/// Starts a task on another runtime (a worker, say), in the current span.
pub fn spawn_on<F>(runtime: &Handle, name: &'static str, future: F) -> Task
where
    F: Future<Output = ()> + Send + 'static,
{
    Task { handle: runtime.spawn(Supervised { name, future }.in_current_span()) }
}

/// How many tasks have panicked since the process started; exported as `ambit_task_panics_total`.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// A task that was started. Dropping it lets the task run on; awaiting it says how the task ended.
#[derive(Debug)]
pub struct Task {
    handle: JoinHandle<Ended>,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It ran to its end.
    Finished,
    /// It panicked; the panic is in the log.
    Panicked,
    /// It was aborted, or its runtime was shut down.
    Aborted,
}

impl Task {
    /// Ends the task at its next await.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// A handle that can end the task while another awaits it.
    pub fn abort_handle(&self) -> AbortHandle {
        self.handle.abort_handle()
    }

    /// Has it ended?
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Ties the task to a value: it is aborted when the [`Owned`] is dropped.
    pub fn owned(self) -> Owned {
        Owned { task: self }
    }
}

impl Future for Task {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        Pin::new(&mut self.handle).poll(cx).map(|joined| match joined {
            Ok(ended) => ended,
            // The future's own panics are caught; what is left is a panic in its drop.
            Err(error) if error.is_panic() => Ended::Panicked,
            Err(_) => Ended::Aborted,
        })
    }
}

/// A task that lives no longer than this value.
#[derive(Debug)]
#[must_use = "the task is aborted when this is dropped"]
pub struct Owned {
    task: Task,
}

impl Owned {
    /// Has it ended?
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pin_project! {
    /// A future whose panic becomes a result. Hand-written, as an `async` block around the future would
    /// keep room for it twice, and a connection's task should be small.
    struct Supervised<F> {
        name: &'static str,
        #[pin]
        future: F,
    }
}

impl<F: Future<Output = ()>> Future for Supervised<F> {
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = self.project();
        // The future is never polled again after a panic, so no broken state can be seen.
        match catch_unwind(AssertUnwindSafe(|| this.future.poll(cx))) {
            Ok(poll) => poll.map(|()| Ended::Finished),
            Err(panic) => {
                PANICS.fetch_add(1, Ordering::Relaxed);
                error!(task = *this.name, panic = message(panic.as_ref()), "Task panicked");
                Poll::Ready(Ended::Panicked)
            }
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_task_runs_and_says_that_it_finished() {
        let (tx, rx) = oneshot::channel();
        let task = spawn("work", async move {
            let _ = tx.send(7);
        });
        assert_eq!(rx.await, Ok(7));
        assert_eq!(task.await, Ended::Finished);
    }

    #[tokio::test]
    async fn a_panic_is_counted_and_ends_only_its_task() {
        let before = panics();
        assert_eq!(spawn("fragile", async { panic!("no {}", 1) }).await, Ended::Panicked);
        assert!(panics() > before);
        assert_eq!(spawn("next", async {}).await, Ended::Finished);
    }

    #[tokio::test]
    async fn an_aborted_task_says_so() {
        let task = spawn("endless", std::future::pending());
        assert!(!task.is_finished());
        task.abort();
        assert_eq!(task.await, Ended::Aborted);
    }

    #[tokio::test]
    async fn an_owned_task_ends_with_its_owner() {
        let (tx, rx) = oneshot::channel::<()>();
        let owned = spawn("owned", async move {
            let _held = tx;
            std::future::pending().await
        })
        .owned();
        drop(owned);
        assert!(rx.await.is_err(), "the task's sender is dropped with it");
    }

    #[test]
    fn supervision_costs_a_few_words() {
        async fn big() {
            let kept = [0_u8; 4096];
            std::future::pending::<()>().await;
            std::hint::black_box(&kept);
        }
        let (bare, supervised) = (big(), Supervised { name: "big", future: big() });
        assert!(size_of_val(&supervised) <= size_of_val(&bare) + 32);
    }

    #[test]
    fn both_kinds_of_panic_message_are_shown() {
        assert_eq!(message(&"static"), "static");
        assert_eq!(message(&"owned".to_owned()), "owned");
        assert_eq!(message(&3), "(no message)");
    }
}
