//! Objects from the API server: each kind is listed once and then watched.
//!
//! | room | |
//! |---|---|
//! | [`kinds`] | which kinds, at which versions, how much of them |
//! | [`follow`] | one kind: list, watch, and again after every failure |
//! | [`shelf`] | *pure*: what a watch says → what is told |
//! | [`raw`] | an object as it is sent |
//!
//! While the API server does not answer, everything stays as it was. When it answers again, lists are compared with
//! what is known, and what did not change in between is not told. A definition that is not installed is a kind
//! without objects, until it is; one that goes missing is that only when it has been missing for a minute.

mod follow;
mod kinds;
mod raw;
mod shelf;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use ambit_api::directory::Problem;
use ambit_runtime::task;
use kube::Client;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use self::{
    kinds::{WATCHED, Watched},
    shelf::{Shelf, Told},
};
use super::Event;
use crate::{
    cluster::object::Kind,
    metrics::{counter, gauge},
};

/// More problems are in the log, and not shown.
const MOST_PROBLEMS: usize = 1000;

/// Tells every change until `stop` completes or nobody listens. `problems` has what is wrong with objects, for whoever
/// wants to show it.
pub async fn run(
    client: Client,
    events: mpsc::Sender<Event>,
    problems: watch::Sender<Vec<Problem>>,
    counts: Counts,
    stop: impl Future<Output = ()> + Send,
) {
    tokio::pin!(stop);
    let (all_known, mut known) = watch::channel(BTreeSet::new());
    let board = Arc::new(Board { known: all_known, problems, counts, state: Mutex::default() });
    let followers: Vec<_> = WATCHED
        .into_iter()
        .map(|watched| {
            let telling = Telling { events: events.clone(), board: Arc::clone(&board) };
            task::spawn("watch", follow::follow(client.clone(), watched, telling)).owned()
        })
        .collect();
    let complete = async {
        // The sender lives in the board.
        let _ = known.wait_for(|known| known.len() == WATCHED.len()).await;
        // Every follower has told what it listed before it said so: this comes after all of it.
        let _ = events.send(Event::Synced).await;
        info!("Every kind of object is known");
        events.closed().await;
    };
    tokio::select! {
        () = &mut stop => {}
        () = complete => {}
    }
    drop(followers);
}

/// Where a follower tells what it hears.
#[derive(Clone)]
struct Telling {
    events: mpsc::Sender<Event>,
    board: Arc<Board>,
}

/// What all followers share.
struct Board {
    known: watch::Sender<BTreeSet<Kind>>,
    problems: watch::Sender<Vec<Problem>>,
    counts: Counts,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    problems: BTreeMap<Kind, Vec<Problem>>,
    /// Kinds whose last attempt failed.
    ill: BTreeSet<Kind>,
}

impl Telling {
    /// Tells what came of the watch, waiting where there is too much. Fails if nobody listens any more.
    async fn tell(&self, told: Told, shelf: &Shelf) -> Result<(), mpsc::error::SendError<Event>> {
        for problem in &told.complaints {
            warn!(
                object = problem.key.as_ref().map(tracing::field::display),
                field = problem.field,
                reason = problem.what,
                remedy = problem.remedy,
                "An object is not used as it is written"
            );
        }
        if told.problems_changed || told.complete {
            self.board.put(shelf);
        }
        for event in told.events {
            self.events.send(event).await?;
        }
        Ok(())
    }

    /// All of a kind has been told.
    fn known(&self, watched: Watched) {
        self.board.known.send_if_modified(|known| {
            let new = known.insert(watched.kind);
            if new {
                debug!(kind = watched.plural, "Objects are known");
            }
            new
        });
    }

    /// A kind could not be listed or watched. The log hears of the first of an outage; the others follow from it.
    fn ill(
        &self,
        watched: Watched,
        error: &(dyn std::error::Error + Send + Sync + 'static),
        code: Option<u16>,
    ) {
        let (new, first) = {
            let mut state = self.board.lock();
            let first = state.ill.is_empty();
            let new = state.ill.insert(watched.kind);
            self.board.counts.failed(state.ill.len());
            (new, first)
        };
        let kind = watched.plural;
        match code {
            Some(403) if new => {
                let remedy = "allow get, list and watch in the ClusterRole of this controller's account";
                warn!(kind, error, remedy, "Objects may not be read");
            }
            _ if first => {
                warn!(kind, error, "The API server does not tell objects; what is known stays in force");
            }
            _ => debug!(kind, error, "Objects are not told"),
        }
    }

    /// A kind was listed or watched again.
    fn well(&self, watched: Watched) {
        let mut state = self.board.lock();
        if !state.ill.remove(&watched.kind) {
            return;
        }
        self.board.counts.0.ill.store(state.ill.len(), Relaxed);
        if state.ill.is_empty() {
            info!("The API server tells objects again");
        }
    }
}

/// How the watches go. Cheap to clone; a [`Collector`] of its figures.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Tally>);

#[derive(Debug, Default)]
struct Tally {
    ill: AtomicUsize,
    failures: AtomicU64,
}

impl Counts {
    /// Kinds that are not told of now.
    pub fn ill(&self) -> usize {
        self.0.ill.load(Relaxed)
    }

    fn failed(&self, ill: usize) {
        self.0.ill.store(ill, Relaxed);
        self.0.failures.fetch_add(1, Relaxed);
    }
}

impl Collector for Counts {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Kinds of objects that the API server does not tell of now";
        gauge(&mut to, "ambit_source_silent_kinds", help, self.ill())?;
        let help = "Lists and watches that failed";
        counter(&mut to, "ambit_source_failures", help, self.0.failures.load(Relaxed))
    }
}

impl Board {
    /// In the middle of a list nothing is shown: with ten thousand mistakes in it, that would be work without end.
    fn put(&self, shelf: &Shelf) {
        if shelf.is_listing() {
            return;
        }
        let mut state = self.lock();
        let few = shelf.problems().values().take(MOST_PROBLEMS).cloned().collect();
        if state.problems.insert(shelf.kind(), few).as_ref() != state.problems.get(&shelf.kind()) {
            let all = state.problems.values().flatten().take(MOST_PROBLEMS).cloned().collect();
            self.problems.send_replace(all);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
