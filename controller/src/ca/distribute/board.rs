//! Which namespaces lack what everybody is told. Pure: what the API server says, and the clock, are arguments.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use ambit_api::labels::{MANAGED_BY, MANAGED_BY_AMBIT};
use ambit_runtime::backoff::Backoff;
use k8s_openapi::api::core::v1::ConfigMap;
use xxhash_rust::xxh64::xxh64;

use crate::ca::in_force::Fingerprint;

const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Where somebody undoes what we write, or does not let us, we look again this seldom.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// A write that holds for so long was not undone by another controller that wants something else.
const HELD: Duration = Duration::from_secs(60);

/// What is to be found in each namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The name of the ConfigMap.
    pub(super) config_map: &'static str,
    /// The key in it.
    pub(super) key: &'static str,
    /// What is to be there.
    pub(super) text: String,
}

/// What is in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    /// Whether it says that we manage it.
    is_ours: bool,
    digest: u64,
    roots: Option<Vec<Fingerprint>>,
}

/// What is to be done in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// There is no such ConfigMap.
    Create,
    /// It says something else.
    Mend,
}

/// What everybody is told, and who lacks it.
#[derive(Debug)]
pub(super) struct Board {
    wanted: Wanted,
    digest: u64,
    roots: Option<Vec<Fingerprint>>,
    namespaces: BTreeSet<String>,
    found: BTreeMap<String, Found>,
    /// Lists that are being read again.
    listing: (Option<BTreeSet<String>>, Option<BTreeMap<String, Found>>),
    listed: (bool, bool),
    due: BTreeSet<String>,
    later: BTreeSet<(Instant, String)>,
    running: BTreeSet<String>,
    /// Where we wrote, or failed to, when that was, and how long to wait next time. At most one per namespace.
    past: HashMap<String, Past>,
}

#[derive(Debug)]
struct Past {
    at: Instant,
    waits: Backoff,
    /// Held back until then.
    until: Option<Instant>,
}

/// What happened to objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change<T> {
    /// All are told anew.
    Begin,
    /// One of them.
    Listed(T),
    /// That was all.
    End,
    /// There is one.
    Set(T),
    /// There is none.
    Gone(String),
}

impl Board {
    pub(super) fn new(wanted: Wanted) -> Self {
        let (digest, roots) = read(&wanted.text);
        Self {
            wanted,
            digest,
            roots,
            namespaces: BTreeSet::new(),
            found: BTreeMap::new(),
            listing: (None, None),
            listed: (false, false),
            due: BTreeSet::new(),
            later: BTreeSet::new(),
            running: BTreeSet::new(),
            past: HashMap::new(),
        }
    }

    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Everybody is told something else.
    pub(super) fn want(&mut self, wanted: Wanted) {
        if self.wanted == wanted {
            return;
        }
        (self.digest, self.roots) = read(&wanted.text);
        self.wanted = wanted;
        // What held others back was about the last text.
        self.later.clear();
        self.past.clear();
        self.look_everywhere();
    }

    /// Namespaces that live.
    pub(super) fn namespace(&mut self, change: Change<String>) {
        match change {
            Change::Begin => self.listing.0 = Some(BTreeSet::new()),
            Change::Listed(name) => {
                self.listing.0.get_or_insert_default().insert(name);
            }
            Change::End => {
                self.namespaces = self.listing.0.take().unwrap_or_default();
                self.listed.0 = true;
                let namespaces = &self.namespaces;
                self.past.retain(|name, _| namespaces.contains(name));
                self.look_everywhere();
            }
            Change::Set(name) => {
                self.namespaces.insert(name.clone());
                self.look(&name);
            }
            Change::Gone(name) => {
                self.namespaces.remove(&name);
                self.due.remove(&name);
                self.past.remove(&name);
            }
        }
    }

    /// ConfigMaps of the name, with their namespaces.
    pub(super) fn config_map(&mut self, change: Change<(String, ConfigMap)>) {
        match change {
            Change::Begin => self.listing.1 = Some(BTreeMap::new()),
            Change::Listed((namespace, map)) => {
                let found = self.found(&map);
                self.listing.1.get_or_insert_default().insert(namespace, found);
            }
            Change::End => {
                self.found = self.listing.1.take().unwrap_or_default();
                self.listed.1 = true;
                self.look_everywhere();
            }
            Change::Set((namespace, map)) => {
                let found = self.found(&map);
                self.found.insert(namespace.clone(), found);
                self.look(&namespace);
            }
            Change::Gone(namespace) => {
                self.found.remove(&namespace);
                self.look(&namespace);
            }
        }
    }

    /// What to do next, if anything.
    pub(super) fn next(&mut self, now: Instant) -> Option<(String, Task)> {
        while let Some((at, name)) = self.later.pop_first() {
            if at > now {
                self.later.insert((at, name));
                break;
            }
            self.due.insert(name);
        }
        let mut held = Vec::new();
        let mut next = None;
        while let Some(name) = self.due.pop_first() {
            if self.running.contains(&name) {
                held.push(name);
                continue;
            }
            let Some(task) = self.task(&name) else { continue };
            if let Some(at) = self.too_soon(&name, now) {
                self.later.insert((at, name));
                continue;
            }
            self.running.insert(name.clone());
            next = Some((name, task));
            break;
        }
        self.due.extend(held);
        next
    }

    /// When there is something to do again.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// It was written, or not.
    pub(super) fn done(&mut self, name: &str, is_written: bool, now: Instant) {
        self.running.remove(name);
        if !self.namespaces.contains(name) {
            return;
        }
        let fresh = || Past { at: now, waits: Backoff::new(FIRST_WAIT, LONGEST_WAIT), until: None };
        self.past.entry(name.to_owned()).or_insert_with(fresh).at = now;
        if !is_written {
            self.due.insert(name.to_owned());
        }
    }

    /// How many namespaces wait.
    pub(super) fn waiting(&self) -> usize {
        self.due.len() + self.later.len() + self.running.len()
    }

    /// After a write, or a failure, the next one waits, each time longer, until one held.
    fn too_soon(&mut self, name: &str, now: Instant) -> Option<Instant> {
        let past = self.past.get_mut(name)?;
        if let Some(until) = past.until {
            if until > now {
                return Some(until);
            }
            past.until = None;
            return None;
        }
        let upcoming = past.waits.clone().next(0.0);
        if now.duration_since(past.at) >= HELD.max(upcoming.saturating_mul(2)) {
            self.past.remove(name);
            return None;
        }
        past.until = Some(past.at + past.waits.next(0.0)).filter(|until| *until > now);
        past.until
    }

    fn look_everywhere(&mut self) {
        if self.listed != (true, true) {
            return;
        }
        let lacking: Vec<_> =
            self.namespaces.iter().filter(|name| self.task(name).is_some()).cloned().collect();
        self.due.extend(lacking);
    }

    fn look(&mut self, name: &str) {
        if self.listed == (true, true) && self.task(name).is_some() {
            self.due.insert(name.to_owned());
        }
    }

    fn task(&self, name: &str) -> Option<Task> {
        if !self.namespaces.contains(name) {
            return None;
        }
        let Some(found) = self.found.get(name) else { return Some(Task::Create) };
        let is_enough = if found.is_ours {
            // To the letter: a root that was retired must go.
            found.digest == self.digest
        } else {
            // Another control plane manages it. What it adds is its affair, or each would undo what the other does.
            found.digest == self.digest || contains(found.roots.as_deref(), self.roots.as_deref())
        };
        if is_enough { None } else { Some(Task::Mend) }
    }

    fn found(&self, map: &ConfigMap) -> Found {
        let labels = map.metadata.labels.as_ref();
        let manager = labels.and_then(|labels| labels.get(MANAGED_BY));
        let text = map.data.as_ref().and_then(|data| data.get(self.wanted.key));
        let (digest, roots) = read(text.map_or("", String::as_str));
        Found { is_ours: manager.is_some_and(|manager| manager == MANAGED_BY_AMBIT), digest, roots }
    }
}

fn read(text: &str) -> (u64, Option<Vec<Fingerprint>>) {
    (xxh64(text.as_bytes(), 0), Fingerprint::all(text).filter(|roots| !roots.is_empty()))
}

fn contains(found: Option<&[Fingerprint]>, wanted: Option<&[Fingerprint]>) -> bool {
    match (found, wanted) {
        (Some(found), Some(wanted)) => wanted.iter().all(|root| found.contains(root)),
        (None, _) | (_, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use ambit_wire::cert::authority::{Authority, Serial};

    use super::*;

    fn root() -> String {
        let life = crate::ca::authority::starting(SystemTime::now(), Duration::from_secs(3600));
        Authority::self_signed(&"td".into(), life, Serial::new(1)).unwrap().roots().to_owned()
    }

    fn wanted(text: &str) -> Wanted {
        Wanted { config_map: "istio-ca-root-cert", key: "root-cert.pem", text: text.to_owned() }
    }

    fn map(text: &str, manager: Option<&str>) -> ConfigMap {
        let data = Some([("root-cert.pem".to_owned(), text.to_owned())].into());
        let mut map = ConfigMap { data, ..ConfigMap::default() };
        map.metadata.labels = manager.map(|by| [(MANAGED_BY.to_owned(), by.to_owned())].into());
        map
    }

    fn board(text: &str, namespaces: &[&str], maps: &[(&str, ConfigMap)]) -> Board {
        let mut board = Board::new(wanted(text));
        board.namespace(Change::Begin);
        namespaces.iter().for_each(|name| board.namespace(Change::Listed((*name).to_owned())));
        board.namespace(Change::End);
        board.config_map(Change::Begin);
        for (name, map) in maps {
            board.config_map(Change::Listed(((*name).to_owned(), map.clone())));
        }
        board.config_map(Change::End);
        board
    }

    fn all(board: &mut Board, now: Instant) -> Vec<(String, Task)> {
        std::iter::from_fn(|| board.next(now)).collect()
    }

    #[test]
    fn only_what_lacks_or_differs_is_written() {
        let (ours, other) = (root(), root());
        let both = format!("{other}{ours}");
        let maps = [
            ("same", map(&ours, Some("ambit"))),
            ("more-in-ours", map(&both, Some("ambit"))),
            ("same-of-istio", map(&ours, None)),
            ("more-in-istios", map(&both, None)),
            ("other-of-istio", map(&other, None)),
            ("garbage", map("garbage", Some("helm"))),
            ("empty", ConfigMap::default()),
            ("terminating", map("garbage", None)),
        ];
        let namespaces = [
            "same",
            "more-in-ours",
            "same-of-istio",
            "more-in-istios",
            "other-of-istio",
            "garbage",
            "empty",
            "none",
        ];
        let mut board = board(&ours, &namespaces, &maps);
        let written = all(&mut board, Instant::now());
        let expected = [
            ("empty", Task::Mend),
            ("garbage", Task::Mend),
            ("more-in-ours", Task::Mend),
            ("none", Task::Create),
            ("other-of-istio", Task::Mend),
        ];
        assert_eq!(written, expected.map(|(name, task)| (name.to_owned(), task)));
    }

    #[test]
    fn nothing_is_written_before_everything_is_known() {
        let mut board = Board::new(wanted(&root()));
        board.namespace(Change::Begin);
        board.namespace(Change::Listed("a".to_owned()));
        board.namespace(Change::End);
        board.namespace(Change::Set("b".to_owned()));
        board.config_map(Change::Begin);
        assert_eq!(board.next(Instant::now()), None);
        board.config_map(Change::End);
        assert_eq!(all(&mut board, Instant::now()).len(), 2);
    }

    #[test]
    fn a_new_namespace_is_told_and_one_that_goes_is_left_alone() {
        let text = root();
        let now = Instant::now();
        let mut board = board(&text, &[], &[]);
        board.namespace(Change::Set("a".to_owned()));
        board.namespace(Change::Gone("a".to_owned()));
        assert_eq!(board.next(now), None);
        board.namespace(Change::Set("a".to_owned()));
        assert_eq!(board.next(now), Some(("a".to_owned(), Task::Create)));
        // Its map appears while it is written, and it is told of again when it goes.
        board.config_map(Change::Set(("a".to_owned(), map(&text, Some("ambit")))));
        board.done("a", true, now);
        assert_eq!(board.next(now), None);
        board.namespace(Change::Gone("a".to_owned()));
        board.config_map(Change::Gone("a".to_owned()));
        assert_eq!(board.next(now + HELD), None);
        assert_eq!(board.waiting(), 0);
    }

    #[test]
    fn a_new_bundle_is_told_to_everybody() {
        let (old, new) = (root(), root());
        let mut board = board(&old, &["a", "b"], &[("a", map(&old, Some("ambit"))), ("b", map(&old, None))]);
        assert_eq!(board.next(Instant::now()), None);
        board.want(wanted(&format!("{old}{new}")));
        assert_eq!(all(&mut board, Instant::now()).len(), 2);
    }

    #[test]
    fn whoever_undoes_our_writes_is_answered_ever_more_seldom() {
        let (text, other) = (root(), root());
        let start = Instant::now();
        let mut board = board(&text, &["a"], &[("a", map(&text, Some("ambit")))]);
        let mut now = start;
        let mut writes = Vec::new();
        while now < start + Duration::from_secs(3600) {
            // Another writes at once whatever we wrote.
            board.config_map(Change::Set(("a".to_owned(), map(&other, Some("ambit")))));
            if board.next(now).is_some() {
                writes.push(now.duration_since(start).as_secs());
                board.config_map(Change::Set(("a".to_owned(), map(&text, Some("ambit")))));
                board.done("a", true, now);
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(writes[..4], [0, 1, 3, 7]);
        assert!(writes.len() < 25, "{writes:?}");
    }

    #[test]
    fn an_edit_by_hand_is_mended_at_once() {
        let text = root();
        let start = Instant::now();
        let mut board = board(&text, &["a"], &[]);
        for hour in 0..5 {
            let now = start + Duration::from_secs(hour * 3600);
            assert!(board.next(now).is_some(), "{hour}");
            board.config_map(Change::Set(("a".to_owned(), map(&text, Some("ambit")))));
            board.done("a", true, now);
            board.config_map(Change::Gone("a".to_owned()));
        }
    }

    #[test]
    fn what_fails_is_tried_again_later_and_holds_nobody_up() {
        let now = Instant::now();
        let mut board = board(&root(), &["a", "b"], &[]);
        assert_eq!(board.next(now).unwrap().0, "a");
        board.done("a", false, now);
        assert_eq!(board.next(now).unwrap().0, "b");
        assert_eq!(board.next(now), None);
        assert_eq!(board.wake(), Some(now + FIRST_WAIT));
        assert_eq!(board.next(now + FIRST_WAIT).unwrap().0, "a");
        board.done("a", false, now + FIRST_WAIT);
        assert_eq!(board.next(now + FIRST_WAIT), None);
        assert_eq!(board.wake(), Some(now + 3 * FIRST_WAIT));
    }
}
