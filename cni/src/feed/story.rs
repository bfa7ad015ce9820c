//! The life of one pod's enrolment: its steps in order, each tried until it is done.

use std::{convert::Infallible, fmt, net::IpAddr, sync::Arc, time::Duration};

use ambit_runtime::backoff::Backoff;
use ambit_wire::zds::{AddError, PodInfo};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

use super::{Departure, Origin, Progress, Step, Tools, Turn, Wish};
use crate::{
    annotate::AnnotateError,
    events::{self, Notice},
    host::HostError,
    ledger::State,
    netns::{Netns, NetnsAt, NetnsError, NetnsId},
    pod::Redirection,
    redirect::{
        Applied, Redirect, RedirectError,
        apply::{self, Captured},
    },
    roster::{Leave, Member},
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

/// One pod's enrolment, from its first step to its last.
pub(super) struct Story {
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
    /// A story that begins with what is wished now. Whoever waits for first tries holds the other end of `untried`;
    /// `written` is what the pod says of itself.
    pub(super) fn new(
        tools: Arc<Tools>,
        wish: watch::Receiver<(Wish, Turn)>,
        progress: watch::Sender<Progress>,
        left: watch::Sender<Departure>,
        untried: Option<mpsc::Sender<Infallible>>,
        written: Redirection,
    ) -> Self {
        let arrivals = tools.tunnels.connections();
        Self {
            tools,
            wish,
            progress,
            left,
            arrivals,
            held: None,
            last_obstacle: String::new(),
            failing: None,
            probed: Vec::new(),
            proofs: 0,
            written,
            untried,
        }
    }

    /// Tells it to its end, which is when nobody wishes anything any more.
    pub(super) async fn run(mut self) {
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
