//! Answers the plugin: a pod that belongs to the mesh starts when it is captured, and not before.
//!
//! The question is judged here, by the same rules as everything that is seen. The enrolment itself is the
//! pod's own task in the [`Feed`](crate::feed::Feed), whoever wants it: so a pod that is announced and seen
//! at once is enrolled once.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ambit_runtime::{
    admin::{Method, Pages, Request, Response},
    task,
};
use http::StatusCode;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    enroll::{self, Reason, Rules, Verdict},
    feed::{Attempt, Leaving, Turn},
    message::{Arrival, PATH, Sorry, UNDECIDED, Welcome},
    metrics::Metrics,
    netns::{Netns, NetnsError},
    pod::{Mode, Pod},
    redirect::Redirect,
    watch::{Lookup, LookupError, PodName},
};

/// A pod that the API server does not show yet is asked for this often, this far apart.
const LOOKS: u32 = 5;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long a pod may wait until it is captured. A tunnel that is being replaced comes back within it; the
/// plugin waits for twice as long.
const CAPTURE: Duration = Duration::from_secs(5);

/// What the start of the agent, or another pod's arrival, may hold up an arrival.
const DESK: Duration = Duration::from_secs(5);

/// What undoing may take before the answer is given all the same.
const UNDO: Duration = Duration::from_secs(2);

/// Arrivals that wait for the desk. More than a node starts at once.
pub const QUEUE: usize = 128;

/// What only the one who knows all pods can do.
#[derive(Debug)]
pub enum Ask {
    /// Enrol a pod that is being started.
    Enrol {
        /// The pod.
        pod: Arc<Pod>,
        /// What its namespace says.
        namespace: Mode,
        /// What is captured.
        redirect: Redirect,
        /// Its network namespace.
        netns: Netns,
        /// Its addresses.
        ips: Vec<IpAddr>,
        /// Where to follow it.
        reply: oneshot::Sender<Option<Attempt>>,
    },
    /// Take out a pod whose start has failed, unless something else was wished since.
    Abandon {
        /// The pod's UID.
        uid: String,
        /// The try that failed.
        turn: Turn,
        /// Where to wait for it.
        reply: oneshot::Sender<Option<Leaving>>,
    },
}

/// Answers the plugin. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Arrivals {
    /// Who is this pod?
    pub lookup: Lookup,
    /// Does it belong?
    pub rules: Arc<Rules>,
    /// Where enrolments are ordered.
    pub desk: mpsc::Sender<Ask>,
    /// The node's `/proc`: the way to files that only the node sees.
    pub host_proc: PathBuf,
    /// What is counted.
    pub metrics: Metrics,
}

/// Why a pod may not start now.
#[derive(Debug, thiserror::Error)]
enum Turned {
    #[error("{0}")]
    Unknown(#[from] LookupError),
    #[error("the agent has not looked at the pods of this node yet; its page /readyz says what it waits for")]
    NotReady,
    #[error("{0}")]
    Netns(#[from] NetnsError),
    #[error("{0}")]
    NotCaptured(String),
}

impl Arrivals {
    /// The page that the plugin asks.
    pub fn pages(self) -> Pages {
        let about = "a pod's network was made: capture the pod";
        Pages::new("Ambit node agent, for its plugin")
            .slow_page(Method::POST, PATH, about, move |request| self.clone().answer(request))
    }

    async fn answer(self, request: Request) -> Response {
        let arrival = match serde_json::from_slice::<Arrival>(request.body()) {
            Ok(arrival) => arrival,
            Err(error) => {
                return sorry(StatusCode::BAD_REQUEST, format!("the arrival cannot be read: {error}"));
            }
        };
        // In a task of its own: a plugin that gives up must not leave a pod half enrolled.
        let (done, outcome) = oneshot::channel();
        task::spawn("arrival", async move {
            let outcome = self.attend(&arrival).await;
            self.record(&arrival, &outcome);
            // The plugin has given up; the pod's task goes on, or has been abandoned.
            let _ = done.send(outcome);
        });
        match outcome.await {
            Ok(Ok(welcome)) => match serde_json::to_vec(&welcome) {
                Ok(json) => Response::json(json),
                Err(error) => sorry(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            Ok(Err(turned)) => sorry(turned.status(), turned.to_string()),
            Err(_) => {
                sorry(StatusCode::INTERNAL_SERVER_ERROR, "the agent failed; its log says why".to_owned())
            }
        }
    }

    async fn attend(&self, arrival: &Arrival) -> Result<Welcome, Turned> {
        let (pod, namespace) = self.find(arrival).await?;
        let redirect = match enroll::judge(&pod, namespace, &self.rules) {
            Verdict::In(redirect) => redirect,
            // It belongs, and would be captured but for a mistake that its owner can mend.
            Verdict::Out(reason @ Reason::Interfaces) => {
                return Err(Turned::NotCaptured(format!("{reason}; {}", reason.remedy())));
            }
            Verdict::Out(reason) => return Ok(Welcome { captured: false, reason: reason.to_string() }),
        };
        let netns = open(&self.host_proc, Path::new(&arrival.netns))?;
        let ips = arrival.ips.iter().map(|ip| ip.address.ip.to_canonical()).collect();
        let uid = pod.uid.clone();
        let mut attempt = self.enrol(pod, namespace, redirect, netns, ips).await?;
        match attempt.captured(CAPTURE).await {
            Ok(()) => Ok(Welcome { captured: true, reason: String::new() }),
            Err(reason) => {
                self.abandon(uid, attempt.turn()).await;
                Err(Turned::NotCaptured(reason))
            }
        }
    }

    async fn find(&self, arrival: &Arrival) -> Result<(Arc<Pod>, Mode), Turned> {
        let name = PodName {
            namespace: arrival.pod_namespace.clone(),
            name: arrival.pod_name.clone(),
            kubelet_uid: arrival.pod_uid.clone(),
        };
        let mut looks = 1;
        loop {
            match self.lookup.find(&name).await {
                Ok(found) => return Ok(found),
                Err(LookupError::NoPod | LookupError::Replaced) if looks < LOOKS => {}
                Err(error) => return Err(error.into()),
            }
            looks += 1;
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn enrol(
        &self,
        pod: Arc<Pod>,
        namespace: Mode,
        redirect: Redirect,
        netns: Netns,
        ips: Vec<IpAddr>,
    ) -> Result<Attempt, Turned> {
        let (reply, attempt) = oneshot::channel();
        let ask = Ask::Enrol { pod, namespace, redirect, netns, ips, reply };
        let ordered = async {
            self.desk.send(ask).await.ok()?;
            attempt.await.ok()?
        };
        // One that is taken up later finds nobody waiting, and is not enrolled.
        timeout(DESK, ordered).await.ok().flatten().ok_or(Turned::NotReady)
    }

    async fn abandon(&self, uid: String, turn: Turn) {
        let (reply, leaving) = oneshot::channel();
        // An error means that the agent ends, and takes everyone out or leaves everyone as he is.
        if self.desk.send(Ask::Abandon { uid, turn, reply }).await.is_ok()
            && let Ok(Some(leaving)) = leaving.await
        {
            leaving.done(UNDO).await;
        }
    }

    fn record(&self, arrival: &Arrival, outcome: &Result<Welcome, Turned>) {
        let Arrival { pod_namespace, pod_name, .. } = arrival;
        match outcome {
            Ok(Welcome { captured: true, .. }) => {
                info!(pod.namespace = %pod_namespace, pod.name = %pod_name, "Pod captured before its start");
                self.metrics.arrival("captured");
            }
            Ok(Welcome { reason, .. }) => {
                debug!(pod.namespace = %pod_namespace, pod.name = %pod_name, reason, "Pod starts outside of the mesh");
                self.metrics.arrival("outside");
            }
            Err(error) => {
                warn!(pod.namespace = %pod_namespace, pod.name = %pod_name, %error, "Pod not started");
                let undecided = error.status().as_u16() == UNDECIDED;
                self.metrics.arrival(if undecided { "undecided" } else { "refused" });
            }
        }
    }
}

impl Turned {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unknown(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotReady | Self::Netns(_) | Self::NotCaptured(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The namespace behind a path as the runtime names it: as we see it, or else as the node does.
fn open(host_proc: &Path, path: &Path) -> Result<Netns, NetnsError> {
    Netns::open(path).or_else(|error| {
        let relative = path.strip_prefix("/").unwrap_or(path);
        Netns::open(&host_proc.join("1/root").join(relative)).map_err(|_| error)
    })
}

fn sorry(status: StatusCode, error: String) -> Response {
    let body = serde_json::to_vec(&Sorry { error }).unwrap_or_default();
    Response::json(body).with_status(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_can_tell_a_no_from_a_do_not_know() {
        for (turned, undecided) in [
            (Turned::Unknown(LookupError::NoPod), true),
            (Turned::Unknown(LookupError::Unreadable("x".into())), true),
            (Turned::NotReady, false),
            (Turned::NotCaptured("x".into()), false),
        ] {
            assert_eq!(turned.status().as_u16() == UNDECIDED, undecided, "{turned}");
        }
    }
}
