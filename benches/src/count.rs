//! Counts the instructions of single decisions under `valgrind --tool=callgrind`: stable on a machine
//! that is not quiet.
//!
//! Each piece of work is run n and 2n times; the difference is the work itself, without what prepares it.

use std::{
    hint::black_box,
    process::{Command, ExitCode},
};

use ambit_benches::{
    decisions::{Changing, Decoding, Judgement, Planning},
    report::say,
    usage::float,
};
use anyhow::{Context as _, ensure};
use clap::Parser;

/// Prints instructions per operation; with WORK and TIMES it only does that work.
#[derive(Debug, Parser)]
#[command(name = "ambit-bench-count", version)]
struct Args {
    /// What to do.
    work: Option<String>,
    /// How often.
    #[arg(default_value_t = 1)]
    times: u64,
}

/// The work, and how often it is done at least.
const WORK: [(&str, u64); 12] = [
    ("authz, 1 policy", 20_000),
    ("authz, 10 policies", 5_000),
    ("authz, 100 policies", 500),
    ("authz, 1000 policies", 50),
    ("plan, to a service", 5_000),
    ("plan, to a workload", 5_000),
    ("plan, to a stranger", 5_000),
    ("snapshot, one change of 1000", 500),
    ("snapshot, one change of 10000", 500),
    ("snapshot, one change of 100000", 100),
    ("xds, 10000 workloads and 1000 services", 1),
    ("xds, 1000 policies", 2),
];

fn main() -> ExitCode {
    let Args { work, times } = Args::parse();
    let outcome = match &work {
        Some(work) => do_work(work, times),
        None => count(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("ambit-bench-count: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn count() -> anyhow::Result<()> {
    for (work, times) in WORK {
        let once = instructions(work, times)?;
        let twice = instructions(work, 2 * times)?;
        say(&format!("{work:<42} {:>14.0} instructions", float(twice.saturating_sub(once)) / float(times)));
    }
    Ok(())
}

fn instructions(work: &str, times: u64) -> anyhow::Result<u64> {
    // Hash seeds come from addresses, and those from what lies above the stack: the environment.
    let output = Command::new("valgrind")
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args([work, &times.to_string()])
        .output()
        .context("cannot run valgrind; install the package valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed: {said}");
    let count = said.lines().find_map(|line| line.split_once("Collected :"));
    count.and_then(|(_, count)| count.trim().parse().ok()).context("valgrind gave no count")
}

fn do_work(work: &str, times: u64) -> anyhow::Result<()> {
    let (kind, what) = work.split_once(", ").context("not a kind of work")?;
    let number = what.split(' ').filter_map(|word| word.parse().ok()).next().unwrap_or(0);
    match kind {
        "authz" => {
            let judgement = Judgement::of(usize::try_from(number)?);
            repeat(times, || drop(black_box(judgement.check())));
        }
        "plan" => {
            let mut planning = Planning::of(10_000, 1_000);
            repeat(times, || {
                drop(black_box(match what {
                    "to a service" => planning.to_service(),
                    "to a workload" => planning.to_workload(),
                    _ => planning.to_stranger(),
                }));
            });
        }
        "snapshot" => {
            let last = what.rsplit(' ').next().unwrap_or_default();
            let mut changing = Changing::of(last.parse()?);
            repeat(times, || changing.apply());
        }
        _ => {
            let decoding = if what.ends_with("policies") {
                Decoding::policies(usize::try_from(number)?)
            } else {
                Decoding::addresses(number, 1_000)
            };
            repeat(times, || {
                black_box(decoding.apply());
            });
        }
    }
    Ok(())
}

fn repeat(times: u64, mut work: impl FnMut()) {
    for _ in 0..times {
        work();
    }
}
