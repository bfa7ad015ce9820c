//! Requests over connections that stay open, from one thread.
//!
//! With a rate, requests are due at fixed instants, whatever the answers do, and their latency counts
//! from when they were due (so a stall is seen by all that it delayed, not by one). Without, each
//! connection asks again as soon as it was answered.

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{prctl, time::TimeSpec},
};

use super::{Ask, Missing, Outcome, connect};
use crate::usage::{float, float_of};

/// Connections, certificates and buffers are warm after this; it is not in the percentiles.
pub(super) const WARM_UP: Duration = Duration::from_millis(500);
/// Answers still under way at the end are waited for this long.
pub(super) const LAST: Duration = Duration::from_secs(5);

/// How often requests are due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// So many a second.
    pub rate: u32,
    /// So many at the same instant.
    pub burst: u32,
}

struct Connection {
    /// When the request under way was due.
    asked: Option<Instant>,
    /// Requests that are due and must wait for an answer first.
    waiting: VecDeque<Instant>,
    /// What of the answer is still to come.
    missing: Missing,
    broken: bool,
}

struct Client<'a> {
    streams: &'a [TcpStream],
    connections: Vec<Connection>,
    request: Vec<u8>,
    bytes: usize,
    latencies: Vec<Duration>,
    record_from: Instant,
    requests: u64,
    failures: u64,
}

pub(super) fn run(
    to: SocketAddr,
    connections: usize,
    pace: Option<Pace>,
    time: Duration,
    ask: &Ask,
) -> anyhow::Result<Outcome> {
    // Timers of 50 µs precision would be most of what is measured.
    prctl::set_timerslack(1)?;
    let streams: Vec<TcpStream> = (0..connections).map(|_| connect(to)).collect::<io::Result<_>>()?;
    for stream in &streams {
        stream.set_nonblocking(true)?;
    }
    let started = Instant::now();
    let record_from = started + WARM_UP;
    let until = record_from + time;
    let idle =
        || Connection { asked: None, waiting: VecDeque::new(), missing: Missing::new(0), broken: false };
    let mut client = Client {
        streams: &streams,
        connections: streams.iter().map(|_| idle()).collect(),
        request: ask.request(),
        bytes: ask.bytes,
        latencies: Vec::with_capacity(1 << 20),
        record_from,
        requests: 0,
        failures: 0,
    };
    match pace {
        Some(pace) => client.open_loop(started, until, pace)?,
        None => client.closed_loop(until)?,
    }
    let Client { mut latencies, requests, failures, .. } = client;
    latencies.sort_unstable();
    Ok(Outcome {
        seconds: started.elapsed().as_secs_f64(),
        bytes: requests * u64::try_from(ask.bytes)?,
        requests,
        rate: float_of(latencies.len()) / time.as_secs_f64(),
        failures,
        latency: percentiles(&latencies),
        ..Outcome::default()
    })
}

impl Client<'_> {
    fn open_loop(&mut self, started: Instant, until: Instant, pace: Pace) -> io::Result<()> {
        let interval = Duration::from_secs(1) * pace.burst / pace.rate;
        let mut due = started;
        let mut turn = (0..self.connections.len()).cycle();
        let streams = self.streams;
        let mut polled: Vec<_> = streams.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
        loop {
            let now = Instant::now();
            while due <= now && due < until {
                for at in turn.by_ref().take(usize::try_from(pace.burst).unwrap_or(usize::MAX)) {
                    self.due(at, due);
                }
                due += interval;
            }
            if now >= until && (self.idle() || now >= until + LAST) {
                self.failures += self.outstanding();
                return Ok(());
            }
            let next = if due < until { due } else { until + LAST };
            self.take(&mut polled, next.saturating_duration_since(Instant::now()))?;
        }
    }

    fn closed_loop(&mut self, until: Instant) -> io::Result<()> {
        let streams = self.streams;
        let mut polled: Vec<_> = streams.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
        loop {
            let now = Instant::now();
            if now < until {
                for at in 0..self.connections.len() {
                    if self.connections.get(at).is_some_and(|connection| connection.asked.is_none()) {
                        self.due(at, Instant::now());
                    }
                }
            } else if self.idle() || now >= until + LAST {
                self.failures += self.outstanding();
                return Ok(());
            }
            self.take(&mut polled, LAST)?;
        }
    }

    fn idle(&self) -> bool {
        self.connections.iter().all(|connection| connection.asked.is_none() || connection.broken)
    }

    fn outstanding(&self) -> u64 {
        let late =
            |connection: &Connection| connection.waiting.len() + usize::from(connection.asked.is_some());
        u64::try_from(self.connections.iter().map(late).sum::<usize>()).unwrap_or(u64::MAX)
    }

    /// A request of connection `at` is due.
    fn due(&mut self, at: usize, due: Instant) {
        let (Some(connection), Some(mut stream)) = (self.connections.get_mut(at), self.streams.get(at))
        else {
            return;
        };
        if connection.broken {
            self.failures += 1;
        } else if connection.asked.is_some() {
            connection.waiting.push_back(due);
        } else {
            connection.asked = Some(due);
            connection.missing = Missing::new(self.bytes);
            // A request is far smaller than the buffer of a connection with nothing under way.
            if stream.write_all(&self.request).is_err() {
                connection.broken = true;
                self.failures += 1;
            }
        }
    }

    /// Waits at most so long, and takes what came.
    fn take(&mut self, polled: &mut [PollFd<'_>], limit: Duration) -> io::Result<()> {
        match ppoll(polled, Some(TimeSpec::from_duration(limit)), None) {
            Ok(0) | Err(Errno::EINTR) => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        for (at, polled) in polled.iter().enumerate() {
            if polled.any().unwrap_or(false) {
                self.read(at);
            }
        }
        Ok(())
    }

    fn read(&mut self, at: usize) {
        let mut buffer = [0; 16 * 1024];
        let (Some(connection), Some(mut stream)) = (self.connections.get_mut(at), self.streams.get(at))
        else {
            return;
        };
        if connection.broken {
            return;
        }
        match stream.read(&mut buffer) {
            Ok(0) => connection.broken = true,
            Ok(count) => {
                let taken = connection.missing.take(buffer.get(..count).unwrap_or_default());
                connection.broken = taken.is_err();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => connection.broken = true,
        }
        if connection.broken {
            self.failures += 1;
            return;
        }
        if !connection.missing.is_none() {
            return;
        }
        let Some(due) = connection.asked.take() else { return };
        self.requests += 1;
        if due >= self.record_from {
            self.latencies.push(due.elapsed());
        }
        if let Some(next) = connection.waiting.pop_front() {
            self.due(at, next);
        }
    }
}

pub(super) fn percentiles(sorted: &[Duration]) -> Vec<(String, f64)> {
    let at = |per_mille: u64| {
        let last = u64::try_from(sorted.len()).unwrap_or(0).saturating_sub(1);
        let at = usize::try_from(last * per_mille / 1000).unwrap_or(0);
        sorted
            .get(at)
            .map_or(0.0, |latency| float(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)) / 1e3)
    };
    [("p50", 500), ("p90", 900), ("p99", 990), ("p99.9", 999)]
        .map(|(name, p)| (name.to_owned(), at(p)))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let latencies: Vec<_> = (1..=1000).map(Duration::from_micros).collect();
        let found = percentiles(&latencies);
        assert_eq!(found[0], ("p50".to_owned(), 500.0));
        assert_eq!(found[2], ("p99".to_owned(), 990.0));
        assert_eq!(percentiles(&[])[3].1, 0.0);
    }
}
