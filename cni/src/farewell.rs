//! Why does the agent end: because its next version comes, or for good?
//!
//! Its next version finds everything in place, so that no pod starts uncaptured meanwhile. Who uninstalls
//! deletes the DaemonSet; then everything is put back. The permission to look at it may be deleted first: an
//! agent that could look at its start and may not any more was uninstalled.

use std::{fmt, sync::Arc, time::Duration};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client, core::PartialObjectMeta};
use tokio::{sync::OnceCell, time::timeout};
use tracing::{info, warn};

use crate::watch::kubernetes::chain;

/// What the question may take at the end. The rest of the grace period is for cleaning up.
const LIMIT: Duration = Duration::from_secs(5);

/// The agent's own DaemonSet.
#[derive(Clone)]
pub struct Own {
    client: Client,
    namespace: String,
    name: String,
    /// Shared by clones: one looks, another asks.
    seen: Arc<OnceCell<()>>,
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
        Self { client, namespace: namespace.to_owned(), name: name.to_owned(), seen: Arc::default() }
    }

    /// Looks at it while all is well.
    pub async fn look(&self) {
        match self.find().await {
            Found::Present | Found::Deleting => {
                let _ = self.seen.set(());
            }
            Found::Missing | Found::Forbidden => warn!(
                daemonset = %self.name, namespace = %self.namespace,
                "The agent's own DaemonSet cannot be seen, so an uninstallation will not be noticed; is --daemonset its name, and may the agent get it?"
            ),
            Found::Unknown => {}
        }
    }

    /// Why we are told to end.
    pub async fn ending(&self) -> Ending {
        let found = self.find().await;
        let ending = judge(found, self.seen.initialized());
        info!(daemonset = %self.name, ?found, ?ending, "Told to end");
        ending
    }

    async fn find(&self) -> Found {
        let api = Api::<PartialObjectMeta<DaemonSet>>::namespaced(self.client.clone(), &self.namespace);
        match timeout(LIMIT, api.get_opt(&self.name)).await {
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

/// In doubt everything stays: pods that fail to start are noticed, pods that start uncaptured are not.
fn judge(found: Found, seen: bool) -> Ending {
    match found {
        Found::Deleting => Ending::Uninstalled,
        Found::Missing | Found::Forbidden if seen => Ending::Uninstalled,
        Found::Missing | Found::Forbidden | Found::Present | Found::Unknown => Ending::Replaced,
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
        for (found, seen, ending) in [
            (Present, true, Ending::Replaced),
            (Unknown, true, Ending::Replaced),
            (Missing, true, Ending::Uninstalled),
            (Forbidden, true, Ending::Uninstalled),
            (Deleting, true, Ending::Uninstalled),
            (Deleting, false, Ending::Uninstalled),
            (Missing, false, Ending::Replaced),
            (Forbidden, false, Ending::Replaced),
            (Unknown, false, Ending::Replaced),
        ] {
            assert_eq!(judge(found, seen), ending, "{found:?} {seen}");
        }
    }
}
