//! What both proxies count alike: series found by labels, and how the labels are written.

mod certificates;
mod labels;
mod lock;
mod series;
mod xds;

pub use certificates::Fetches;
pub use labels::{Ends, OwnedEnds, Peer, UNKNOWN};
pub use lock::Lock;
pub use series::{Collection, Series};
pub use xds::Shown as XdsShown;
