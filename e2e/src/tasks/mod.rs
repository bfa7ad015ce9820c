//! What the pages in `docs/tasks` tell their readers to do, done in a town: each page's own YAML is applied, and what it
//! promises is looked at. The story `tasks` tells them all, and the demo most.

mod authorizer;
mod tracing;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::observe::{self, Sample};
use crate::pages::Page;
use crate::telling::Evidence;
use crate::town::{SOON, Town};

pub use authorizer::authorizer;
pub use tracing::tracing;

const README: Page = Page(include_str!("../../../docs/tasks/README.md"));
const CANARY: Page = Page(include_str!("../../../docs/tasks/canary.md"));
const RETRIES: Page = Page(include_str!("../../../docs/tasks/retries.md"));
const FAULTS: Page = Page(include_str!("../../../docs/tasks/faults.md"));
const VIRTUAL_SERVICE: Page = Page(include_str!("../../../docs/tasks/virtual-service.md"));
const ENDPOINTS: Page = Page(include_str!("../../../docs/tasks/endpoints.md"));
const MIRRORING: Page = Page(include_str!("../../../docs/tasks/mirroring.md"));
const TOKENS: Page = Page(include_str!("../../../docs/tasks/tokens.md"));
const EXPLAIN: Page = Page(include_str!("../../../docs/tasks/explain.md"));
const LIMITS: Page = Page(include_str!("../../../docs/limits.md"));

const CLIENT: &str = "shop/client";
const WEB: &str = "http://web.shop/";
/// The Service of the demo's shop, as it is written, and as it is bound to the waypoint.
const UNBOUND: &str = "metadata: {name: web, namespace: shop}\nspec:\n  selector: {app: web}";
const BOUND: &str = "metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}\nspec:\n  selector: {app: web}";
/// The file of the one route that the pages write one after another.
const ROUTE: &str = "route.yaml";

/// The YAML of a page, in its order.
fn yaml<const N: usize>(page: Page) -> anyhow::Result<[String; N]> {
    let found = page.fenced("yaml");
    found.try_into().map_err(|found: Vec<_>| anyhow::anyhow!("{} pieces of YAML, not {N}", found.len()))
}

/// `README.md`: a waypoint for the Service, while a client goes on calling it.
pub fn bind(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [gateway] = yaml(README)?;
    let requests = ["--duration", "4", "--rate", "50", "--new-connection", "-q", WEB];
    let client = town.client(CLIENT, &[&["call"], &requests[..]].concat())?;
    town.write("gateway.yaml", &gateway)?;
    town.edit("town.yaml", UNBOUND, BOUND)?;
    seen.did("Applied a Gateway of class ambit-waypoint, and labelled Service web: istio.io/use-waypoint=waypoint.");
    let id = town.stop().until(SOON, "a request through the waypoint", || {
        let headers = town.call(CLIENT, &[&format!("{WEB}headers")])?.body()?;
        Ok(headers.get("x-request-id").and_then(|id| id.as_str()).map(str::to_owned))
    })?;
    let told = client.finish(Duration::from_secs(30))?;
    told.all_well()?;
    seen.saw(format!(
        "Requests go through it (the last has the id {id}); of {} none failed.",
        told.requests()
    ));
    Ok(())
}

/// Which pods answered so many requests.
fn spread(town: &Town, count: u32, more: &[&str]) -> anyhow::Result<BTreeMap<String, u64>> {
    let count = count.to_string();
    let called = town.call(CLIENT, &[&["--count", &count, "-q", WEB], more].concat())?;
    Ok(called.all_well()?.pods())
}

fn of_v2(pods: &BTreeMap<String, u64>) -> u64 {
    pods.iter().filter(|(pod, _)| pod.starts_with("web-v2")).map(|(_, count)| count).sum()
}

fn start_v2(town: &Town) -> anyhow::Result<String> {
    let [v2, _] = yaml(CANARY)?;
    town.write("v2.yaml", &v2)?;
    let pod = town.stop().until(SOON, "a pod of web-v2", || {
        Ok(town.pods_of("shop/web-v2").first().map(|pod| pod.name().to_string()))
    })?;
    town.until_enrolled(&[&pod], true)?;
    Ok(pod)
}

/// By the header all go to web-v2, and of the others a tenth: who answered those.
fn a_tenth(town: &Town, seen: &mut Evidence<'_>) -> anyhow::Result<BTreeMap<String, u64>> {
    let pods = town.stop().until(SOON, "requests at web-v2", || {
        // It may not be listening yet.
        let called = town.call(CLIENT, &["--count", "20", "-q", "-H", "x-canary: always", WEB])?;
        Ok((of_v2(&called.pods()) == 20).then(|| called.pods()))
    })?;
    seen.saw(format!("With `x-canary: always`: {}.", shares(&pods)));
    let pods = spread(town, 300, &[])?;
    let share = of_v2(&pods);
    // Three standard deviations around thirty, and some.
    ensure!((10..=55).contains(&share), "{share} of 300 at a tenth: {pods:?}");
    Ok(pods)
}

/// `canary.md`: by header, and by weight.
pub fn canary(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [_, route] = yaml(CANARY)?;
    start_v2(town)?;
    town.write(ROUTE, &route)?;
    seen.did(
        "Applied Deployment and Service web-v2, and an HTTPRoute: all with a header, a tenth of the rest.",
    );
    let pods = a_tenth(town, seen)?;
    seen.saw(format!("Without: {}.", shares(&pods)));
    town.remove(ROUTE)?;
    town.remove("v2.yaml")
}

fn shares(pods: &BTreeMap<String, u64>) -> String {
    let one = |(pod, count): (&String, &u64)| format!("{pod} {count}");
    pods.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// How many requests a pod has answered.
fn answered(town: &Town, pod: &str) -> anyhow::Result<u64> {
    let who = town.call(pod, &["http://127.0.0.1:8080/"])?.body()?;
    let answered = who.get("answered").and_then(Value::as_u64);
    answered.context("the application says no number")
}

/// `retries.md`: a failing endpoint that no client notices.
pub fn retries(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    const FAILING: &str = "shop/web-failing";
    let [failing, route] = yaml(RETRIES)?;
    town.write("failing.yaml", &failing)?;
    town.until_enrolled(&[FAILING], true)?;
    let statuses = town.stop().until(SOON, "a failure", || {
        let called = town.call(CLIENT, &["--count", "4", "-q", WEB])?;
        Ok((called.failures() > 0).then(|| called.statuses()))
    })?;
    seen.did("Started a pod of web that answers everything with 503.");
    seen.saw(format!("The client is answered with {statuses:?}."));
    town.write(ROUTE, &route)?;
    seen.did("Applied an HTTPRoute: after 503 again, up to three times.");
    let hidden = town.stop().until(SOON, "a failure that the client does not see", || {
        let before = answered(town, FAILING)?;
        let called = town.call(CLIENT, &["--count", "20", "-q", WEB])?;
        // The question itself is one of them.
        let failed = answered(town, FAILING)? - before - 1;
        Ok((called.failures() == 0 && failed > 0).then_some(failed))
    })?;
    seen.saw(format!("Of 20 requests {hidden} met the failing pod; the client was answered with 200 alone."));
    town.remove(ROUTE)?;
    town.remove("failing.yaml")
}

/// `mirroring.md`: copies that nobody waits for.
pub fn mirroring(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    const REQUESTS: u32 = 20;
    let [route] = yaml(MIRRORING)?;
    let v2 = start_v2(town)?;
    town.write(ROUTE, &route)?;
    seen.did("Applied an HTTPRoute: a copy of each request to web-v2.");
    town.stop().until(SOON, "the first copy", || {
        let before = answered(town, &v2)?;
        spread(town, 1, &[])?;
        Ok((answered(town, &v2)? > before + 1).then_some(()))
    })?;
    let before = answered(town, &v2)?;
    let pods = spread(town, REQUESTS, &[])?;
    ensure!(of_v2(&pods) == 0, "the client was answered by the mirror: {pods:?}");
    let copies = town.stop().until(SOON, "all copies", || {
        // Each question is one more, and comes after those before it.
        let copies = answered(town, &v2)?.saturating_sub(before + 1);
        Ok((copies >= u64::from(REQUESTS)).then_some(copies))
    })?;
    seen.saw(format!("{REQUESTS} requests answered by {}; {v2} has seen {copies} more.", shares(&pods)));
    town.remove(ROUTE)?;
    town.remove("v2.yaml")
}

/// `faults.md`: requests that are held back, or fail, on purpose.
pub fn faults(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    const HELD: Duration = Duration::from_secs(2);
    let [faults] = yaml(FAULTS)?;
    let called = |town: &Town, what: &str, count: &str| {
        let header = format!("x-test: {what}");
        town.call(CLIENT, &["--count", count, "-q", "-H", &header, WEB])
    };
    town.write("faults.yaml", &faults)?;
    seen.did("Applied a VirtualService: one header holds requests back, another lets half of them fail.");
    let statuses = town.stop().until(SOON, "both answers", || {
        let statuses = called(town, "broken", "60")?.statuses();
        Ok(statuses.contains_key(&503).then_some(statuses))
    })?;
    ensure!(statuses.keys().eq(&[200, 503]), "half of them fail: {statuses:?}");
    let began = Instant::now();
    called(town, "slow", "1")?.all_well()?;
    let took = began.elapsed();
    ensure!(took >= HELD, "held back for {took:?}");
    called(town, "nothing", "20")?.all_well()?;
    seen.saw(format!("`broken`: {statuses:?}. `slow`: answered after {HELD:?}. Of others none failed."));
    town.remove("faults.yaml")?;
    town.stop().until(SOON, "the end of the fault", || {
        Ok((called(town, "broken", "20")?.failures() == 0).then_some(()))
    })
}

/// `virtual-service.md`: rules in their order, to two versions.
pub fn virtual_service(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [object] = yaml(VIRTUAL_SERVICE)?;
    start_v2(town)?;
    town.write("virtual-service.yaml", &object)?;
    seen.did("Applied a VirtualService: testers to web-v2, and a tenth of the rest; old links rewritten.");
    let pods = a_tenth(town, seen)?;
    // The application knows `/headers`, and no `/old/headers`; the first rule comes before that for testers.
    let old = town.call(CLIENT, &["-H", "x-canary: always", &format!("{WEB}old/headers")])?;
    ensure!(old.body()?.get("x-request-id").is_some(), "the old link: {old:?}");
    seen.saw(format!("Without: {}. An old link leads to the new place.", shares(&pods)));
    town.remove("virtual-service.yaml")?;
    town.remove("v2.yaml")
}

/// `endpoints.md`: one client at one endpoint, a version by its subset, and a failing pod that is left alone.
pub fn endpoints(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    const RULE: &str = "destination-rule.yaml";
    const NEXT: &str = "shop/web-next";
    const SICK: &str = "shop/web-sick";
    // Success rates are compared where there are more endpoints than here.
    let [hashed, versions, outliers, _] = yaml(ENDPOINTS)?;
    town.write(RULE, &hashed)?;
    seen.did("Applied a DestinationRule: endpoints by the header x-user.");
    let users = ["ann", "bob", "cid", "dan", "eve", "flo"];
    let met = town.stop().until(SOON, "each user at one pod", || {
        let mut met = BTreeMap::new();
        for user in users {
            // What was removed a moment ago may still get one.
            let called = town.call(CLIENT, &["--count", "6", "-q", "-H", &format!("x-user: {user}"), WEB])?;
            if called.failures() > 0 {
                return Ok(None);
            }
            let mut pods = called.pods().into_keys();
            let (Some(one), None) = (pods.next(), pods.next()) else { return Ok(None) };
            *met.entry(one).or_default() += 1;
        }
        Ok(Some(met))
    })?;
    ensure!(met.len() > 1, "all users are at one pod: {met:?}");
    seen.saw(format!("Each of {} users met one pod alone: {}.", users.len(), shares(&met)));
    town.remove(RULE)?;
    town.write(RULE, &versions)?;
    town.until_enrolled(&[NEXT], true)?;
    seen.did("Started another version behind the same Service, and gave it a name by its label.");
    let count = |pods: &BTreeMap<String, u64>, pod: &str| {
        pods.iter().filter(|(name, _)| pod.ends_with(name.as_str())).map(|(_, count)| count).sum::<u64>()
    };
    town.stop().until(SOON, "requests at the other version", || {
        let called = town.call(CLIENT, &["--count", "20", "-q", "-H", "x-version: next", WEB])?;
        Ok((count(&called.pods(), NEXT) == 20).then_some(()))
    })?;
    let pods = spread(town, 80, &[])?;
    ensure!(pods.len() > 1 && count(&pods, NEXT) < 80, "without the header: {pods:?}");
    seen.saw(format!("With `x-version: next` 20 of 20 met it; without: {}.", shares(&pods)));
    town.remove(RULE)?;
    town.write(RULE, &outliers)?;
    town.until_enrolled(&[SICK], true)?;
    seen.did(
        "Started a pod that answers everything with 503, and a DestinationRule that leaves such pods alone.",
    );
    let failed = town.stop().until(SOON, "failures, and their end", || {
        let before = answered(town, SICK)?;
        let well = town.call(CLIENT, &["--count", "40", "-q", WEB])?.failures() == 0;
        // The question is one more.
        let left_alone = answered(town, SICK)? == before + 1;
        Ok((well && left_alone && before >= 3).then_some(before))
    })?;
    seen.saw(format!(
        "After {failed} answers it is left alone: of 40 requests none met it, and none failed."
    ));
    town.remove(RULE)
}

/// `tokens.md`: who calls with which token is answered how.
pub fn tokens(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [authentication, policy] = yaml(TOKENS)?;
    let (ann, bob) = (TOKENS.value("ann"), TOKENS.value("bob"));
    let url = format!("{WEB}headers");
    let with = |town: &Town, token: &str| {
        let header = format!("authorization: Bearer {token}");
        town.call(CLIENT, &["-H", &header, &url])
    };
    let status = |called: &crate::town::Called| called.statuses().into_keys().next().unwrap_or_default();
    town.write("authentication.yaml", &authentication)?;
    town.write("policy.yaml", &policy)?;
    seen.did("Applied a RequestAuthentication, and an AuthorizationPolicy that asks for the group staff.");
    town.stop().until(SOON, "a refusal without a token", || {
        Ok((status(&town.call(CLIENT, &[&url])?) == 403).then_some(()))
    })?;
    let of_ann = with(town, ann)?;
    let user = of_ann.body()?.get("x-user").and_then(|user| user.as_str()).map(str::to_owned);
    ensure!(status(&of_ann) == 200 && user.as_deref() == Some("ann"), "Ann: {of_ann:?}");
    let changed = format!("{}A{}", &ann.get(..100).unwrap_or_default(), &ann.get(101..).unwrap_or_default());
    for (who, token, wanted) in [("Bob's token", bob, 403), ("a changed token", &changed, 401)] {
        let got = status(&with(town, token)?);
        ensure!(got == wanted, "{who}: {got}, not {wanted}");
    }
    seen.saw(
        "No token: 403. Ann's: 200, and the application hears x-user: ann. Bob's: 403. A changed one: 401.",
    );
    town.remove("policy.yaml")?;
    town.remove("authentication.yaml")?;
    town.stop().until(SOON, "an answer without a token", || {
        Ok((status(&town.call(CLIENT, &[&url])?) == 200).then_some(()))
    })
}

/// What the waypoint explains of a request for `path` that shows `token`, and the status.
fn explained(town: &Town, token: &str, path: &str) -> anyhow::Result<Option<(String, Value)>> {
    let header = format!("x-ambit-debug: {token}");
    let url = format!("{WEB}{path}");
    let curl = ambit_lab::Program::new("curl").args(["-sSi", "-m", "5", "-H", &header, &url]);
    let head = town.pod(CLIENT)?.run(&curl, SOON)?.stdout;
    let status = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let told = head.lines().find_map(|line| line.strip_prefix("x-ambit-explanation: "));
    told.map(|told| Ok((status, serde_json::from_str(told)?))).transpose()
}

/// `explain.md`: a token of the controller, and what the waypoint says of two requests.
pub fn explain(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [policy] = yaml(EXPLAIN)?;
    town.write("policy.yaml", &policy)?;
    let signed = town.mesh().controller().admin().post("/debug/token?for=shop/waypoint&life=5m")?;
    ensure!(signed.status == 200, "no token: {}", signed.body);
    let token = signed.body.trim_end();
    seen.did("Applied an AuthorizationPolicy that denies /admin, and had the controller sign a debug token.");
    let (status, denied) = town.stop().until(SOON, "a denial that is explained", || {
        let told = explained(town, token, "admin")?;
        Ok(told.filter(|(status, _)| status == "403"))
    })?;
    let why = denied.pointer("/ended/error").and_then(Value::as_str).unwrap_or_default();
    ensure!(why == "denied by policy: shop/no-admin", "{denied}");
    seen.saw(format!("GET /admin: {status}, {why}."));
    let (status, taken) = explained(town, token, "headers")?.context("no explanation")?;
    let of = |pointer: &str| taken.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    ensure!(status == "200" && of("/attempts/0/outcome") == "200", "{taken}");
    ensure!(of("/caller").ends_with("/ns/shop/sa/client"), "{taken}");
    seen.saw(format!(
        "GET /headers: {status}, let in because {}, by {}.",
        of("/permitted"),
        of("/attempts/0/endpoint")
    ));
    let heard =
        town.call(CLIENT, &["-H", &format!("x-ambit-debug: {token}"), &format!("{WEB}headers")])?.body()?;
    ensure!(heard.get("x-ambit-debug").is_none(), "the application has seen the token");
    let changed = token.replacen(".", ".A", 1);
    ensure!(explained(town, &changed, "headers")?.is_none(), "a token that nobody signed is believed");
    seen.saw("The application sees no token; a changed one explains nothing.");
    town.remove("policy.yaml")?;
    town.stop().until(SOON, "an answer at /admin", || {
        Ok(town.call(CLIENT, &[&format!("{WEB}admin")])?.all_well().is_ok().then_some(()))
    })
}

/// `limits.md`: a client that calls more often than it may.
pub fn limits(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let [policy, ..]: [String; 3] = yaml(LIMITS)?;
    town.write("limits.yaml", &policy)?;
    seen.did("Applied a RateLimitPolicy: 20 requests a second for each client, 40 at once.");
    let statuses = town.stop().until(SOON, "a refusal", || {
        let called = town.call(CLIENT, &["--count", "120", "--concurrency", "4", "-q", WEB])?;
        Ok(called.statuses().contains_key(&429).then(|| called.statuses()))
    })?;
    ensure!(statuses.keys().eq(&[200, 429]), "nothing but taken or limited: {statuses:?}");
    seen.saw(format!("The client, 120 requests in a row: {statuses:?}."));
    town.call("shop/cart", &["--count", "5", "-q", WEB])?.all_well()?;
    seen.saw("The cart has a count of its own: all of its 5 were taken.");
    town.remove("limits.yaml")?;
    town.stop().until(SOON, "the end of the limit", || {
        Ok((town.call(CLIENT, &["--count", "120", "-q", WEB])?.failures() == 0).then_some(()))
    })
}

/// The metrics of all instances of the waypoint.
fn waypoint_metrics(town: &Town) -> anyhow::Result<Vec<Sample>> {
    const PAGE: &str = "http://127.0.0.1:15020/stats/prometheus";
    let mut samples = Vec::new();
    for waypoint in town.pods_of("shop/waypoint") {
        let page = waypoint.run(&ambit_lab::Program::new("curl").args(["-fsS", PAGE]), SOON)?;
        samples.extend(observe::samples(&page.stdout));
    }
    ensure!(!samples.is_empty(), "no pod of the waypoint has metrics");
    Ok(samples)
}

/// What the waypoint has counted, by destination and status.
pub fn counted(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let of_waypoint = |sample: &Sample| {
        let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
        let is = sample.name == "istio_requests_total" && label("reporter") == "waypoint";
        is.then(|| (format!("{} {}", label("destination_workload"), label("response_code")), sample.value))
    };
    let mut by_code: BTreeMap<String, f64> = BTreeMap::new();
    for (of, value) in waypoint_metrics(town)?.iter().filter_map(of_waypoint) {
        *by_code.entry(of).or_default() += value;
    }
    for code in ["200", "401", "403", "429", "503"] {
        let some = by_code.iter().any(|(of, count)| of.ends_with(code) && *count > 0.0);
        ensure!(some, "nothing was counted with {code}: {by_code:?}");
    }
    let all: Vec<_> = by_code.iter().map(|(of, count)| format!("{of}: {count}")).collect();
    seen.saw(format!("istio_requests_total, reporter waypoint: {}.", all.join("; ")));
    Ok(())
}
