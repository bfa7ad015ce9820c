//! Worker threads that share nothing: each runs a tokio runtime of its own, so that a connection, its
//! tunnel and its timers stay on one core.

use std::io;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tracing::warn;

/// Tasks polled between two looks at the sockets. A proxy's polls are long (a TLS record or two each), so tokio's
/// 61 would let fresh connections wait for over a millisecond; one `epoll_wait` in 24 polls is lost in the noise.
const EVENT_INTERVAL: u32 = 24;

/// Tasks polled between two looks at what other threads sent (new configuration, a new pod): rare, so seldom.
const REMOTE_INTERVAL: u32 = 61;

/// Threads for file reads and name look-ups, per worker. Both are rare and short.
const BLOCKING_THREADS: usize = 2;

/// What dropped workers may take to stop; a worker is only late when a task blocks its thread.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

/// More workers than this is a typing error: no node has more cores to spare for its tunnel.
const MOST: usize = 256;

/// The running workers. Dropping them stops them, and all that runs on them.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    threads: Vec<Thread>,
    stop: watch::Sender<bool>,
}

#[derive(Debug)]
struct Thread {
    join: JoinHandle<()>,
    ended: mpsc::Receiver<()>,
}

/// How workers ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// All threads have ended, and every task with them.
    All,
    /// Some threads were still busy at the deadline and were left behind.
    Late {
        /// How many.
        left: usize,
    },
}

impl Workers {
    /// Starts `count` workers; their threads are called `name-0`, `name-1`, …
    pub fn start(count: NonZeroUsize, name: &str) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut workers = Self { handles: Vec::new(), threads: Vec::new(), stop };
        for index in 0..count.get() {
            let runtime = runtime()?;
            workers.handles.push(runtime.handle().clone());
            workers.threads.push(thread(runtime, format!("{name}-{index}"), stopped.clone())?);
        }
        Ok(workers)
    }

    /// One handle per worker, to start tasks with [`crate::task::spawn_on`].
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// Stops all workers: tasks are dropped at their current await. Blocks the caller for up to `deadline`, so drain first.
    pub fn shutdown(mut self, deadline: Duration) -> Stopped {
        self.stop_by(deadline)
    }

    fn stop_by(&mut self, deadline: Duration) -> Stopped {
        self.stop.send_replace(true);
        let until = Instant::now() + deadline;
        let mut left = 0;
        for thread in self.threads.drain(..) {
            let time = until.saturating_duration_since(Instant::now());
            match thread.ended.recv_timeout(time) {
                Err(mpsc::RecvTimeoutError::Timeout) => left += 1,
                // The sender goes last of all that the thread owns, so the join is short.
                Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                    if thread.join.join().is_err() {
                        warn!("Worker thread ended by a panic");
                    }
                }
            }
        }
        if left == 0 { Stopped::All } else { Stopped::Late { left } }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Stopped::Late { left } = self.stop_by(DROP_DEADLINE) {
            warn!(workers = left, "Worker threads are stuck and were left behind");
        }
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .global_queue_interval(REMOTE_INTERVAL)
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
}

fn thread(runtime: Runtime, name: String, mut stop: watch::Receiver<bool>) -> io::Result<Thread> {
    let (running, ended) = mpsc::channel::<()>();
    let join = std::thread::Builder::new().name(name).spawn(move || {
        // An error means that the workers are gone, which is a reason to stop too.
        let _ = runtime.block_on(stop.wait_for(|stop| *stop));
        // Not waiting for blocking calls: a name look-up may hang for longer than anyone's patience.
        runtime.shutdown_background();
        drop(running);
    })?;
    Ok(Thread { join, ended })
}

/// What the operator asked for: `4`, or `50%` of the CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// That many.
    Count(NonZeroUsize),
    /// A share of the CPUs (of the CPU limit, when there is one), rounded up.
    Percent(NonZeroUsize),
}

/// A worker setting that is neither a number nor a percentage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("accepted: a number of threads from 1 to {MOST}, or a percentage of the CPUs such as 50%")]
pub struct InvalidSetting;

impl FromStr for Setting {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let text = text.trim();
        let (number, kind): (_, fn(NonZeroUsize) -> Self) = match text.strip_suffix('%') {
            Some(percent) => (percent.trim_end(), Self::Percent),
            None => (text, Self::Count),
        };
        let number = number.parse::<NonZeroUsize>().map_err(|_| InvalidSetting)?;
        if number.get() > MOST { Err(InvalidSetting) } else { Ok(kind(number)) }
    }
}

/// How many workers to start. `limit` and `request` are the container's CPUs (rounded up), `cpus` those of the machine.
/// Without a setting: the limit if there is one, else two, a quarter of the machine or the request, whichever is most.
pub fn threads(
    limit: Option<NonZeroUsize>,
    request: Option<NonZeroUsize>,
    cpus: NonZeroUsize,
    setting: Option<Setting>,
) -> NonZeroUsize {
    let wanted = match setting {
        Some(Setting::Count(count)) => count.get(),
        Some(Setting::Percent(percent)) => share(limit.unwrap_or(cpus), percent.get()),
        None => match limit {
            Some(limit) => limit.get(),
            None => share(cpus, 25).max(2).max(request.map_or(0, NonZeroUsize::get)),
        },
    };
    NonZeroUsize::new(wanted.min(MOST)).unwrap_or(NonZeroUsize::MIN)
}

fn share(cpus: NonZeroUsize, percent: usize) -> usize {
    cpus.get().saturating_mul(percent).div_ceil(100)
}

/// The CPUs that this process may run on.
pub fn cpus() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task;
    use tokio::net::{TcpListener, TcpStream};

    fn n(count: usize) -> NonZeroUsize {
        NonZeroUsize::new(count).unwrap()
    }

    #[test]
    fn the_number_of_threads_follows_setting_then_limit_then_machine() {
        let cases = [
            // limit, request, cpus, setting, expected
            (None, None, 1, None, 2),
            (None, None, 8, None, 2),
            (None, None, 9, None, 3),
            (None, None, 64, None, 16),
            (None, Some(5), 8, None, 5),
            (None, Some(1), 64, None, 16),
            (Some(1), Some(1), 64, None, 1),
            (Some(6), None, 64, None, 6),
            (Some(6), None, 64, Some("3"), 3),
            (None, None, 10, Some("25%"), 3),
            (Some(4), None, 64, Some("50%"), 2),
            (None, None, 2, Some("1%"), 1),
            (None, None, 4, Some("200%"), 8),
            (None, None, 5000, None, MOST),
        ];
        for (limit, request, cpus, setting, expected) in cases {
            let parsed = setting.map(|text| text.parse().unwrap());
            let got = threads(limit.map(n), request.map(n), n(cpus), parsed);
            assert_eq!(got.get(), expected, "{limit:?} {request:?} {cpus} {setting:?}");
        }
    }

    #[test]
    fn a_setting_is_a_number_or_a_percentage() {
        assert_eq!("4".parse(), Ok(Setting::Count(n(4))));
        assert_eq!(" 50 % ".parse(), Ok(Setting::Percent(n(50))));
        for text in ["", "0", "0%", "%", "-1", "1.5", "many", "257"] {
            assert_eq!(text.parse::<Setting>(), Err(InvalidSetting), "{text}");
        }
    }

    #[test]
    fn each_worker_has_its_own_thread_with_sockets_and_timers() {
        let workers = Workers::start(n(3), "amb-test").unwrap();
        assert_eq!((workers.count(), workers.handles().len()), (3, 3));
        let (tx, rx) = mpsc::channel();
        for handle in workers.handles() {
            let tx = tx.clone();
            task::spawn_on(handle, "where", async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                tx.send(std::thread::current().name().unwrap().to_owned()).unwrap();
            });
        }
        let mut names: Vec<_> = (0..3).map(|_| rx.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        names.sort();
        assert_eq!(names, ["amb-test-0", "amb-test-1", "amb-test-2"]);
        assert_eq!(workers.shutdown(Duration::from_secs(10)), Stopped::All);
    }

    #[test]
    fn a_shutdown_drops_what_still_runs() {
        let workers = Workers::start(n(1), "amb-test").unwrap();
        let (held, dropped) = mpsc::channel::<()>();
        task::spawn_on(&workers.handles()[0], "endless", async move {
            let _held = held;
            std::future::pending().await
        });
        assert_eq!(workers.shutdown(Duration::from_secs(10)), Stopped::All);
        assert_eq!(dropped.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }

    #[test]
    fn a_stuck_worker_does_not_hold_the_shutdown() {
        let workers = Workers::start(n(2), "amb-test").unwrap();
        let (release, stuck) = mpsc::channel::<()>();
        let (entered, seen) = mpsc::channel();
        task::spawn_on(&workers.handles()[1], "stuck", async move {
            entered.send(()).unwrap();
            let _ = stuck.recv();
        });
        seen.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(workers.shutdown(Duration::from_millis(50)), Stopped::Late { left: 1 });
        drop(release);
    }
}
