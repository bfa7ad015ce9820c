//! Protobuf to model and back. Whatever cannot be decoded is named, field and all.
//!
//! Decoding is strict where leniency would widen access: a policy with one value that cannot be
//! understood is refused whole, never narrowed. Encoding and decoding are inverse to each other.

mod authn;
mod authorizer;
mod authz;
mod filter;
mod interner;
mod limit;
mod policy;
mod route;
mod service;
mod service_config;
mod traffic;
mod workload;

use std::{borrow::Cow, fmt, net::IpAddr, sync::Arc};

use ambit_model::{
    address::NetworkAddress,
    authz::Policy,
    gateway::{GatewayAddress, GatewayDestination},
    name::{PolicyKey, ServiceKey},
    service::{PortMap, Service, TargetPort},
    service_config::ServiceConfig,
    snapshot::Update,
    workload::Workload,
};
use ambit_proto::workload as pb;
use bytes::Bytes;
pub use interner::Interner;
use prost::Message;
pub use service_config::{service_config_key, service_config_name};

/// The type of workloads and services.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// The type of workloads alone, as Envoy based proxies ask for them.
pub const WORKLOAD: &str = "type.googleapis.com/istio.workload.Workload";
/// The type of policies.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
/// The type of what applies to a service at its waypoint.
pub const SERVICE_CONFIG: &str = "type.googleapis.com/ambit.waypoint.v1.ServiceConfig";

/// A resource that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidResource {
    /// Not a protobuf message of the type.
    #[error("not decodable: {0}")]
    Message(String),
    /// Neither workload nor service.
    #[error("type: neither workload nor service is set")]
    Empty,
    /// A field has a value that means nothing.
    #[error("{field}: {reason}")]
    Field {
        /// The field, by its protobuf path.
        field: Cow<'static, str>,
        /// What is wrong with it.
        reason: Box<str>,
    },
}

impl InvalidResource {
    fn field(field: impl Into<Cow<'static, str>>, reason: impl ToString) -> Self {
        Self::Field { field: field.into(), reason: reason.to_string().into() }
    }

    /// The same, of a message that is itself the field `place` of another.
    fn within(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Field { field, reason } => Self::Field { field: format!("{place}.{field}").into(), reason },
            Self::Message(_) | Self::Empty => self,
        }
    }
}

/// Reads one resource of type [`ADDRESS`].
pub fn decode_address(body: Bytes, names: &mut Interner) -> Result<Update, InvalidResource> {
    let message = pb::Address::decode(body).map_err(|error| InvalidResource::Message(error.to_string()))?;
    match message.r#type.ok_or(InvalidResource::Empty)? {
        pb::address::Type::Workload(workload) => {
            workload::decode(workload, names).map(|workload| Update::Workload(Arc::new(workload)))
        }
        pb::address::Type::Service(service) => {
            service::decode(service, names).map(|service| Update::Service(Arc::new(service)))
        }
    }
}

/// Reads one resource of type [`AUTHORIZATION`] that was named `name`.
///
/// # Errors
/// Says what is wrong, and gives the policy to enforce instead: one that denies in the same scope.
pub fn decode_authorization(
    name: &str,
    body: Bytes,
    names: &mut Interner,
) -> Result<Policy, (InvalidResource, Option<Box<Policy>>)> {
    authz::decode(name, body, names)
}

/// Reads one resource of type [`SERVICE_CONFIG`].
pub fn decode_service_config(body: Bytes, names: &mut Interner) -> Result<ServiceConfig, InvalidResource> {
    service_config::decode(body, names)
}

/// The body of the [`ADDRESS`] resource for a workload.
pub fn encode_workload(workload: &Workload) -> Bytes {
    let message = pb::address::Type::Workload(workload::encode(workload));
    pb::Address { r#type: Some(message) }.encode_to_vec().into()
}

/// The body of the [`WORKLOAD`] resource for a workload, which is a part of that of the [`ADDRESS`] resource:
/// no byte is kept twice. `None` for a service.
pub fn bare_workload(address: &Bytes) -> Option<Bytes> {
    let mut rest = address.as_ref();
    let (field, kind) = prost::encoding::decode_key(&mut rest).ok()?;
    let length = prost::encoding::decode_varint(&mut rest).ok()?;
    let is_workload = (field, kind) == (1, prost::encoding::WireType::LengthDelimited);
    let whole = u64::try_from(rest.len()) == Ok(length);
    (is_workload && whole).then(|| address.slice_ref(rest))
}

/// The body of the [`ADDRESS`] resource for a service.
pub fn encode_service(service: &Service) -> Bytes {
    let message = pb::address::Type::Service(service::encode(service));
    pb::Address { r#type: Some(message) }.encode_to_vec().into()
}

/// The body of the [`AUTHORIZATION`] resource for a policy.
///
/// A policy that could not be decoded is sent as what it means: one that denies all in its scope.
pub fn encode_policy(policy: &Policy) -> Bytes {
    authz::encode(policy).encode_to_vec().into()
}

/// The body of the [`SERVICE_CONFIG`] resource for what applies to a service.
pub fn encode_service_config(config: &ServiceConfig) -> Bytes {
    service_config::encode(config).encode_to_vec().into()
}

/// The key that the name of a policy resource stands for.
pub fn policy_key(name: &str) -> Option<PolicyKey> {
    PolicyKey::parse(name)
}

fn decode_ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, InvalidResource> {
    let ip = <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    ip.map(|ip| ip.to_canonical()).map_err(|_| {
        InvalidResource::field(field, format!("an address has 4 or 16 bytes, not {}", bytes.len()))
    })
}

fn encode_ip(ip: &IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

fn decode_port(field: &'static str, port: u32) -> Result<u16, InvalidResource> {
    u16::try_from(port)
        .map_err(|_| InvalidResource::field(field, format!("{port} is not a port, 0 to 65535")))
}

fn decode_ports(field: &'static str, ports: &[pb::Port]) -> Result<PortMap, InvalidResource> {
    let pair = |port: &pb::Port| {
        let target = TargetPort::from_number(decode_port(field, port.target_port)?);
        Ok((decode_port(field, port.service_port)?, target))
    };
    ports.iter().map(pair).collect()
}

fn encode_ports(ports: &PortMap) -> Vec<pb::Port> {
    let port = |(service_port, target): (u16, TargetPort)| pb::Port {
        service_port: service_port.into(),
        target_port: target.number().into(),
        app_protocol: 0,
    };
    ports.iter().map(port).collect()
}

fn decode_gateway(
    field: &'static str,
    gateway: pb::GatewayAddress,
    names: &mut Interner,
) -> Result<GatewayAddress, InvalidResource> {
    use pb::gateway_address::Destination;
    let destination = match gateway.destination {
        Some(Destination::Hostname(name)) => GatewayDestination::Hostname(ServiceKey {
            namespace: names.name(&name.namespace),
            hostname: names.name(&name.hostname),
        }),
        Some(Destination::Address(address)) => GatewayDestination::Address(NetworkAddress {
            network: names.name(&address.network),
            ip: decode_ip(field, &address.address)?,
        }),
        None => return Err(InvalidResource::field(field, "has no destination")),
    };
    Ok(GatewayAddress { destination, hbone_mtls_port: decode_port(field, gateway.hbone_mtls_port)? })
}

fn encode_gateway(gateway: &GatewayAddress) -> pb::GatewayAddress {
    use pb::gateway_address::Destination;
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(key) => Destination::Hostname(pb::NamespacedHostname {
            namespace: key.namespace.to_string(),
            hostname: key.hostname.to_string(),
        }),
        GatewayDestination::Address(address) => Destination::Address(pb::NetworkAddress {
            network: address.network.to_string(),
            address: encode_ip(&address.ip),
            length: None,
        }),
    };
    pb::GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.hbone_mtls_port.into() }
}

/// The value of an open enum, or an error that names it: a number that is not known here may mean
/// anything (protocols 1.7, "enum growth").
fn decode_enum<E: TryFrom<i32>>(field: &'static str, number: i32) -> Result<E, InvalidResource> {
    E::try_from(number).map_err(|_| InvalidResource::field(field, format!("{number} is not a known value")))
}

/// Reads each message of a list; what is wrong with one says which.
fn decode_each<M, T>(
    field: &'static str,
    list: impl IntoIterator<Item = M>,
    mut decode: impl FnMut(M) -> Result<T, InvalidResource>,
) -> Result<Vec<T>, InvalidResource> {
    let decode = |(place, one)| {
        decode(one).map_err(|error: InvalidResource| error.within(format_args!("{field}[{place}]")))
    };
    list.into_iter().enumerate().map(decode).collect()
}

#[cfg(test)]
mod tests;
