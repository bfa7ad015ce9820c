//! From what a component's pages say to a verdict. Pure.

use serde_json::{Value, json};

use crate::cmd::playground::state::Kind;
use crate::cmd::sources::Target;
use crate::output::Tone;

/// What a component's pages said.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) ready: Result<(), Health>,
    pub(super) version: Option<String>,
    /// A controller's subscribers.
    pub(super) syncz: Option<Value>,
    /// A tunnel's connection to the controller.
    pub(super) sync: Option<Value>,
    /// A tunnel's metrics.
    pub(super) metrics: Option<String>,
    /// An agent's pods.
    pub(super) pods: Option<Value>,
}

impl Default for Asked {
    fn default() -> Self {
        Self { ready: Ok(()), version: None, syncz: None, sync: None, metrics: None, pods: None }
    }
}

/// How a component is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// Up to date.
    Synced,
    /// It serves, and follows nobody.
    Ready,
    /// Its configuration may be old, and why.
    Stale(String),
    /// It does not serve yet, and what it waits for.
    NotReady(String),
    /// It does not answer, and why.
    Unreachable(String),
}

impl Health {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Ready => "ready",
            Self::Stale(_) => "stale",
            Self::NotReady(_) => "not ready",
            Self::Unreachable(_) => "unreachable",
        }
    }

    pub(super) fn tone(&self) -> Tone {
        match self {
            Self::Synced | Self::Ready => Tone::Good,
            Self::Stale(_) | Self::NotReady(_) => Tone::Wait,
            Self::Unreachable(_) => Tone::Bad,
        }
    }

    pub(super) fn is_well(&self) -> bool {
        matches!(self, Self::Synced | Self::Ready)
    }

    pub(super) fn why(&self) -> Option<&str> {
        match self {
            Self::Synced | Self::Ready => None,
            Self::Stale(why) | Self::NotReady(why) | Self::Unreachable(why) => Some(why),
        }
    }
}

/// One line of the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) title: String,
    pub(super) version: Option<String>,
    pub(super) up_since: Option<String>,
    pub(super) health: Health,
    /// Since when it is synced or stale, as far as it says.
    pub(super) since: Option<String>,
    pub(super) pods: Option<String>,
    pub(super) holds: Option<String>,
    pub(super) nack: Option<Nack>,
}

/// The last response that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nack {
    pub(super) at: String,
    pub(super) kind: String,
    pub(super) message: String,
}

impl Row {
    pub(super) fn value(&self) -> Value {
        json!({
            "component": self.title,
            "version": self.version,
            "upSince": self.up_since,
            "state": self.health.word(),
            "reason": self.health.why(),
            "since": self.since,
            "pods": self.pods,
            "holds": self.holds,
            "lastNack": self.nack.as_ref().map(|nack| json!({
                "at": nack.at, "type": nack.kind, "message": nack.message,
            })),
        })
    }
}

/// The line of one component. `subscribers` are the controller's, for whom it may know better than they do.
pub(super) fn judge(target: &Target, asked: &Asked, subscribers: &[Value]) -> Row {
    let own = text(asked.sync.as_ref(), "connectedSince");
    let subscriber =
        subscribers.iter().find(|one| one.get("node").and_then(Value::as_str) == target.node.as_deref());
    let (health, since) = match (&asked.ready, target.kind) {
        (Err(health), _) => (health.clone(), None),
        (Ok(()), Kind::Controller | Kind::Agent) => (Health::Ready, None),
        (Ok(()), Kind::Ztunnel) => tunnel(asked.sync.as_ref(), subscriber, own),
    };
    let holds = match target.kind {
        Kind::Controller => asked.syncz.as_ref().and_then(Value::as_array).map(|all| {
            let synced = all.iter().filter(|one| one.get("synced") == Some(&Value::Bool(true))).count();
            format!("{synced}/{} in sync", all.len())
        }),
        Kind::Ztunnel => asked.sync.as_ref().and_then(held),
        Kind::Agent => None,
    };
    Row {
        title: target.title(),
        version: asked.version.clone().or_else(|| target.version.clone()),
        up_since: target.since.clone(),
        health,
        since,
        pods: match target.kind {
            Kind::Ztunnel => asked.metrics.as_deref().and_then(served),
            Kind::Agent => asked.pods.as_ref().and_then(enrolled),
            Kind::Controller => None,
        },
        holds,
        nack: nack(asked.sync.as_ref()),
    }
}

/// A tunnel is up to date if it is connected and has been told everything, and the controller agrees.
fn tunnel(
    sync: Option<&Value>,
    subscriber: Option<&Value>,
    connected: Option<String>,
) -> (Health, Option<String>) {
    let Some(sync) = sync else {
        return (Health::Unreachable("its page /debug/sync does not answer".to_owned()), None);
    };
    let is = |field: &str| sync.get(field) == Some(&Value::Bool(true));
    if !is("configured") {
        return (Health::Ready, None);
    }
    let Some(connected) = connected else {
        let since = text(Some(sync), "disconnectedSince").or_else(|| text(Some(sync), "lastUpdate"));
        let why = text(Some(sync), "lastEnd").unwrap_or_else(|| "never connected".to_owned());
        return (Health::Stale(format!("does not hear the controller: {why}")), since);
    };
    if !is("synced") {
        return (Health::Stale("has not been told everything yet".to_owned()), Some(connected));
    }
    match subscriber.and_then(behind) {
        Some((why, since)) => (Health::Stale(why), since),
        None => (Health::Synced, Some(connected)),
    }
}

/// What the controller waits for, and since when.
fn behind(subscriber: &Value) -> Option<(String, Option<String>)> {
    if subscriber.get("synced") == Some(&Value::Bool(true)) {
        return None;
    }
    let types = subscriber.get("types").and_then(Value::as_array)?;
    let late = types.iter().find(|one| one.get("synced") != Some(&Value::Bool(true)))?;
    let kind = text(Some(late), "type").unwrap_or_default();
    let number = |field: &str| late.get(field).and_then(Value::as_u64).unwrap_or_default();
    let (acked, latest) = (number("acked"), number("latest"));
    Some((format!("has acknowledged change {acked} of {latest} of {kind}"), text(Some(late), "waitingSince")))
}

/// `12 Address, 3 Authorization`: how much a tunnel holds of each type.
fn held(sync: &Value) -> Option<String> {
    let held = sync.get("held")?.as_object()?;
    let short = |url: &str| url.rsplit('.').next().unwrap_or(url).to_owned();
    let parts: Vec<_> = held.iter().map(|(url, count)| format!("{count} {}", short(url))).collect();
    Some(parts.join(", "))
}

fn nack(sync: Option<&Value>) -> Option<Nack> {
    let nack = sync?.get("lastNack").filter(|nack| !nack.is_null());
    let kind = text(nack, "typeUrl")?;
    Some(Nack {
        at: text(nack, "at")?,
        kind: kind.rsplit('.').next().unwrap_or(&kind).to_owned(),
        message: text(nack, "message")?,
    })
}

/// `3 up`, `3 up, 1 pending`: by a tunnel's gauges.
fn served(metrics: &str) -> Option<String> {
    let gauge = |name: &str| {
        let line = metrics.lines().find(|line| line.split([' ', '{']).next() == Some(name))?;
        line.rsplit(' ').next()?.parse::<u64>().ok()
    };
    let up = gauge("workload_manager_active_proxy_count")?;
    Some(match gauge("workload_manager_pending_proxy_count") {
        None | Some(0) => format!("{up} up"),
        Some(pending) => format!("{up} up, {pending} pending"),
    })
}

/// `3 enabled, 1 outside`: by an agent's list.
fn enrolled(pods: &Value) -> Option<String> {
    let pods = pods.as_array()?;
    let count = |state: &str| {
        pods.iter().filter(|pod| pod.get("state").and_then(Value::as_str) == Some(state)).count()
    };
    let words = ["enabled", "pending", "leaving", "outside"];
    let parts = words
        .map(|word| (word, count(word)))
        .into_iter()
        .filter(|(word, count)| *count > 0 || *word == "enabled");
    Some(parts.map(|(word, count)| format!("{count} {word}")).collect::<Vec<_>>().join(", "))
}

fn text(value: Option<&Value>, field: &str) -> Option<String> {
    value?.get(field)?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(kind: Kind) -> Target {
        let page: crate::connect::Endpoint = "127.0.0.1:1".parse().unwrap();
        Target {
            kind,
            node: Some("node-a".to_owned()),
            admin: page.clone(),
            readiness: page.clone(),
            metrics: page,
            version: None,
            since: None,
        }
    }

    const CONNECTED: &str = "2026-08-01T12:00:00Z";

    fn sync(connected: bool, synced: bool) -> Value {
        json!({
            "configured": true, "synced": synced,
            "connectedSince": connected.then_some(CONNECTED),
            "lastUpdate": "2026-08-01T11:59:00Z", "lastEnd": "connection refused", "lastNack": null,
            "held": { "type.googleapis.com/istio.workload.Address": 12, "type.googleapis.com/istio.security.Authorization": 3 },
        })
    }

    fn subscriber(acked: u64) -> Value {
        json!({ "node": "node-a", "synced": acked == 9, "types": [
            { "type": "wds", "synced": true, "acked": 9, "latest": 9 },
            { "type": "wads", "synced": acked == 9, "acked": acked, "latest": 9, "waitingSince": CONNECTED },
        ]})
    }

    fn judged(sync: Value, subscribers: &[Value]) -> Row {
        let asked = Asked { sync: Some(sync), ..Asked::default() };
        judge(&target(Kind::Ztunnel), &asked, subscribers)
    }

    #[test]
    fn a_tunnel_is_synced_when_both_ends_say_so() {
        let row = judged(sync(true, true), &[subscriber(9)]);
        assert_eq!((row.health, row.since.as_deref()), (Health::Synced, Some(CONNECTED)));
        assert_eq!(row.holds.as_deref(), Some("3 Authorization, 12 Address"));
        let row = judged(sync(true, true), &[subscriber(7)]);
        assert_eq!(row.health, Health::Stale("has acknowledged change 7 of 9 of wads".to_owned()));
        // A controller that is asked through no page has no say.
        assert_eq!(judged(sync(true, true), &[]).health, Health::Synced);
    }

    #[test]
    fn a_tunnel_without_its_controller_is_stale_and_says_why() {
        let row = judged(sync(false, true), &[]);
        assert_eq!(row.health.word(), "stale");
        assert!(row.health.why().unwrap().contains("connection refused"));
        assert_eq!(row.since.as_deref(), Some("2026-08-01T11:59:00Z"));
        assert_eq!(judged(sync(true, false), &[]).health.word(), "stale");
        assert_eq!(judged(json!({ "configured": false }), &[]).health, Health::Ready);
    }

    #[test]
    fn what_does_not_answer_is_not_well() {
        let down = Asked { ready: Err(Health::Unreachable("refused".to_owned())), ..Asked::default() };
        let row = judge(&target(Kind::Agent), &down, &[]);
        assert!(!row.health.is_well());
        assert_eq!(row.value()["state"], "unreachable");
        assert!(judge(&target(Kind::Agent), &Asked::default(), &[]).health.is_well());
    }

    #[test]
    fn a_refused_response_is_shown_with_its_type() {
        let mut sync = sync(true, true);
        sync["lastNack"] = json!({ "at": CONNECTED, "typeUrl": "type.googleapis.com/istio.security.Authorization", "message": "bad" });
        let nack = judged(sync, &[]).nack.unwrap();
        assert_eq!((nack.kind.as_str(), nack.message.as_str()), ("Authorization", "bad"));
    }

    #[test]
    fn pods_are_counted_by_those_who_serve_them() {
        let metrics =
            "# TYPE x gauge\nworkload_manager_active_proxy_count 4\nworkload_manager_pending_proxy_count 1\n";
        assert_eq!(served(metrics).as_deref(), Some("4 up, 1 pending"));
        assert_eq!(served("workload_manager_active_proxy_count 4\n").as_deref(), Some("4 up"));
        assert_eq!(served(""), None);
        let pods = json!([{ "state": "enabled" }, { "state": "outside" }, { "state": "enabled" }]);
        assert_eq!(enrolled(&pods).as_deref(), Some("2 enabled, 1 outside"));
        assert_eq!(enrolled(&json!([])).as_deref(), Some("0 enabled"));
    }
}
