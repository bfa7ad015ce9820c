//! PeerAuthentication.

use std::collections::BTreeMap;

use ambit_api::peer_authentication as api;
use ambit_api::selector::WorkloadSelector;
use ambit_model::name::Namespace;

use super::{Labels, Meta, Name, Rejection, Selector, Written};

/// What the mesh needs of a PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// The workloads; none is all of the namespace.
    pub selector: Option<Selector>,
    /// For every port; none leaves it to the wider policy.
    pub mode: Option<Mode>,
    /// For single ports.
    pub ports: BTreeMap<u16, Mode>,
}

/// Whether callers must use mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They must not.
    Disable,
    /// They may.
    Permissive,
    /// They must.
    Strict,
}

impl PeerAuthentication {
    pub(super) fn parse(namespace: Namespace, object: api::PeerAuthentication) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace, object.metadata);
        let spec = object.spec;
        refuse_unknown("spec", &spec.unknown)?;
        let mut ports = BTreeMap::new();
        for (text, tls) in spec.port_level_mtls {
            let field = format!("spec.portLevelMtls.{text}");
            refuse_unknown(&field, &tls.unknown)?;
            let number: u32 = text.parse().unwrap_or(0);
            let number = super::port(&field, number)?;
            if let Some(mode) = parse_mode(tls.mode) {
                ports.insert(number, mode);
            }
        }
        let mtls = spec.mtls.unwrap_or_default();
        refuse_unknown("spec.mtls", &mtls.unknown)?;
        Ok(Self { selector: parse_selector(spec.selector)?, mode: parse_mode(mtls.mode), ports, meta })
    }

    /// What one that cannot be understood is taken for: the strictest that it can have meant.
    pub(super) fn undecodable(written: &Written<'_>) -> Self {
        Self {
            meta: bare_meta(written),
            selector: readable_selector(written),
            mode: Some(Mode::Strict),
            ports: BTreeMap::new(),
        }
    }
}

fn parse_mode(mode: api::Mode) -> Option<Mode> {
    match mode {
        api::Mode::Unset => None,
        api::Mode::Disable => Some(Mode::Disable),
        api::Mode::Permissive => Some(Mode::Permissive),
        api::Mode::Strict => Some(Mode::Strict),
    }
}

/// A misspelt field of a policy must not be passed over: without it, the policy means something else.
pub(super) fn refuse_unknown(
    field: &str,
    unknown: &BTreeMap<String, serde_json::Value>,
) -> Result<(), Rejection> {
    match unknown.keys().next() {
        None => Ok(()),
        Some(name) => {
            Err(Rejection::new(format!("{field}.{name}"), "is not a known field", "correct or remove it"))
        }
    }
}

pub(super) fn parse_selector(selector: Option<WorkloadSelector>) -> Result<Option<Selector>, Rejection> {
    let Some(selector) = selector else { return Ok(None) };
    refuse_unknown("spec.selector", &selector.unknown)?;
    if let Some((key, _)) = selector.match_labels.iter().find(|(key, _)| key.is_empty() || key.contains('*'))
    {
        return Err(Rejection::new(
            "spec.selector.matchLabels",
            format!("{key:?} is not a label"),
            "write a label's name",
        ));
    }
    Ok(Selector::new(selector.match_labels))
}

/// The selector of a policy that is otherwise not understood. If not even that is readable, it is none, and
/// the policy counts for its whole namespace.
pub(super) fn readable_selector(written: &Written<'_>) -> Option<Selector> {
    let selector = written.value.pointer("/spec/selector")?.clone();
    parse_selector(serde_json::from_value(selector).ok()?).ok().flatten()
}

/// Name and nothing else, for an object whose other fields are in doubt.
pub(super) fn bare_meta(written: &Written<'_>) -> Meta {
    // The `_` keeps it apart from every policy with a valid name.
    let name = if super::valid_name(written).is_ok() {
        written.name.to_owned()
    } else {
        format!("undecodable_{}", written.name)
    };
    let metadata = |field: &str| written.value.get("metadata").and_then(|metadata| metadata.get(field));
    Meta {
        name: Name::new(written.namespace, name),
        labels: Labels::default(),
        annotations: Labels::default(),
        created: None,
        // Only conditions tell of these two.
        generation: metadata("generation").and_then(serde_json::Value::as_i64),
        uid: metadata("uid").and_then(serde_json::Value::as_str).unwrap_or_default().into(),
    }
}
