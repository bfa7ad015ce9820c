//! What policies are attached to: a selector of workloads, or gateways and services.

use std::fmt;

use ambit_api::selector::{TargetRef, WorkloadSelector};
use ambit_model::name::{Label, Namespace};

use super::peer_authentication::{parse_selector, readable_selector};
use super::{Name, Rejection, Selector, Written};
use crate::cluster::HostOwner;

/// Whom a policy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// The workloads of its namespace; in the root namespace, every workload.
    Namespace,
    /// The workloads with these labels.
    Selected(Selector),
    /// Gateways or services: such a policy is a waypoint's business.
    Targets(Vec<PolicyTarget>),
}

/// A gateway or service that a policy is for. All but classes are of the policy's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyTarget {
    /// A service of either kind.
    Service(HostOwner),
    /// A gateway: every service that it serves.
    Gateway(Name),
    /// A class of gateways: every service that one of them serves. It counts in the root namespace only.
    Class(Label),
    /// A kind that has no policies.
    Unknown {
        /// The kind.
        kind: Label,
        /// The name.
        name: Name,
    },
}

impl Attachment {
    pub(super) fn parse(
        namespace: &Namespace,
        selector: Option<WorkloadSelector>,
        one: Option<TargetRef>,
        several: Vec<TargetRef>,
    ) -> Result<Self, Rejection> {
        let one = one.map(|target| ("spec.targetRef".to_owned(), target));
        let several =
            several.into_iter().enumerate().map(|(at, target)| (format!("spec.targetRefs[{at}]"), target));
        let targets = one.into_iter().chain(several).map(|(field, target)| {
            if target.namespace.as_ref().is_some_and(|other| !other.is_empty() && other != namespace.as_str())
            {
                return Err(Rejection::new(
                    format!("{field}.namespace"),
                    "is another namespace than the policy's",
                    "put the policy into the namespace of its target",
                ));
            }
            Ok(PolicyTarget::new(&target.kind, namespace, &target.name))
        });
        let targets: Vec<_> = targets.collect::<Result<_, _>>()?;
        match (parse_selector(selector)?, targets.is_empty()) {
            (Some(_), false) => {
                Err(Rejection::new("spec", "has a selector and targetRefs", "remove one of the two"))
            }
            (None, false) => Ok(Self::Targets(targets)),
            (Some(selector), true) => Ok(Self::Selected(selector)),
            (None, true) => Ok(Self::Namespace),
        }
    }

    /// Whom a policy is for that is otherwise not understood. Targets are only believed if they can be read in full;
    /// in doubt it is for the whole namespace.
    pub(super) fn readable(written: &Written<'_>) -> Self {
        match (readable_selector(written), readable_targets(written)) {
            (Some(selector), _) => Self::Selected(selector),
            (None, Some(targets)) => Self::Targets(targets),
            (None, None) => Self::Namespace,
        }
    }

    /// The gateways and services; none is a policy for workloads.
    pub fn targets(&self) -> &[PolicyTarget] {
        match self {
            Self::Targets(targets) => targets,
            Self::Namespace | Self::Selected(_) => &[],
        }
    }

    /// The selector, if it has one.
    pub fn selector(&self) -> Option<&Selector> {
        match self {
            Self::Selected(selector) => Some(selector),
            Self::Namespace | Self::Targets(_) => None,
        }
    }
}

impl PolicyTarget {
    fn new(kind: &str, namespace: &Namespace, name: &str) -> Self {
        let own = Name::new(namespace.clone(), name);
        match kind {
            "Service" => Self::Service(HostOwner::Service(own)),
            "ServiceEntry" => Self::Service(HostOwner::ServiceEntry(own)),
            "Gateway" => Self::Gateway(own),
            "GatewayClass" => Self::Class(name.into()),
            other => Self::Unknown { kind: other.into(), name: own },
        }
    }
}

impl fmt::Display for PolicyTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(HostOwner::Service(name)) => write!(f, "Service {}", name.name),
            Self::Service(HostOwner::ServiceEntry(name)) => write!(f, "ServiceEntry {}", name.name),
            Self::Gateway(name) => write!(f, "Gateway {}", name.name),
            Self::Class(name) => write!(f, "GatewayClass {name}"),
            Self::Unknown { kind, name } => write!(f, "{kind} {}", name.name),
        }
    }
}

fn readable_targets(written: &Written<'_>) -> Option<Vec<PolicyTarget>> {
    let spec = written.value.get("spec")?;
    if spec.get("selector").is_some() {
        return None;
    }
    let one = spec.get("targetRef").into_iter();
    let many = spec.get("targetRefs").and_then(|list| list.as_array()).into_iter().flatten();
    let namespace = Namespace::from(written.namespace);
    let targets: Vec<_> = one
        .chain(many)
        .map(|target| {
            let text = |field| target.get(field)?.as_str().filter(|text: &&str| !text.is_empty());
            Some(PolicyTarget::new(text("kind")?, &namespace, text("name")?))
        })
        .collect::<Option<_>>()?;
    (!targets.is_empty()).then_some(targets)
}
