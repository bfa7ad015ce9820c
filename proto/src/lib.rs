//! The words on the wire: Istio ambient's protobuf packages and one of our own, generated from `proto/*.proto`.
//!
//! No logic lives here. Only `ambit-wire` turns these messages into what the mesh knows
//! (`ambit-model`) and back; nobody else says `ambit_proto::`.

#![allow(
    missing_docs,
    clippy::all,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    unused_qualifications,
    elided_lifetimes_in_paths,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

/// Workloads and services: `istio.workload`.
pub mod workload {
    tonic::include_proto!("istio.workload");

    /// Node agent and tunnel: `istio.workload.zds`.
    pub mod zds {
        tonic::include_proto!("istio.workload.zds");
    }
}

/// Authorization policies: `istio.security`.
pub mod security {
    tonic::include_proto!("istio.security");
}

/// The certificate authority: `istio.v1.auth`.
pub mod citadel {
    tonic::include_proto!("istio.v1.auth");
}

/// Delta discovery: `envoy.service.discovery.v3`.
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// Asking an external authorizer: `envoy.service.auth.v3`.
pub mod ext_authz {
    tonic::include_proto!("envoy.service.auth.v3");
}

/// Addresses and changes of headers: `envoy.config.core.v3`.
pub mod envoy_core {
    tonic::include_proto!("envoy.config.core.v3");
}

/// Statuses of HTTP: `envoy.type.v3`.
pub mod envoy_type {
    tonic::include_proto!("envoy.r#type.v3");
}

/// What a call ended with: `google.rpc`.
pub mod rpc_status {
    tonic::include_proto!("google.rpc");
}

/// What a waypoint is told of the services that it serves: `ambit.waypoint.v1`.
pub mod waypoint {
    tonic::include_proto!("ambit.waypoint.v1");
}

/// Asking a rate limit service: `envoy.service.ratelimit.v3`.
pub mod ratelimit {
    tonic::include_proto!("envoy.service.ratelimit.v3");
}
