//! Where objects come from: one stream of [`Event`], whoever writes the objects.

pub mod directory;
pub mod kubernetes;
pub mod standing;

use crate::cluster::object::{Key, Object};

/// A change of one object, or the news that all is known.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An object is there, or has changed.
    Upsert(Object),
    /// An object is gone.
    Delete(Key),
    /// Everything that was there at the start has been told.
    Synced,
}
