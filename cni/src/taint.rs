//! Takes the taint off the node once pods can be captured on it: kubelets register new nodes with it, so that
//! no pod is scheduled before (`--register-with-taints=ambit.io/not-ready=:NoSchedule`).

use std::time::Duration;

use ambit_runtime::backoff::Backoff;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::watch::kubernetes::chain;

/// The taint's key.
pub const NOT_READY: &str = "ambit.io/not-ready";

/// The waits between attempts.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_secs(30);

/// What one attempt may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Why the taint is still there.
#[derive(Debug, thiserror::Error)]
enum Stays {
    #[error("{}", chain(.0))]
    Refused(#[from] kube::Error),
    #[error("the API server did not answer within {LIMIT:?}")]
    Silent,
    #[error("the patch cannot be written: {0}")]
    Patch(#[from] serde_json::Error),
}

/// Waits for a tunnel that knows its pods, and for the plugin to be where the runtime finds it; then takes
/// the taint off, however often that has to be tried.
pub async fn remove(
    client: Client,
    node: String,
    mut synced: watch::Receiver<usize>,
    mut installed: watch::Receiver<bool>,
) {
    let both = async {
        synced.wait_for(|tunnels| *tunnels > 0).await.is_ok()
            && installed.wait_for(|there| *there).await.is_ok()
    };
    if !both.await {
        return;
    }
    let mut backoff = Backoff::new(FIRST_WAIT, LAST_WAIT);
    loop {
        match timeout(LIMIT, attempt(&client, &node)).await.unwrap_or(Err(Stays::Silent)) {
            Ok(true) => {
                info!(node = %node, taint = NOT_READY, "The node may take pods: its taint was removed")
            }
            Ok(false) => return,
            Err(error) => {
                warn!(node = %node, taint = NOT_READY, %error, "The taint could not be removed; may the agent get and patch nodes?");
                sleep(backoff.next(rand::random())).await;
            }
        }
    }
}

/// Whether there was one to take off.
async fn attempt(client: &Client, name: &str) -> Result<bool, Stays> {
    let api = Api::<Node>::all(client.clone());
    let node = api.get(name).await?;
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let Some(patch) = patch(&taints)? else { return Ok(false) };
    let patch = Patch::<()>::Json(serde_json::from_value(patch)?);
    api.patch(name, &PatchParams::default(), &patch).await?;
    Ok(true)
}

/// Whoever else changes taints meanwhile makes the test fail, and it is tried again.
fn patch(taints: &[Taint]) -> Result<Option<Value>, serde_json::Error> {
    if !taints.iter().any(|taint| taint.key == NOT_READY) {
        return Ok(None);
    }
    let rest: Vec<&Taint> = taints.iter().filter(|taint| taint.key != NOT_READY).collect();
    let before = serde_json::to_value(taints)?;
    Ok(Some(json!([
        {"op": "test", "path": "/spec/taints", "value": before},
        {"op": "replace", "path": "/spec/taints", "value": serde_json::to_value(rest)?},
    ])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, effect: &str) -> Taint {
        Taint { key: key.into(), effect: effect.into(), ..Taint::default() }
    }

    #[test]
    fn only_our_taint_goes_and_only_if_no_one_else_changed_them() {
        let other = taint("node.kubernetes.io/unschedulable", "NoSchedule");
        let ours = [taint(NOT_READY, "NoSchedule"), taint(NOT_READY, "NoExecute")];
        let all = [ours[0].clone(), other.clone(), ours[1].clone()];
        let patch = patch(&all).unwrap().unwrap();
        assert_eq!(patch[0], json!({"op": "test", "path": "/spec/taints", "value": all}));
        assert_eq!(patch[1], json!({"op": "replace", "path": "/spec/taints", "value": [other]}));
    }

    #[test]
    fn nothing_is_patched_where_there_is_no_taint_of_ours() {
        for taints in [vec![], vec![taint("other", "NoSchedule")]] {
            assert_eq!(patch(&taints).unwrap(), None);
        }
    }
}
