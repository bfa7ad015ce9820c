//! Enrols pods and takes them out: one task a pod, so that each does its steps in order and none waits
//! for another.
//!
//! ```text
//!              join                      every step done
//!  (outside) ───────► joining ◄────────────────────────► enrolled
//!      ▲                 │ a step failed: try again            │
//!      └─────────────────┴───────────── leave ◄────────────────┘
//! ```

use std::{collections::BTreeMap, convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use ambit_runtime::{backoff::Backoff, task};
use ambit_wire::zds::{self, AddError, PodInfo};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    annotate::{AnnotateError, Annotations},
    host::{HostError, Probes},
    ledger::{Ledger, State},
    metrics::Metrics,
    netns::{Netns, NetnsError, NetnsId},
    pod::Redirection,
    redirect::{Applied, Capture, Redirect, RedirectError, apply},
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
    /// The record for operators.
    pub ledger: Ledger,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether IPv6 is captured in pods that have it.
    pub ipv6: Capture,
}

/// All enrolments.
#[derive(Debug)]
pub struct Feed {
    tools: Arc<Tools>,
    enrolments: BTreeMap<String, Enrolment>,
    /// Each enrolment holds one until it has tried once.
    untried: Option<mpsc::Sender<Infallible>>,
    tried: mpsc::Receiver<Infallible>,
}

#[derive(Debug)]
struct Enrolment {
    wish: watch::Sender<Wish>,
    /// Whether the pod has left. Its task waits for another wish until this is dropped.
    left: watch::Receiver<bool>,
}

/// What should become of a pod.
#[derive(Debug, Clone)]
enum Wish {
    In(Member),
    Out(Member, Leave),
}

impl Feed {
    /// Nobody enrolled yet.
    pub fn new(tools: Arc<Tools>) -> Self {
        let (untried, tried) = mpsc::channel(1);
        Self { tools, enrolments: BTreeMap::new(), untried: Some(untried), tried }
    }

    /// Has changes carried out, and returns at once.
    pub fn carry_out(&mut self, changes: Vec<Change>) {
        self.enrolments.retain(|_, enrolment| !enrolment.is_over());
        for change in changes {
            match change {
                Change::Join { member, written } => self.wish(Wish::In(member), written),
                Change::Leave { member, how } => self.wish(Wish::Out(member, how), Redirection::Unsaid),
            }
        }
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
                let _ = enrolment.left.wait_for(|left| *left).await;
            }
        };
        if timeout(limit, all).await.is_err() {
            warn!("Some pods could not be taken out in time; their rules are still in force");
        }
    }

    fn wish(&mut self, wish: Wish, written: Redirection) {
        let (Wish::In(member) | Wish::Out(member, _)) = &wish;
        let uid = member.uid.clone();
        if let Some(enrolment) = self.enrolments.get(&uid)
            && enrolment.wish.send(wish.clone()).is_ok()
        {
            return;
        }
        let (sender, receiver) = watch::channel(wish);
        let (leaving, left) = watch::channel(false);
        let story = Story {
            tools: Arc::clone(&self.tools),
            wish: receiver,
            left: leaving,
            arrivals: self.tools.tunnels.connections(),
            held: None,
            last_obstacle: String::new(),
            probed: Vec::new(),
            written,
            untried: self.untried.clone(),
        };
        task::spawn("enrolment", story.run());
        self.enrolments.insert(uid, Enrolment { wish: sender, left });
    }
}

impl Enrolment {
    fn is_unwanted(&self) -> bool {
        matches!(&*self.wish.borrow(), Wish::Out(..))
    }

    fn is_over(&self) -> bool {
        self.is_unwanted() && *self.left.borrow()
    }
}

/// One pod's enrolment, from its first step to its last.
struct Story {
    tools: Arc<Tools>,
    wish: watch::Receiver<Wish>,
    left: watch::Sender<bool>,
    arrivals: watch::Receiver<usize>,
    held: Option<Held>,
    last_obstacle: String,
    probed: Vec<IpAddr>,
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
            let wish = self.wish.borrow_and_update().clone();
            let next = match wish {
                Wish::In(member) => {
                    self.left.send_replace(false);
                    self.arrivals.mark_unchanged();
                    let outcome = self.join(&member).await;
                    self.report(&member, &outcome).await;
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
                    self.leave(&member, how).await;
                    self.untried = None;
                    self.left.send_replace(true);
                    Next::after(self.wish.changed().await)
                }
            };
            match next {
                Next::Again => {}
                Next::End => return,
            }
        }
    }

    /// Every step that is not done yet, in order. Doing it again does nothing.
    async fn join(&mut self, member: &Member) -> Result<(), Obstacle> {
        self.tools.ledger.record(member, State::Pending, self.reason_so_far());
        self.find_netns(member).await?;
        let Some(held) = &mut self.held else { return Err(Obstacle::NoNetns) };
        if held.rules.as_ref().is_none_or(|(redirect, _)| *redirect != member.redirect) {
            let applied = apply::apply(&held.netns, member.redirect.clone(), self.tools.ipv6).await?;
            held.rules = Some((member.redirect.clone(), applied));
        }
        if !held.told {
            let netns = held.netns.descriptor();
            self.tools.tunnels.add(&member.uid, info(member), Some(netns)).await?;
            held.told = true;
        }
        if self.probed != member.ips {
            self.tools.probes.admit(&member.uid, &member.ips).await?;
            self.probed.clone_from(&member.ips);
        }
        self.write(member, Redirection::Enabled).await
    }

    /// Makes `held` the namespace that the pod has now.
    async fn find_netns(&mut self, member: &Member) -> Result<(), Obstacle> {
        let Some(path) = &member.netns else {
            self.held = None;
            // Tunnels that run for the pod go on.
            self.tools.tunnels.add(&member.uid, info(member), None).await?;
            return Err(Obstacle::NoNetns);
        };
        let found = Netns::open(path)?;
        match &self.held {
            Some(held) if held.netns.id() == found.id() => {}
            Some(_) => {
                info!(pod.uid = %member.uid, netns = %path.display(), "The pod has a new network namespace");
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
            tokio::select! {
                changed = self.wish.changed() => return Next::after(changed),
                () = sleep(LOOK_EVERY) => looks = looks.wrapping_add(1),
            }
            if !self.is_as_it_was(member, looks.is_multiple_of(READ_BACK_EVERY)).await {
                return Next::Again;
            }
        }
    }

    /// Whether the pod is where it was, and, if asked, its rules are what they were.
    async fn is_as_it_was(&mut self, member: &Member, read_back: bool) -> bool {
        let (Some(held), Some(path)) = (&mut self.held, &member.netns) else { return false };
        // A path that is gone is not another namespace: the pod is about to be reported gone.
        if NetnsId::at(path).is_ok_and(|id| id != held.netns.id()) {
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
    /// has nothing left to undo.
    async fn leave(&mut self, member: &Member, how: Leave) {
        self.tools.ledger.record(member, State::Leaving, "");
        let logged = |step: &'static str, error: &dyn std::fmt::Display| {
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
        if let Err(error) = self.write(member, Redirection::Unsaid).await {
            logged("annotation", &error);
        }
        if let Some(netns) = &netns {
            sleep(FAREWELL).await;
            if let Err(error) = apply::remove(netns).await {
                logged("rules", &error);
            }
        }
        self.held = None;
        self.probed.clear();
        self.tools.ledger.forget(&member.uid);
        self.tools.metrics.left(how);
        info!(pod.namespace = %member.namespace, pod.name = %member.name, pod.uid = %member.uid, "Pod left the mesh");
    }

    /// Records the outcome of a try, for operators and on the pod.
    async fn report(&mut self, member: &Member, outcome: &Result<(), Obstacle>) {
        let Member { namespace, name, uid, .. } = member;
        match outcome {
            Ok(()) => {
                self.tools.ledger.record(member, State::Enabled, "");
                self.tools.metrics.joined();
                self.last_obstacle.clear();
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
                self.last_obstacle = reason;
                // A pod that is captured stays so for its peers while, say, its tunnel is replaced.
                if self.written != Redirection::Enabled
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

/// The namespace of a pod that a former agent enrolled.
fn reopened(member: &Member) -> Option<Netns> {
    let path = member.netns.as_ref()?;
    match Netns::open(path) {
        Ok(netns) => Some(netns),
        Err(error) => {
            debug!(pod.uid = %member.uid, %error, "Nothing is left to clean up in the pod");
            None
        }
    }
}
