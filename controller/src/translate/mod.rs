//! What the mesh is to know of one thing, from all that users wrote. Pure: `(&Cluster, &Output) -> Option<…>`.

pub mod authz;
pub mod destination;
pub mod limit;
pub mod limit_status;
pub mod peer_auth;
pub mod policy_status;
pub mod route;
pub mod route_status;
pub mod service;
pub mod service_config;
pub mod status;
pub mod virtual_service;
pub mod virtual_service_status;
pub mod waypoint;
pub mod workload;

use std::net::IpAddr;

use ambit_model::{
    authz::Policy, name::ServiceKey, service::Service, service_config::ServiceConfig, workload::Workload,
};

use crate::cluster::Cluster;
use crate::cluster::object::{EntryAddress, Name};

/// Names one thing that the mesh may have to know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Output {
    /// A workload.
    Workload(WorkloadSource),
    /// A service.
    Service(ServiceKey),
    /// A policy.
    Policy(PolicySource),
    /// What one waypoint is to know of a service.
    ServiceConfig {
        /// The waypoint.
        gateway: Name,
        /// The service.
        service: ServiceKey,
    },
}

/// What a workload is made from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkloadSource {
    /// A pod.
    Pod(Name),
    /// A WorkloadEntry.
    Entry(Name),
    /// An endpoint of a ServiceEntry: one that is written in it, or a host of it that DNS resolves.
    Inline {
        /// The ServiceEntry.
        entry: Name,
        /// The endpoint's address, or the host.
        address: EntryAddress,
    },
    /// An endpoint of an EndpointSlice that is no pod.
    Slice {
        /// The EndpointSlice.
        slice: Name,
        /// The endpoint's address.
        ip: IpAddr,
    },
}

/// What a policy is made from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicySource {
    /// An AuthorizationPolicy.
    Authorization(Name),
    /// The one that refuses plain text wherever it is named.
    StaticStrict,
    /// A PeerAuthentication with ports of its own.
    Converted(Name),
    /// A waypoint that is to be let in.
    AllowWaypoint(Name),
}

/// One thing that the mesh knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Translated {
    /// A workload.
    Workload(Workload),
    /// A service.
    Service(Service),
    /// A policy.
    Policy(Policy),
    /// What one waypoint is to know of a service.
    ServiceConfig {
        /// The waypoint.
        gateway: Name,
        /// What applies to the service.
        config: ServiceConfig,
    },
}

/// What `output` is now; `None` if the mesh is not to know it.
pub fn translate(cluster: &Cluster, output: &Output) -> Option<Translated> {
    match output {
        Output::Workload(source) => workload::translate(cluster, source).map(Translated::Workload),
        Output::Service(key) => service::translate(cluster, key).map(Translated::Service),
        Output::Policy(PolicySource::Authorization(name)) => {
            authz::translate(cluster, name).map(Translated::Policy)
        }
        Output::Policy(PolicySource::StaticStrict) => {
            peer_auth::static_strict(cluster).map(Translated::Policy)
        }
        Output::Policy(PolicySource::Converted(name)) => {
            peer_auth::converted(cluster, name).map(Translated::Policy)
        }
        Output::Policy(PolicySource::AllowWaypoint(name)) => {
            authz::allow_waypoint(cluster, name).map(Translated::Policy)
        }
        Output::ServiceConfig { gateway, service } => {
            let config = service_config::translate(cluster, gateway, service)?;
            Some(Translated::ServiceConfig { gateway: gateway.clone(), config })
        }
    }
}
