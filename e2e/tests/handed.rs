//! A waypoint behind a ztunnel, on real traffic: its pods are captured, and the ztunnel hands over what comes through
//! tunnels, with a header that says who calls.

use std::time::Duration;

use ambit_e2e::story::{self, Tell};
use ambit_e2e::telling::Evidence;
use ambit_e2e::town::{SOON, Town};
use ambit_lab::mesh::SHOP;
use anyhow::{Context as _, ensure};

const STEPS: [(&str, Tell); 3] = [
    ("A Gateway with the binding PROXY becomes a captured pod, and requests go through it", binding),
    ("A policy of the service knows the client by what the ztunnel says of it", policy),
    ("Nobody introduces himself at the port: not from the mesh, nor from outside of it", forging),
];

#[test]
fn a_waypoint_is_handed_connections_by_its_ztunnel() -> anyhow::Result<()> {
    story::tell("handed", SHOP, |_| {}, &STEPS)
}

const CLIENT: &str = "shop/client";
const CART: &str = "shop/cart-1";
const GUEST: &str = "guest/guest";
const WEB: &str = "http://web.shop/";
const PORT: u16 = 15088;

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}}
spec:
  gatewayClassName: ambit-waypoint
  listeners:
  - {name: mesh, port: 15008, protocol: HBONE}
  - {name: proxy, port: 15088, protocol: istio.io/PROXY}
";

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
    to: [{operation: {paths: ['/headers', '/']}}]
";

/// The service of the shop, as it is written, and bound to the waypoint.
const UNBOUND: &str =
    "  name: web\n  namespace: shop\nspec:\n  selector:\n    app: web\n  ports:\n    - name: http";
const BOUND: &str = "  name: web\n  namespace: shop\n  labels: {istio.io/use-waypoint: gate}\nspec:\n  selector:\n    app: web\n  ports:\n    - name: http";

fn binding(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    town.write("gateway.yaml", GATEWAY)?;
    town.edit("town.yaml", UNBOUND, BOUND)?;
    let id = town.stop().until(SOON, "a request through the waypoint", || {
        let called = town.call(CLIENT, &[&format!("{WEB}headers")])?;
        if called.failures() > 0 {
            return Ok(None);
        }
        let headers = called.body()?;
        Ok(headers.get("x-request-id").and_then(|id| id.as_str()).map(str::to_owned))
    })?;
    seen.saw(format!("A request to web came through the waypoint, which gave it the id {id}."));
    let gates = town.pods_of("shop/gate");
    let gate = gates.first().context("no pod of the waypoint")?.name().to_string();
    town.until_enrolled(&[&gate], true)?;
    seen.saw(format!("Its pod {gate} is captured."));
    Ok(())
}

fn policy(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    town.write("policy.yaml", POLICY)?;
    let statuses = |town: &Town, who: &str, path: &str| {
        Ok::<_, anyhow::Error>(town.call(who, &[&format!("{WEB}{path}")])?.statuses())
    };
    town.stop().until(SOON, "a path that nobody may have", || {
        Ok((statuses(town, CLIENT, "other")?.contains_key(&403)).then_some(()))
    })?;
    for (who, path, status) in [(CLIENT, "headers", 200), (CART, "headers", 403), (CLIENT, "other", 403)] {
        let told = statuses(town, who, path)?;
        ensure!(told.contains_key(&status), "{who} was told {told:?} of /{path}");
        seen.saw(format!("{who} asked for /{path} and was told {status}."));
    }
    Ok(())
}

fn forging(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let gates = town.pods_of("shop/gate");
    let gate = gates.first().context("no pod of the waypoint")?;
    let at = gate.address(false, PORT).context("no address")?;
    for who in [CLIENT, GUEST] {
        let words = town.call(who, &[&format!("http://{at}/"), "-q"])?.all_refused()?;
        // Whatever it would say: nobody hears it.
        let limit = Duration::from_secs(10);
        let held =
            town.app(who, &["hold", &at.to_string(), "--duration", "0.05", "--interval", "10"], limit)?;
        ensure!(!held.status.success(), "{who} was heard at {at}");
        seen.saw(format!("{who} at {at}: {words}"));
    }
    town.call(CLIENT, &[WEB])?.all_well()?;
    Ok(())
}
