//! The pods of this node: which ones are served, where they live, what serves them.

pub mod follow;
pub mod identities;
pub mod names;
pub mod netns;
mod pod;
pub mod proxy;
pub mod roster;

use std::sync::{Arc, PoisonError, RwLock};

use ambit_model::{snapshot::Snapshot, workload::Workload};
use hashbrown::HashMap;
pub use pod::{Pod, Unreached};

use crate::tunnel::PodName;

/// The pods that are served here, by name: for neighbours, for policy changes, for the admin page.
#[derive(Debug, Default)]
pub struct Locals(RwLock<HashMap<PodName, Arc<Pod>>>);

impl Locals {
    /// The pod that is `workload`, if it is served here.
    pub fn serving(&self, workload: &Workload) -> Option<Arc<Pod>> {
        let name = PodName {
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            service_account: workload.service_account.clone(),
        };
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&name).cloned()
    }

    /// All pods that are served here.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Has every pod judge its open connections by `mesh`.
    pub fn judge(&self, mesh: &Snapshot) {
        self.all().iter().for_each(|pod| pod.judge(mesh));
    }

    fn insert(&self, pod: Arc<Pod>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(pod.name.clone(), pod);
    }

    /// Takes `pod` out, unless its name has passed to a successor meanwhile.
    fn remove(&self, pod: &Arc<Pod>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if all.get(&pod.name).is_some_and(|there| Arc::ptr_eq(there, pod)) {
            all.remove(&pod.name);
        }
    }
}
