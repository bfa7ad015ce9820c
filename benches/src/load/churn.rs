//! A connection for each request, from several clients at once.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use super::{Ask, Outcome, answered, connect};
use crate::usage::float;

pub(super) fn run(to: SocketAddr, clients: usize, time: Duration) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let until = started + time;
    let client = move || {
        let (mut fine, mut failed) = (0_u64, 0_u64);
        let ask = Ask::plain(64);
        while Instant::now() < until {
            match connect(to).and_then(|mut stream| answered(&mut stream, &ask)) {
                Ok(()) => fine += 1,
                Err(_) => failed += 1,
            }
        }
        (fine, failed)
    };
    let counts = thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let seconds = started.elapsed().as_secs_f64();
    let mut outcome = Outcome { seconds, ..Outcome::default() };
    for (fine, failed) in counts.into_iter().flatten() {
        outcome.requests += fine;
        outcome.failures += failed;
    }
    outcome.rate = float(outcome.requests) / seconds;
    Ok(outcome)
}
