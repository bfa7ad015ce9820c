//! What a proxy knows, as operators and `istioctl` read it (protocols 10.3).

mod certificate;
pub mod policy;
pub mod service;
pub mod sync;
pub mod workload;

use std::time::SystemTime;

use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

pub use certificate::{CertificateShown, CertificateState};

/// Which build this is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Of this project.
    pub version: String,
    /// The revision of its source, when the build was told.
    pub git_revision: Option<String>,
    /// The version of Istio whose place it takes, when it was told.
    pub istio_version: Option<String>,
}

/// A moment as RFC 3339 writes it.
pub fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}
