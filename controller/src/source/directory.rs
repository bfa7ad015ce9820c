//! Objects from a directory of YAML files, read again whenever it changes.
//!
//! A mistake in a file never takes anything away: what was last understood of an object stays in force, everything
//! else goes on, and the log names file, line, field and remedy, once.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambit_api::directory::{Directory, Document, Loaded, ObjectKey, Problem};
use notify::{RecursiveMode, Watcher};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Event;
use super::standing::{Standing, Verdict, difference, judge};
use crate::cluster::object::{Key, parse};

/// Editors and scripts write several files in a row; the directory is read when they have paused.
const QUIET: Duration = Duration::from_millis(100);
/// But however busy they are, not later than this.
const PATIENCE: Duration = Duration::from_millis(500);
/// A watch can miss changes (network file systems, a full queue of the kernel), so all is read again now and then.
const REREAD: Duration = Duration::from_secs(10);

/// Reads the directory and tells every change, until `stop` completes or nobody listens.
pub async fn run(directory: Directory, events: mpsc::Sender<Event>, stop: impl Future<Output = ()> + Send) {
    run_telling(directory, events, watch::Sender::default(), stop).await;
}

/// The same, and `problems` has what could not be read at the last look, for whoever wants to show it.
pub async fn run_telling(
    directory: Directory,
    events: mpsc::Sender<Event>,
    problems: watch::Sender<Vec<Problem>>,
    stop: impl Future<Output = ()> + Send,
) {
    tokio::pin!(stop);
    let directory = Arc::new(directory);
    let (wake, mut woken) = mpsc::channel(1);
    let _watcher = watcher(directory.path(), wake);
    let mut state = State::default();
    loop {
        let told = tokio::select! {
            () = &mut stop => return,
            told = tell(&directory, &mut state, &events, &problems) => told,
        };
        if !told {
            return;
        }
        tokio::select! {
            () = &mut stop => return,
            () = settled(&mut woken) => {}
        }
    }
}

/// Reads once and tells the difference. False if nobody listens any more.
async fn tell(
    directory: &Arc<Directory>,
    state: &mut State,
    events: &mpsc::Sender<Event>,
    problems: &watch::Sender<Vec<Problem>>,
) -> bool {
    let reader = Arc::clone(directory);
    let loaded = match tokio::task::spawn_blocking(move || reader.load()).await {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => {
            if !std::mem::replace(&mut state.unreadable, true) {
                warn!(directory = %directory.path().display(), %error, "The directory cannot be read; what it last said stays in force");
            }
            return true;
        }
        Err(error) => {
            warn!(%error, "Reading the directory was cut off");
            return true;
        }
    };
    state.unreadable = false;
    let changes = state.digest(loaded);
    problems.send_replace(state.problems().cloned().collect());
    for event in changes {
        if events.send(event).await.is_err() {
            return false;
        }
    }
    true
}

/// Completes when the directory has changed and come to rest, or after a while in any case.
async fn settled(woken: &mut mpsc::Receiver<()>) {
    let reread = tokio::time::sleep(REREAD);
    tokio::select! {
        () = reread => return,
        Some(()) = woken.recv() => {}
    }
    let latest = Instant::now() + PATIENCE;
    loop {
        let quiet = tokio::time::sleep_until((Instant::now() + QUIET).min(latest));
        tokio::select! {
            biased;
            Some(()) = woken.recv(), if Instant::now() < latest => {}
            () = quiet => return,
        }
    }
}

/// Watches a directory. Without a watch it is still read, only later.
fn watcher(path: &Path, wake: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let reading = event.is_ok_and(|event| event.kind.is_access());
        if !reading {
            // If it is full, somebody is being woken already.
            let _ = wake.try_send(());
        }
    });
    let watching = watcher.and_then(|mut watcher| {
        watcher.watch(path, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watching
        .inspect_err(|error| {
            warn!(
                directory = %path.display(), %error, reread = ?REREAD,
                "The directory cannot be watched; it is read again from time to time. Raise fs.inotify.max_user_watches?"
            );
        })
        .ok()
}

/// What the directory last said.
#[derive(Debug, Default)]
pub struct State {
    known: BTreeMap<Id, Known>,
    complaints: BTreeSet<Problem>,
    unknown_kinds: BTreeSet<(String, String)>,
    synced: bool,
    unreadable: bool,
}

/// Names a document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    group: String,
    key: ObjectKey,
}

/// A document that was seen, and what is in force of it.
#[derive(Clone, Debug)]
struct Known {
    file: Arc<Path>,
    value: Value,
    standing: Standing,
}

impl State {
    /// What has changed since the last time. Logs each problem when it is new.
    pub fn digest(&mut self, loaded: Loaded) -> Vec<Event> {
        let mut events = Vec::new();
        let mut problems = loaded.problems;
        let mut now: BTreeMap<Id, Known> = BTreeMap::new();
        for document in loaded.objects {
            let id = Id { group: document.group().to_owned(), key: document.key() };
            let before = self.known.remove(&id);
            let stale = loaded.stale.contains(&id.key);
            let known = match before {
                Some(before) if stale || (before.value == document.value && before.standing.understood) => {
                    before
                }
                before => self.read(document, before, &mut problems, &mut events),
            };
            now.insert(id, known);
        }
        // What is left was not seen: it is gone, unless its file cannot be read as a whole.
        let unread: Vec<&Problem> = problems.iter().filter(|problem| problem.key.is_none()).collect();
        for (id, known) in std::mem::take(&mut self.known) {
            if loaded.truncated || unread.iter().any(|problem| known.file.starts_with(&problem.file)) {
                now.insert(id, known);
            } else if let Some(object) = known.standing.object {
                events.push(Event::Delete(object.key()));
            }
        }
        self.known = now;
        self.complain(problems);
        if !std::mem::replace(&mut self.synced, true) {
            events.push(Event::Synced);
        }
        order(events)
    }

    /// What could not be read at the last look.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.complaints.iter()
    }

    fn read(
        &mut self,
        document: Document,
        before: Option<Known>,
        problems: &mut Vec<Problem>,
        events: &mut Vec<Event>,
    ) -> Known {
        let was = before.as_ref().map(|before| &before.standing);
        let standing = match judge(parse(&document), was) {
            Verdict::Understood(standing) => standing,
            Verdict::Unknown => {
                let kind = (document.group().to_owned(), document.kind.clone());
                if self.unknown_kinds.insert(kind) {
                    info!(
                        api_version = document.api_version,
                        kind = document.kind,
                        "Objects of this kind are not used"
                    );
                }
                Standing { object: None, understood: true }
            }
            Verdict::Kept(rejection) => {
                problems.push(document.problem(rejection.field, rejection.what, rejection.remedy));
                // The value is remembered as it was, so that the mistake is found again at the next look.
                let (value, standing) =
                    before.map(|before| (before.value, before.standing)).unwrap_or_default();
                return Known { file: document.file, value, standing };
            }
            Verdict::Replaced(standing, rejection) => {
                problems.push(document.problem(rejection.field, rejection.what, rejection.remedy));
                standing
            }
        };
        events.extend(difference(was.and_then(|was| was.object.as_ref()), standing.object.as_ref()));
        Known { file: document.file, value: document.value, standing }
    }

    fn complain(&mut self, problems: Vec<Problem>) {
        let problems: BTreeSet<Problem> = problems.into_iter().collect();
        for problem in problems.difference(&self.complaints) {
            warn!(
                file = %problem.file.display(), line = problem.line, field = problem.field,
                object = problem.key.as_ref().map(tracing::field::display),
                reason = problem.what, remedy = problem.remedy,
                "A document is not used as it is written"
            );
        }
        let solved = self.complaints.difference(&problems).count();
        if solved > 0 {
            debug!(solved, "Documents were corrected");
        }
        self.complaints = problems;
    }
}

/// Deletions last would let an object that moved to another name be there twice for a moment; first, it is missing for
/// a moment. All of them are one batch to the engine, so only the order within a name matters: deletions first.
fn order(events: Vec<Event>) -> Vec<Event> {
    let gone = |event: &Event| matches!(event, Event::Delete(Key { .. }));
    let (mut deletions, others): (Vec<_>, Vec<_>) = events.into_iter().partition(gone);
    deletions.extend(others);
    deletions
}
