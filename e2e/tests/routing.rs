//! A waypoint on real traffic: a Gateway becomes a process, a label sends a service's requests through it, and routes
//! decide where they go. No pod is changed.

use std::collections::BTreeMap;
use std::time::Duration;

use ambit_e2e::story::{self, Tell};
use ambit_e2e::telling::Evidence;
use ambit_e2e::town::{SOON, Town};
use ambit_lab::mesh::SHOP;
use anyhow::{Context as _, ensure};

const STEPS: [(&str, Tell); 6] = [
    ("A Gateway becomes a waypoint, and a label sends requests through it", binding),
    ("An HTTPRoute sends a tenth of the requests, and all with a header, to another version", canary),
    ("An endpoint that refuses connections costs no request", failing),
    ("Copies go to another service, and nobody waits for them", mirror),
    ("A route that makes no sense leaves the last good one in force", broken),
    ("The label is taken off, and then the Gateway: no request fails", unbinding),
];

#[test]
fn a_waypoint_governs_a_service() -> anyhow::Result<()> {
    story::tell("waypoint", &format!("{SHOP}---{CANARY}"), |_| {}, &STEPS)
}

const CLIENT: &str = "shop/client";
const WEB: &str = "http://web.shop/";

/// Another version of web, with a service of its own.
const CANARY: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: canary
  namespace: shop
  labels: {app: canary}
spec:
  nodeName: node-b
  serviceAccountName: web
  containers: [{name: canary, image: ambit/app, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: canary, namespace: shop}
spec:
  selector: {app: canary}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec:
  gatewayClassName: ambit-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// The service of the shop, as it is written, and bound to the waypoint.
const UNBOUND: &str =
    "  name: web\n  namespace: shop\nspec:\n  selector:\n    app: web\n  ports:\n    - name: http";
const BOUND: &str = "  name: web\n  namespace: shop\n  labels: {istio.io/use-waypoint: gate}\nspec:\n  selector:\n    app: web\n  ports:\n    - name: http";

fn route(rules: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]
  rules:
{rules}
"
    )
}

/// What web hears of a request, if it came through the waypoint.
fn through_the_waypoint(town: &Town) -> anyhow::Result<Option<String>> {
    let called = town.call(CLIENT, &[&format!("{WEB}headers")])?;
    let headers = called.body()?;
    Ok(headers.get("x-request-id").and_then(|id| id.as_str()).map(str::to_owned))
}

fn binding(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    town.call(CLIENT, &[WEB])?.all_well()?;
    ensure!(through_the_waypoint(town)?.is_none(), "it is direct before there is a waypoint");
    let requests = ["--duration", "6", "--rate", "50", "--new-connection", "-q", WEB];
    let client = town.client(CLIENT, &[&["call"], &requests[..]].concat())?;
    town.write("gateway.yaml", GATEWAY)?;
    town.edit("town.yaml", UNBOUND, BOUND)?;
    let id = town.stop().until(SOON, "a request through the waypoint", || through_the_waypoint(town))?;
    seen.saw(format!("A request to web came through the waypoint, which gave it the id {id}."));
    let told = client.finish(Duration::from_secs(30))?;
    told.all_well()?;
    seen.saw(format!("Of {} requests meanwhile none failed.", told.requests()));
    Ok(())
}

/// Which pods answered how many of so many requests.
fn spread(town: &Town, count: u32, more: &[&str]) -> anyhow::Result<BTreeMap<String, u64>> {
    let count = count.to_string();
    let called = town.call(CLIENT, &[&["--count", &count, WEB], more].concat())?;
    Ok(called.all_well()?.pods())
}

fn to_canary(pods: &BTreeMap<String, u64>) -> u64 {
    pods.get("canary").copied().unwrap_or_default()
}

fn canary(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let rules = "
    - matches: [{headers: [{name: x-canary, value: always}]}]
      backendRefs: [{name: canary, port: 80}]
    - backendRefs: [{name: web, port: 80, weight: 90}, {name: canary, port: 80, weight: 10}]";
    town.write("route.yaml", &route(rules))?;
    let pods = town.stop().until(SOON, "requests at the canary", || {
        let pods = spread(town, 20, &["-H", "x-canary: always"])?;
        Ok((to_canary(&pods) == 20).then_some(pods))
    })?;
    seen.saw(format!("With the header: {pods:?}."));
    let pods = spread(town, 300, &[])?;
    let share = to_canary(&pods);
    ensure!((5..=70).contains(&share), "{share} of 300 at a tenth: {pods:?}");
    seen.saw(format!("Without: {pods:?}."));
    Ok(())
}

fn failing(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    town.write(
        "broken.yaml",
        "
apiVersion: v1
kind: Pod
metadata: {name: broken, namespace: shop, labels: {app: web}}
spec:
  nodeName: node-a
  serviceAccountName: web
  containers: [{name: broken, command: [sleep, infinity]}]
",
    )?;
    town.until_enrolled(&["shop/broken"], true)?;
    let pods = spread(town, 200, &[])?;
    ensure!(!pods.contains_key("broken"), "{pods:?}");
    seen.saw(format!("One of four pods of web refuses connections: {pods:?}, and no request failed."));
    town.remove("broken.yaml")
}

fn mirror(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let rules = "
    - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: canary, port: 80}}}]
      backendRefs: [{name: web, port: 80}]";
    town.write("route.yaml", &route(rules))?;
    let pods = town.stop().until(SOON, "requests at web alone", || {
        let pods = spread(town, 20, &["-H", "x-canary: always"])?;
        Ok((to_canary(&pods) == 0).then_some(pods))
    })?;
    seen.saw(format!("Answered by {pods:?}."));
    let mark = town.mark("node-b")?;
    spread(town, 5, &[])?;
    let line = town.heard(&mark, "a copy at the canary", |line| {
        line.is_access() && line.field("dst.workload") == "canary" && line.field("direction") == "inbound"
    });
    // The connection may be one that is kept from before: then it is written when that ends.
    match line {
        Ok(line) => seen.quote(&line.shown(&["src.identity", "dst.workload"])),
        Err(_) => seen.saw("Copies travel on a connection that is kept."),
    }
    Ok(())
}

fn broken(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let rules = "
    - matches: [{path: {type: RegularExpression, value: '('}}]
      backendRefs: [{name: canary, port: 80}]";
    town.write("route.yaml", &route(rules))?;
    // Something else that is heeded after it shows that it has been read.
    let rules = "
    - backendRefs: [{name: canary, port: 80}]";
    let other = route(rules).replace("{name: web, namespace: shop}", "{name: cart, namespace: shop}");
    let other = other.replace("kind: Service, name: web", "kind: Service, name: cart");
    town.write("other.yaml", &other)?;
    let pods = spread(town, 30, &[])?;
    ensure!(to_canary(&pods) == 0, "{pods:?}");
    seen.saw(format!("Still as before: {pods:?}."));
    town.remove("other.yaml")?;
    town.remove("route.yaml")
}

fn unbinding(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let requests = ["--duration", "6", "--rate", "50", "--new-connection", "-q", WEB];
    let client = town.client(CLIENT, &[&["call"], &requests[..]].concat())?;
    town.edit("town.yaml", BOUND, UNBOUND)?;
    town.stop().until(SOON, "a request past the waypoint", || {
        Ok(through_the_waypoint(town)?.is_none().then_some(()))
    })?;
    town.remove("gateway.yaml")?;
    let told = client.finish(Duration::from_secs(30)).context("the client")?;
    told.all_well()?;
    seen.saw(format!("Of {} requests none failed.", told.requests()));
    Ok(())
}
