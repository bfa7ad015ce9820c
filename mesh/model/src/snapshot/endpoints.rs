//! The endpoints of one service.

use std::sync::Arc;

use crate::{
    name::Uid,
    service::PortMap,
    workload::{Capacity, Workload},
};

/// A workload behind a service, with its own ports for it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its target ports for this service, where they differ or are named.
    pub ports: PortMap,
}

impl Endpoint {
    fn has_weight(&self) -> bool {
        self.workload.capacity != Capacity::default()
    }
}

/// The endpoints of one service, sorted by workload key; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    list: Arc<Vec<Endpoint>>,
    /// How many have a weight other than 1.
    weighted: usize,
}

impl Endpoints {
    /// All endpoints, healthy or not.
    pub fn as_slice(&self) -> &[Endpoint] {
        &self.list
    }

    /// Whether both are the very same, not only equal; cheap to ask.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.list, &other.list)
    }

    /// Whether all have the weight 1, so that drawing one blindly is fair.
    pub fn are_equal(&self) -> bool {
        self.weighted == 0
    }

    /// The endpoint that is the workload `uid`.
    pub fn get(&self, uid: &Uid) -> Option<&Endpoint> {
        self.position(uid).ok().and_then(|at| self.list.get(at))
    }

    pub(super) fn insert(&mut self, endpoint: Endpoint) {
        self.remove(&endpoint.workload.uid);
        self.weighted += usize::from(endpoint.has_weight());
        let at = self.position(&endpoint.workload.uid).unwrap_or_else(|at| at);
        Arc::make_mut(&mut self.list).insert(at, endpoint);
    }

    pub(super) fn remove(&mut self, uid: &Uid) {
        if let Ok(at) = self.position(uid) {
            let old = Arc::make_mut(&mut self.list).remove(at);
            self.weighted -= usize::from(old.has_weight());
        }
    }

    fn position(&self, uid: &Uid) -> Result<usize, usize> {
        self.list.binary_search_by(|endpoint| endpoint.workload.uid.cmp(uid))
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        let mut all = Self::default();
        endpoints.into_iter().for_each(|endpoint| all.insert(endpoint));
        all
    }
}
