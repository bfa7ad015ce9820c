//! Files of the directory, and every kind that is read from them.
#![no_main]

use std::path::Path;

use ambit_api::{
    authorization_policy::AuthorizationPolicy,
    destination_rule::DestinationRule,
    directory::{Document, read_text},
    gateway::{Gateway, GatewayClass},
    peer_authentication::PeerAuthentication,
    rate_limit_policy::RateLimitPolicy,
    request_authentication::RequestAuthentication,
    service_entry::ServiceEntry,
    virtual_service::VirtualService,
    workload_entry::WorkloadEntry,
};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let loaded = read_text(Path::new("some.yaml"), text);
    let lines = text.lines().count().max(1);
    for document in &loaded.objects {
        assert!((1..=lines).contains(&document.line), "line {} of {lines}", document.line);
        assert!(!document.kind.is_empty() && !document.name.is_empty());
        parse(document);
    }
    for problem in &loaded.problems {
        assert!(!problem.to_string().is_empty());
    }
});

fn parse(document: &Document) {
    match document.kind.as_str() {
        "Namespace" => drop(document.parse::<Namespace>()),
        "Node" => drop(document.parse::<Node>()),
        "Pod" => drop(document.parse::<Pod>()),
        "Service" => drop(document.parse::<Service>()),
        "EndpointSlice" => drop(document.parse::<EndpointSlice>()),
        "ServiceEntry" => drop(document.parse::<ServiceEntry>()),
        "DestinationRule" => drop(document.parse::<DestinationRule>()),
        "VirtualService" => drop(document.parse::<VirtualService>()),
        "WorkloadEntry" => drop(document.parse::<WorkloadEntry>()),
        "AuthorizationPolicy" => drop(document.parse::<AuthorizationPolicy>()),
        "PeerAuthentication" => drop(document.parse::<PeerAuthentication>()),
        "RequestAuthentication" => drop(document.parse::<RequestAuthentication>()),
        "RateLimitPolicy" => drop(document.parse::<RateLimitPolicy>()),
        "Gateway" => drop(document.parse::<Gateway>()),
        "GatewayClass" => drop(document.parse::<GatewayClass>()),
        _ => {}
    }
}
