//! Which kinds are watched, and how much of them.
//!
//! ServiceAccounts are not among them: nothing that is sent depends on one, and whoever runs as one proves it with
//! its token.

use ambit_api::mesh_config::CONFIG_MAP;
use kube::api::ApiResource;

use crate::cluster::object::Kind;

/// How a kind is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) kind: Kind,
    pub(super) group: &'static str,
    /// The best first. The API server may serve any of them, or none: a definition that is not installed.
    pub(super) versions: &'static [&'static str],
    pub(super) plural: &'static str,
    pub(super) depth: Depth,
}

/// How much of an object is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Name, labels and annotations.
    Metadata,
    /// All of it.
    Whole,
    /// All of those with this name.
    Named(&'static str),
}

const STABLE: &[&str] = &["v1", "v1beta1"];
const OLDEST: &[&str] = &["v1", "v1beta1", "v1alpha3"];

pub(super) const WATCHED: [Watched; 21] = [
    of(Kind::Namespace, "", &["v1"], "namespaces", Depth::Metadata),
    of(Kind::Node, "", &["v1"], "nodes", Depth::Metadata),
    of(Kind::Pod, "", &["v1"], "pods", Depth::Whole),
    of(Kind::Service, "", &["v1"], "services", Depth::Whole),
    of(Kind::EndpointSlice, "discovery.k8s.io", &["v1"], "endpointslices", Depth::Whole),
    of(Kind::ServiceEntry, "networking.istio.io", OLDEST, "serviceentries", Depth::Whole),
    of(Kind::WorkloadEntry, "networking.istio.io", OLDEST, "workloadentries", Depth::Whole),
    of(Kind::VirtualService, "networking.istio.io", OLDEST, "virtualservices", Depth::Whole),
    of(Kind::AuthorizationPolicy, "security.istio.io", STABLE, "authorizationpolicies", Depth::Whole),
    of(Kind::PeerAuthentication, "security.istio.io", STABLE, "peerauthentications", Depth::Whole),
    of(Kind::RequestAuthentication, "security.istio.io", STABLE, "requestauthentications", Depth::Whole),
    of(Kind::DestinationRule, "networking.istio.io", OLDEST, "destinationrules", Depth::Whole),
    of(Kind::RateLimitPolicy, "ambit.io", &["v1alpha1"], "ratelimitpolicies", Depth::Whole),
    of(Kind::Gateway, "gateway.networking.k8s.io", STABLE, "gateways", Depth::Whole),
    of(Kind::GatewayClass, "gateway.networking.k8s.io", STABLE, "gatewayclasses", Depth::Whole),
    of(Kind::HttpRoute, "gateway.networking.k8s.io", STABLE, "httproutes", Depth::Whole),
    of(Kind::GrpcRoute, "gateway.networking.k8s.io", &["v1", "v1alpha2"], "grpcroutes", Depth::Whole),
    of(
        Kind::TlsRoute,
        "gateway.networking.k8s.io",
        &["v1", "v1alpha3", "v1alpha2"],
        "tlsroutes",
        Depth::Whole,
    ),
    of(Kind::TcpRoute, "gateway.networking.k8s.io", &["v1", "v1alpha2"], "tcproutes", Depth::Whole),
    of(
        Kind::ReferenceGrant,
        "gateway.networking.k8s.io",
        &["v1", "v1beta1", "v1alpha2"],
        "referencegrants",
        Depth::Whole,
    ),
    of(Kind::MeshConfig, "", &["v1"], "configmaps", Depth::Named(CONFIG_MAP)),
];

const fn of(
    kind: Kind,
    group: &'static str,
    versions: &'static [&'static str],
    plural: &'static str,
    depth: Depth,
) -> Watched {
    Watched { kind, group, versions, plural, depth }
}

impl Watched {
    /// The kind at one of its versions, for the client.
    pub(super) fn resource(&self, version: &str) -> ApiResource {
        let api_version =
            if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) };
        ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: self.kind.word().to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// The address of all of its objects at a version.
    pub(super) fn path(&self, version: &str) -> String {
        match self.group {
            "" => format!("/api/{version}/{}", self.plural),
            group => format!("/apis/{group}/{version}/{}", self.plural),
        }
    }

    /// Whether its definition may be missing: it is not one of Kubernetes' own.
    pub(super) fn is_optional(&self) -> bool {
        !matches!(self.group, "" | "discovery.k8s.io")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_that_the_door_reads_is_watched_at_all_its_versions() {
        for watched in WATCHED {
            for version in watched.versions {
                let read = Kind::of(watched.group, version, watched.kind.word());
                assert_eq!(read, Some(watched.kind), "{} {version}", watched.plural);
            }
        }
        let kinds: std::collections::BTreeSet<_> = WATCHED.iter().map(|one| one.kind).collect();
        assert_eq!(kinds.len(), WATCHED.len());
    }

    #[test]
    fn objects_are_where_the_api_server_has_them() {
        assert_eq!(WATCHED[5].path("v1"), "/apis/networking.istio.io/v1/serviceentries");
        assert_eq!(WATCHED[2].path("v1"), "/api/v1/pods");
        assert_eq!(WATCHED[2].resource("v1").api_version, "v1");
        assert_eq!(WATCHED[5].resource("v1beta1").api_version, "networking.istio.io/v1beta1");
    }
}
