//! What a probe comes to: the first thing that did not go as it should, or how fast it went. Pure.

use std::time::Duration;

use ambit_api::labels;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::objects::{Part, Places};
use crate::cmd::check::verdict::{Check, Permission, Verdict};
use crate::cmd::install::rollout::trouble;
use crate::output::few;

const NAME: &str = "probe";

/// A probe as it was seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) places: Places,
    pub(super) server: Sight,
    /// None if the server did not get so far that it could be called.
    pub(super) client: Option<(Sight, Call)>,
}

/// One of its pods, as it was seen last.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    pod: Pod,
    /// At any time: of a pod that is over, this is taken back.
    is_captured: bool,
    /// Warnings about it, the last one last.
    pub(super) warnings: Vec<String>,
}

/// How the call went.
#[derive(Debug)]
pub(super) enum Call {
    /// Nothing of it can be read.
    Silent,
    /// The server's name has no address.
    Unresolved { why: String },
    /// There was no answer; and which tunnel says what of that, `n1 says: …`.
    Unanswered { why: String, tunnel: Option<String> },
    /// There was one; and whom the tunnel of the server's node took for the client, or why it does not say.
    Answered { first: Duration, round_trip: Duration, client: Result<Option<String>, String> },
}

impl Sight {
    /// The same pod, later.
    pub(super) fn then(self, pod: Pod) -> Self {
        let annotations = pod.metadata.annotations.as_ref();
        let word = annotations.and_then(|all| all.get(labels::REDIRECTION));
        let is_captured = word.is_some_and(|word| word == labels::REDIRECTION_ENABLED);
        Self { is_captured: self.is_captured || is_captured, pod, ..self }
    }

    /// Whether it can be called.
    pub(super) fn is_serving(&self) -> bool {
        let conditions = self.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        self.is_captured && conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
    }

    /// Whether its program has ended, well or not.
    pub(super) fn is_over(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// Its address.
    pub(super) fn address(&self) -> Option<&str> {
        self.pod.status.as_ref()?.pod_ip.as_deref()
    }

    fn container(&self) -> Option<&ContainerStatus> {
        self.pod.status.as_ref()?.container_statuses.as_ref()?.first()
    }

    fn exit_code(&self) -> Option<i32> {
        Some(self.container()?.state.as_ref()?.terminated.as_ref()?.exit_code)
    }

    fn has_started(&self) -> bool {
        let state = self.container().and_then(|container| container.state.as_ref());
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    }

    /// Why it is not further. Warnings say more than states do.
    fn why(&self) -> String {
        let said = self.warnings.last().cloned().or_else(|| trouble(&self.pod));
        said.unwrap_or_else(|| "nobody says why".to_owned())
    }
}

/// The first thing that did not go as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("the {part}'s pod is not scheduled to {node}: {why}")]
    Unscheduled { part: &'static str, node: String, why: String },
    #[error("the {part}'s pod does not start on {node}: {why}")]
    NotStarted { part: &'static str, node: String, why: String },
    #[error("the {part}'s program ended on {node} with status {code}")]
    Ended { part: &'static str, node: String, code: i32 },
    #[error("the {part}'s pod is not taken into the mesh on {node}: {why}")]
    NotCaptured { part: &'static str, node: String, why: String },
    #[error("the server's pod is not ready on {node}: {why}")]
    NotReady { node: String, why: String },
    #[error("the client on {node} does not say how its call went")]
    Silent { node: String },
    #[error("the client on {node} does not get the address of the server's Service: {why}")]
    Unresolved { node: String, why: String },
    #[error("the client on {from} gets no answer from the server on {to}: {why}{}", tunnel_says(.tunnel.as_ref()))]
    Unanswered { from: String, to: String, why: String, tunnel: Option<String> },
    #[error("the client was answered, but the tunnel of {to} saw nobody with the client's certificate")]
    Unseen { to: String },
}

fn tunnel_says(said: Option<&String>) -> String {
    said.map(|said| format!("; the tunnel of {said}")).unwrap_or_default()
}

impl Fault {
    fn remedy(&self) -> String {
        let log = |whose: &str, labels: &str, node: &str| {
            format!(
                "look into the log of {whose}: kubectl get pods -A -l {labels} \
                --field-selector spec.nodeName={node}"
            )
        };
        let agent = |node: &str| log("its agent", "k8s-app=ambit-cni-node", node);
        let tunnel = |node: &str| log("its tunnel", "app=ztunnel", node);
        match self {
            Self::Unscheduled { node, .. } => format!("make room for pods: kubectl describe node {node}"),
            Self::NotStarted { node, .. } => {
                format!("see that the node can pull the controller's image; if it can, {}", agent(node))
            }
            Self::Ended { .. } => {
                "use an ambit of the mesh's version: an older controller's program knows no probe".to_owned()
            }
            Self::NotCaptured { node, .. } => agent(node),
            Self::NotReady { .. } => {
                "kubelet's probes do not come through: `Probes` in docs/operations.md says how they go"
                    .to_owned()
            }
            Self::Silent { .. } => "try again; does kubelet give out logs?".to_owned(),
            Self::Unresolved { node, .. } => {
                format!("kubectl -n kube-system get pods -l k8s-app=kube-dns; {}", tunnel(node))
            }
            Self::Unanswered { from, to, .. } if from == to => tunnel(to),
            Self::Unanswered { from, to, .. } => format!(
                "if no policy forbids it, let TCP 15008 through between pods of {from} and {to}, \
                in firewalls and NetworkPolicies; {}",
                tunnel(to)
            ),
            Self::Unseen { .. } => {
                "plain text gets to pods that refuse it: who else redirects traffic on these nodes?"
                    .to_owned()
            }
        }
    }
}

/// Nobody has asked for it.
pub(crate) fn unasked() -> Check {
    let reason = "it makes a namespace with two pods and takes it away again, so it has to be asked for";
    Check { remedy: "ambit check --probe".to_owned(), ..Check::skipped(NAME, reason) }
}

/// There is nothing to probe.
pub(super) fn impossible(why: &str) -> Check {
    Check::skipped(NAME, why)
}

/// It could not be gone through with.
pub(super) fn broken(error: &anyhow::Error) -> Check {
    Check::failure(NAME, format!("{error:#}"), "once that is mended: ambit check --probe")
}

/// Whoever asks has not the right to make one.
pub(super) fn forbidden(missing: &[Permission]) -> Check {
    let words: Vec<_> = missing.iter().map(Permission::words).collect();
    let remedy = "probe as somebody with cluster-admin, or have these granted in all namespaces";
    Check::failure(NAME, format!("you may not {}", few(&words)), remedy)
}

/// Whatever else it came to, its namespace is still there.
pub(super) fn left_behind(check: Check, namespace: &str, why: &str) -> Check {
    let reason = format!("{}; namespace {namespace} is left behind: {why}", check.reason);
    let mut remedies = vec![check.remedy, format!("kubectl delete namespace {namespace}")];
    remedies.retain(|remedy| !remedy.is_empty());
    let verdict = check.verdict.max(Verdict::Warning);
    Check { reason, remedy: remedies.join("; "), verdict, ..check }
}

/// What it came to.
pub(super) fn judge(seen: &Seen) -> Check {
    match settled(seen) {
        Ok(check) => check,
        Err(fault) => Check::failure(NAME, fault.to_string(), fault.remedy()),
    }
}

fn settled(seen: &Seen) -> Result<Check, Fault> {
    let (from, to) = (seen.places.client.node.clone(), seen.places.server.node.clone());
    started(Part::Server, &seen.server, &to)?;
    captured(Part::Server, &seen.server, &to)?;
    let Some((client, call)) = &seen.client else {
        return Err(Fault::NotReady { node: to, why: seen.server.why() });
    };
    let fault = match call {
        Call::Answered { first, round_trip, client } => {
            let took = format!("{} a round trip, {} for the first", millis(*round_trip), millis(*first));
            return answered(&from, &to, &took, client);
        }
        Call::Silent => Fault::Silent { node: from.clone() },
        Call::Unresolved { why } => Fault::Unresolved { node: from.clone(), why: why.clone() },
        Call::Unanswered { why, tunnel } => {
            Fault::Unanswered { from: from.clone(), to, why: why.clone(), tunnel: tunnel.clone() }
        }
    };
    // It may be for want of the first steps.
    started(Part::Client, client, &from)?;
    captured(Part::Client, client, &from)?;
    Err(fault)
}

fn answered(
    from: &str,
    to: &str,
    took: &str,
    client: &Result<Option<String>, String>,
) -> Result<Check, Fault> {
    let way = if from == to {
        format!("within {to}, where there is no second node to probe,")
    } else {
        format!("from {from} to {to}")
    };
    match client {
        Ok(Some(principal)) => Ok(Check::pass(NAME, format!("{way} by mutual TLS as {principal}: {took}"))),
        Ok(None) => Err(Fault::Unseen { to: to.to_owned() }),
        Err(why) => {
            let reason = format!(
                "{way} although plain text is refused: {took}; \
                but the tunnel of {to} cannot be asked whom it saw: {why}"
            );
            Ok(Check::warning(NAME, reason, "may you create pods/portforward in the system namespace?"))
        }
    }
}

fn started(part: Part, sight: &Sight, node: &str) -> Result<(), Fault> {
    let (name, node) = (part.name(), node.to_owned());
    let is_scheduled = sight.pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    if !is_scheduled {
        return Err(Fault::Unscheduled { part: name, node, why: sight.why() });
    }
    if !sight.has_started() {
        return Err(Fault::NotStarted { part: name, node, why: sight.why() });
    }
    match (part, sight.exit_code()) {
        // With 1 it ends when it was not answered, which is told elsewhere.
        (_, None) | (Part::Client, Some(0 | 1)) => Ok(()),
        (_, Some(code)) => Err(Fault::Ended { part: name, node, code }),
    }
}

fn captured(part: Part, sight: &Sight, node: &str) -> Result<(), Fault> {
    if sight.is_captured {
        return Ok(());
    }
    Err(Fault::NotCaptured { part: part.name(), node: node.to_owned(), why: sight.why() })
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// What is complained of a pod, the last complaint last.
pub(super) fn warnings(events: &[Event], part: Part) -> Vec<String> {
    let is_of = |event: &&Event| {
        event.involved_object.name.as_deref() == Some(part.name())
            && event.type_.as_deref() == Some("Warning")
    };
    let mut found: Vec<_> = events.iter().filter(is_of).collect();
    found.sort_by_key(|event| last_seen(event));
    let said = |event: &Event| {
        let (reason, message) = (event.reason.as_deref(), event.message.as_deref());
        format!("{}: {}", reason.unwrap_or_default(), message.unwrap_or_default())
    };
    found.into_iter().map(said).collect()
}

/// When it was last seen: who writes events says it in one of these places.
fn last_seen(event: &Event) -> Option<Timestamp> {
    let repeated = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|at| at.0);
    let last = event.last_timestamp.as_ref().map(|at| at.0);
    let first = event.event_time.as_ref().map(|at| at.0);
    repeated.or(last).or(first)
}

/// Of a tunnel's metrics: the client that it let in to the namespace by mutual TLS.
pub(super) fn principal(metrics: &str, namespace: &str) -> Option<String> {
    let account = format!("/ns/{namespace}/sa/{}", Part::Client.name());
    let mut opened = metrics.lines().filter(|line| {
        line.starts_with("istio_tcp_connections_opened_total{")
            && line.contains("reporter=\"destination\"")
            && line.contains("connection_security_policy=\"mutual_tls\"")
    });
    opened.find_map(|line| {
        let (_, rest) = line.split_once("source_principal=\"")?;
        let (principal, _) = rest.split_once('"')?;
        principal.ends_with(&account).then(|| principal.to_owned())
    })
}

/// Of a tunnel's log: why it refused the last call from an address that it did refuse.
pub(super) fn complaint(log: &str, address: &str) -> Option<String> {
    let mut lines = log.lines().rev().filter(|line| line.contains(&format!("{address}:")));
    lines.find_map(|line| {
        if let Ok(line) = serde_json::from_str::<Value>(line) {
            return line.get("error")?.as_str().map(str::to_owned);
        }
        let (_, error) = line.split_once(" error=")?;
        // It is quoted as JSON quotes.
        serde_json::Deserializer::from_str(error).into_iter::<String>().next()?.ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::check::probe::objects::places;
    use serde_json::json;

    /// Where the pods are: on two nodes, or on one.
    fn at(nodes: &[&str]) -> Places {
        let node = |name: &&str| {
            let status = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
            serde_json::from_value(json!({ "metadata": { "name": name }, "status": status })).unwrap()
        };
        places(&nodes.iter().map(node).collect::<Vec<_>>()).unwrap()
    }

    /// What is seen of a pod, in states that follow each other.
    fn sight(states: &[Value]) -> Sight {
        states
            .iter()
            .fold(Sight::default(), |sight, state| sight.then(serde_json::from_value(state.clone()).unwrap()))
    }

    fn warned(warning: &str, states: &[Value]) -> Sight {
        Sight { warnings: vec!["earlier".to_owned(), warning.to_owned()], ..sight(states) }
    }

    /// A pod whose container is in a state, with what else is known of it.
    fn pod(state: Value, captured: bool, ready: bool) -> Value {
        let annotations = json!({ labels::REDIRECTION: if captured { "enabled" } else { "pending" } });
        let ready = json!([{ "type": "Ready", "status": if ready { "True" } else { "False" } }]);
        let container = json!({
            "name": "a", "image": "", "imageID": "", "restartCount": 0, "ready": false, "state": state,
        });
        json!({
            "metadata": { "annotations": annotations }, "spec": { "nodeName": "n", "containers": [] },
            "status": { "conditions": ready, "containerStatuses": [container] },
        })
    }

    fn running(captured: bool, ready: bool) -> Value {
        pod(json!({ "running": {} }), captured, ready)
    }

    fn ended(code: i32) -> Value {
        pod(json!({ "terminated": { "exitCode": code } }), false, false)
    }

    fn serving() -> Sight {
        sight(&[running(true, true)])
    }

    fn answered(client: Result<Option<&str>, &str>) -> Call {
        Call::Answered {
            first: Duration::from_micros(14_020),
            round_trip: Duration::from_micros(1_260),
            client: client.map(|one| one.map(str::to_owned)).map_err(str::to_owned),
        }
    }

    const CLIENT: &str = "spiffe://cluster.local/ns/ambit-probe-x/sa/client";

    #[test]
    fn the_first_thing_that_went_wrong_is_told() {
        let two = || at(&["n1", "n2"]);
        let before = |server: Sight| Seen { places: two(), server, client: None };
        let after = |client: Sight, call: Call| Seen {
            places: two(),
            server: serving(),
            client: Some((client, call)),
        };
        let unscheduled = json!({
            "metadata": {}, "spec": { "containers": [] },
            "status": { "conditions": [{ "type": "PodScheduled", "status": "False", "message": "0/2 nodes" }] },
        });
        let creating = pod(json!({ "waiting": { "reason": "ContainerCreating" } }), false, false);
        let pulling =
            pod(json!({ "waiting": { "reason": "ErrImagePull", "message": "no such image" } }), false, false);
        let why = || "Connection reset by peer".to_owned();
        let blocked =
            "n1 says: no answer from 10.0.1.9:15008 within 10s; is a NetworkPolicy blocking port 15008?";
        let verdicts: Vec<_> = [
            before(Sight::default()),
            before(sight(&[unscheduled])),
            before(warned("FailedCreatePodSandBox: no tunnel is connected", &[creating])),
            before(sight(&[pulling])),
            before(sight(&[ended(2)])),
            before(warned("AmbitNotEnrolled: it is tried again", &[running(false, false)])),
            before(warned("Unhealthy: Readiness probe failed", &[running(true, false)])),
            after(sight(&[running(false, true)]), Call::Unanswered { why: why(), tunnel: None }),
            after(sight(&[running(true, true)]), Call::Silent),
            after(
                sight(&[running(true, true), ended(1)]),
                Call::Unresolved { why: "no such name".to_owned() },
            ),
            after(sight(&[running(true, true), ended(1)]), Call::Unanswered { why: why(), tunnel: None }),
            after(serving(), Call::Unanswered { why: why(), tunnel: Some(blocked.to_owned()) }),
            // It may be over before it was seen captured.
            after(sight(&[ended(0)]), answered(Ok(None))),
            after(sight(&[ended(0)]), answered(Err("may you create pods/portforward?"))),
            after(sight(&[ended(0)]), answered(Ok(Some(CLIENT)))),
            Seen { places: at(&["n1"]), ..after(sight(&[ended(0)]), answered(Ok(Some(CLIENT)))) },
        ]
        .iter()
        .map(|seen| {
            let Check { verdict, reason, remedy, .. } = judge(seen);
            format!("{}: {reason}\n  {remedy}", verdict.word())
        })
        .collect();
        insta::assert_snapshot!(verdicts.join("\n"));
    }

    #[test]
    fn a_server_is_called_when_it_is_captured_and_ready() {
        for (captured, ready) in [(true, true), (true, false), (false, true)] {
            assert_eq!(sight(&[running(captured, ready)]).is_serving(), captured && ready);
        }
        let over = json!({ "metadata": {}, "status": { "phase": "Failed" } });
        assert!(sight(&[over]).is_over() && !serving().is_over());
    }

    #[test]
    fn a_right_that_is_missing_is_named() {
        let missing = Permission { verb: "get", group: "", resource: "pods/log", namespaced: false };
        let check = forbidden(&[missing]);
        assert_eq!((check.verdict, check.reason.as_str()), (Verdict::Failure, "you may not get pods/log"));
    }

    #[test]
    fn what_is_left_behind_is_told_whatever_else_there_is() {
        let good =
            left_behind(Check::pass(NAME, "n1 to n2"), "ambit-probe-x", "it is still there after 60 s");
        assert_eq!(
            (good.verdict, good.remedy.as_str()),
            (Verdict::Warning, "kubectl delete namespace ambit-probe-x")
        );
        let bad = left_behind(Check::failure(NAME, "no", "do this"), "ambit-probe-x", "forbidden");
        assert_eq!(
            (bad.verdict, bad.remedy.as_str()),
            (Verdict::Failure, "do this; kubectl delete namespace ambit-probe-x")
        );
    }

    #[test]
    fn the_last_warning_about_a_pod_is_the_last() {
        let event = |pod: &str, kind: &str, at: &str, message: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {}, "involvedObject": { "name": pod }, "type": kind, "reason": "Failed",
                "lastTimestamp": at, "message": message,
            }))
            .unwrap()
        };
        let events = [
            event("server", "Warning", "2026-06-01T12:00:02Z", "second"),
            event("server", "Warning", "2026-06-01T12:00:01Z", "first"),
            event("server", "Normal", "2026-06-01T12:00:03Z", "pulled"),
            event("client", "Warning", "2026-06-01T12:00:04Z", "other"),
        ];
        assert_eq!(warnings(&events, Part::Server), ["Failed: first", "Failed: second"]);
    }

    #[test]
    fn only_mutual_tls_with_the_client_counts() {
        let line = |reporter: &str, principal: &str, policy: &str| {
            format!(
                "istio_tcp_connections_opened_total{{reporter=\"{reporter}\",source_principal=\"{principal}\",\
                connection_security_policy=\"{policy}\"}} 1"
            )
        };
        let other = CLIENT.replace("-x", "-y");
        for (metrics, expected) in [
            (line("destination", CLIENT, "mutual_tls"), Some(CLIENT)),
            (
                format!(
                    "{}\n{}",
                    line("destination", &other, "mutual_tls"),
                    line("destination", CLIENT, "mutual_tls")
                ),
                Some(CLIENT),
            ),
            (line("source", CLIENT, "mutual_tls"), None),
            (line("destination", &other, "mutual_tls"), None),
            (line("destination", CLIENT, "unknown"), None),
            (line("destination", "unknown", "unknown"), None),
            (String::new(), None),
        ] {
            assert_eq!(principal(&metrics, "ambit-probe-x").as_deref(), expected, "{metrics}");
        }
    }

    #[test]
    fn a_tunnel_says_why_it_refused_the_client() {
        let text =
            "1\terror\taccess\tconnection complete\tsrc.addr=10.0.0.7:4000 error=\"no \\\"way\\\"\" x=1";
        for (log, expected) in [
            (text.to_owned(), Some("no \"way\"")),
            (format!("{text}\n{}", text.replace("no ", "still no ")), Some("still no \"way\"")),
            (r#"{"scope":"access","src.addr":"10.0.0.7:4000","error":"no way"}"#.to_owned(), Some("no way")),
            (text.replace("10.0.0.7", "10.0.0.77"), None),
            ("1\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.7:4000".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(complaint(&log, "10.0.0.7").as_deref(), expected, "{log}");
        }
    }
}
