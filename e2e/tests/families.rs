//! The same mesh on IPv4, on IPv6 and on both.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ambit_e2e::observe::text;
use ambit_e2e::story::{self, Tell};
use ambit_e2e::telling::Evidence;
use ambit_e2e::town::Town;
use ambit_lab::address::Family;
use ambit_lab::mesh::SHOP;
use ambit_lab::pcap::TlsVersion;
use anyhow::{Context as _, ensure};

const STEPS: [(&str, Tell); 5] = [
    ("A service is reached in mutual TLS, wherever its endpoints are", service),
    ("A pod is reached by each of its addresses, and sees its caller's", addresses),
    ("A name has the addresses of the lab's families", names),
    ("Bytes arrive as they were sent, both ways", bytes),
    ("A pod reaches itself by its own service", itself),
];

#[test]
fn ipv4_alone() -> anyhow::Result<()> {
    story::tell("four", SHOP, |mesh| mesh.topology.family = Family::V4, &STEPS)
}

#[test]
fn ipv6_alone() -> anyhow::Result<()> {
    story::tell("six", SHOP, |mesh| mesh.topology.family = Family::V6, &STEPS)
}

#[test]
fn dual_stack() -> anyhow::Result<()> {
    story::tell("dual", SHOP, |mesh| mesh.topology.family = Family::Dual, &STEPS)
}

fn families(town: &mut Town) -> Vec<bool> {
    let family = town.mesh().lab().family();
    [(family.v4(), false), (family.v6(), true)].iter().filter(|(has, _)| *has).map(|(_, v6)| *v6).collect()
}

fn all_web() -> BTreeSet<String> {
    ["web-1", "web-2", "web-3"].map(str::to_owned).into()
}

fn service(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    town.until_reached_by(
        &["node-a", "node-b"],
        &["shop/client", "shop/web-1", "shop/web-2", "shop/web-3"],
        "HBONE",
    )?;
    let capture = town.link("node-a")?.capture(&town.logs().join("service.pcap"))?;
    let called = town.call(
        "shop/client",
        &["http://web/", "--count", "40", "--new-connection", "-H", "x-word: unreadable-on-the-wire"],
    )?;
    let captured = capture.stop()?;
    ensure!(
        called.all_well()?.pods().into_keys().collect::<BTreeSet<_>>() == all_web(),
        "{:?}",
        called.pods()
    );
    ensure!(!captured.contains("unreadable-on-the-wire") && captured.lost == 0, "the request can be read");
    ensure!(
        captured.tls_versions(15008) == BTreeSet::from([TlsVersion::V1_3]),
        "{:?}",
        captured.handshakes()
    );
    seen.saw(format!("{:?}, in TLS 1.3 between nodes.", called.pods()));
    Ok(())
}

fn addresses(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    for v6 in families(town) {
        for pod in ["shop/web-1", "shop/web-2", "shop/cart-1"] {
            let to = town.pod(pod)?.address(v6, 8080).context("no address of that family")?;
            let body = town.call("shop/client", &[&format!("http://{to}/")])?.all_well()?.body()?;
            let from: SocketAddr = text(&body, "client").parse()?;
            let own = town.pod("shop/client")?.address(v6, 0).context("no address of that family")?;
            ensure!(from.ip() == own.ip(), "{pod} saw {from}, not {}", own.ip());
            seen.saw(format!("{pod} at {to} saw {}.", from.ip()));
        }
    }
    Ok(())
}

fn names(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let found = town.pod("shop/client")?.exec(["getent", "ahosts", "web"])?.ok()?;
    let found: Result<BTreeSet<IpAddr>, _> =
        found.lines().filter_map(|line| line.split(' ').next()).map(str::parse).collect();
    let mut kinds: Vec<_> = found?.iter().map(IpAddr::is_ipv6).collect();
    kinds.sort_unstable();
    ensure!(kinds == families(town), "the name has addresses of families {kinds:?}");
    seen.saw(format!("{} of them.", kinds.len()));
    Ok(())
}

fn bytes(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    for v6 in families(town) {
        for (what, port) in [("push", 9091), ("pull", 9092)] {
            let to = town.pod("shop/web-1")?.address(v6, port).context("no address of that family")?;
            town.app("shop/client", &[what, &to.to_string(), "20000000"], Duration::from_secs(30))?.ok()?;
        }
    }
    seen.saw("20 MB each way, each with its own SHA-256.");
    Ok(())
}

fn itself(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    for pod in ["shop/web-1", "shop/web-2"] {
        let called = town.call(pod, &["http://web/", "--count", "40", "--new-connection", "-q"])?;
        ensure!(
            called.all_well()?.pods().into_keys().collect::<BTreeSet<_>>() == all_web(),
            "{:?}",
            called.pods()
        );
        for v6 in families(town) {
            let own = town.pod(pod)?.address(v6, 8080).context("no address of that family")?;
            town.call(pod, &[&format!("http://{own}/")])?.all_well()?;
        }
    }
    seen.saw("By its service and by its own address.");
    Ok(())
}
