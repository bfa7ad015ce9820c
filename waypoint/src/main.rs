//! The waypoint.

use std::process::ExitCode;

use ambit_proxy::{config::Disk, start};
use ambit_waypoint::{app, config::Config};

fn main() -> ExitCode {
    start::run("waypoint", |env| Config::read(env, &Disk), |config| &config.logging, app::run)
}
