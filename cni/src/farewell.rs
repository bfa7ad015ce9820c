//! Why does the agent end: because its next version comes, or for good?
//!
//! Its next version finds everything in place, so that no pod starts uncaptured meanwhile. Who uninstalls
//! deletes the DaemonSet; then everything is put back. The agent follows its DaemonSet while it runs, since at the end it
//! may not be allowed to look any more: because the rights were deleted too, or because its own pod was, by force, whose
//! token then counts for nothing. Only the first is an uninstallation, and that was seen before.

use std::{fmt, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use tokio::{sync::watch, time::timeout};
use tracing::{debug, info, warn};

use crate::watch::kubernetes::chain;

/// What the question may take at the end. The rest of the grace period is for cleaning up.
const LIMIT: Duration = Duration::from_secs(5);

/// The agent's own DaemonSet.
#[derive(Clone)]
pub struct Own {
    client: Client,
    namespace: String,
    name: String,
    /// Shared by clones: one follows, another asks.
    standing: Arc<watch::Sender<Standing>>,
}

/// What was seen of it while the agent ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Unseen,
    There,
    Going,
}

/// Why the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Another comes, or may.
    Replaced,
    /// For good.
    Uninstalled,
}

/// What the API server says of the DaemonSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Present,
    Deleting,
    Missing,
    Forbidden,
    Unknown,
}

impl Own {
    /// The DaemonSet `namespace/name`.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            standing: Arc::new(watch::Sender::new(Standing::Unseen)),
        }
    }

    /// Looks at it, and follows it for as long as the agent runs.
    pub async fn follow(&self) {
        match self.find().await {
            Found::Present | Found::Deleting => drop(self.standing.send_replace(Standing::There)),
            Found::Missing | Found::Forbidden => warn!(
                daemonset = %self.name, namespace = %self.namespace,
                "The agent's own DaemonSet cannot be seen, so an uninstallation will not be noticed; is --daemonset its name, and may the agent get and watch it?"
            ),
            Found::Unknown => {}
        }
        let mut seen = pin!(watch_object(self.api(), &self.name).default_backoff());
        while let Some(seen) = seen.next().await {
            match seen {
                Ok(found) => {
                    let is_going = found.map(|found| found.metadata.deletion_timestamp.is_some());
                    self.standing.send_modify(|standing| *standing = standing.after(is_going));
                }
                Err(error) => {
                    debug!(error = %chain(&error), "The agent's own DaemonSet is not followed for now")
                }
            }
        }
    }

    /// Why we are told to end.
    pub async fn ending(&self) -> Ending {
        let found = self.find().await;
        let ending = judge(found, *self.standing.borrow());
        info!(daemonset = %self.name, ?found, ?ending, "Told to end");
        ending
    }

    fn api(&self) -> Api<PartialObjectMeta<DaemonSet>> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn find(&self) -> Found {
        match timeout(LIMIT, self.api().get_opt(&self.name)).await {
            Ok(Ok(Some(found))) if found.metadata.deletion_timestamp.is_some() => Found::Deleting,
            Ok(Ok(Some(_))) => Found::Present,
            Ok(Ok(None)) => Found::Missing,
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Found::Missing,
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => Found::Forbidden,
            Ok(Err(error)) => {
                warn!(error = %chain(&error), "The agent's own DaemonSet cannot be looked at");
                Found::Unknown
            }
            Err(_) => Found::Unknown,
        }
    }
}

impl Standing {
    /// After a look: it is not there, or it is, and may be going.
    fn after(self, is_going: Option<bool>) -> Self {
        match (self, is_going) {
            (_, Some(false)) => Self::There,
            (_, Some(true)) | (Self::There | Self::Going, None) => Self::Going,
            // It has another name, most likely.
            (Self::Unseen, None) => Self::Unseen,
        }
    }
}

/// In doubt everything stays: pods that fail to start are noticed, pods that start uncaptured are not.
fn judge(found: Found, standing: Standing) -> Ending {
    match (found, standing) {
        (Found::Deleting, _)
        | (Found::Missing, Standing::There | Standing::Going)
        | (Found::Forbidden | Found::Unknown, Standing::Going) => Ending::Uninstalled,
        (Found::Present, _)
        | (Found::Missing, Standing::Unseen)
        | (Found::Forbidden | Found::Unknown, Standing::Unseen | Standing::There) => Ending::Replaced,
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DaemonSet {}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_doubt_everything_stays() {
        use Found::{Deleting, Forbidden, Missing, Present, Unknown};
        use Standing::{Going, There, Unseen};
        for (found, standing, ending) in [
            (Present, There, Ending::Replaced),
            // It was deleted and made again.
            (Present, Going, Ending::Replaced),
            (Missing, There, Ending::Uninstalled),
            (Missing, Unseen, Ending::Replaced),
            (Deleting, There, Ending::Uninstalled),
            (Deleting, Unseen, Ending::Uninstalled),
            // A pod that was deleted by force has a token that counts for nothing: its DaemonSet is there.
            (Forbidden, There, Ending::Replaced),
            (Forbidden, Unseen, Ending::Replaced),
            (Forbidden, Going, Ending::Uninstalled),
            (Unknown, There, Ending::Replaced),
            (Unknown, Going, Ending::Uninstalled),
        ] {
            assert_eq!(judge(found, standing), ending, "{found:?} {standing:?}");
        }
    }

    #[test]
    fn what_was_never_there_is_not_going() {
        use Standing::{Going, There, Unseen};
        for (before, is_going, after) in [
            (Unseen, None, Unseen),
            (Unseen, Some(false), There),
            (There, None, Going),
            (There, Some(true), Going),
            (Going, None, Going),
            (Going, Some(false), There),
        ] {
            assert_eq!(before.after(is_going), after, "{before:?} {is_going:?}");
        }
    }
}
