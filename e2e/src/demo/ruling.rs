//! Steps 4 and 5: who may speak with whom.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::{CLIENT, NODE_B, Stage, identity};
use crate::observe::LogLine;
use crate::telling::Evidence;
use crate::town::SOON;

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
/// Within this a connection that lost its right must be gone.
const CUT_WITHIN: Duration = Duration::from_secs(1);

pub(super) fn strict(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let url = format!("http://{}/", stage.web_at(8080)?);
    stage.town.call("guest/guest", &[&url])?.all_well()?;
    seen.did("guest/guest, who is not in the mesh, called web: still answered.");
    let mark = stage.town.mark(NODE_B)?;
    stage.town.write("strict.yaml", STRICT)?;
    seen.did("Applied a PeerAuthentication: namespace shop is STRICT.");
    let town = &stage.town;
    let error = town.stop().until(SOON, "a refusal of the guest", || {
        let called = town.call("guest/guest", &[&url])?;
        Ok(if called.failures() > 0 { Some(called.all_refused()?) } else { None })
    })?;
    seen.saw(format!("The guest's client: {error}."));
    let line = stage.town.heard(&mark, "a refusal for STRICT", |line| {
        line.is_access() && line.field("error").contains("istio_converted_static_strict")
    })?;
    seen.saw(format!("The tunnel of {NODE_B} says why:"));
    seen.quote(&line.shown(&["level", "src.addr", "dst.workload", "direction", "error"]));
    stage.town.call(CLIENT, &[&url])?.all_well()?;
    seen.saw(format!("{CLIENT}, who is in the mesh, is answered."));
    Ok(())
}

/// Whom the policy lets in.
fn allowing(accounts: &[&str]) -> String {
    let principals: Vec<_> =
        accounts.iter().map(|account| format!("cluster.local/ns/shop/sa/{account}")).collect();
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: customers, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  action: ALLOW
  rules: [{{from: [{{source: {{principals: [{}]}}}}]}}]
",
        principals.join(", ")
    )
}

pub(super) fn policy(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let url = format!("http://{}/", stage.web_at(8080)?);
    stage.town.call("shop/intruder", &[&url])?.all_well()?;
    let mark = stage.town.mark(NODE_B)?;
    stage.town.write("customers.yaml", &allowing(&["client", "cart"]))?;
    seen.did("Applied an AuthorizationPolicy: web answers client and cart.");
    let town = &stage.town;
    let error = town.stop().until(SOON, "a refusal of the intruder", || {
        let called = town.call("shop/intruder", &[&url])?;
        Ok(if called.failures() > 0 { Some(called.all_refused()?) } else { None })
    })?;
    for pod in [CLIENT, "shop/cart"] {
        stage.town.call(pod, &[&url])?.all_well()?;
    }
    seen.saw(format!("client and cart are answered; the intruder's client: {error}."));
    let (intruder, cart) = (identity("intruder"), identity("cart"));
    let denied = |line: &LogLine| {
        line.is_access() && line.field("src.identity") == intruder && !line.field("error").is_empty()
    };
    let line = stage.town.heard(&mark, "the intruder's refusal", denied)?;
    seen.quote(&line.shown(&["src.identity", "dst.workload", "error"]));

    let to = stage.web_at(9090)?;
    let steady = stage.town.hold(CLIENT, &to)?;
    let doomed = stage.town.hold("shop/cart", &to)?;
    seen.did(format!("client and cart each hold a connection to {to}."));
    let mark = stage.town.mark(NODE_B)?;
    let edited = Instant::now();
    stage.town.write("customers.yaml", &allowing(&["client"]))?;
    let why = stage.town.stop().until(SOON, "the end of the cart's connection", || Ok(doomed.broken()))?;
    let took = edited.elapsed();
    seen.did("Edited the policy: web answers client alone.");
    ensure!(took <= CUT_WITHIN, "the cart's connection was cut only after {took:?}");
    seen.saw(format!("The cart's connection was cut {} ms after the edit ({why}).", took.as_millis()));
    let cut = |line: &LogLine| {
        line.is_access()
            && line.field("src.identity") == cart
            && line.field("error").contains("policy change")
    };
    let line = stage.town.heard(&mark, "the cut connection", cut)?;
    seen.quote(&line.shown(&["src.identity", "dst.workload", "error"]));
    let exchanges = steady.goes_on(stage.town.stop())?;
    let early = stage.early.as_ref().context("step 1 opened no connection")?;
    early.goes_on(stage.town.stop())?;
    seen.saw(format!("No other was: the client's has exchanged {exchanges} lines and goes on."));
    stage.town.call("shop/cart", &[&url])?.all_refused()?;
    seen.saw("New connections of the cart are refused.");
    stage.steady = Some(steady);
    Ok(())
}
