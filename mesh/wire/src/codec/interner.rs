//! Equal names share one allocation, and so do equal ports.

use std::sync::Arc;

use ambit_model::{
    identity::TrustDomain,
    name::{Cluster, Hostname, Label, Namespace, Network, Node, ServiceAccount},
    service::PortMap,
};
use hashbrown::HashSet;

/// How many new names are taken in before those that nobody holds any more are looked for.
const SWEEP_AFTER: usize = 4096;

/// How many different ports are remembered. A cluster has a few dozen kinds; who has more shares less.
const MOST_PORTS: usize = 1024;

/// Remembers the names in use, so that ten thousand workloads hold one copy of their cluster's name.
#[derive(Debug, Default)]
pub struct Interner {
    seen: HashSet<Arc<str>>,
    since_sweep: usize,
    ports: HashSet<PortMap>,
}

impl Interner {
    /// The name of type `N` that `text` is.
    pub(crate) fn name<N: Shared>(&mut self, text: &str) -> N {
        N::shared(self.text(text))
    }

    /// The same ports, shared with whoever has them too.
    pub(crate) fn ports(&mut self, ports: PortMap) -> PortMap {
        if let Some(known) = self.ports.get(&ports) {
            return known.clone();
        }
        if self.ports.len() >= MOST_PORTS {
            self.ports.clear();
        }
        self.ports.insert(ports.clone());
        ports
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.seen.get(text) {
            return known.clone();
        }
        self.since_sweep += 1;
        if self.since_sweep > SWEEP_AFTER.max(self.seen.len()) {
            self.seen.retain(|name| Arc::strong_count(name) > 1);
            self.since_sweep = 0;
        }
        let new: Arc<str> = Arc::from(text);
        self.seen.insert(new.clone());
        new
    }
}

/// A name that can be made of a shared text.
pub(crate) trait Shared {
    fn shared(text: Arc<str>) -> Self;
}

macro_rules! shared {
    ($($name:ident),+) => {$(
        impl Shared for $name {
            fn shared(text: Arc<str>) -> Self {
                $name::shared(text)
            }
        }
    )+};
}

shared!(Cluster, Hostname, Label, Namespace, Network, Node, ServiceAccount, TrustDomain);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_and_unused_ones_are_forgotten() {
        let mut names = Interner::default();
        let first: Label = names.name("shop");
        let second: Label = names.name("shop");
        assert_eq!(first.as_str().as_ptr(), second.as_str().as_ptr());
        for n in 0..=2 * SWEEP_AFTER {
            let _dropped: Label = names.name(&n.to_string());
        }
        // One sweep's worth of unused names at the most, and the few in use.
        assert!(names.seen.len() < SWEEP_AFTER + 8, "{}", names.seen.len());
        assert!(names.seen.contains("shop"));
    }
}
