//! What users write: labels, annotations, custom resources, and the directory they may lie in.
//!
//! - [`labels`]: every label and annotation that the mesh reads or writes;
//! - one file per custom kind, with Istio's and Gateway API's own group, version and field names;
//! - [`crds`]: the definitions of those kinds for a cluster that has none;
//! - [`directory`]: a directory of the same YAML, for meshes without Kubernetes.
//!
//! Kubernetes' own kinds (Pod, Service, …) come from `k8s-openapi`, which is re-exported so that
//! everybody reads the same version of them.

pub mod authorization_policy;
pub mod crds;
pub mod destination_rule;
pub mod directory;
pub mod gateway;
pub mod grpc_route;
pub mod http_route;
mod kind;
pub mod labels;
pub mod mesh_config;
pub mod peer_authentication;
pub mod rate_limit_policy;
pub mod reference_grant;
pub mod request_authentication;
pub mod route;
pub mod selector;
pub mod service_entry;
pub mod stream_route;
pub mod virtual_service;
pub mod workload_entry;
pub mod workload_group;

pub use k8s_openapi;
pub use kind::CustomKind;
