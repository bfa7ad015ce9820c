//! ReferenceGrant: which routes, VirtualServices and limits of other namespaces may refer to services of this one.

use ambit_api::reference_grant as api;
use ambit_model::name::{Label, Namespace};

use super::{
    Kind, Meta, Rejection, rate_limit,
    route::{GATEWAY_API, ISTIO_NETWORKING},
};
use crate::cluster::HostOwner;

/// What the mesh needs of a ReferenceGrant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// Who may refer: routes, VirtualServices or limits, of this kind in this namespace.
    pub from: Vec<(Kind, Namespace)>,
    /// To what.
    pub to: Vec<Granted>,
}

/// To what may be referred; with a name, to nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Granted {
    /// Services.
    Service(Option<Label>),
    /// ServiceEntries.
    ServiceEntry(Option<Label>),
}

impl ReferenceGrant {
    /// Grants to and for other kinds are others' affair.
    pub(super) fn parse(namespace: Namespace, object: api::ReferenceGrant) -> Result<Self, Rejection> {
        let from = object.spec.from.into_iter().filter_map(|from| {
            let kinds = [
                (Kind::GrpcRoute, GATEWAY_API),
                (Kind::HttpRoute, GATEWAY_API),
                (Kind::TlsRoute, GATEWAY_API),
                (Kind::TcpRoute, GATEWAY_API),
                (Kind::RateLimitPolicy, rate_limit::group()),
                (Kind::VirtualService, ISTIO_NETWORKING),
            ];
            let is_it = |(kind, group): &(Kind, &str)| kind.word() == from.kind && *group == from.group;
            let (kind, _) = kinds.into_iter().find(is_it)?;
            Some((kind, from.namespace.into()))
        });
        let to = object.spec.to.into_iter().filter_map(|to| {
            let name = to.name.filter(|name| !name.is_empty()).map(Label::from);
            match (to.group.as_str(), to.kind.as_str()) {
                ("" | "core", "Service") => Some(Granted::Service(name)),
                (ISTIO_NETWORKING, "ServiceEntry") => Some(Granted::ServiceEntry(name)),
                _ => None,
            }
        });
        Ok(Self { from: from.collect(), to: to.collect(), meta: Meta::parse(namespace, object.metadata) })
    }

    /// Whether objects of this kind and namespace may refer to a service of its own namespace.
    pub fn allows(&self, kind: Kind, namespace: &Namespace, owner: &HostOwner) -> bool {
        let is_named = |name: &Option<Label>| name.as_ref().is_none_or(|name| *name == owner.name().name);
        let to = |granted: &Granted| match (granted, owner) {
            (Granted::Service(name), HostOwner::Service(_))
            | (Granted::ServiceEntry(name), HostOwner::ServiceEntry(_)) => is_named(name),
            (Granted::Service(_) | Granted::ServiceEntry(_), _) => false,
        };
        owner.name().namespace == self.meta.name.namespace
            && self.from.iter().any(|(of, from)| *of == kind && from == namespace)
            && self.to.iter().any(to)
    }
}
