//! Follows the node agent: one session after the other, one pod after the other.

use std::{collections::HashMap, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use ambit_runtime::{backoff::Backoff, drain::Mode, ready::Pending, task};
use ambit_wire::zds::{
    PodInfo, Request, Session,
    client::{ConnectError, SessionError},
};
use tokio::{sync::Mutex, time::interval};

use super::{
    Pod,
    netns::Netns,
    proxy::{Place, PodProxy},
    roster::{Action, Assignment, Roster},
};
use crate::{
    socket,
    tunnel::{OriginalSource, PodName, Tunnel},
};

/// The first wait before connecting to the agent again, and the longest (protocols 7.2).
const RECONNECT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(15));

/// How often pods that could not be served are tried again (protocols 7.2).
const RETRY: Duration = Duration::from_secs(5);

/// Serves the pods that the node agent names.
#[derive(Debug)]
pub struct Follower {
    agent: PathBuf,
    place: Place,
    tunnel: Arc<Tunnel>,
    served: Arc<Served>,
}

/// What is served, for the admin page and the end.
#[derive(Debug, Default)]
pub struct Served {
    roster: std::sync::Mutex<Roster<Netns>>,
    proxies: Mutex<HashMap<String, PodProxy>>,
}

impl Served {
    /// The pods that wait to be served.
    pub fn pending(&self) -> Vec<(String, PodInfo)> {
        self.roster().pending().map(|(uid, info)| (uid.to_owned(), info.clone())).collect()
    }

    /// Ends everything: stops accepting, and what is open when it is done or the time is up.
    pub async fn stop(&self, mode: Mode) {
        let proxies: Vec<_> = self.proxies.lock().await.drain().map(|(_, proxy)| proxy).collect();
        futures_util::future::join_all(proxies.into_iter().map(|proxy| proxy.stop(mode))).await;
    }

    /// Takes a pod in that no agent named: the tunnel's own, or the one it is dedicated to.
    pub async fn adopt(&self, proxy: PodProxy) {
        self.proxies.lock().await.insert(proxy.pod().uid.clone(), proxy);
    }

    fn roster(&self) -> std::sync::MutexGuard<'_, Roster<Netns>> {
        self.roster.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Follower {
    /// Follows the agent at `agent`, and serves pods from `place`.
    pub fn new(agent: PathBuf, place: Place, tunnel: Arc<Tunnel>, served: Arc<Served>) -> Self {
        Self { agent, place, tunnel, served }
    }

    /// Follows the agent for ever; `ready` says whether every pod that it knows is served.
    ///
    /// # Errors
    /// When the agent breaks the protocol: what it means is unknown, and pods would be served wrongly.
    pub async fn run(self, ready: Pending) -> Result<(), SessionError> {
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
        loop {
            match Session::connect(&self.agent).await {
                Ok(session) => {
                    tracing::info!(agent = %self.agent.display(), "Connected to the node agent");
                    backoff.reset();
                    let ended = self.session(session, &ready).await;
                    self.served.roster().disconnected();
                    ready.again();
                    match ended {
                        SessionError::Violation(violation) => return Err(violation.into()),
                        error @ (SessionError::Receive(_) | SessionError::Send(_)) => {
                            tracing::warn!(error = %error, "Lost the node agent; pods stay as they are");
                        }
                    }
                }
                Err(ConnectError::Hello(SessionError::Violation(violation))) => return Err(violation.into()),
                Err(error) => tracing::debug!(error = %error, "Node agent not reached"),
            }
            tokio::time::sleep(backoff.next(rand::random())).await;
        }
    }

    async fn session(&self, mut session: Session, ready: &Pending) -> SessionError {
        self.served.roster().connected();
        let mut retry = interval(RETRY);
        loop {
            let request = tokio::select! {
                request = session.next() => request,
                _ = retry.tick() => {
                    let retries = self.served.roster().retries();
                    self.carry_out(retries).await.unwrap_or_default();
                    self.report(ready);
                    continue;
                }
            };
            let outcome = match request {
                Ok(request) => self.obey(request).await,
                Err(error) => return error,
            };
            self.report(ready);
            if let Err(error) = session.ack(outcome).await {
                return error;
            }
        }
    }

    async fn obey(&self, request: Request<OwnedFd>) -> Result<(), String> {
        let actions = match request {
            Request::Add { uid, info, netns } => {
                let netns = Netns::new(netns, &self.place.home).map_err(|error| error.to_string())?;
                self.served.roster().add(&uid, Assignment { info, netns })
            }
            Request::Keep { uid } => {
                self.served.roster().keep(&uid).map_err(|error| error.to_string())?;
                Vec::new()
            }
            Request::Del { uid } => self.served.roster().del(&uid),
            Request::SnapshotSent => {
                let gone = self.served.roster().snapshot_sent();
                gone.map_err(|error| error.to_string())?
            }
        };
        self.carry_out(actions).await
    }

    async fn carry_out(&self, actions: Vec<Action<Netns>>) -> Result<(), String> {
        let mut outcome = Ok(());
        for action in actions {
            match action {
                Action::Start(uid, assignment) => {
                    let started = self.start(&uid, assignment).await;
                    self.served.roster().started(&uid, started.as_ref().map(|_| ()).map_err(|_| ()));
                    outcome = started.and(outcome);
                }
                Action::Stop(uid) => self.stop(&uid).await,
            }
        }
        outcome
    }

    async fn start(&self, uid: &str, assignment: Assignment<Netns>) -> Result<(), String> {
        let Assignment { info, netns } = assignment;
        let name = PodName {
            namespace: info.namespace.into(),
            name: info.name.into(),
            service_account: info.service_account.into(),
        };
        let failed = |error: &dyn std::fmt::Display| {
            tracing::warn!(pod.uid = uid, error = %error, "Pod cannot be served yet");
            error.to_string()
        };
        let transparent = self.transparent(&netns).map_err(|error| failed(&error))?;
        let pod = Arc::new(Pod::new(uid.to_owned(), name, netns, transparent, self.tunnel.clone()));
        let proxy = PodProxy::start(pod, &self.place).map_err(|error| failed(&error))?;
        tracing::info!(pod = %proxy.pod().name, pod.uid = uid, "Serving pod");
        self.tunnel.metrics.pods.started.inc();
        self.served.proxies.lock().await.insert(uid.to_owned(), proxy);
        Ok(())
    }

    /// Whether sockets in `netns` may bear foreign addresses.
    fn transparent(&self, netns: &Netns) -> std::io::Result<bool> {
        let possible = || netns.enter(|| Ok(socket::can_be_transparent()));
        match self.tunnel.settings.original_source {
            OriginalSource::Never => Ok(false),
            OriginalSource::Auto => possible(),
            OriginalSource::Required if possible()? => Ok(true),
            OriginalSource::Required => Err(std::io::Error::new(
                std::io::ErrorKind::PermissionDenied,
                "ENABLE_ORIG_SRC is true, and sockets cannot be made transparent; grant NET_ADMIN",
            )),
        }
    }

    async fn stop(&self, uid: &str) {
        if let Some(proxy) = self.served.proxies.lock().await.remove(uid) {
            tracing::info!(pod = %proxy.pod().name, pod.uid = uid, "Serving pod no longer");
            self.tunnel.metrics.pods.stopped.inc();
            task::spawn("pod stop", proxy.stop(Mode::Immediate));
        }
    }

    fn report(&self, ready: &Pending) {
        let roster = self.served.roster();
        let (running, pending) = roster.counts();
        self.tunnel.metrics.pods.active.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.tunnel.metrics.pods.pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
        if roster.is_ready() { ready.done() } else { ready.again() }
    }
}
