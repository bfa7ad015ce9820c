//! Enrols pods and takes them out: one task a pod, so that each does its steps in order and none waits
//! for another.
//!
//! ```text
//!              join                      every step done
//!  (outside) ───────► joining ◄────────────────────────► enrolled
//!      ▲                 │ a step failed: try again            │
//!      └─────────────────┴───────────── leave ◄────────────────┘
//! ```

mod story;

use std::{collections::BTreeMap, convert::Infallible, path::PathBuf, sync::Arc, time::Duration};

use ambit_runtime::task;
use ambit_wire::zds;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::warn;

use self::story::Story;
use crate::{
    annotate::Annotations,
    events::Events,
    host::Probes,
    ledger::Ledger,
    metrics::Metrics,
    outside::Outside,
    pod::Redirection,
    redirect::Capture,
    roster::{Change, Leave, Member},
};

/// What every enrolment works with.
#[derive(Debug)]
pub struct Tools {
    /// The tunnels.
    pub tunnels: zds::Handle,
    /// The node's own rules.
    pub probes: Probes,
    /// The hand that writes onto pods.
    pub annotations: Annotations,
    /// The mouth that tells pods' owners.
    pub events: Events,
    /// The record for operators.
    pub ledger: Ledger,
    /// The connections that are not in the mesh.
    pub outside: Outside,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether IPv6 is captured in pods that have it.
    pub ipv6: Capture,
    /// The node's `/proc`.
    pub host_proc: PathBuf,
}

/// All enrolments.
#[derive(Debug)]
pub struct Feed {
    tools: Arc<Tools>,
    enrolments: BTreeMap<String, Enrolment>,
    /// Each enrolment holds one until it has tried once.
    untried: Option<mpsc::Sender<Infallible>>,
    tried: mpsc::Receiver<Infallible>,
    turns: Turn,
}

#[derive(Debug)]
struct Enrolment {
    wish: watch::Sender<(Wish, Turn)>,
    turn: Turn,
    progress: watch::Receiver<Progress>,
    /// Whether the pod has left. Its task waits for another wish until this is dropped.
    left: watch::Receiver<Departure>,
}

/// What should become of a pod.
#[derive(Debug, Clone)]
enum Wish {
    In(Member, Origin),
    Out(Member, Leave),
}

/// Who wants a pod enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It runs, and was seen.
    View,
    /// It is being started, and waits. Nothing is written on it before it is captured: its start may fail.
    Plugin,
}

/// Wishes are counted, so that one can be told from the next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn(u64);

/// How far a pod's task has come, and with which wish.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Progress {
    turn: Turn,
    step: Step,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Begun,
    Failed(String),
    Captured,
    Left,
}

/// How far a pod is that has to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Departure {
    Here,
    /// Nothing is captured any more; what was written on it may still be there.
    Left,
    /// Nothing is left to do.
    Settled,
}

/// One try to enrol a pod, as seen by whoever waits for it.
#[derive(Debug)]
pub struct Attempt {
    turn: Turn,
    progress: watch::Receiver<Progress>,
}

/// Waits until a pod has been taken out.
#[derive(Debug)]
pub struct Leaving(watch::Receiver<Departure>);

impl Attempt {
    /// Which one it is.
    pub fn turn(&self) -> Turn {
        self.turn
    }

    /// Waits until the pod is captured. Else what failed last, when `limit` has passed.
    pub async fn captured(&mut self, limit: Duration) -> Result<(), String> {
        let turn = self.turn;
        let decided = |now: &Progress| now.turn >= turn && matches!(now.step, Step::Captured | Step::Left);
        match timeout(limit, self.progress.wait_for(decided)).await {
            Ok(Ok(now)) if now.step == Step::Captured => return Ok(()),
            Ok(Ok(_)) => return Err("it was taken out of the mesh meanwhile".to_owned()),
            Ok(Err(_)) => return Err("the agent ends".to_owned()),
            Err(_) => {}
        }
        let now = self.progress.borrow();
        match &now.step {
            Step::Failed(reason) if now.turn >= turn => Err(reason.clone()),
            Step::Failed(_) | Step::Begun | Step::Captured | Step::Left => {
                Err(format!("it takes longer than {limit:?}"))
            }
        }
    }
}

impl Leaving {
    /// Waits, for at most `limit`.
    pub async fn done(mut self, limit: Duration) {
        // An error means that its task is gone, and nothing more will happen.
        let _ = timeout(limit, self.0.wait_for(|left| *left != Departure::Here)).await;
    }
}

impl Feed {
    /// Nobody enrolled yet.
    pub fn new(tools: Arc<Tools>) -> Self {
        let (untried, tried) = mpsc::channel(1);
        Self { tools, enrolments: BTreeMap::new(), untried: Some(untried), tried, turns: Turn::default() }
    }

    /// Has changes carried out, and returns at once.
    pub fn carry_out(&mut self, changes: Vec<Change>) {
        self.enrolments.retain(|_, enrolment| !enrolment.is_over());
        for change in changes {
            match change {
                Change::Join { member, written } => self.wish(Wish::In(member, Origin::View), written),
                Change::Leave { member, how } => self.wish(Wish::Out(member, how), Redirection::Unsaid),
            }
        }
    }

    /// Has a pod enrolled that is being started. `None` if it cannot even be tried.
    pub fn enrol(&mut self, member: Member, written: Redirection) -> Option<Attempt> {
        let uid = member.uid.clone();
        self.wish(Wish::In(member, Origin::Plugin), written);
        let enrolment = self.enrolments.get(&uid)?;
        Some(Attempt { turn: enrolment.turn, progress: enrolment.progress.clone() })
    }

    /// Whether this was the last that was wished of the pod.
    pub fn is_latest(&self, uid: &str, turn: Turn) -> bool {
        self.enrolments.get(uid).is_some_and(|enrolment| enrolment.turn == turn)
    }

    /// Waits for the pod's departure.
    pub fn leaving(&self, uid: &str) -> Option<Leaving> {
        Some(Leaving(self.enrolments.get(uid)?.left.clone()))
    }

    /// Waits, for at most `limit`, until every enrolment begun so far has been tried once. A tunnel that
    /// were told the list before would take the pods that are missing in it for gone.
    pub async fn first_tries(&mut self, limit: Duration) {
        self.untried = None;
        if timeout(limit, self.tried.recv()).await.is_err() {
            warn!("Some pods take long to enrol; the tunnel is told without waiting for them");
        }
    }

    /// Waits, for at most `limit`, until everyone who leaves has left.
    pub async fn departures(self, limit: Duration) {
        let all = async {
            for mut enrolment in self.enrolments.into_values().filter(Enrolment::is_unwanted) {
                // An error means that its task is gone, and nothing more will happen.
                let _ = enrolment.left.wait_for(|left| *left != Departure::Here).await;
            }
        };
        if timeout(limit, all).await.is_err() {
            warn!("Some pods could not be taken out in time; their rules are still in force");
        }
    }

    fn wish(&mut self, wish: Wish, written: Redirection) {
        let (Wish::In(member, _) | Wish::Out(member, _)) = &wish;
        let uid = member.uid.clone();
        self.turns = self.turns.next();
        let turn = self.turns;
        if let Some(enrolment) = self.enrolments.get_mut(&uid)
            && enrolment.wish.send((wish.clone(), turn)).is_ok()
        {
            enrolment.turn = turn;
            return;
        }
        let (sender, receiver) = watch::channel((wish, turn));
        let (leaving, left) = watch::channel(Departure::Here);
        let (tell, progress) = watch::channel(Progress::default());
        let tools = Arc::clone(&self.tools);
        let story = Story::new(tools, receiver, tell, leaving, self.untried.clone(), written);
        task::spawn("enrolment", story.run());
        self.enrolments.insert(uid, Enrolment { wish: sender, turn, progress, left });
    }
}

impl Turn {
    fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl Enrolment {
    fn is_unwanted(&self) -> bool {
        matches!(self.wish.borrow().0, Wish::Out(..))
    }

    fn is_over(&self) -> bool {
        self.is_unwanted() && *self.left.borrow() == Departure::Settled
    }
}
