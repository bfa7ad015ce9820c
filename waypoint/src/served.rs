//! What this waypoint serves: what it is told, and for a while what it was told until lately.
//!
//! Tunnels and waypoints hear of a change of binding on streams of their own, each in its time. So a service that comes
//! is waited for ([`COMING`]), and one that goes is served on ([`LINGER`]), under the routes and policies that it had:
//! no request fails because somebody has heard it first.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_model::{name::ServiceKey, service_config::ServiceConfig, snapshot::Snapshot};
use ambit_wire::discovery::Mesh;
use arc_swap::ArcSwap;
use hashbrown::HashMap;

/// How long a stream waits for the word that its service is served here.
pub const COMING: Duration = Duration::from_secs(1);
/// How long a service is served after it was taken away: longer than a control plane needs to tell every tunnel, short
/// enough that a policy that went with it is not in force for ever.
const LINGER: Duration = Duration::from_secs(30);

/// What was served until lately.
#[derive(Debug, Default)]
pub struct Served {
    departed: ArcSwap<Departed>,
}

type Departed = HashMap<ServiceKey, (Arc<ServiceConfig>, Instant)>;

impl Served {
    /// What applies to a service that is served.
    pub fn find(&self, mesh: &Snapshot, key: &ServiceKey) -> Option<Arc<ServiceConfig>> {
        mesh.config(key).cloned().or_else(|| {
            let departed = self.departed.load();
            let (config, since) = departed.get(key)?;
            (since.elapsed() < LINGER).then(|| config.clone())
        })
    }

    /// Watches what goes, as long as the mesh changes.
    pub async fn follow(&self, mesh: Mesh) {
        let mut changes = mesh.changes();
        let mut before = mesh.current();
        while changes.changed().await.is_ok() {
            let now = mesh.current();
            let at = Instant::now();
            let current = self.departed.load();
            if let Some(departed) = departed(&current, &before, &now, at) {
                self.departed.store(Arc::new(departed));
            }
            before = now;
        }
    }
}

/// What has departed now; `None`: nothing is different. Pure.
fn departed(known: &Departed, before: &Snapshot, now: &Snapshot, at: Instant) -> Option<Departed> {
    let gone = before.configs().filter(|config| now.config(config.key()).is_none());
    let mut gone = gone.peekable();
    let stale = |since: &Instant| at.duration_since(*since) >= LINGER;
    if gone.peek().is_none() && !known.values().any(|(_, since)| stale(since)) {
        return None;
    }
    let kept = known.iter().filter(|(_, (_, since))| !stale(since));
    let kept = kept.map(|(key, kept)| (key.clone(), kept.clone()));
    Some(kept.chain(gone.map(|config| (config.key().clone(), (config.clone(), at)))).collect())
}

#[cfg(test)]
mod tests {
    use ambit_model::{
        service_config::Parts,
        snapshot::{Removal, Update},
    };

    use super::*;

    #[test]
    fn what_goes_lingers_and_no_longer_than_a_while() {
        let key = ServiceKey::new("shop", "web");
        let config = Arc::new(ServiceConfig::new(key.clone(), Parts::default()));
        let bound = Snapshot::empty(None).apply(&[], [Update::Config(config)]);
        let unbound = bound.apply(&[Removal::Config(key.clone())], []);
        let start = Instant::now();
        let nothing = Departed::new();
        assert!(departed(&nothing, &bound, &bound, start).is_none());
        let gone = departed(&nothing, &bound, &unbound, start).expect("a change");
        assert!(gone.contains_key(&key));
        assert!(departed(&gone, &unbound, &unbound, start + LINGER / 2).is_none());
        let later = departed(&gone, &unbound, &unbound, start + LINGER).expect("a change");
        assert!(later.is_empty());
    }
}
