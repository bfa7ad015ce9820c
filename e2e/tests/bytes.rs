//! Bytes: many of them, half-closed connections, and who they come from.

use std::time::Instant;

use ambit_e2e::story::{self, BULK, BULK_LIMIT, Tell};
use ambit_e2e::telling::Evidence;
use ambit_e2e::town::Town;
use ambit_lab::Program;
use ambit_lab::mesh::SHOP;
use ambit_lab::pcap::Captured;
use anyhow::{Context as _, ensure};

const STEPS: [(&str, Tell); 4] = [
    ("Between nodes, a large transfer each way arrives with the hash it was sent with", between_nodes),
    ("On one node, likewise", on_one_node),
    ("Either side may finish first: the other direction lives on", half_closed),
    ("Two pods of one node meet inside their tunnel: nothing is on a wire", same_node_direct),
];

#[test]
fn bytes_arrive_as_they_were_sent() -> anyhow::Result<()> {
    story::tell("bytes", SHOP, |_| {}, &STEPS)
}

#[test]
fn two_pods_of_one_node_use_hbone_when_they_must() -> anyhow::Result<()> {
    let hbone = |mesh: &mut ambit_lab::mesh::Settings| {
        mesh.tunnels.push(("SAME_NODE".to_owned(), "hbone".to_owned()));
    };
    story::tell(
        "samenode",
        SHOP,
        hbone,
        &[("SAME_NODE=hbone: the pod is reached on port 15008", same_node_hbone)],
    )
}

fn between_nodes(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    transfer(town, seen, "shop/web-1")
}

fn on_one_node(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    transfer(town, seen, "shop/web-2")
}

fn transfer(town: &mut Town, seen: &mut Evidence<'_>, to: &str) -> anyhow::Result<()> {
    for (what, port) in [("push", 9091), ("pull", 9092)] {
        let address = town.pod(to)?.address(false, port).context("no address")?.to_string();
        let begun = Instant::now();
        town.app("shop/client", &[what, &address, &BULK.to_string()], BULK_LIMIT)?.ok()?;
        let seconds = begun.elapsed().as_secs_f64();
        seen.saw(format!("{what}: {} MiB in {seconds:.1} s, the same SHA-256 at both ends.", BULK >> 20));
    }
    Ok(())
}

/// `push` closes its direction and then reads the answer; `pull` closes its direction before the first byte comes. The
/// third: the server is the first to finish, and the client goes on to send.
fn half_closed(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    for pod in ["shop/web-1", "shop/web-2"] {
        let ip = *town.pod(pod)?.ips().first().context("no address")?;
        for (what, port) in [("push", 9091), ("pull", 9092)] {
            town.app("shop/client", &[what, &format!("{ip}:{port}"), "1000"], BULK_LIMIT)?.ok()?;
        }
        seen.saw(format!("{pod}: the client finished first; the answer still came."));

        // A server that finishes at once, and tells how much came after that.
        let server = Program::new("python3").args(["-c", FINISHES_FIRST, "7777"]);
        let server = town.pod(pod)?.spawn("finishes-first", &server)?;
        server.wait_until_said("listening", ambit_e2e::town::SOON)?;
        let client = Program::new("python3").args(["-c", GOES_ON, &ip.to_string(), "7777"]);
        town.pod("shop/client")?.run(&client, BULK_LIMIT)?.ok()?;
        server.wait_until_said("received 3000000", ambit_e2e::town::SOON)?;
        seen.saw(format!("{pod}: the server finished first; 3,000,000 bytes still reached it."));
    }
    Ok(())
}

const FINISHES_FIRST: &str = "
import socket, sys
server = socket.create_server(('0.0.0.0', int(sys.argv[1])))
print('listening', flush=True)
stream, _ = server.accept()
stream.sendall(b'goodbye')
stream.shutdown(socket.SHUT_WR)
count = 0
while part := stream.recv(65536): count += len(part)
print('received', count, flush=True)
";

const GOES_ON: &str = "
import socket, sys
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])))
assert stream.recv(100) == b'goodbye'
assert stream.recv(100) == b''
for _ in range(30): stream.sendall(b'x' * 100000)
stream.shutdown(socket.SHUT_WR)
";

fn same_node_direct(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let captured = calls_on_one_node(town)?;
    ensure!(captured.segments.is_empty(), "packets were seen: {:?}", captured.summary());
    seen.saw("Not a packet reached the server's device.");
    Ok(())
}

fn same_node_hbone(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let captured = calls_on_one_node(town)?;
    ensure!(captured.saw_port(15008), "nothing went to port 15008: {:?}", captured.summary());
    ensure!(!captured.contains("GET /quiet"), "the request can be read");
    seen.saw(format!("{} packets on port 15008, none readable.", captured.segments.len()));
    Ok(())
}

/// What passes the server's own device while a pod of its node calls it. Both ends are told with their identities.
fn calls_on_one_node(town: &mut Town) -> anyhow::Result<Captured> {
    let pods = ["shop/client", "shop/web-2"];
    town.until_reached_by(&["node-a"], &pods, "HBONE")?;
    let server = town.pod("shop/web-2")?;
    let file = town.logs().join("device.pcap");
    let tcpdump = Program::new("tcpdump")
        .args(["-Z", "root", "-n", "-i", "eth0", "--immediate-mode", "-U", "-w"])
        .arg(&file)
        .arg("tcp");
    let tcpdump = server.spawn("tcpdump", &tcpdump)?;
    tcpdump.wait_until_said("listening on", ambit_e2e::town::SOON)?;
    let mark = town.mark("node-a")?;
    let to = server.address(false, 8080).context("no address")?;
    town.call("shop/client", &[&format!("http://{to}/quiet"), "--count", "5", "--new-connection"])?
        .all_well()?;
    for direction in ["outbound", "inbound"] {
        town.heard(&mark, direction, |line| {
            line.has(&[
                ("direction", direction),
                ("src.identity", "spiffe://cluster.local/ns/shop/sa/client"),
                ("dst.identity", "spiffe://cluster.local/ns/shop/sa/web"),
            ])
        })?;
    }
    tcpdump.terminate(ambit_e2e::town::SOON)?;
    Ok(Captured::parse(&std::fs::read(&file)?)?)
}
