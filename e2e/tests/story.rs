//! The story of `make demo`, as a test: seventeen steps on real packets, each with its evidence.

use ambit_e2e::demo::{self, Settings};
use ambit_e2e::town;
use ambit_e2e::wait::Stop;
use ambit_lab::mesh::Binaries;
use anyhow::{Context as _, ensure};

#[test]
fn the_story_of_the_mesh_holds() -> anyhow::Result<()> {
    if !town::is_root() {
        eprintln!("SKIPPED: this test makes network namespaces and must run as root");
        return Ok(());
    }
    let found = Binaries::found()?;
    let binaries = found.tunnel.parent().context("the tunnel's program is in no folder")?.to_owned();
    let settings = Settings { name: "story".to_owned(), binaries, keep: false };
    ensure!(demo::run(&settings, &Stop::default())?, "a step did not hold; see above");
    Ok(())
}
