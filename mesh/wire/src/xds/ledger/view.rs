//! A shelf as one subscriber may see it. Subscriptions read through it and nothing else, so none can
//! forget whose a resource is.

use std::sync::Arc;

use super::shelf::{Entry, Removed, Shelf};

/// Who subscribes, as far as it decides what is to be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::xds) struct Viewer {
    /// Metadata `NODE_NAME`: where its own workloads run.
    pub(in crate::xds) node: String,
    /// `namespace/service account`, as proven by its credentials.
    pub(in crate::xds) account: String,
}

impl Viewer {
    fn sees(&self, owner: &str) -> bool {
        owner.is_empty() || owner == self.account
    }
}

/// The resources and removals of a shelf that a viewer is told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'l> {
    shelf: &'l Shelf,
    viewer: &'l Viewer,
}

impl<'l> View<'l> {
    pub(super) fn new(shelf: &'l Shelf, viewer: &'l Viewer) -> Self {
        Self { shelf, viewer }
    }

    pub(super) fn latest(self) -> u64 {
        self.shelf.latest()
    }

    pub(super) fn floor(self) -> u64 {
        self.shelf.floor()
    }

    pub(super) fn find(self, name: &str) -> Option<&'l Arc<Entry>> {
        self.shelf.find(name).filter(|entry| self.viewer.sees(&entry.owner))
    }

    /// What a demand for `key` is answered with: the resource of that name, else all that have the
    /// alias; and whatever follows them.
    pub(super) fn answer(self, key: &str) -> Vec<&'l Arc<Entry>> {
        let mut found: Vec<&Arc<Entry>> = match self.find(key) {
            Some(entry) => vec![entry],
            None => self.shelf.with_alias(key).filter_map(|name| self.find(name)).collect(),
        };
        let followers: Vec<_> = found.iter().flat_map(|entry| self.followers_of(&entry.name)).collect();
        found.extend(followers);
        found
    }

    pub(super) fn followers_of(self, name: &str) -> impl Iterator<Item = &'l Arc<Entry>> {
        self.shelf.followers_of(name).filter_map(move |name| self.find(name))
    }

    /// What is on the viewer's own node.
    pub(super) fn own(self) -> impl Iterator<Item = &'l Arc<Entry>> {
        let node = Some(self.viewer.node.as_str()).filter(|node| !node.is_empty());
        let names = node.into_iter().flat_map(move |node| self.shelf.on_node(node));
        names.filter_map(move |name| self.find(name))
    }

    pub(super) fn is_own(self, entry: &Entry) -> bool {
        !entry.node.is_empty() && self.viewer.node == entry.node
    }

    pub(super) fn changes_after(self, change: u64) -> impl Iterator<Item = &'l Arc<Entry>> {
        self.shelf.changes_after(change).filter(move |entry| self.viewer.sees(&entry.owner))
    }

    /// Names that the viewer lost after one change, up to and including another, and that are still
    /// not there for it: what was taken from everybody and given to it has not been lost.
    pub(super) fn removals_between(self, after: u64, upto: u64) -> impl Iterator<Item = &'l Arc<str>> {
        let removals = self.shelf.removals_between(after, upto);
        let lost = removals.filter(move |removed| self.viewer.sees(&removed.owner));
        lost.map(|Removed { name, .. }| name).filter(move |name| self.find(name).is_none())
    }
}
