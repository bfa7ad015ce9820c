//! The story of one benchmark: the tunnels, the waypoint, what was found.

use std::{path::PathBuf, time::Duration};

use serde_json::json;

use crate::{book::Book, report, rounds::rest, tunnels, waypoint};

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The tunnel.
    pub ztunnel: PathBuf,
    /// The waypoint.
    pub waypoint: PathBuf,
    /// Envoy.
    pub envoy: Option<PathBuf>,
    /// Fewer and shorter rounds.
    pub quick: bool,
    /// Only workloads whose name contains this.
    pub only: Option<String>,
    /// Where the results go.
    pub json: PathBuf,
    /// Further environment of the tunnels.
    pub env: Vec<(String, String)>,
    /// Where logs are kept.
    pub logs: Option<PathBuf>,
}

/// Runs every workload and prints what it found.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    let mut book = Book::open(settings);
    report::head();
    tunnels::run(settings, &mut book)?;
    waypoint::run(settings, &mut book)?;
    book.close(settings)
}

/// Builds the stage of the tunnels and leaves it to whoever wants to look.
pub fn stage_only(settings: &Settings) -> anyhow::Result<()> {
    let stage = tunnels::stage::Stage::build(settings)?;
    report::line(&json!({ "tunnels": stage.all_tunnels() }));
    while !stage.is_interrupted() {
        rest(Duration::from_millis(100));
    }
    Ok(())
}
