//! What is known of each pod of the node, for operators: the page `/debug/pods` and the metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use crate::roster::{Bystander, Member};

/// The shared record. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<BTreeMap<String, Entry>>>);

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// How far it is.
    pub state: State,
    /// Why it is not further; empty when there is nothing to say.
    pub reason: String,
    /// Its network namespace, if known.
    pub netns: Option<String>,
}

/// One pod as its page shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// What is known of it.
    #[serde(flatten)]
    pub entry: Entry,
    /// How many of its connections are older than its capture, and go on outside of the mesh. None if that is not
    /// known, as of a pod that a former agent enrolled.
    pub connections_outside: Option<usize>,
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its traffic is captured and the tunnel knows it.
    Enabled,
    /// It is about to be; `reason` says what failed last.
    Pending,
    /// It is being taken out.
    Leaving,
    /// It does not belong to the mesh; `reason` says why.
    Outside,
}

/// Every state, for those who count.
pub const STATES: [State; 4] = [State::Enabled, State::Pending, State::Leaving, State::Outside];

impl State {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Pending => "pending",
            Self::Leaving => "leaving",
            Self::Outside => "outside",
        }
    }
}

impl Ledger {
    /// Records where an enrolment stands.
    pub fn record(&self, member: &Member, state: State, reason: impl Into<String>) {
        let entry = Entry {
            namespace: member.namespace.clone(),
            name: member.name.clone(),
            uid: member.uid.clone(),
            state,
            reason: reason.into(),
            netns: member.netns.as_ref().map(ToString::to_string),
        };
        self.lock().insert(member.uid.clone(), entry);
    }

    /// Forgets a pod.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Records who is left alone, in the place of those recorded before. One who is still leaving is
    /// recorded as such until it has left.
    pub fn bystanders(&self, bystanders: &[Bystander]) {
        let mut entries = self.lock();
        entries.retain(|_, entry| entry.state != State::Outside);
        for Bystander { pod, reason, .. } in bystanders {
            entries.entry(pod.uid.clone()).or_insert_with(|| Entry {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                state: State::Outside,
                reason: reason.to_string(),
                netns: pod.netns.as_ref().map(|path| path.display().to_string()),
            });
        }
    }

    /// All of it, by namespace and name.
    pub fn entries(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.lock().values().cloned().collect();
        all.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        all
    }

    /// How many pods are in a state.
    pub fn count(&self, state: State) -> usize {
        self.lock().values().filter(|entry| entry.state == state).count()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
