//! The loop: events in, differences out. It alone writes the [`Cluster`]; others read it through a [`View`].

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::cluster::object::{Key, Kind, Object};
use crate::cluster::{Cluster, Settings, Touched};
use crate::impact;
use crate::publish::{Changes, Outputs, Sink};
use crate::source::Event;
use crate::translate::{Output, status, translate};

/// Events that are put into effect together. Larger batches save no work, smaller ones wake subscribers more often.
const BATCH: usize = 4096;
/// Events that wait before their source has to; a source that is blocked reads on when there is room.
pub const QUEUE: usize = 4 * BATCH;

/// Puts events into effect and publishes what they change.
#[derive(Debug)]
pub struct Engine<S> {
    view: View,
    outputs: Outputs,
    synced: watch::Sender<bool>,
    changes: watch::Sender<u64>,
    sink: S,
}

impl<S: Sink> Engine<S> {
    /// An engine that knows nothing yet.
    pub fn new(settings: Settings, sink: S) -> Self {
        Self::on(View::new(settings), sink)
    }

    /// An engine that writes what `view` shows.
    pub fn on(view: View, sink: S) -> Self {
        let (synced, changes) = (watch::Sender::new(false), watch::Sender::new(0));
        Self { view, outputs: Outputs::default(), synced, changes, sink }
    }

    /// The cluster, for others to read.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Becomes true when everything that there was at the start is published.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Changes whenever the cluster may be another than before: for those who look at all of it now and then.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What is published.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// Takes events until the source ends or `stop` completes.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, stop: impl Future<Output = ()> + Send) {
        tokio::pin!(stop);
        let mut batch = Vec::new();
        loop {
            let received = tokio::select! {
                () = &mut stop => return,
                received = events.recv_many(&mut batch, BATCH) => received,
            };
            if received == 0 {
                return;
            }
            self.absorb(batch.drain(..));
        }
    }

    /// Puts a batch of events into effect and publishes the difference.
    ///
    /// Until the source has told everything, nothing is published: half a mesh is not a mesh.
    pub fn absorb(&mut self, events: impl IntoIterator<Item = Event>) {
        let arrived = Instant::now();
        let mut completed = false;
        let known = *self.synced.borrow();
        let affected = {
            let mut cluster = self.view.write();
            let mut affected = BTreeSet::new();
            for event in events {
                completed |= event == Event::Synced;
                if let Some(touched) = cluster.apply(event) {
                    warn_of(&cluster, &touched);
                    if known {
                        affected.extend(impact::of(&cluster, &touched));
                    }
                }
            }
            if known || completed {
                affected.extend(impact::of_moved(cluster.settle()));
            }
            if completed && !known { impact::everything(&cluster) } else { affected }
        };
        if known || completed {
            self.publish(affected);
            self.sink.took(arrived.elapsed());
        }
        if completed && !known {
            info!(resources = self.outputs.len(), "Everything is known and published");
            self.sink.open();
            self.synced.send_replace(true);
        }
        if known || completed {
            self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
        }
    }

    fn publish(&mut self, affected: BTreeSet<Output>) {
        let mut changes = Changes::default();
        let considered = affected.len();
        {
            let cluster = self.view.read();
            for output in affected {
                let now = translate(&cluster, &output);
                self.outputs.put(output, now.as_ref(), &mut changes);
            }
        }
        if !changes.is_empty() {
            debug!(considered, changed = changes.len(), "Configuration changed");
            changes.publish(&self.sink);
        }
    }
}

/// Tells the log what users are told in conditions of policies: which of them do not do what they say.
fn warn_of(cluster: &Cluster, touched: &Touched) {
    let Some(Object::AuthorizationPolicy(policy)) = &touched.after else { return };
    let key = Key { kind: Kind::AuthorizationPolicy, name: policy.meta.name.clone() };
    for condition in status::of(cluster, &key).into_iter().filter(|condition| condition.reason != "Accepted")
    {
        // Targets may come after the policies that name them: the condition tells, the log need not.
        if condition.reason != "TargetNotFound" && condition.reason != "PartiallyInvalid" {
            warn!(policy = %policy.meta.name, reason = condition.reason, condition = condition.message, "Policy is not in force as written");
        }
    }
}

/// The cluster, for reading.
#[derive(Clone, Debug)]
pub struct View(Arc<RwLock<Cluster>>);

impl View {
    /// A cluster that nothing is known of yet.
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(RwLock::new(Cluster::new(settings))))
    }

    /// The cluster as it is. Writers wait as long as the guard lives: look, copy, let go.
    pub fn read(&self) -> RwLockReadGuard<'_, Cluster> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Cluster> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
