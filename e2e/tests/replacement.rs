//! Tunnels are replaced again and again under load; every new connection is carried, by the old one or the new.

use std::time::{Duration, Instant};

use ambit_e2e::story::{self, Tell};
use ambit_e2e::telling::Evidence;
use ambit_e2e::town::{SOON, Town};
use ambit_lab::mesh::SHOP;
use anyhow::ensure;
use nix::sys::signal::Signal;

const STEPS: [(&str, Tell); 2] =
    [("The tunnel of the client's node", client_node), ("The tunnel of the servers' node", server_node)];

/// How often: what goes wrong does so in the moment of handing over.
const TIMES: usize = 10;

/// All connections are short: a tunnel that takes longer to end waits for something that does not end.
const DRAINED: Duration = Duration::from_secs(4);

#[test]
fn replacing_tunnels_fails_no_connection() -> anyhow::Result<()> {
    story::tell("replacement", SHOP, |_| {}, &STEPS)
}

fn client_node(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    town.until_reached_by(
        &["node-a", "node-b"],
        &["shop/client", "shop/web-1", "shop/web-2", "shop/web-3"],
        "HBONE",
    )?;
    replaced(town, seen, "node-a")
}

fn server_node(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    replaced(town, seen, "node-b")
}

fn replaced(town: &mut Town, seen: &mut Evidence<'_>, node: &str) -> anyhow::Result<()> {
    let args = [
        "call",
        "http://web/",
        "--rate",
        "200",
        "--duration",
        "120",
        "--new-connection",
        "--concurrency",
        "8",
    ];
    let load = town.client("shop/client", &args)?;
    for _ in 0..TIMES {
        let enough = load.exchanges() + 30;
        town.stop().until(SOON, "load", || Ok((load.exchanges() >= enough).then_some(())))?;
        let begun = Instant::now();
        town.mesh().replace_tunnel(node)?;
        let took = begun.elapsed();
        ensure!(took < DRAINED, "the old tunnel took {took:?} to end, with nothing to wait for");
    }
    load.process().signal(Signal::SIGTERM);
    let called = load.finish(Duration::from_secs(10))?;
    called.all_well()?;
    seen.saw(format!("Replaced {TIMES} times; {} connections, none failed.", called.requests()));
    Ok(())
}
