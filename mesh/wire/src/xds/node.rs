//! Who a proxy says it is. Pure: environment in, node message out (and, at the server, back).

use std::collections::BTreeMap;

use ambit_proto::discovery::Node;
use prost_types::{ListValue, Struct, Value, value::Kind};

/// What a daemon knows of itself when it starts. Unset variables are empty strings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeInfo {
    /// What it does in the mesh.
    pub kind: NodeKind,
    /// `INSTANCE_IP`.
    pub instance_ip: String,
    /// `POD_NAME`.
    pub pod_name: String,
    /// `POD_NAMESPACE`.
    pub pod_namespace: String,
    /// `NODE_NAME`.
    pub node_name: String,
    /// Further metadata: the mesh configuration's `proxyMetadata`, `ISTIO_META_X` (prefix stripped)
    /// and `ISTIO_METAJSON_X`. Wins over the four fields above where a key is the same.
    pub metadata: BTreeMap<String, serde_json::Value>,
}

/// What a proxy does in the mesh, as its node id says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeKind {
    /// A node's tunnel.
    #[default]
    Ztunnel,
    /// A waypoint.
    Waypoint,
}

impl NodeKind {
    fn word(self) -> &'static str {
        match self {
            Self::Ztunnel => "ztunnel",
            Self::Waypoint => "waypoint",
        }
    }
}

impl NodeInfo {
    /// The node as it is sent in the first request of each type.
    pub(super) fn message(&self) -> Node {
        let text = |s: &str| serde_json::Value::String(s.to_owned());
        let mut metadata = BTreeMap::from([
            ("NAME".to_owned(), text(&self.pod_name)),
            ("NAMESPACE".to_owned(), text(&self.pod_namespace)),
            ("INSTANCE_IPS".to_owned(), text(&self.instance_ip)),
            ("NODE_NAME".to_owned(), text(&self.node_name)),
        ]);
        metadata.extend(self.metadata.iter().map(|(k, v)| (k.clone(), v.clone())));
        let fields = metadata.into_iter().map(|(k, v)| (k, value(v))).collect();
        Node { id: self.id(), cluster: String::new(), metadata: Some(Struct { fields }) }
    }

    /// `TYPE~IP~POD.NAMESPACE~NAMESPACE.svc.cluster.local`: the last part is the same in every
    /// cluster domain, and the control plane wants an address even where there is none.
    pub fn id(&self) -> String {
        let ip = if self.instance_ip.is_empty() { "1.1.1.1" } else { &self.instance_ip };
        let (name, namespace) = (&self.pod_name, &self.pod_namespace);
        let kind = self.kind.word();
        format!("{kind}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local")
    }
}

/// The node of a subscriber, as the server read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subscribed {
    /// The node id, whole.
    pub(super) id: String,
    /// Metadata `NAMESPACE`, else the first label of the id's domain part.
    pub(super) namespace: String,
    /// Metadata `SERVICE_ACCOUNT`, or empty.
    pub(super) service_account: String,
    /// Metadata `NODE_NAME`, or empty.
    pub(super) node_name: String,
}

/// Why a node was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidNode {
    #[error("the first request of a stream must carry `node`")]
    Missing,
    #[error("node id {0:?} must have four parts: TYPE~IP~POD.NAMESPACE~DOMAIN")]
    Parts(String),
    #[error("node id {0:?}: {1:?} is not an IP address")]
    Ip(String, String),
}

impl Subscribed {
    /// Reads the node of a first request.
    pub(super) fn read(node: Option<&Node>) -> Result<Self, InvalidNode> {
        let node = node.ok_or(InvalidNode::Missing)?;
        let parts: Vec<&str> = node.id.split('~').collect();
        let [_type, ip, _name, domain] = parts.as_slice() else {
            return Err(InvalidNode::Parts(node.id.clone()));
        };
        if ip.parse::<std::net::IpAddr>().is_err() {
            return Err(InvalidNode::Ip(node.id.clone(), (*ip).to_owned()));
        }
        let metadata = |key: &str| text(node.metadata.as_ref(), key).unwrap_or_default().to_owned();
        let mut namespace = metadata("NAMESPACE");
        if namespace.is_empty() {
            namespace = domain.split('.').next().unwrap_or_default().to_owned();
        }
        Ok(Self {
            id: node.id.clone(),
            namespace,
            service_account: metadata("SERVICE_ACCOUNT"),
            node_name: metadata("NODE_NAME"),
        })
    }
}

fn text<'a>(metadata: Option<&'a Struct>, key: &str) -> Option<&'a str> {
    match &metadata?.fields.get(key)?.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

fn value(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(b) => Kind::BoolValue(b),
        serde_json::Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        serde_json::Value::String(s) => Kind::StringValue(s),
        serde_json::Value::Array(items) => {
            Kind::ListValue(ListValue { values: items.into_iter().map(value).collect() })
        }
        serde_json::Value::Object(fields) => {
            Kind::StructValue(Struct { fields: fields.into_iter().map(|(k, v)| (k, value(v))).collect() })
        }
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> NodeInfo {
        NodeInfo {
            kind: NodeKind::Ztunnel,
            instance_ip: "10.0.0.5".into(),
            pod_name: "ztunnel-abc".into(),
            pod_namespace: "istio-system".into(),
            node_name: "node-1".into(),
            metadata: BTreeMap::new(),
        }
    }

    #[test]
    fn the_id_names_type_pod_and_namespace_and_a_fixed_domain() {
        assert_eq!(info().id(), "ztunnel~10.0.0.5~ztunnel-abc.istio-system~istio-system.svc.cluster.local");
        let waypoint = NodeInfo { kind: NodeKind::Waypoint, ..info() };
        assert_eq!(
            waypoint.id(),
            "waypoint~10.0.0.5~ztunnel-abc.istio-system~istio-system.svc.cluster.local"
        );
        assert_eq!(NodeInfo::default().id(), "ztunnel~1.1.1.1~.~.svc.cluster.local");
    }

    #[test]
    fn metadata_has_the_four_fixed_keys_and_whatever_was_added() {
        let mut info = info();
        info.metadata.insert("NAME".into(), "renamed".into());
        info.metadata.insert("LABELS".into(), serde_json::json!({"a": [1, true, null]}));
        let node = info.message();
        let metadata = node.metadata.as_ref();
        assert_eq!(text(metadata, "NAME"), Some("renamed"));
        assert_eq!(text(metadata, "NAMESPACE"), Some("istio-system"));
        assert_eq!(text(metadata, "INSTANCE_IPS"), Some("10.0.0.5"));
        assert_eq!(text(metadata, "NODE_NAME"), Some("node-1"));
        assert_eq!(metadata.unwrap().fields.len(), 5);
        let labels = metadata.unwrap().fields["LABELS"].kind.clone().unwrap();
        let Kind::StructValue(labels) = labels else { panic!("an object becomes a struct: {labels:?}") };
        let Some(Kind::ListValue(list)) = &labels.fields["a"].kind else { panic!("an array, a list") };
        assert_eq!(list.values[0].kind, Some(Kind::NumberValue(1.0)));
        assert_eq!(list.values[1].kind, Some(Kind::BoolValue(true)));
    }

    #[test]
    fn the_server_reads_what_the_client_wrote() {
        let read = Subscribed::read(Some(&info().message())).unwrap();
        assert_eq!(read.namespace, "istio-system");
        assert_eq!(read.node_name, "node-1");
        assert_eq!(read.service_account, "");
    }

    #[test]
    fn a_node_without_namespace_metadata_is_placed_by_its_domain() {
        let node = Node { id: "waypoint~10.0.0.1~w.shop~shop.svc.cluster.local".into(), ..Node::default() };
        assert_eq!(Subscribed::read(Some(&node)).unwrap().namespace, "shop");
    }

    #[test]
    fn a_node_must_be_there_have_four_parts_and_an_address() {
        let node = |id: &str| Node { id: id.into(), ..Node::default() };
        assert_eq!(Subscribed::read(None), Err(InvalidNode::Missing));
        for id in ["", "a~1.2.3.4~c", "a~1.2.3.4~c~d~e"] {
            assert_eq!(Subscribed::read(Some(&node(id))), Err(InvalidNode::Parts(id.into())), "{id}");
        }
        let bad = Subscribed::read(Some(&node("a~not-ip~c~d")));
        assert_eq!(bad, Err(InvalidNode::Ip("a~not-ip~c~d".into(), "not-ip".into())));
    }
}
