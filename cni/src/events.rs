//! Tells a pod's owner, by a Kubernetes Event, why the pod is not in the mesh and what can be done.

use std::{collections::BTreeMap, time::Duration};

use ambit_runtime::task;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use crate::{metrics::Metrics, watch::kubernetes::chain};

/// The pod belongs, and is not enrolled.
pub const NOT_ENROLLED: &str = "AmbitNotEnrolled";
/// The pod is enrolled, and kubelet's probes do not reach it.
pub const PROBES_BLOCKED: &str = "AmbitProbesBlocked";

/// Notices that wait to be written. A node has a few hundred pods; what is too much is dropped and counted.
const QUEUE: usize = 256;

/// Five events a second and node at most: a thousand nodes must not keep the API server busy with complaints.
const PACE: Duration = Duration::from_millis(200);

/// The same about the same pod is not said again for this long. Events live for an hour.
const REPEAT: Duration = Duration::from_secs(1800);

/// What one write may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Longer notes are refused by the API server.
const LONGEST_NOTE: usize = 1000;

/// Whoever tells. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(Option<Telling>);

#[derive(Debug, Clone)]
struct Telling {
    notices: mpsc::Sender<Notice>,
    metrics: Metrics,
}

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The pod's UID.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// In one word.
    pub reason: &'static str,
    /// In words.
    pub note: String,
}

/// What was said lately. Pure.
#[derive(Debug, Default)]
struct Said(BTreeMap<(String, &'static str), (String, Instant)>);

impl Events {
    /// Nobody is told: there are no Events where pods come from a directory.
    pub fn off() -> Self {
        Self(None)
    }

    /// Tells through the API server, as the agent of `node`.
    pub fn kubernetes(client: Client, node: &str, metrics: &Metrics) -> Self {
        let (notices, queue) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: "ambit.io/cni".to_owned(), instance: Some(node.to_owned()) };
        task::spawn("events", write(Recorder::new(client, reporter), queue, metrics.clone()));
        Self(Some(Telling { notices, metrics: metrics.clone() }))
    }

    /// Tells, some time.
    pub fn tell(&self, notice: Notice) {
        if let Some(telling) = &self.0
            && telling.notices.try_send(notice).is_err()
        {
            telling.metrics.event("dropped");
        }
    }
}

async fn write(recorder: Recorder, mut queue: mpsc::Receiver<Notice>, metrics: Metrics) {
    let mut said = Said::default();
    while let Some(notice) = queue.recv().await {
        if !said.is_news(&notice, Instant::now()) {
            continue;
        }
        let event = Event {
            type_: EventType::Warning,
            reason: notice.reason.to_owned(),
            note: Some(notice.note.chars().take(LONGEST_NOTE).collect()),
            action: "Enrolling".to_owned(),
            secondary: None,
        };
        match timeout(LIMIT, recorder.publish(&event, &reference(&notice))).await {
            Ok(Ok(())) => metrics.event("written"),
            Ok(Err(error)) => {
                debug!(error = %chain(&error), pod.uid = %notice.uid, "An Event could not be written");
                metrics.event("failed");
            }
            Err(_) => metrics.event("failed"),
        }
        sleep(PACE).await;
    }
}

fn reference(notice: &Notice) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(notice.namespace.clone()),
        name: Some(notice.name.clone()),
        uid: Some(notice.uid.clone()),
        ..ObjectReference::default()
    }
}

impl Said {
    fn is_news(&mut self, notice: &Notice, now: Instant) -> bool {
        self.0.retain(|_, (_, when)| *when + REPEAT > now);
        let key = (notice.uid.clone(), notice.reason);
        let known = self.0.get(&key).is_some_and(|(note, _)| *note == notice.note);
        if !known {
            self.0.insert(key, (notice.note.clone(), now));
        }
        !known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_not_said_twice_but_after_a_while() {
        let notice = |uid: &str, note: &str| Notice {
            uid: uid.into(),
            namespace: "shop".into(),
            name: "web".into(),
            reason: NOT_ENROLLED,
            note: note.into(),
        };
        let (mut said, now) = (Said::default(), Instant::now());
        for (uid, note, later, news) in [
            ("a", "x", 0, true),
            ("a", "x", 1, false),
            ("b", "x", 1, true),
            ("a", "y", 2, true),
            ("a", "y", 3, false),
            ("a", "y", 3600, true),
        ] {
            let now = now + Duration::from_secs(later);
            assert_eq!(said.is_news(&notice(uid, note), now), news, "{uid} {note} {later}");
        }
    }
}
