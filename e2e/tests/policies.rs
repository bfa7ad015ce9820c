//! Policies on real traffic: who is let in where, and what happens to a policy that nobody can read.

use std::time::Duration;

use ambit_e2e::observe::sum;
use ambit_e2e::story::{self, Tell};
use ambit_e2e::telling::Evidence;
use ambit_e2e::town::{SOON, Town};
use ambit_lab::mesh::{SHOP, Settings};
use anyhow::{Context as _, ensure};

const STEPS: [(&str, Tell); 5] = [
    ("PERMISSIVE, STRICT, and ports that differ", modes),
    ("ALLOW and DENY, by whom, from where, to which port", matrix),
    ("A policy on trial is counted and not enforced", dry_run),
    ("A file that cannot be read leaves the last good policy in force", broken),
    ("Connections that a new policy forbids are cut, others not", cut),
];

#[test]
fn policies_hold_on_real_traffic() -> anyhow::Result<()> {
    story::tell(
        "policies",
        SHOP,
        |mesh: &mut Settings| mesh.controller.push("--dry-run-policies=true".to_owned()),
        &STEPS,
    )
}

/// A caller, a port of web-1, and whether it is answered.
type Expected<'a> = (&'a str, u16, bool);

const CLIENT: &str = "shop/client";
const CART: &str = "shop/cart-1";
const GUEST: &str = "guest/guest";

/// Applies `documents` and waits until exactly the expected callers are answered: refusals first, for what is allowed
/// is so before a policy arrives.
fn expect(town: &mut Town, documents: &str, expected: &[Expected<'_>]) -> anyhow::Result<()> {
    town.write("policy.yaml", documents)?;
    let mut expected = expected.to_vec();
    expected.sort_by_key(|(_, _, answered)| *answered);
    let web = town.pod("shop/web-1")?;
    for (who, port, answered) in &expected {
        let to = web.address(false, *port).context("no address")?.to_string();
        let word = if *answered { "an answer" } else { "a refusal" };
        let what = format!("{word} to {who} on port {port} under{documents}");
        town.stop().until(
            SOON,
            &what,
            || Ok((answers(town, who, *port, &to)? == *answered).then_some(())),
        )?;
    }
    // All at one time: none of them was a moment between two policies.
    for (who, port, answered) in expected {
        let to = web.address(false, port).context("no address")?.to_string();
        ensure!(answers(town, who, port, &to)? == answered, "{who} on port {port} under{documents}");
    }
    Ok(())
}

fn answers(town: &Town, who: &str, port: u16, to: &str) -> anyhow::Result<bool> {
    let limit = Duration::from_secs(10);
    match port {
        8080 => Ok(town.call(who, &[&format!("http://{to}/"), "-q"])?.failures() == 0),
        _ => Ok(town
            .app(who, &["hold", to, "--duration", "0.05", "--interval", "10"], limit)?
            .status
            .success()),
    }
}

fn modes(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let mode = |spec: &str| {
        format!(
            "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: mode, namespace: shop}}
spec: {spec}
"
        )
    };
    let selected = "selector: {matchLabels: {app: web}}";
    let cases = [
        ("{mtls: {mode: PERMISSIVE}}".to_owned(), true, true),
        ("{mtls: {mode: STRICT}}".to_owned(), false, false),
        (
            format!("{{{selected}, mtls: {{mode: STRICT}}, portLevelMtls: {{8080: {{mode: PERMISSIVE}}}}}}"),
            true,
            false,
        ),
        (
            format!("{{{selected}, mtls: {{mode: PERMISSIVE}}, portLevelMtls: {{8080: {{mode: STRICT}}}}}}"),
            false,
            true,
        ),
        (
            format!("{{{selected}, mtls: {{mode: STRICT}}, portLevelMtls: {{8080: {{mode: DISABLE}}}}}}"),
            true,
            false,
        ),
    ];
    for (spec, http, echo) in cases {
        let expected = [(CLIENT, 8080, true), (CLIENT, 9090, true), (GUEST, 8080, http), (GUEST, 9090, echo)];
        expect(town, &mode(&spec), &expected)?;
        seen.saw(format!("{spec}: the guest on 8080: {http}, on 9090: {echo}; the client on both."));
    }
    Ok(())
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {spec}
"
    )
}

fn matrix(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let guest = town.pod(GUEST)?.address(false, 0).context("no address")?.ip();
    let client = "cluster.local/ns/shop/sa/client";
    let cart = "cluster.local/ns/shop/sa/cart";
    let web = "selector: {matchLabels: {app: web}}";
    // Whom the client, the cart and the guest reach: HTTP, and the echo for the client.
    let cases = [
        (
            format!("{{{web}, action: ALLOW, rules: [{{from: [{{source: {{principals: [{client}]}}}}]}}]}}"),
            [true, false, false, true],
        ),
        (
            "{action: ALLOW, rules: [{from: [{source: {principals: ['*/sa/cart']}}]}]}".to_owned(),
            [false, true, false, false],
        ),
        (
            format!("{{{web}, action: DENY, rules: [{{from: [{{source: {{principals: [{cart}]}}}}]}}]}}"),
            [true, false, true, true],
        ),
        (
            format!("{{{web}, action: ALLOW, rules: [{{from: [{{source: {{namespaces: [shop]}}}}]}}]}}"),
            [true, true, false, true],
        ),
        (
            format!("{{{web}, action: DENY, rules: [{{from: [{{source: {{notPrincipals: ['*']}}}}]}}]}}"),
            [true, true, false, true],
        ),
        (
            format!("{{{web}, action: ALLOW, rules: [{{to: [{{operation: {{ports: ['8080']}}}}]}}]}}"),
            [true, true, true, false],
        ),
        (
            format!(
                "{{{web}, action: DENY, rules: [{{to: [{{operation: {{ports: ['9090']}}}}], from: [{{source: {{serviceAccounts: [client]}}}}]}}]}}"
            ),
            [true, true, true, false],
        ),
        (
            format!(
                "{{{web}, action: ALLOW, rules: [{{from: [{{source: {{ipBlocks: ['{guest}/32']}}}}]}}]}}"
            ),
            [false, false, true, false],
        ),
        (
            format!(
                "{{{web}, action: ALLOW, rules: [{{when: [{{key: source.principal, notValues: [{cart}]}}, {{key: source.namespace, values: [shop]}}]}}]}}"
            ),
            [true, false, false, true],
        ),
        (format!("{{{web}, action: ALLOW}}"), [false, false, false, false]),
        (
            format!("{{{web}, action: ALLOW, rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}"),
            [false, false, false, false],
        ),
        (
            format!(
                "{{action: ALLOW, rules: [{{}}]}}{}",
                policy(
                    "second",
                    &format!(
                        "{{{web}, action: DENY, rules: [{{from: [{{source: {{principals: [{client}]}}}}]}}]}}"
                    )
                )
            ),
            [false, true, true, false],
        ),
    ];
    let count = cases.len();
    for (number, (spec, [from_client, from_cart, from_guest, echo])) in cases.into_iter().enumerate() {
        let expected = [
            (CLIENT, 8080, from_client),
            (CART, 8080, from_cart),
            (GUEST, 8080, from_guest),
            (CLIENT, 9090, echo),
        ];
        // Another name each time: the last one must go.
        expect(town, &policy(&format!("case-{number}"), &spec), &expected)?;
    }
    seen.saw(format!("{count} policies, four callers each."));
    Ok(())
}

fn dry_run(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    town.write(
        "policy.yaml",
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: trial, namespace: shop, annotations: {istio.io/dry-run: 'true'}}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]}
",
    )?;
    town.until_policy("node-b", "shop/trial", true)?;
    let to = town.pod("shop/web-1")?.address(false, 8080).context("no address")?;
    let metrics = town.mesh().tunnel("node-b")?.metrics().clone();
    let labels = [("policy", "shop/trial"), ("action", "deny")];
    let counted = town.stop().until(SOON, "a count of the policy on trial", || {
        town.call(CLIENT, &[&format!("http://{to}/")])?.all_well()?;
        let samples = ambit_e2e::observe::samples(&metrics.get("/metrics")?.body);
        let count = sum(&samples, "ambit_authz_dry_run_total", &labels);
        Ok((count >= 1.0).then_some(count))
    })?;
    seen.saw(format!("The client is answered; the policy would have denied {counted} connections."));
    Ok(())
}

fn broken(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let deny = policy(
        "standing",
        "{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]}",
    );
    expect(town, &deny, &[(CLIENT, 8080, true), (CART, 8080, false)])?;
    let admin = town.mesh().controller().admin().clone();
    for (garbage, said) in [
        (deny.replace("action: DENY", "action: PERHAPS"), "PERHAPS"),
        (deny.replace("rules: [", "rules: [[["), "did not find expected"),
    ] {
        town.write("policy.yaml", &garbage)?;
        let page = town.stop().until(SOON, "the controller's complaint", || {
            let page = admin.get("/debug/objects")?.body;
            Ok((page.contains("policy.yaml") && page.contains(said)).then_some(page))
        })?;
        let complaint = page.lines().find(|line| line.contains(said)).unwrap_or_default();
        seen.saw(format!("The controller says: {}", complaint.trim()));
        // Whatever was sent meanwhile has arrived when this other policy has.
        town.write(
            "other.yaml",
            &policy("other", "{action: DENY, rules: [{from: [{source: {principals: [nobody]}}]}]}"),
        )?;
        town.until_policy("node-b", "shop/other", true)?;
        let to = town.pod("shop/web-1")?.address(false, 8080).context("no address")?.to_string();
        ensure!(!answers(town, CART, 8080, &to)?, "the cart is answered: the policy was lost");
        ensure!(answers(town, CLIENT, 8080, &to)?, "the client is refused");
        town.remove("other.yaml")?;
        town.until_policy("node-b", "shop/other", false)?;
    }
    seen.saw("The cart is still refused, and other files are read as ever.");
    expect(town, &deny.replace("sa/cart", "sa/client"), &[(CLIENT, 8080, false), (CART, 8080, true)])?;
    seen.saw("Mended, the file counts again.");
    Ok(())
}

fn cut(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    expect(
        town,
        &policy("nothing", "{action: DENY, rules: []}"),
        &[(CLIENT, 8080, true), (CART, 8080, true), (GUEST, 8080, true)],
    )?;
    let to = town.pod("shop/web-1")?.address(false, 9090).context("no address")?.to_string();
    let (stays, goes, plain) = (town.hold(CLIENT, &to)?, town.hold(CART, &to)?, town.hold(GUEST, &to)?);
    // Newly attached to the workload by its selector.
    town.write(
        "policy.yaml",
        &policy("new", "{selector: {matchLabels: {app: web}}, action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]}"),
    )?;
    for (who, client) in [("the cart's", &goes), ("the guest's", &plain)] {
        town.stop().until(SOON, &format!("the end of {who} connection"), || Ok(client.broken()))?;
    }
    stays.goes_on(town.stop())?;
    seen.saw("A policy newly attached by selector cut the cart and the guest, not the client.");
    // A workload that changes its labels is another one to policies.
    let mark = town.mark("node-b")?;
    town.label_pod("shop", "web-1", "app", Some("other"))?;
    town.write(
        "policy.yaml",
        &policy("other", "{selector: {matchLabels: {app: other}}, action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]}"),
    )?;
    town.stop().until(SOON, "the end of the client's connection", || Ok(stays.broken()))?;
    let line = town.heard(&mark, "the client's cut connection", |line| {
        line.field("src.identity").ends_with("/sa/client") && line.field("error").contains("policy change")
    })?;
    seen.saw("A label moved the pod under another policy, which cut the client:");
    seen.quote(&line.shown(&["src.identity", "dst.workload", "error"]));
    Ok(())
}
