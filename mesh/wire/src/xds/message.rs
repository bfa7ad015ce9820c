//! The response of delta discovery, read and written without copying the resources.
//!
//! Same fields and numbers as `DeltaDiscoveryResponse` of the proto crate. There, a resource is a
//! message in a message and every reader and writer owns a copy of its bytes. Here it stays the byte
//! string that it is on the wire: the server keeps one for all subscribers, and the client decodes
//! straight from the buffer that was received.

use ambit_proto::discovery::ControlPlane;
use bytes::Bytes;
use prost::Message as _;

/// The gRPC service that both ends speak.
pub(super) const SERVICE: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
/// Its delta method.
pub(super) const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Its state-of-the-world method, which we refuse with an explanation.
pub(super) const WHOLE_WORLD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// `DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(string, tag = "1")]
    pub(super) system_version_info: String,
    /// Each an encoded [`Envelope`].
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(super) removed_resources: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub(super) control_plane: Option<ControlPlane>,
}

/// `Resource`, without the fields that nobody in ambient uses (ttl, cache control).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Envelope {
    #[prost(string, tag = "1")]
    pub(super) version: String,
    #[prost(message, optional, tag = "2")]
    pub(super) resource: Option<Any>,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "4")]
    pub(super) aliases: Vec<String>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) value: Bytes,
}

/// The bytes of a resource that is sent to subscribers who did not ask for it by one of its aliases.
pub(super) fn seal(type_url: &str, name: &str, version: &str, body: Bytes) -> Bytes {
    let resource = Some(Any { type_url: type_url.to_owned(), value: body });
    let envelope =
        Envelope { version: version.to_owned(), resource, name: name.to_owned(), aliases: Vec::new() };
    envelope.encode_to_vec().into()
}

/// The same resource with its aliases. Protobuf messages merge by concatenation.
pub(super) fn with_aliases(sealed: &Bytes, aliases: &[String]) -> Bytes {
    if aliases.is_empty() {
        return sealed.clone();
    }
    let addition = Envelope { aliases: aliases.to_vec(), ..Envelope::default() };
    let mut both = Vec::with_capacity(sealed.len() + addition.encoded_len());
    both.extend_from_slice(sealed);
    both.extend_from_slice(&addition.encode_to_vec());
    both.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambit_proto::discovery;

    #[test]
    fn the_wire_is_the_one_of_the_generated_messages() {
        let sealed = seal("t", "a", "7", Bytes::from_static(b"body"));
        let ours = Response {
            system_version_info: "3".into(),
            resources: vec![sealed.clone(), with_aliases(&sealed, &["x".into(), "y".into()])],
            type_url: "t".into(),
            nonce: "n".into(),
            removed_resources: vec!["gone".into()],
            control_plane: Some(ControlPlane { identifier: "me".into() }),
        };
        let theirs = discovery::DeltaDiscoveryResponse::decode(&ours.encode_to_vec()[..]).unwrap();
        let any = prost_types::Any { type_url: "t".into(), value: b"body".to_vec() };
        let plain = discovery::Resource {
            name: "a".into(),
            version: "7".into(),
            resource: Some(any),
            ..discovery::Resource::default()
        };
        let aliased = discovery::Resource { aliases: vec!["x".into(), "y".into()], ..plain.clone() };
        assert_eq!(theirs.resources, [plain, aliased]);
        assert_eq!(theirs.removed_resources, ["gone"]);
        assert_eq!((theirs.nonce.as_str(), theirs.type_url.as_str()), ("n", "t"));
        assert_eq!(Response::decode(&theirs.encode_to_vec()[..]).unwrap().nonce, "n");
    }
}
