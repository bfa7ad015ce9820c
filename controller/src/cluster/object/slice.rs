//! EndpointSlices: endpoints of a Service that are written down, by Kubernetes or by hand.

use std::net::IpAddr;

use ambit_api::k8s_openapi::api::discovery::v1 as k8s;
use ambit_api::labels;
use ambit_model::{
    name::{Label, Namespace},
    workload::Health,
};

use super::{Meta, Name, Rejection};

/// What the mesh needs of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Name, labels and annotations.
    pub meta: Meta,
    /// The Service; none if it does not say, or if its endpoints are host names.
    pub service: Option<Name>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Their TCP ports, by the port names of the Service.
    pub ports: Vec<SlicePort>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Whether it takes traffic.
    pub health: Health,
    /// The pod that it is, when it is one.
    pub pod: Option<Name>,
}

/// A port of every endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name that the Service calls it by.
    pub name: Label,
    /// Its number at the endpoint.
    pub number: u16,
}

impl EndpointSlice {
    pub(super) fn parse(namespace: Namespace, object: k8s::EndpointSlice) -> Result<Self, Rejection> {
        let meta = Meta::parse(namespace.clone(), object.metadata);
        let by_ip = object.address_type != "FQDN";
        let service = meta.labels.get(labels::SERVICE_NAME).filter(|_| by_ip);
        let service = service.map(|name| Name::new(namespace.clone(), name));
        let mut endpoints = Vec::new();
        for endpoint in object.endpoints.into_iter().flatten().filter(|_| by_ip) {
            let ip = |text: &String| {
                text.parse::<IpAddr>().map(|ip| ip.to_canonical()).map_err(|_| {
                    Rejection::new(
                        "endpoints[].addresses",
                        format!("{text:?} is not an IP address"),
                        "write an address",
                    )
                })
            };
            let ready = endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
            let target = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
            endpoints.push(SliceEndpoint {
                ips: endpoint.addresses.iter().map(ip).collect::<Result<_, _>>()?,
                health: if ready { Health::Healthy } else { Health::Unhealthy },
                pod: target.map(|target| {
                    let elsewhere =
                        target.namespace.filter(|namespace| !namespace.is_empty()).map(Namespace::from);
                    Name {
                        namespace: elsewhere.unwrap_or_else(|| namespace.clone()),
                        name: target.name.unwrap_or_default().into(),
                    }
                }),
            });
        }
        let mut ports = Vec::new();
        for port in object.ports.into_iter().flatten() {
            if let Some(number) =
                port.port.filter(|_| port.protocol.as_deref().is_none_or(|word| word == "TCP"))
            {
                ports.push(SlicePort {
                    name: port.name.unwrap_or_default().into(),
                    number: super::port("ports[].port", number)?,
                });
            }
        }
        Ok(Self { meta, service, endpoints, ports })
    }
}
