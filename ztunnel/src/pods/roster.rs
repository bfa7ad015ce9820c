//! Which pods are served: what the node agent says, turned into starts and stops. Pure.
//!
//! ```text
//! connected ─► Add | Keep | Del … ─► SnapshotSent ─► Add | Del …        (protocols 7.2)
//!              nothing is stopped before             what was not named is stopped
//! ```
//!
//! While the agent is away everything goes on as it was.

use std::collections::{BTreeMap, BTreeSet};

use ambit_wire::zds::PodInfo;

/// The pods of this node, as the agent tells of them. `N` is a pod's network namespace.
#[derive(Debug)]
pub struct Roster<N> {
    running: BTreeMap<String, Assignment<N>>,
    pending: BTreeMap<String, Assignment<N>>,
    session: Session,
}

/// A pod and where it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment<N> {
    /// Who it is.
    pub info: PodInfo,
    /// Its network namespace.
    pub netns: N,
}

#[derive(Debug, PartialEq, Eq)]
enum Session {
    Absent,
    Snapshot { named: BTreeSet<String> },
    Live,
}

/// Something to be done to a pod's proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<N> {
    /// Serve this pod; tell [`Roster::started`] how it went.
    Start(String, Assignment<N>),
    /// End what is open and serve it no longer.
    Stop(String),
}

/// What the agent must not say now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfOrder {
    /// Keep belongs to the snapshot.
    #[error("Keep after SnapshotSent")]
    Keep,
    /// There is one snapshot in a session.
    #[error("a second SnapshotSent")]
    Snapshot,
}

impl<N: Clone + PartialEq> Roster<N> {
    /// No pod, no agent.
    pub fn new() -> Self {
        Self { running: BTreeMap::new(), pending: BTreeMap::new(), session: Session::Absent }
    }

    /// A new session begins: what was pending will be told again.
    pub fn connected(&mut self) {
        self.session = Session::Snapshot { named: BTreeSet::new() };
        self.pending.clear();
    }

    /// The agent is gone. Pods stay.
    pub fn disconnected(&mut self) {
        self.session = Session::Absent;
    }

    /// The pod `uid` is to be served.
    pub fn add(&mut self, uid: &str, assignment: Assignment<N>) -> Vec<Action<N>> {
        self.name(uid);
        let mut actions = Vec::new();
        match self.running.get(uid) {
            Some(running) if running.netns == assignment.netns => return actions,
            // The sandbox was made anew: the old namespace is dead (protocols 12, line 33).
            Some(_) => actions.extend(self.stop(uid)),
            None => {}
        }
        self.pending.insert(uid.to_owned(), assignment.clone());
        actions.push(Action::Start(uid.to_owned(), assignment));
        actions
    }

    /// The pod `uid` exists; its namespace is not known at the moment.
    pub fn keep(&mut self, uid: &str) -> Result<(), OutOfOrder> {
        match &mut self.session {
            Session::Snapshot { named } => {
                named.insert(uid.to_owned());
                Ok(())
            }
            Session::Live | Session::Absent => Err(OutOfOrder::Keep),
        }
    }

    /// The pod `uid` is no longer to be served. Before the snapshot is complete it is only not named.
    pub fn del(&mut self, uid: &str) -> Vec<Action<N>> {
        self.pending.remove(uid);
        match &mut self.session {
            Session::Snapshot { named } => {
                named.remove(uid);
                Vec::new()
            }
            Session::Live | Session::Absent => self.stop(uid).into_iter().collect(),
        }
    }

    /// All pods have been named: the others are gone.
    pub fn snapshot_sent(&mut self) -> Result<Vec<Action<N>>, OutOfOrder> {
        let Session::Snapshot { named } = std::mem::replace(&mut self.session, Session::Live) else {
            return Err(OutOfOrder::Snapshot);
        };
        let gone: Vec<_> = self.running.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        Ok(gone.iter().filter_map(|uid| self.stop(uid)).collect())
    }

    /// How a start went. What failed stays pending and is started again, unless the agent has taken
    /// it back meanwhile.
    pub fn started(&mut self, uid: &str, outcome: Result<(), ()>) {
        if outcome.is_ok()
            && let Some(assignment) = self.pending.remove(uid)
        {
            self.running.insert(uid.to_owned(), assignment);
        }
    }

    /// The starts that failed, to be tried again.
    pub fn retries(&self) -> Vec<Action<N>> {
        self.pending.iter().map(|(uid, one)| Action::Start(uid.clone(), one.clone())).collect()
    }

    /// Whether every pod that the agent knows is served (protocols 7.2, readiness).
    pub fn is_ready(&self) -> bool {
        self.session == Session::Live && self.pending.is_empty()
    }

    /// How many pods are served, and how many wait for it.
    pub fn counts(&self) -> (usize, usize) {
        (self.running.len(), self.pending.len())
    }

    /// Pods that wait to be served.
    pub fn pending(&self) -> impl Iterator<Item = (&str, &PodInfo)> {
        self.pending.iter().map(|(uid, one)| (uid.as_str(), &one.info))
    }

    fn name(&mut self, uid: &str) {
        match &mut self.session {
            Session::Snapshot { named } => {
                named.insert(uid.to_owned());
            }
            Session::Live | Session::Absent => {}
        }
    }

    fn stop(&mut self, uid: &str) -> Option<Action<N>> {
        self.running.remove(uid).map(|_| Action::Stop(uid.to_owned()))
    }
}

impl<N: Clone + PartialEq> Default for Roster<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(netns: u32) -> Assignment<u32> {
        let info = PodInfo { name: "web".into(), namespace: "shop".into(), service_account: "web".into() };
        Assignment { info, netns }
    }

    fn start(uid: &str, netns: u32) -> Action<u32> {
        Action::Start(uid.into(), at(netns))
    }

    fn stop(uid: &str) -> Action<u32> {
        Action::Stop(uid.into())
    }

    /// A roster that serves these pods, in a live session.
    fn serving(pods: &[(&str, u32)]) -> Roster<u32> {
        let mut roster = Roster::new();
        roster.connected();
        for (uid, netns) in pods {
            roster.add(uid, at(*netns));
            roster.started(uid, Ok(()));
        }
        roster.snapshot_sent().expect("the first snapshot");
        roster
    }

    #[test]
    fn a_pod_is_started_once() {
        let mut roster = serving(&[("a", 1)]);
        assert_eq!(roster.add("a", at(1)), vec![]);
        assert_eq!(roster.add("b", at(2)), vec![start("b", 2)]);
    }

    #[test]
    fn a_pod_with_a_new_namespace_is_replaced() {
        let mut roster = serving(&[("a", 1)]);
        assert_eq!(roster.add("a", at(2)), vec![stop("a"), start("a", 2)]);
    }

    #[test]
    fn nothing_is_stopped_before_the_snapshot_is_complete() {
        let mut roster = serving(&[("a", 1), ("b", 2), ("c", 3)]);
        roster.disconnected();
        roster.connected();
        assert_eq!(roster.add("a", at(1)), vec![]);
        assert_eq!(roster.keep("b"), Ok(()));
        assert_eq!(roster.del("c"), vec![]);
        assert!(!roster.is_ready());
        assert_eq!(roster.snapshot_sent(), Ok(vec![stop("c")]));
        assert!(roster.is_ready());
    }

    #[test]
    fn what_was_named_and_deleted_again_is_gone_with_the_snapshot() {
        let mut roster = serving(&[("a", 1)]);
        roster.connected();
        roster.add("a", at(1));
        roster.del("a");
        assert_eq!(roster.snapshot_sent(), Ok(vec![stop("a")]));
    }

    #[test]
    fn a_failed_start_is_retried_until_it_is_taken_back() {
        let mut roster = serving(&[]);
        roster.add("a", at(1));
        roster.started("a", Err(()));
        assert_eq!(roster.retries(), vec![start("a", 1)]);
        assert!(!roster.is_ready());
        assert_eq!(roster.del("a"), vec![]);
        assert_eq!(roster.retries(), vec![]);
        assert!(roster.is_ready());
    }

    #[test]
    fn a_start_that_ends_after_its_pod_was_deleted_is_forgotten() {
        let mut roster = serving(&[]);
        roster.add("a", at(1));
        roster.del("a");
        roster.started("a", Ok(()));
        assert_eq!(roster.counts(), (0, 0));
    }

    #[test]
    fn messages_out_of_order_are_refused() {
        let mut roster = serving(&[]);
        assert_eq!(roster.keep("a"), Err(OutOfOrder::Keep));
        assert_eq!(roster.snapshot_sent(), Err(OutOfOrder::Snapshot));
        roster.disconnected();
        assert_eq!(roster.keep("a"), Err(OutOfOrder::Keep));
    }

    #[test]
    fn a_lost_agent_leaves_pods_alone_but_not_ready() {
        let mut roster = serving(&[("a", 1)]);
        roster.disconnected();
        assert_eq!(roster.counts(), (1, 0));
        assert!(!roster.is_ready());
    }
}
