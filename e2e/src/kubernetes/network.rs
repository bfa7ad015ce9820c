//! The wire between nodes and control plane: a bridge in the control plane's namespace, which routes to every pod and is
//! the nodes' way out. Nothing of it is in the machine's own namespace.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ambit_lab::netns::Netns;
use ambit_lab::process::{self, Program};
use anyhow::Context as _;

use super::home::{CONTROL, Home, NODES, address, number, pods};

const LIMIT: Duration = Duration::from_secs(30);

/// Makes the control plane's namespace and the bridge in it.
pub(super) fn make_control(home: &Home) -> anyhow::Result<()> {
    let netns = home.netns(CONTROL);
    add(&netns)?;
    ip(
        &netns,
        &[
            "link set lo up".to_owned(),
            "link add br0 type bridge".to_owned(),
            format!("addr add {}/24 dev br0", address(CONTROL)),
            "link set br0 up".to_owned(),
        ],
    )
}

/// Makes a node's namespace and joins it to the bridge.
pub(super) fn make_node(home: &Home, node: &str) -> anyhow::Result<()> {
    let (netns, control) = (home.netns(node), home.netns(CONTROL));
    add(&netns)?;
    let number = number(node);
    // The two ends have different numbers: the kernel takes a device whose peer bears its own for a physical one, and
    // may let its link come up only a second later.
    ip(
        &netns,
        &[
            "link set lo up".to_owned(),
            format!(
                "link add eth0 index 101 type veth peer name {node} index {} netns {}",
                110 + u32::from(number),
                control.name()
            ),
            format!("addr add {}/24 dev eth0", address(node)),
            "link set eth0 up".to_owned(),
            format!("route add default via {}", address(CONTROL)),
            // The bridge plugin would make it, too, and then has trouble with its hardware address when the bridge loses
            // its last pod: an address that was set stays.
            format!("link add cni0 address 02:00:0a:f4:{number:02x}:01 type bridge"),
            format!("addr add 10.244.{number}.1/24 dev cni0"),
            "link set cni0 up".to_owned(),
        ],
    )?;
    ip(
        &control,
        &[
            format!("link set {node} master br0 up"),
            format!("route replace {} via {}", pods(node), address(node)),
        ],
    )?;
    let others = NODES.iter().filter(|other| **other != node);
    ip(
        &netns,
        &others.map(|other| format!("route add {} via {}", pods(other), address(other))).collect::<Vec<_>>(),
    )
}

/// Removes a node's namespace; its processes must be gone.
pub(super) fn remove_node(home: &Home, node: &str) -> anyhow::Result<()> {
    // The kernel takes a namespace apart some time after its name is gone: the device must not be there for the next.
    ip(&home.netns(CONTROL), &[format!("link del {node}")])?;
    run(None, &["ip", "netns", "del", home.netns(node).name()])
}

fn add(netns: &Netns) -> anyhow::Result<()> {
    run(None, &["ip", "netns", "add", netns.name()])?;
    let settings = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        // Pods of one node reach one another through their Service: its rules must see what the bridge carries.
        ("net/bridge/bridge-nf-call-iptables", "1"),
    ];
    netns.inside(|| {
        settings.iter().try_for_each(|(name, value)| {
            let path = Path::new("/proc/sys").join(name);
            fs::write(&path, value).with_context(|| {
                format!("cannot set {}; is the kernel built with bridges (br_netfilter)?", path.display())
            })
        })
    })?
}

fn ip(netns: &Netns, lines: &[String]) -> anyhow::Result<()> {
    lines.iter().try_for_each(|line| {
        let words = ["ip", "-n", netns.name()].into_iter().chain(line.split(' '));
        run(None, &words.collect::<Vec<_>>())
    })
}

fn run(netns: Option<&Netns>, argv: &[&str]) -> anyhow::Result<()> {
    process::run(netns, &Program::line(argv), LIMIT)?.ok()?;
    Ok(())
}
