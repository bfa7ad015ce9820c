//! A subscriber that gets only what it asked for, and what belongs to it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{shelf::Entry, subscriber::Changes, view::View};
use crate::xds::message;

/// One on-demand subscription: what was asked, what was sent.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Names and aliases that were asked for and not given up.
    keys: HashSet<Box<str>>,
    /// What the subscriber holds, at which change.
    sent: HashMap<Arc<str>, u64>,
    /// Keys that want an answer, whatever it is.
    asks: BTreeSet<Box<str>>,
    /// Resources to send.
    due: BTreeSet<Arc<str>>,
    /// Names to report as removed.
    gone: BTreeSet<Box<str>>,
}

impl Named {
    /// A new subscription, or one that continues on a new stream with what the subscriber still holds.
    pub(super) fn new(shelf: View<'_>, held: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut named = Self::default();
        for (name, version) in held {
            match shelf.find(&name) {
                Some(entry) if !version.is_empty() && entry.version == version => {
                    named.sent.insert(entry.name.clone(), entry.change);
                }
                None if !version.is_empty() => {
                    named.gone.insert(name.as_str().into());
                }
                Some(_) | None => {
                    named.asks.insert(name.as_str().into());
                }
            }
            named.keys.insert(name.into());
        }
        let own: Vec<_> = shelf.own().filter(|entry| !named.has(entry)).collect();
        named.due.extend(own.into_iter().map(|entry| entry.name.clone()));
        named
    }

    /// Asks for one more; answered even if it was answered before.
    pub(super) fn ask(&mut self, key: &str) {
        self.keys.insert(key.into());
        self.asks.insert(key.into());
    }

    /// The subscriber dropped it.
    pub(super) fn give_up(&mut self, key: &str) {
        self.keys.remove(key);
        self.asks.remove(key);
        self.sent.remove(key);
    }

    /// How many names it keeps the server busy with.
    pub(super) fn size(&self) -> usize {
        self.keys.len()
    }

    /// The resources that the subscriber holds as they are now.
    pub(super) fn up_to_date(&self, shelf: View<'_>) -> HashSet<Arc<str>> {
        let current = self.sent.keys().filter_map(|name| shelf.find(name));
        current.filter(|entry| self.has(entry)).map(|entry| entry.name.clone()).collect()
    }

    /// Takes note of the changes since `position`.
    pub(super) fn absorb(&mut self, shelf: View<'_>, position: u64) {
        for entry in shelf.changes_after(position) {
            if self.concerns(shelf, entry) {
                self.due.insert(entry.name.clone());
            }
        }
        for name in shelf.removals_between(position, shelf.latest()) {
            if self.sent.remove(name).is_some() {
                self.gone.insert((&**name).into());
            }
        }
    }

    /// What to send now, at most about `limit` bytes; the rest stays due.
    pub(super) fn take(&mut self, shelf: View<'_>, limit: usize) -> Changes {
        for key in std::mem::take(&mut self.asks) {
            let found = shelf.answer(&key);
            if found.is_empty() {
                self.gone.insert(key);
            }
            self.due.extend(found.into_iter().map(|entry| entry.name.clone()));
        }
        let removed = std::mem::take(&mut self.gone).into_iter().map(String::from);
        let removed = removed.filter(|name| shelf.answer(name).is_empty()).collect();
        let (mut resources, mut size) = (Vec::new(), 0);
        while size < limit {
            let Some(name) = self.due.pop_first() else { break };
            let Some(entry) = shelf.find(&name) else { continue };
            if self.sent.insert(name, entry.change).is_none() {
                let followers = shelf.followers_of(&entry.name).filter(|f| !self.has(f));
                let followers: Vec<_> = followers.map(|f| f.name.clone()).collect();
                self.due.extend(followers);
            }
            let resource = message::with_aliases(&entry.sealed, &entry.aliases);
            size += resource.len();
            resources.push(resource);
        }
        Changes { resources, removed }
    }

    fn has(&self, entry: &Entry) -> bool {
        self.sent.get(&entry.name) == Some(&entry.change)
    }

    fn concerns(&self, shelf: View<'_>, entry: &Entry) -> bool {
        self.sent.contains_key(&entry.name)
            || self.keys.contains(&*entry.name)
            || shelf.is_own(entry)
            || entry.aliases.iter().any(|alias| self.keys.contains(alias.as_str()))
            || entry
                .follows
                .iter()
                .any(|lead| self.keys.contains(lead.as_str()) || self.sent.contains_key(lead.as_str()))
    }
}
