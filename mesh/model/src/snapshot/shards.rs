//! A map that is cheap to copy and cheap to change a little: 256 shared pieces.
//!
//! A snapshot is replaced, never locked, so each change copies what it touches. Copying one piece of
//! a 100,000 entry map moves 400 entries; the other 255 pieces are shared with the old snapshot.
//! `benches/snapshot.rs` compares it with persistent maps; see `docs/decisions/0003-sharded-map.md`.

use std::{
    borrow::Borrow,
    hash::{BuildHasher, Hash},
    sync::Arc,
};

use hashbrown::{DefaultHashBuilder, HashMap};

const PIECES: usize = 256;

/// A hash map in pieces that clones share until they change.
#[derive(Clone, Debug)]
pub(super) struct Shards<K, V> {
    /// Empty until the first insertion: most indexes of a small mesh stay empty.
    pieces: Vec<Option<Arc<HashMap<K, V, DefaultHashBuilder>>>>,
    hasher: DefaultHashBuilder,
    len: usize,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self { pieces: Vec::new(), hasher: DefaultHashBuilder::default(), len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.pieces.get(self.place(key))?.as_ref()?.get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let place = self.place(&key);
        if self.pieces.is_empty() {
            self.pieces.resize(PIECES, None);
        }
        let hasher = self.hasher;
        let slot = self.pieces.get_mut(place)?;
        let piece = slot.get_or_insert_with(|| Arc::new(HashMap::with_hasher(hasher)));
        let old = Arc::make_mut(piece).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let place = self.place(key);
        let slot = self.pieces.get_mut(place)?;
        let piece = slot.as_mut()?;
        if !piece.contains_key(key) {
            return None;
        }
        let old = Arc::make_mut(piece).remove(key);
        if piece.is_empty() {
            *slot = None;
        }
        self.len -= usize::from(old.is_some());
        old
    }

    /// Changes the value of `key`, starting from the default one; a value that becomes empty is removed.
    pub(super) fn update(&mut self, key: &K, change: impl FnOnce(&mut V), empty: impl FnOnce(&V) -> bool)
    where
        V: Default,
    {
        let mut value = self.remove(key).unwrap_or_default();
        change(&mut value);
        if !empty(&value) {
            self.insert(key.clone(), value);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.pieces.iter().flatten().flat_map(|piece| piece.iter())
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    fn place<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // The top bits: hashbrown itself takes the place in a piece from the low ones.
        usize::try_from(self.hasher.hash_one(key) >> 56).unwrap_or_default() % PIECES
    }
}
