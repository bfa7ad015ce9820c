//! What both proxies count alike: series found by labels, how the labels are written, connections and bytes.

mod certificates;
mod labels;
mod lock;
mod series;
mod traffic;
mod xds;

pub use certificates::Fetches;
pub use labels::{Ends, OwnedEnds, Peer, UNKNOWN};
pub use lock::Lock;
pub use series::{Collection, Series};
pub use traffic::{AllTraffic, AppIs, Labels, Owned as OwnedLabels, Traffic, WELL};
pub use xds::Shown as XdsShown;
