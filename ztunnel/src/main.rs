//! The tunnel.

use std::process::ExitCode;

use ambit_proxy::{config::Disk, start};
use ambit_ztunnel::{app, config::Config};

fn main() -> ExitCode {
    start::run("ztunnel", |env| Config::read(env, &Disk), |config| &config.logging, app::run)
}
