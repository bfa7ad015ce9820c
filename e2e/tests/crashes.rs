//! Every process is killed under load, and returns. Nothing that was in mutual TLS is ever sent in the clear.

use std::time::{Duration, Instant};

use ambit_e2e::story::{self, Tell};
use ambit_e2e::telling::Evidence;
use ambit_e2e::town::{Called, Client, SOON, Town};
use ambit_lab::mesh::SHOP;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

const STEPS: [(&str, Tell); 5] = [
    ("The controller is killed: nobody notices", controller),
    ("A node agent is killed: nobody notices", agent),
    ("The tunnel of the server's node is killed, and returns", server_tunnel),
    ("The tunnel of the client's node is killed: nothing leaves in the clear", client_tunnel),
    ("A pod vanishes under traffic: its neighbours do not notice", pod_vanishes),
];

const PODS: [&str; 5] = ["shop/client", "shop/web-1", "shop/web-2", "shop/web-3", "shop/cart-1"];
const WORD: &str = "never-in-the-clear";

#[test]
fn killed_processes_return() -> anyhow::Result<()> {
    story::tell("crashes", SHOP, |_| {}, &STEPS)
}

/// New connections to all of web, 50 a second, until [`ended`].
fn load(town: &mut Town, from: &str, to: &str) -> anyhow::Result<Client> {
    let header = format!("x-word: {WORD}");
    let args = [
        "call",
        to,
        "--rate",
        "50",
        "--duration",
        "120",
        "--new-connection",
        "--timeout",
        "3000",
        "-H",
        &header,
    ];
    let load = town.client(from, &args)?;
    more(town, &load, 20)?;
    Ok(load)
}

/// Waits for so many more requests.
fn more(town: &Town, load: &Client, count: usize) -> anyhow::Result<()> {
    let enough = load.exchanges() + count;
    town.stop().until(SOON, "load", || Ok((load.exchanges() >= enough).then_some(())))
}

fn ended(load: Client) -> anyhow::Result<Called> {
    load.process().signal(Signal::SIGTERM);
    load.finish(SOON)
}

fn controller(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    town.until_reached_by(&["node-a", "node-b"], &PODS, "HBONE")?;
    let held = town.pod("shop/web-1")?.address(false, 9090).context("no address")?.to_string();
    let held = town.hold("shop/client", &held)?;
    let load = load(town, "shop/client", "http://web/")?;
    town.mesh().controller().kill()?;
    more(town, &load, 40)?;
    town.mesh().controller().start()?;
    // What is written now arrives.
    town.write("policy.yaml", POLICY)?;
    for node in ["node-a", "node-b"] {
        town.until_policy(node, "shop/someone", true)?;
    }
    more(town, &load, 20)?;
    held.goes_on(town.stop())?;
    held.end()?;
    let called = ended(load)?;
    called.all_well()?;
    seen.saw(format!("{} connections, none failed; what changed afterwards has arrived.", called.requests()));
    Ok(())
}

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: someone, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {principals: [nobody]}}]}]}
";

fn agent(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let load = load(town, "shop/client", "http://web/")?;
    for node in ["node-a", "node-b"] {
        town.mesh().agent(node)?.kill()?;
    }
    more(town, &load, 40)?;
    for node in ["node-a", "node-b"] {
        town.mesh().agent(node)?.start()?;
    }
    town.until_enrolled(&PODS, true)?;
    more(town, &load, 40)?;
    let called = ended(load)?;
    called.all_well()?;
    seen.saw(format!("{} connections, none failed; every pod is enrolled as before.", called.requests()));
    Ok(())
}

fn server_tunnel(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let held = town.pod("shop/web-1")?.address(false, 9090).context("no address")?.to_string();
    let held = town.hold("shop/client", &held)?;
    let load = load(town, "shop/client", "http://web/")?;
    town.mesh().tunnel("node-b")?.kill()?;
    town.stop().until(SOON, "the end of a connection through it", || Ok(held.broken()))?;
    more(town, &load, 40)?;
    let begun = Instant::now();
    town.mesh().tunnel("node-b")?.start()?;
    let url = format!("http://{}/", town.pod("shop/web-1")?.address(false, 8080).context("no address")?);
    town.stop().until(SOON, "an answer through the new tunnel", || {
        Ok((town.call("shop/client", &[&url])?.failures() == 0).then_some(()))
    })?;
    let took = begun.elapsed();
    more(town, &load, 40)?;
    let called = ended(load)?;
    ensure!(called.pods().len() == 3, "{:?}", called.pods());
    seen.saw(format!(
        "Answered again {} ms after its start; of {} connections {} failed meanwhile.",
        took.as_millis(),
        called.requests(),
        called.failures()
    ));
    // A connection that finds the tunnel gone goes to web-2, on the client's own node: what had begun may fail.
    ensure!(called.failures() <= 2, "{} of {}: {:?}", called.failures(), called.requests(), called.errors());
    town.call("shop/client", &["http://web/", "--count", "60", "--new-connection", "-q"])?.all_well()?;
    Ok(())
}

fn client_tunnel(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let capture = town.link("node-a")?.capture(&town.logs().join("killed.pcap"))?;
    let load = load(town, "shop/client", "http://web/")?;
    town.mesh().tunnel("node-a")?.kill()?;
    more(town, &load, 30)?;
    town.mesh().tunnel("node-a")?.start()?;
    town.stop().until(SOON, "an answer through the new tunnel", || {
        Ok((town.call("shop/client", &["http://web/"])?.failures() == 0).then_some(()))
    })?;
    more(town, &load, 30)?;
    let called = ended(load)?;
    let captured = capture.stop()?;
    ensure!(captured.lost == 0, "the capture lost {} packets, and proves nothing", captured.lost);
    ensure!(!captured.contains(WORD), "a request left in the clear while the tunnel was down");
    ensure!(called.failures() >= 20, "only {} connections failed without a tunnel", called.failures());
    town.call("shop/client", &["http://web/", "--count", "60", "--new-connection", "-q"])?.all_well()?;
    seen.saw(format!(
        "Of {} connections {} failed, and none of them was readable on the wire; then all went well.",
        called.requests(),
        called.failures()
    ));
    Ok(())
}

fn pod_vanishes(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    // A pod alone with its own namespaces: its processes and its network end at once, under traffic both ways.
    town.write("victim.yaml", VICTIM)?;
    town.mesh().settle(SOON)?;
    town.until_enrolled(&["shop/victim"], true)?;
    town.until_reached_by(&["node-a", "node-b"], &["shop/victim"], "HBONE")?;
    let address = town.pod("shop/victim")?.address(false, 9090).context("no address")?.to_string();
    let (to_it, from_cart) = (town.hold("shop/client", &address)?, town.hold("shop/cart-1", &address)?);
    let from_it = load(town, "shop/victim", "http://web/")?;
    let load = load(town, "shop/client", "http://web/")?;
    town.remove("victim.yaml")?;
    for held in [&to_it, &from_cart] {
        town.stop().until(SOON, "the end of a connection to the pod", || Ok(held.broken()))?;
    }
    town.stop().until(SOON, "the end of the pod's own client", || Ok(from_it.process().ended()))?;
    town.mesh().settle(SOON)?;
    let known = |town: &Town| Ok::<_, anyhow::Error>(town.states()?.contains_key("shop/victim"));
    let probe = || Ok((!known(town)?).then_some(()));
    town.stop().until(SOON, "the agent's forgetting the pod", probe)?;
    more(town, &load, 40)?;
    let called = ended(load)?;
    called.all_well()?;
    let gone = town.metrics("node-b")?;
    let active = ambit_e2e::observe::sum(&gone, "workload_manager_active_proxy_count", &[]);
    ensure!((active - 3.0).abs() < 0.5, "the tunnel of node-b serves {active} pods, not 3");
    let begun = Instant::now();
    town.call("shop/cart-1", &["http://web/", "--count", "20", "--new-connection", "-q"])?.all_well()?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "a neighbour's calls took {:?}", begun.elapsed());
    seen.saw(format!(
        "{} connections of others, none failed; the tunnel serves those that are left.",
        called.requests()
    ));
    Ok(())
}

const VICTIM: &str = "
apiVersion: v1
kind: Pod
metadata: {name: victim, namespace: shop, labels: {app: victim}}
spec:
  nodeName: node-b
  serviceAccountName: victim
  terminationGracePeriodSeconds: 0
  containers: [{name: victim, image: ambit/app, ports: [{containerPort: 8080}]}]
";
