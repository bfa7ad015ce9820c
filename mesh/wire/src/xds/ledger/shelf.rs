//! The resources of one type and the log of their changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;

use super::{Listed, Resource};
use crate::xds::message;

/// One type.
#[derive(Debug)]
pub(in crate::xds) struct Shelf {
    type_url: String,
    /// The number of the latest change.
    latest: u64,
    /// Removals up to this change may be forgotten.
    floor: u64,
    resources: HashMap<Arc<str>, Arc<Entry>>,
    /// Every resource at its latest change.
    changes: BTreeMap<u64, Arc<Entry>>,
    /// Every remembered removal that was not undone.
    removals: BTreeMap<u64, Removed>,
    removed: HashMap<Removed, u64>,
    aliases: Index,
    followers: Index,
    nodes: Index,
}

/// One resource, shared by all who are sent it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) version: String,
    pub(super) aliases: Vec<String>,
    pub(super) follows: Vec<String>,
    pub(super) node: String,
    pub(super) owner: Arc<str>,
    /// The whole resource as it is sent, without aliases.
    pub(super) sealed: Bytes,
    /// The change that made it so.
    pub(super) change: u64,
}

/// A resource that is gone for those who saw it. Another owner's of that name may be there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Removed {
    pub(super) name: Arc<str>,
    pub(super) owner: Arc<str>,
}

impl Shelf {
    pub(super) fn new(type_url: String) -> Self {
        Self {
            type_url,
            latest: 0,
            floor: 0,
            resources: HashMap::new(),
            changes: BTreeMap::new(),
            removals: BTreeMap::new(),
            removed: HashMap::new(),
            aliases: Index::default(),
            followers: Index::default(),
            nodes: Index::default(),
        }
    }

    pub(super) fn type_url(&self) -> &str {
        &self.type_url
    }

    pub(super) fn latest(&self) -> u64 {
        self.latest
    }

    /// Who stands before this change cannot be told all removals.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn len(&self) -> usize {
        self.resources.len()
    }

    /// Every resource, by name.
    pub(super) fn listing(&self) -> Vec<Listed> {
        let mut listing: Vec<_> = self
            .resources
            .values()
            .map(|entry| Listed {
                type_url: self.type_url.clone(),
                name: entry.name.to_string(),
                version: entry.version.clone(),
                owner: entry.owner.to_string(),
                aliases: entry.aliases.clone(),
                bytes: entry.sealed.len(),
                change: entry.change,
            })
            .collect();
        listing.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        listing
    }

    /// Adds or replaces; a resource that is the same byte for byte is no change.
    pub(super) fn put(&mut self, resource: Resource) {
        let sealed = message::seal(&self.type_url, &resource.name, &resource.version, resource.body);
        let old = self.resources.get(&*resource.name).cloned();
        let same = old.as_ref().is_some_and(|old| {
            old.sealed == sealed
                && old.aliases == resource.aliases
                && old.follows == resource.follows
                && old.node == resource.node
                && *old.owner == *resource.owner
        });
        if same {
            return;
        }
        if let Some(old) = old {
            self.take_out(&old);
            if *old.owner != *resource.owner {
                self.note_removal(&old);
            }
        }
        self.latest += 1;
        let entry = Arc::new(Entry {
            name: resource.name.into(),
            version: resource.version,
            aliases: resource.aliases,
            follows: resource.follows,
            node: resource.node,
            owner: resource.owner.into(),
            sealed,
            change: self.latest,
        });
        self.aliases.add(&entry.aliases, &entry.name);
        self.followers.add(&entry.follows, &entry.name);
        self.nodes.add(std::slice::from_ref(&entry.node), &entry.name);
        let undone = Removed { name: entry.name.clone(), owner: entry.owner.clone() };
        if let Some(removal) = self.removed.remove(&undone) {
            self.removals.remove(&removal);
        }
        self.resources.insert(entry.name.clone(), entry.clone());
        self.changes.insert(entry.change, entry);
    }

    pub(super) fn remove(&mut self, name: &str) {
        let Some(old) = self.resources.get(name).cloned() else { return };
        self.take_out(&old);
        self.note_removal(&old);
    }

    fn note_removal(&mut self, old: &Entry) {
        self.latest += 1;
        let removed = Removed { name: old.name.clone(), owner: old.owner.clone() };
        if let Some(before) = self.removed.insert(removed.clone(), self.latest) {
            self.removals.remove(&before);
        }
        self.removals.insert(self.latest, removed);
    }

    pub(super) fn forget_removals_beyond(&mut self, limit: usize) {
        while self.removals.len() > limit {
            let Some((change, removed)) = self.removals.pop_first() else { return };
            self.removed.remove(&removed);
            self.floor = change;
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<&Arc<Entry>> {
        self.resources.get(name)
    }

    /// The names of all that have the alias `key`.
    pub(super) fn with_alias<'s>(&'s self, key: &str) -> impl Iterator<Item = &'s Arc<str>> + use<'s> {
        self.aliases.names(key)
    }

    pub(super) fn followers_of<'s>(&'s self, name: &str) -> impl Iterator<Item = &'s Arc<str>> + use<'s> {
        self.followers.names(name)
    }

    pub(super) fn on_node<'s>(&'s self, node: &str) -> impl Iterator<Item = &'s Arc<str>> + use<'s> {
        self.nodes.names(node)
    }

    pub(super) fn changes_after(&self, change: u64) -> impl Iterator<Item = &Arc<Entry>> {
        self.changes.range((Bound::Excluded(change), Bound::Unbounded)).map(|(_, entry)| entry)
    }

    /// What was removed after one change, up to and including another.
    pub(super) fn removals_between(&self, after: u64, upto: u64) -> impl Iterator<Item = &Removed> {
        let range = (after < upto).then_some((Bound::Excluded(after), Bound::Included(upto)));
        range.into_iter().flat_map(|range| self.removals.range(range)).map(|(_, removed)| removed)
    }

    fn take_out(&mut self, old: &Entry) {
        self.resources.remove(&old.name);
        self.changes.remove(&old.change);
        self.aliases.drop(&old.aliases, &old.name);
        self.followers.drop(&old.follows, &old.name);
        self.nodes.drop(std::slice::from_ref(&old.node), &old.name);
    }
}

/// Names by key. One tree of pairs: most keys have one name, and a set for each would cost more than
/// the names.
#[derive(Debug, Default)]
struct Index(BTreeSet<(Arc<str>, Arc<str>)>);

impl Index {
    fn add(&mut self, keys: &[String], name: &Arc<str>) {
        for key in keys.iter().filter(|key| !key.is_empty()) {
            self.0.insert((key.as_str().into(), name.clone()));
        }
    }

    fn drop(&mut self, keys: &[String], name: &Arc<str>) {
        for key in keys {
            self.0.remove(&(key.as_str().into(), name.clone()));
        }
    }

    fn names<'i>(&'i self, key: &str) -> impl Iterator<Item = &'i Arc<str>> + use<'i> {
        let key: Arc<str> = key.into();
        self.0.range((key.clone(), Arc::from(""))..).take_while(move |(k, _)| *k == key).map(|(_, name)| name)
    }
}
