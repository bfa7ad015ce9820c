//! Enrols pods and takes them out: one task a pod, so that each does its steps in order and none waits
//! for another.
//!
//! ```text
//!              join                      every step done
//!  (outside) ───────► joining ◄────────────────────────► enrolled
//!      ▲                 │ a step failed: try again            │
//!      └─────────────────┴───────────── leave ◄────────────────┘
//! ```

use std::{
    collections::BTreeMap, convert::Infallible, fmt, net::IpAddr, path::PathBuf, sync::Arc, time::Duration,
};

use ambit_runtime::{backoff::Backoff, task};
use ambit_wire::zds::{self, AddError, PodInfo};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    annotate::{AnnotateError, Annotations},
    events::{self, Events, Notice},
    host::{HostError, Probes},
    ledger::{Ledger, State},
    metrics::Metrics,
    netns::{Netns, NetnsAt, NetnsError, NetnsId},
    outside::Outside,
    pod::Redirection,
    redirect::{
        Applied, Capture, Redirect, RedirectError,
        apply::{self, Captured},
    },
    roster::{Change, Leave, Member},
};

/// A step that failed is tried again after this, then twice that, …
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// … up to this: what a pod waits for at most when the cause has gone.
const LAST_RETRY: Duration = Duration::from_secs(5);

/// How often an enrolled pod's namespace is looked at: another may have taken its path.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// In which of these looks the rules are read back; each costs two processes.
const READ_BACK_EVERY: u32 = 12;

/// After a pod was enrolled its probes are tried, this often and this far apart: other plugins may still be busy
/// with its network.
const PROOFS: u32 = 5;
const PROVE_EVERY: Duration = Duration::from_millis(700);

/// A pod whose enrolment fails for longer than this has an Event that says why. Less is a tunnel being replaced.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// From the tunnel's letting go of a pod until the rules that translate its connections are taken out:
/// the time for the tunnel's last packets to reach the application.
const FAREWELL: Duration = Duration::from_millis(250);

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
        let story = Story {
            tools: Arc::clone(&self.tools),
            wish: receiver,
            progress: tell,
            left: leaving,
            arrivals: self.tools.tunnels.connections(),
            held: None,
            last_obstacle: String::new(),
            failing: None,
            probed: Vec::new(),
            proofs: 0,
            written,
            untried: self.untried.clone(),
        };
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

/// One pod's enrolment, from its first step to its last.
struct Story {
    tools: Arc<Tools>,
    wish: watch::Receiver<(Wish, Turn)>,
    progress: watch::Sender<Progress>,
    left: watch::Sender<Departure>,
    arrivals: watch::Receiver<usize>,
    held: Option<Held>,
    last_obstacle: String,
    /// Since when every try has failed.
    failing: Option<Instant>,
    probed: Vec<IpAddr>,
    /// How often its probes may still be tried.
    proofs: u32,
    written: Redirection,
    untried: Option<mpsc::Sender<Infallible>>,
}

/// A namespace of which we are the guest, and what has been done there.
struct Held {
    netns: Netns,
    rules: Option<(Redirect, Applied)>,
    told: bool,
}

/// Why a step of joining failed. All are tried again.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    #[error("its network namespace is not known yet")]
    NoNetns,
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    #[error(transparent)]
    Tunnel(#[from] AddError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("its annotation cannot be written: {0}")]
    Annotate(#[from] AnnotateError),
}

/// What follows a wait.
enum Next {
    /// Look at the wish and go on.
    Again,
    /// Nobody wishes anything any more: the agent ends, and leaves things as they are.
    End,
}

impl Story {
    async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let (wish, turn) = self.wish.borrow_and_update().clone();
            let next = match wish {
                Wish::In(member, origin) => {
                    self.left.send_replace(Departure::Here);
                    self.arrivals.mark_unchanged();
                    let outcome = self.join(&member, turn).await;
                    self.report(&member, origin, turn, &outcome).await;
                    self.untried = None;
                    match outcome {
                        Ok(()) => {
                            backoff.reset();
                            self.watch_over(&member).await
                        }
                        Err(_) => self.pause(&mut backoff).await,
                    }
                }
                Wish::Out(member, how) => {
                    let taken_back = self.leave(&member, how).await;
                    self.untried = None;
                    self.tell(turn, Step::Left);
                    self.left.send_replace(Departure::Left);
                    match taken_back {
                        Ok(()) => self.settle().await,
                        Err(_) => self.take_back(&member).await,
                    }
                }
            };
            match next {
                Next::Again => {}
                Next::End => return,
            }
        }
    }

    /// Every step that is not done yet, in order. Doing it again does nothing.
    async fn join(&mut self, member: &Member, turn: Turn) -> Result<(), Obstacle> {
        self.capture(member).await?;
        // Whoever waits need not wait for the API server.
        self.tell(turn, Step::Captured);
        self.write(member, Redirection::Enabled).await
    }

    async fn capture(&mut self, member: &Member) -> Result<(), Obstacle> {
        self.tools.ledger.record(member, State::Pending, self.reason_so_far());
        self.find_netns(member).await?;
        let Some(held) = &mut self.held else { return Err(Obstacle::NoNetns) };
        if held.rules.as_ref().is_none_or(|(redirect, _)| *redirect != member.redirect) {
            let Captured { applied, older } = apply::apply_by(
                &held.netns,
                member.redirect.clone(),
                self.tools.ipv6,
                self.tools.host_proc.clone(),
            )
            .await?;
            held.rules = Some((member.redirect.clone(), applied));
            if !held.told {
                self.tools.outside.note(&member.uid, &held.netns, older);
            }
        }
        if !held.told {
            let netns = held.netns.descriptor();
            self.tools.tunnels.add(&member.uid, info(member), Some(netns)).await?;
            held.told = true;
            self.proofs = PROOFS;
        }
        if self.probed != member.ips {
            self.tools.probes.admit(&member.uid, &member.ips).await?;
            self.probed.clone_from(&member.ips);
            self.proofs = PROOFS;
        }
        Ok(())
    }

    fn tell(&self, turn: Turn, step: Step) {
        self.progress.send_replace(Progress { turn, step });
    }

    /// Nothing is left to do, unless something else is wished.
    async fn settle(&mut self) -> Next {
        self.left.send_replace(Departure::Settled);
        Next::after(self.wish.changed().await)
    }

    /// Takes back what is written on a pod that has left, however often that has to be tried: its peers would
    /// go on to speak HBONE to it.
    async fn take_back(&mut self, member: &Member) -> Next {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            tokio::select! {
                changed = self.wish.changed() => return Next::after(changed),
                () = sleep(backoff.next(0.0)) => {}
            }
            if self.write(member, Redirection::Unsaid).await.is_ok() {
                return self.settle().await;
            }
        }
    }

    /// Makes `held` the namespace that the pod has now.
    async fn find_netns(&mut self, member: &Member) -> Result<(), Obstacle> {
        let Some(at) = &member.netns else {
            self.held = None;
            // Tunnels that run for the pod go on.
            self.tools.tunnels.add(&member.uid, info(member), None).await?;
            return Err(Obstacle::NoNetns);
        };
        let found = opened(at)?;
        match &self.held {
            Some(held) if held.netns == found => {}
            Some(_) => {
                info!(pod.uid = %member.uid, netns = %at, "The pod has a new network namespace");
                self.written = Redirection::Unsaid;
                self.held = Some(Held { netns: found, rules: None, told: false });
            }
            None => self.held = Some(Held { netns: found, rules: None, told: false }),
        }
        Ok(())
    }

    /// Returns when something needs to be done: another wish, another namespace, rules that are gone.
    async fn watch_over(&mut self, member: &Member) -> Next {
        let mut looks = 0_u32;
        loop {
            let wait = if self.proofs > 0 { PROVE_EVERY } else { LOOK_EVERY };
            tokio::select! {
                changed = self.wish.changed() => return Next::after(changed),
                () = sleep(wait) => {}
            }
            if self.proofs > 0 {
                self.prove(member).await;
                continue;
            }
            looks = looks.wrapping_add(1);
            if !self.is_as_it_was(member, looks.is_multiple_of(READ_BACK_EVERY)).await {
                return Next::Again;
            }
        }
    }

    /// Sees whether probes reach the pod: another's rules may stand before ours.
    async fn prove(&mut self, member: &Member) {
        let Some(held) = &self.held else { return };
        let Err(error) = self.tools.probes.prove(&held.netns, &member.ips).await else {
            self.proofs = 0;
            return;
        };
        self.proofs = self.proofs.saturating_sub(1);
        if self.proofs == 0 {
            let Member { namespace, name, uid, .. } = member;
            warn!(pod.namespace = %namespace, pod.name = %name, pod.uid = %uid, %error, "Kubelet's probes may fail");
            self.tools.metrics.unproven();
            self.notice(member, events::PROBES_BLOCKED, &error);
        }
    }

    fn notice(&self, member: &Member, reason: &'static str, note: &dyn fmt::Display) {
        self.tools.events.tell(Notice {
            uid: member.uid.clone(),
            namespace: member.namespace.clone(),
            name: member.name.clone(),
            reason,
            note: note.to_string(),
        });
    }

    /// Whether the pod is where it was, and, if asked, its rules are what they were.
    async fn is_as_it_was(&mut self, member: &Member, read_back: bool) -> bool {
        let (Some(held), Some(at)) = (&mut self.held, &member.netns) else { return false };
        let moved = match at {
            // A path that is gone is not another namespace: the pod is about to be reported gone.
            NetnsAt::File(path) => NetnsId::at(path).is_ok_and(|id| id != held.netns.id()),
            NetnsAt::Held(netns) => *netns != held.netns,
        };
        if moved {
            return false;
        }
        let Some((_, applied)) = &held.rules else { return false };
        if !read_back {
            return true;
        }
        let intact = apply::intact(&held.netns, applied.clone()).await.unwrap_or_else(|error| {
            debug!(pod.uid = %member.uid, %error, "The pod's rules could not be read back");
            true
        });
        if !intact {
            warn!(pod.uid = %member.uid, "Someone else changed the pod's rules; putting them back");
            self.tools.metrics.repaired();
            held.rules = None;
        }
        intact
    }

    /// Waits before the next try; less if a tunnel has come since the last, or the wish changes.
    async fn pause(&mut self, backoff: &mut Backoff) -> Next {
        // One agent a node: there is no crowd that would have to be spread.
        let wait = backoff.next(0.0);
        tokio::select! {
            changed = self.wish.changed() => {
                backoff.reset();
                Next::after(changed)
            }
            Ok(()) = self.arrivals.changed() => {
                backoff.reset();
                Next::Again
            }
            () = sleep(wait) => Next::Again,
        }
    }

    /// Undoes what was done. Nothing here stops the rest: what fails is logged, and a pod that is gone
    /// has nothing left to undo. Only what is written on the pod has to be tried again.
    async fn leave(&mut self, member: &Member, how: Leave) -> Result<(), Obstacle> {
        self.tools.ledger.record(member, State::Leaving, "");
        let logged = |step: &'static str, error: &dyn fmt::Display| {
            warn!(pod.namespace = %member.namespace, pod.name = %member.name, step, %error, "A step of leaving failed");
        };
        if let Err(error) = self.tools.probes.forget(&member.uid).await {
            logged("probes", &error);
        }
        let netns = match how {
            Leave::Gone => None,
            Leave::LivesOn => self.held.take().map(|held| held.netns).or_else(|| reopened(member)),
        };
        if let Some(netns) = &netns
            && let Err(error) = apply::release(netns).await
        {
            logged("release", &error);
        }
        self.tools.tunnels.remove(&member.uid).await;
        let taken_back = self.write(member, Redirection::Unsaid).await;
        if let Err(error) = &taken_back {
            logged("annotation", error);
        }
        if let Some(netns) = &netns {
            sleep(FAREWELL).await;
            if let Err(error) = apply::remove(netns).await {
                logged("rules", &error);
            }
        }
        self.held = None;
        self.probed.clear();
        self.proofs = 0;
        self.failing = None;
        self.tools.ledger.forget(&member.uid);
        self.tools.outside.forget(&member.uid);
        self.tools.metrics.left(how);
        info!(pod.namespace = %member.namespace, pod.name = %member.name, pod.uid = %member.uid, "Pod left the mesh");
        taken_back
    }

    /// Records the outcome of a try, for operators and on the pod.
    async fn report(&mut self, member: &Member, origin: Origin, turn: Turn, outcome: &Result<(), Obstacle>) {
        let Member { namespace, name, uid, .. } = member;
        match outcome {
            Ok(()) => {
                self.tools.ledger.record(member, State::Enabled, "");
                self.tools.metrics.joined();
                self.last_obstacle.clear();
                self.failing = None;
                info!(pod.namespace = %namespace, pod.name = %name, pod.uid = %uid, "Pod enrolled");
            }
            Err(obstacle) => {
                let reason = obstacle.to_string();
                self.tools.metrics.failed(obstacle.word());
                // Tried again and again, told once.
                if reason != self.last_obstacle {
                    warn!(pod.namespace = %namespace, pod.name = %name, pod.uid = %uid, error = %reason, "Pod not enrolled yet");
                }
                self.tools.ledger.record(member, State::Pending, reason.clone());
                let since = *self.failing.get_or_insert_with(Instant::now);
                if origin == Origin::View && since.elapsed() >= TELL_AFTER {
                    let note = format!("The pod is not in the mesh yet: {reason}; it is tried again");
                    self.notice(member, events::NOT_ENROLLED, &note);
                }
                if !matches!(obstacle, Obstacle::Annotate(_)) {
                    self.tell(turn, Step::Failed(reason.clone()));
                }
                self.last_obstacle = reason;
                // A pod that is captured stays so for its peers while, say, its tunnel is replaced. Nothing is
                // written twice: the API server has better things to do.
                if origin == Origin::View
                    && self.written == Redirection::Unsaid
                    && let Err(error) = self.write(member, Redirection::Pending).await
                {
                    debug!(pod.uid = %uid, %error, "The pod's annotation could not be written");
                }
            }
        }
    }

    async fn write(&mut self, member: &Member, state: Redirection) -> Result<(), Obstacle> {
        self.tools.annotations.write(member, state).await?;
        self.written = state;
        Ok(())
    }

    fn reason_so_far(&self) -> &'static str {
        if self.held.is_some() { "being enrolled anew" } else { "being enrolled" }
    }
}

impl Next {
    fn after(changed: Result<(), watch::error::RecvError>) -> Self {
        match changed {
            Ok(()) => Self::Again,
            Err(_) => Self::End,
        }
    }
}

impl Obstacle {
    fn word(&self) -> &'static str {
        match self {
            Self::NoNetns | Self::Netns(_) => "netns",
            Self::Redirect(_) => "rules",
            Self::Tunnel(_) => "tunnel",
            Self::Host(_) => "probes",
            Self::Annotate(_) => "annotation",
        }
    }
}

fn info(member: &Member) -> PodInfo {
    PodInfo {
        name: member.name.clone(),
        namespace: member.namespace.clone(),
        service_account: member.service_account.clone(),
    }
}

fn opened(at: &NetnsAt) -> Result<Netns, NetnsError> {
    match at {
        NetnsAt::File(path) => Netns::open(path),
        NetnsAt::Held(netns) => Ok(netns.clone()),
    }
}

/// The namespace of a pod that a former agent enrolled.
fn reopened(member: &Member) -> Option<Netns> {
    match opened(member.netns.as_ref()?) {
        Ok(netns) => Some(netns),
        Err(error) => {
            debug!(pod.uid = %member.uid, %error, "Nothing is left to clean up in the pod");
            None
        }
    }
}
