//! The page `/debug/ca`: what signs, whom the mesh trusts, how a rotation stands and what it waits for.
//!
//! `ambit ca status` reads it. Counts are those of this replica since it started.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boring::x509::X509;
use serde::Serialize;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    Desk, Signer,
    in_force::{Fingerprint, InForce},
    issued::Issued,
    root::Origin,
    rotation::{Moment, Stage},
};

/// The page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// Who signs for workloads: `authority` or `cert-manager`.
    pub signer: &'static str,
    /// Where the authority came from: `plugged-in` or `own`.
    pub origin: &'static str,
    /// `steady`, `prepared` or `active`.
    pub stage: Stage,
    /// What signs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<Described>,
    /// When the first certificate of the signing chain ends.
    pub expires: String,
    /// All trusted roots.
    pub trusted: Vec<Described>,
    /// Certificates that this replica signed and that are not over.
    pub issued: Vec<InUse>,
    /// From when on the next root may sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activate_from: Option<String>,
    /// From when on the root that does not sign may be forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retire_from: Option<String>,
    /// The longest life that was signed for, in seconds: rotations wait that long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_life_seconds: Option<u64>,
    /// Whether revocation lists are told.
    pub revocation_lists: bool,
    /// Why what the Secrets say now is not in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Described {
    /// SHA-256, in hexadecimal digits.
    pub fingerprint: String,
    /// Its subject.
    pub subject: String,
    /// The first instant of its life.
    pub not_before: String,
    /// The last one.
    pub not_after: String,
    /// The kind of its key.
    pub key: String,
}

/// What may be in use of one signer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InUse {
    /// Of whom.
    pub fingerprint: String,
    /// How many.
    pub count: u64,
    /// When the last of them is over.
    pub until: String,
}

/// The page as of `now`.
pub fn page(in_force: &InForce, issued: &Issued, signer: &Signer, now: SystemTime) -> Page {
    let moment = |at: SystemTime| Moment(at).to_string();
    let chain = in_force.authority().chain().unwrap_or_default();
    let in_use = issued.in_use(now).into_iter().map(|(fingerprint, in_use)| InUse {
        fingerprint: fingerprint.to_string(),
        count: in_use.count,
        until: moment(in_use.until),
    });
    Page {
        signer: match signer {
            Signer::Authority | Signer::Counted(_) => "authority",
            Signer::CertManager(_) => "cert-manager",
        },
        origin: match in_force.root.origin {
            Origin::PluggedIn => "plugged-in",
            Origin::Made | Origin::Kept => "own",
        },
        stage: in_force.rotation.stage(),
        active: described(&chain).into_iter().next(),
        expires: moment(in_force.expires()),
        trusted: described(in_force.bundle()),
        issued: in_use.collect(),
        activate_from: in_force.rotation.activate_from().map(moment),
        retire_from: in_force.rotation.retire_from().map(moment),
        longest_life_seconds: in_force.longest.map(|longest| longest.as_secs()),
        revocation_lists: in_force.lists.is_some(),
        problem: in_force.problem.clone(),
    }
}

impl Desk {
    /// The page about this desk's authority.
    pub fn page(&self, now: SystemTime) -> Page {
        page(&self.in_force(), self.issued(), self.signer(), now)
    }
}

fn described(pem: &str) -> Vec<Described> {
    let certificates = X509::stack_from_pem(pem.as_bytes()).unwrap_or_default();
    certificates.iter().filter_map(one).collect()
}

fn one(certificate: &X509) -> Option<Described> {
    let der = certificate.to_der().ok()?;
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    let at = |time: x509_parser::time::ASN1Time| {
        let since = u64::try_from(time.timestamp()).unwrap_or(0);
        Moment(UNIX_EPOCH + Duration::from_secs(since)).to_string()
    };
    let key = certificate.public_key().ok()?;
    let kind = if key.id() == boring::pkey::Id::RSA { "RSA" } else { "ECDSA" };
    Some(Described {
        fingerprint: Fingerprint::of(certificate)?.to_string(),
        subject: parsed.subject().to_string(),
        not_before: at(parsed.validity().not_before),
        not_after: at(parsed.validity().not_after),
        key: format!("{kind} {}", key.bits()),
    })
}
