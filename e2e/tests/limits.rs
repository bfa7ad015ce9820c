//! Limits: a greedy pod, and a tunnel without descriptors.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ambit_e2e::story::{self, Tell};
use ambit_e2e::telling::Evidence;
use ambit_e2e::town::{SOON, Town};
use ambit_lab::Program;
use ambit_lab::mesh::SHOP;
use anyhow::{Context as _, ensure};

const STEPS: [(&str, Tell); 2] = [
    ("A pod with 3,000 connections does not keep its neighbour from connecting", neighbour),
    ("A tunnel without a free descriptor recovers when it has some again", descriptors),
];

/// The pod on the client's node that has done nothing wrong.
const NEIGHBOUR: &str = "
---
apiVersion: v1
kind: Pod
metadata: {name: neighbour, namespace: shop, labels: {app: neighbour}}
spec:
  nodeName: node-a
  serviceAccountName: neighbour
  containers: [{name: neighbour, command: [sleep, infinity]}]
";

#[test]
fn limits_are_kept_and_survived() -> anyhow::Result<()> {
    story::tell("limits", &format!("{SHOP}{NEIGHBOUR}"), |_| {}, &STEPS)
}

fn neighbour(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    const MANY: usize = 3000;
    town.until_reached_by(&["node-a", "node-b"], &["shop/client", "shop/neighbour", "shop/web-1"], "HBONE")?;
    let to = town.pod("shop/web-1")?.address(false, 9090).context("no address")?.to_string();
    // All open at once, and kept.
    let (host, port) = to.rsplit_once(':').context("no port")?;
    let greedy = Program::new("python3").args(["-c", GREEDY, host, port, &MANY.to_string()]);
    let greedy = town.pod("shop/client")?.spawn("greedy", &greedy)?;
    greedy.wait_until_said("open", SOON)?;
    let begun = Instant::now();
    // While it goes on to open the others.
    let called = town.call("shop/neighbour", &["http://web/", "--count", "100", "--new-connection", "-q"])?;
    called.all_well()?;
    let took = begun.elapsed();
    greedy.wait_until_said("all", Duration::from_secs(60))?;
    seen.saw(format!("While they were made, 100 connections of the neighbour took {} ms.", took.as_millis()));
    ensure!(took < Duration::from_secs(20), "they took {took:?}");
    let begun = Instant::now();
    town.call("shop/neighbour", &["http://web/", "--count", "100", "--new-connection", "-q"])?.all_well()?;
    let said = greedy.said();
    let opened = said.lines().last().unwrap_or_default().to_owned();
    seen.saw(format!("While they are open ({opened}), {} ms.", begun.elapsed().as_millis()));
    ensure!(begun.elapsed() < Duration::from_secs(10), "they took {:?}", begun.elapsed());
    greedy.kill()?;
    let metrics = town.mesh().tunnel("node-a")?.metrics().clone();
    town.stop().until(SOON, "the end of the greedy pod's connections", || {
        let samples = ambit_e2e::observe::samples(&metrics.get("/metrics")?.body);
        let open = ambit_e2e::observe::sum(&samples, "istio_tcp_sockets_open", &[("reporter", "source")]);
        Ok((open < 10.0).then_some(()))
    })?;
    seen.saw("Killed, it leaves none behind.");
    Ok(())
}

/// Opens many connections, exchanges a line on each and keeps them.
const GREEDY: &str = "
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
host, port, many = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
kept, refused = [], 0
for number in range(many):
    try:
        stream = socket.create_connection((host, port), timeout=10)
        stream.sendall(b'x\\n')
        if not stream.recv(100): raise OSError('closed')
        kept.append(stream)
    except OSError as err:
        refused += 1
    if number == 200: print('open', flush=True)
print('all:', len(kept), 'kept,', refused, 'refused', flush=True)
import time
time.sleep(1000)
";

fn descriptors(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let url = format!("http://{}/", town.pod("shop/web-1")?.address(false, 8080).context("no address")?);
    let call = ["--count", "3", "--new-connection", "--timeout", "1500", "-q"];
    let args: Vec<&str> = std::iter::once(url.as_str()).chain(call).collect();
    town.call("shop/client", &args)?.all_well()?;
    let pid = town.mesh().tunnel("node-a")?.pid().context("no process")?.to_string();
    let limits = Program::new("prlimit").args([
        "--pid",
        &pid,
        "--nofile",
        "--noheadings",
        "--raw",
        "--output",
        "SOFT,HARD",
    ]);
    let before = ambit_lab::process::run(None, &limits, SOON)?.ok()?.trim().replace(' ', ":");
    let set = |to: &str| {
        let program = Program::new("prlimit").args(["--pid", &pid, &format!("--nofile={to}")]);
        ambit_lab::process::run(None, &program, SOON)?.ok().map_err(anyhow::Error::from)
    };
    let hard = before.rsplit(':').next().unwrap_or_default();
    let starved = town.stop().until(SOON, "a connection that fails for want of a descriptor", || {
        // A limit forbids numbers from it on: there is no free one below the lowest that is free now.
        set(&format!("{}:{hard}", lowest_free(&pid)?))?;
        Ok(Some(town.call("shop/client", &args)?).filter(|called| called.failures() > 0))
    })?;
    seen.saw(format!(
        "Without a free descriptor {} of {} connections fail.",
        starved.failures(),
        starved.requests()
    ));
    let used = cpu(&pid)?;
    let begun = Instant::now();
    town.call("shop/neighbour", &args)?;
    let busy = (cpu(&pid)? - used) / begun.elapsed().as_secs_f64();
    ensure!(busy < 0.9, "it burns {busy:.1} CPUs while it waits for descriptors");
    ensure!(town.mesh().tunnel("node-a")?.ended().is_none(), "the tunnel ended");
    set(&before)?;
    town.stop().until(SOON, "an answer with descriptors", || {
        Ok((town.call("shop/client", &args)?.failures() == 0).then_some(()))
    })?;
    ensure!(
        town.mesh().tunnel("node-a")?.pid().map(|now| now.to_string()) == Some(pid.clone()),
        "another process"
    );
    for pod in ["shop/client", "shop/neighbour"] {
        town.call(pod, &args)?.all_well()?;
    }
    seen.saw("With descriptors, the same process serves everybody again.");
    Ok(())
}

/// The number that the next descriptor of a process would get.
fn lowest_free(pid: &str) -> anyhow::Result<u64> {
    let open: Result<BTreeSet<u64>, _> = std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .map(|fd| fd.file_name().to_string_lossy().parse())
        .collect();
    let open = open?;
    Ok((0..).find(|number| !open.contains(number)).unwrap_or_default())
}

/// Seconds of CPU that a process has used.
fn cpu(pid: &str) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("no stat")?.1;
    let fields: Vec<_> = after.split_whitespace().collect();
    let ticks = [11, 12].iter().filter_map(|place| fields.get(*place)?.parse::<f64>().ok()).sum::<f64>();
    // A hundred a second, on every Linux.
    Ok(ticks / 100.0)
}
