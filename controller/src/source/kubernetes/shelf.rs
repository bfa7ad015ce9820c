//! What is known of one kind: what a watch says goes in, differences for the mesh come out. Pure.
//!
//! A list that is read again, after an outage or because the watch fell too far behind, tells nothing that is known
//! already: only what it adds, changes or lacks.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_api::{
    directory::{Document, Problem},
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::runtime::watcher;
use serde_json::Value;

use super::{kinds::Watched, raw::Raw};
use crate::{
    cluster::object::{Key, Kind, Name, parse},
    source::{
        Event,
        standing::{Standing, Verdict, difference, judge},
    },
};

/// A definition that is written anew, or an API server that has just started, does not serve a kind for a moment, and its
/// objects are there all the same: policies must not be forgotten for that. A definition that is deleted takes its
/// objects with it, one by one, and the watch tells.
const GONE: Duration = Duration::from_secs(60);

/// Everything of one kind.
#[derive(Debug)]
pub(super) struct Shelf {
    watched: Watched,
    version: &'static str,
    place: Arc<Path>,
    known: BTreeMap<Name, Standing>,
    /// Since when the kind is not served.
    missing: Option<Instant>,
    /// While a list is read: what it has named so far.
    listed: Option<BTreeSet<Name>>,
    problems: BTreeMap<Name, Problem>,
}

/// What comes of one word of the watch.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// What the mesh must hear.
    pub(super) events: Vec<Event>,
    /// A list is complete with it.
    pub(super) complete: bool,
    /// [`Shelf::problems`] is another.
    pub(super) problems_changed: bool,
    /// What is wrong and was not before.
    pub(super) complaints: Vec<Problem>,
}

impl Shelf {
    /// Nothing is known.
    pub(super) fn new(watched: Watched) -> Self {
        let mut shelf = Self {
            watched,
            version: "",
            place: Path::new("").into(),
            known: BTreeMap::new(),
            missing: None,
            listed: None,
            problems: BTreeMap::new(),
        };
        shelf.read_at(watched.versions.first().copied().unwrap_or_default());
        shelf
    }

    /// From now on objects come at this version. What is known stays, until a list lacks it.
    pub(super) fn read_at(&mut self, version: &'static str) {
        self.version = version;
        self.place = Path::new(&self.watched.path(version)).into();
        self.listed = None;
        self.missing = None;
    }

    /// Of which kind they are.
    pub(super) fn kind(&self) -> Kind {
        self.watched.kind
    }

    /// What is wrong with objects, by name.
    pub(super) fn problems(&self) -> &BTreeMap<Name, Problem> {
        &self.problems
    }

    /// Whether a list is being read.
    pub(super) fn is_listing(&self) -> bool {
        self.listed.is_some()
    }

    /// Takes what the watch says.
    pub(super) fn take(&mut self, event: watcher::Event<Raw>) -> Told {
        let mut told = Told::default();
        match event {
            watcher::Event::Init => self.listed = Some(BTreeSet::new()),
            watcher::Event::InitApply(raw) => {
                let name = name_of(&raw.metadata);
                self.put(name.clone(), raw.value, &mut told);
                if let Some(listed) = &mut self.listed {
                    listed.insert(name);
                }
            }
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<Name> =
                    self.known.keys().filter(|name| !listed.contains(name)).cloned().collect();
                gone.iter().for_each(|name| self.drop(name, &mut told));
                told.complete = true;
            }
            watcher::Event::Apply(raw) => self.put(name_of(&raw.metadata), raw.value, &mut told),
            watcher::Event::Delete(raw) => self.drop(&name_of(&raw.metadata), &mut told),
        }
        told
    }

    /// The kind is not served. If it was, what is known of it stays for a while.
    pub(super) fn absent(&mut self, now: Instant) -> Told {
        self.listed = None;
        let since = *self.missing.get_or_insert(now);
        if !self.known.is_empty() && now.saturating_duration_since(since) < GONE {
            return Told::default();
        }
        let mut told = Told { complete: true, ..Told::default() };
        let known: Vec<Name> = self.known.keys().cloned().collect();
        known.iter().for_each(|name| self.drop(name, &mut told));
        told
    }

    fn put(&mut self, name: Name, value: Value, told: &mut Told) {
        let document = Document {
            file: Arc::clone(&self.place),
            line: 0,
            api_version: self.watched.resource(self.version).api_version,
            kind: self.watched.kind.word().to_owned(),
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            value,
        };
        let before = self.known.get(&name);
        let (after, rejection) = match judge(parse(&document), before) {
            Verdict::Understood(standing) => (standing, None),
            // Only kinds that the door reads are watched.
            Verdict::Unknown => return,
            Verdict::Kept(rejection) => (before.cloned().unwrap_or_default(), Some(rejection)),
            Verdict::Replaced(standing, rejection) => (standing, Some(rejection)),
        };
        let before = before.and_then(|before| before.object.as_ref());
        told.events.extend(difference(before, after.object.as_ref()));
        match rejection {
            None => told.problems_changed |= self.problems.remove(&name).is_some(),
            Some(rejection) => {
                let problem = document.problem(rejection.field, rejection.what, rejection.remedy);
                if self.problems.get(&name) != Some(&problem) {
                    self.problems.insert(name.clone(), problem.clone());
                    told.problems_changed = true;
                    told.complaints.push(problem);
                }
            }
        }
        self.known.insert(name, after);
    }

    fn drop(&mut self, name: &Name, told: &mut Told) {
        told.problems_changed |= self.problems.remove(name).is_some();
        if self.known.remove(name).is_some_and(|standing| standing.object.is_some()) {
            told.events.push(Event::Delete(Key { kind: self.watched.kind, name: name.clone() }));
        }
    }
}

fn name_of(metadata: &ObjectMeta) -> Name {
    Name::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::kubernetes::kinds::WATCHED;

    fn shelf(kind: Kind) -> Shelf {
        Shelf::new(*WATCHED.iter().find(|watched| watched.kind == kind).unwrap())
    }

    fn raw(name: &str, rest: Value) -> Raw {
        let mut value = json!({"metadata": {"namespace": "shop", "name": name}});
        value.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    fn pod(name: &str, ip: &str) -> Raw {
        raw(name, json!({"spec": {"nodeName": "n1", "containers": []}, "status": {"podIP": ip}}))
    }

    fn policy(name: &str, action: &str) -> Raw {
        raw(name, json!({"spec": {"action": action, "rules": [{}]}}))
    }

    fn told(shelf: &mut Shelf, events: impl IntoIterator<Item = watcher::Event<Raw>>) -> Vec<String> {
        let events = events.into_iter().flat_map(|event| shelf.take(event).events);
        events
            .map(|event| match event {
                Event::Upsert(object) => format!("+{}", object.key().name),
                Event::Delete(key) => format!("-{}", key.name),
                Event::Synced => "synced".to_owned(),
            })
            .collect()
    }

    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    #[test]
    fn a_list_that_is_read_again_tells_only_what_is_new() {
        let mut shelf = shelf(Kind::Pod);
        let first = [Init, InitApply(pod("a", "10.0.0.1")), InitApply(pod("b", "10.0.0.2")), InitDone];
        assert_eq!(told(&mut shelf, first), ["+shop/a", "+shop/b"]);
        let same = [Init, InitApply(pod("a", "10.0.0.1")), InitApply(pod("b", "10.0.0.2")), InitDone];
        assert!(told(&mut shelf, same).is_empty());
        let other = [Init, InitApply(pod("b", "10.0.0.3")), InitApply(pod("c", "10.0.0.4")), InitDone];
        assert_eq!(told(&mut shelf, other), ["+shop/b", "+shop/c", "-shop/a"]);
    }

    #[test]
    fn a_list_that_breaks_off_takes_nothing_away() {
        let mut shelf = shelf(Kind::Pod);
        told(&mut shelf, [Init, InitApply(pod("a", "10.0.0.1")), InitDone]);
        assert!(told(&mut shelf, [Init, Init]).is_empty());
        assert_eq!(told(&mut shelf, [InitApply(pod("b", "10.0.0.2")), InitDone]), ["+shop/b", "-shop/a"]);
    }

    #[test]
    fn only_the_end_of_a_list_completes_it() {
        let mut shelf = shelf(Kind::Pod);
        let complete: Vec<bool> =
            [Init, InitApply(pod("a", "10.0.0.1")), InitDone, Apply(pod("a", "10.0.0.2"))]
                .map(|event| shelf.take(event).complete)
                .to_vec();
        assert_eq!(complete, [false, false, true, false]);
    }

    #[test]
    fn a_change_that_means_nothing_is_not_told() {
        let mut shelf = shelf(Kind::Pod);
        told(&mut shelf, [Apply(pod("a", "10.0.0.1"))]);
        let mut touched = pod("a", "10.0.0.1");
        touched.value["metadata"]["resourceVersion"] = "8".into();
        assert!(told(&mut shelf, [Apply(touched)]).is_empty());
        assert_eq!(told(&mut shelf, [Delete(pod("a", "")), Delete(pod("a", ""))]), ["-shop/a"]);
    }

    #[test]
    fn a_mistake_is_a_problem_of_its_object_and_ends_with_it() {
        let mut shelf = shelf(Kind::AuthorizationPolicy);
        assert_eq!(told(&mut shelf, [Apply(policy("good", "ALLOW"))]), ["+shop/good"]);
        // One that was good stays as it was; of one that never was, the strictest is in force.
        assert!(told(&mut shelf, [Apply(policy("good", "PERHAPS"))]).is_empty());
        assert_eq!(told(&mut shelf, [Apply(policy("bad", "PERHAPS"))]), ["+shop/bad"]);
        assert_eq!(shelf.problems().len(), 2);
        let problem = shelf.problems().values().next().unwrap().to_string();
        assert!(problem.starts_with("/apis/security.istio.io/v1/authorizationpolicies: "), "{problem}");
        assert!(problem.contains("spec.action"), "{problem}");
        assert_eq!(told(&mut shelf, [Delete(policy("bad", "PERHAPS"))]), ["-shop/bad"]);
        assert!(told(&mut shelf, [Apply(policy("good", "ALLOW"))]).is_empty());
        assert!(shelf.problems().is_empty());
    }

    #[test]
    fn a_mistake_is_complained_of_once() {
        let mut shelf = shelf(Kind::AuthorizationPolicy);
        let mut complaints = || shelf.take(Apply(policy("bad", "PERHAPS"))).complaints.len();
        assert_eq!([complaints(), complaints(), complaints()], [1, 0, 0]);
    }

    #[test]
    fn a_kind_that_is_not_served_for_a_moment_keeps_its_objects() {
        let mut shelf = shelf(Kind::AuthorizationPolicy);
        told(&mut shelf, [Apply(policy("a", "ALLOW")), Apply(policy("b", "PERHAPS"))]);
        let now = Instant::now();
        for (seconds, gone) in [(0, 0), (59, 0), (60, 2)] {
            let told = shelf.absent(now + Duration::from_secs(seconds));
            assert_eq!((told.events.len(), told.complete), (gone, gone > 0), "after {seconds} s");
        }
        assert!(shelf.problems().is_empty());
        // What is not known is at once known to be nothing.
        assert!(shelf.absent(now + Duration::from_secs(61)).complete);
    }

    #[test]
    fn a_kind_that_is_served_again_begins_anew() {
        let mut shelf = shelf(Kind::AuthorizationPolicy);
        told(&mut shelf, [Apply(policy("a", "ALLOW"))]);
        let now = Instant::now();
        shelf.absent(now);
        shelf.read_at("v1");
        assert!(shelf.absent(now + GONE).events.is_empty());
        assert_eq!(shelf.absent(now + GONE + GONE).events.len(), 1);
    }
}
