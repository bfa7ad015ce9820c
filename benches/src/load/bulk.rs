//! Bytes as fast as they go: each stream has a thread, and counts what the sink says it got.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use super::{Outcome, connect};

/// As iperf3 writes.
const BLOCK: usize = 128 * 1024;

pub(super) fn run(to: SocketAddr, streams: usize, time: Duration) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let until = started + time;
    let pushed = thread::scope(|scope| {
        let threads: Vec<_> = (0..streams).map(|_| scope.spawn(move || push(to, until))).collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let seconds = started.elapsed().as_secs_f64();
    let mut outcome = Outcome { seconds, ..Outcome::default() };
    for pushed in pushed {
        match pushed {
            Ok(Ok(bytes)) => outcome.bytes += bytes,
            Ok(Err(_)) | Err(_) => outcome.failures += 1,
        }
    }
    Ok(outcome)
}

/// Pushes until then; what the sink got, which is all that was sent.
fn push(to: SocketAddr, until: Instant) -> io::Result<u64> {
    let mut stream = connect(to)?;
    let block = vec![0x5a; BLOCK];
    let mut sent = 0_u64;
    while Instant::now() < until {
        stream.write_all(&block)?;
        sent += u64::try_from(block.len()).unwrap_or(0);
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    let received = u64::from_be_bytes(answer);
    if received == sent { Ok(received) } else { Err(io::ErrorKind::InvalidData.into()) }
}
