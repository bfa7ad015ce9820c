//! Connections that were used once, and then held.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Ask, Outcome, answered, connect};
use crate::usage::{float, float_of};

/// Long enough for any measurement; a harness that dies kills us anyway.
const LIMIT: Duration = Duration::from_secs(600);

pub(super) fn run(to: SocketAddr, connections: usize, ask: &Ask) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let mut held = Vec::with_capacity(connections);
    let mut failures = 0;
    for _ in 0..connections {
        match connect(to).and_then(|mut stream| answered(&mut stream, ask).map(|()| stream)) {
            Ok(stream) => held.push(stream),
            Err(_) => failures += 1,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let requests = u64::try_from(held.len())?;
    crate::report::line(&serde_json::json!({
        "held": requests, "failures": failures, "seconds": seconds, "rate": float_of(held.len()) / seconds,
    }));
    crate::rounds::rest(LIMIT);
    Ok(Outcome { seconds, requests, failures, rate: float(requests) / seconds, ..Outcome::default() })
}
