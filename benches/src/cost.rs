//! What one load cost whom: CPU of what carries it, of its two ends, of everybody else.

use crate::{
    load::Outcome,
    rounds::Values,
    usage::{self, Cpu, float},
};

/// Makes one load, and looks at the `carriers` and the server before and after it.
pub fn measure(
    carriers: &[i32],
    server: Option<i32>,
    load: impl FnOnce() -> anyhow::Result<Outcome>,
) -> anyhow::Result<Values> {
    let look = || -> anyhow::Result<Look> {
        Ok(Look {
            machine: usage::machine()?,
            own: usage::own_cpu()?,
            server: server.map(usage::cpu).transpose()?.unwrap_or_default(),
            tunnels: carriers.iter().map(|pid| usage::cpu(*pid)).collect::<Result<_, _>>()?,
            sleeps: carriers.iter().map(|pid| usage::sleeps(*pid)).collect::<Result<_, _>>()?,
        })
    };
    let before = look()?;
    let outcome = load()?;
    let after = look()?;
    Ok(values(&before, &after, &outcome))
}

struct Look {
    machine: Cpu,
    own: Cpu,
    server: Cpu,
    tunnels: Vec<Cpu>,
    sleeps: Vec<u64>,
}

fn values(before: &Look, after: &Look, outcome: &Outcome) -> Values {
    let tunnels: Vec<Cpu> = before.tunnels.iter().zip(&after.tunnels).map(|(b, a)| *a - *b).collect();
    let all: Cpu = tunnels.iter().copied().sum();
    let most = tunnels.iter().map(|cpu| cpu.total()).fold(0.0, f64::max);
    let woken = before.sleeps.iter().zip(&after.sleeps).map(|(b, a)| float(a - b)).fold(0.0, f64::max);
    let machine = after.machine - before.machine;
    let (user, system) = outcome.cpu;
    let ends = (after.server - before.server).total() + user + system;
    let known = ends + all.total() + (after.own - before.own).total();
    let gigabytes = float(outcome.bytes) / 1e9;
    let requests = float(outcome.requests);
    let mut values = Values::from([
        ("seconds".to_owned(), outcome.seconds),
        ("failures".to_owned(), float(outcome.failures)),
        ("rate".to_owned(), outcome.rate),
        ("foreign share".to_owned(), 1.0 - known / machine.total()),
        ("tunnels user s".to_owned(), all.user),
        ("tunnels system s".to_owned(), all.system),
        ("machine s".to_owned(), machine.total()),
        ("ends s".to_owned(), ends),
    ]);
    let mut put = |name: &str, value: f64| {
        if value.is_finite() {
            values.insert(name.to_owned(), value);
        }
    };
    put("gbit/s", gigabytes * 8.0 / outcome.seconds);
    put("machine s/GB", machine.total() / gigabytes);
    put("ends s/GB", ends / gigabytes);
    if !tunnels.is_empty() {
        put("tunnels s/GB", all.total() / gigabytes);
        put("tunnels kernel share", all.system / all.total());
        put("tunnel s/1000", most / requests * 1e3);
        put("wake-ups/request", woken / requests);
        put("tunnels µs/request", all.total() / requests * 1e6);
    }
    for (name, value) in &outcome.latency {
        put(name, *value);
    }
    values
}
