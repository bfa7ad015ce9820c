//! The objects of a cluster that the mesh reads, as documents.

use std::path::Path;
use std::sync::Arc;

use ambit_api::CustomKind;
use ambit_api::authorization_policy::AuthorizationPolicy;
use ambit_api::destination_rule::DestinationRule;
use ambit_api::directory::Document;
use ambit_api::gateway::{Gateway, GatewayClass};
use ambit_api::grpc_route::GRPCRoute;
use ambit_api::http_route::HTTPRoute;
use ambit_api::peer_authentication::PeerAuthentication;
use ambit_api::rate_limit_policy::RateLimitPolicy;
use ambit_api::reference_grant::ReferenceGrant;
use ambit_api::request_authentication::RequestAuthentication;
use ambit_api::service_entry::ServiceEntry;
use ambit_api::stream_route::{TCPRoute, TLSRoute};
use ambit_api::virtual_service::VirtualService;
use ambit_api::workload_entry::WorkloadEntry;
use kube::Client;
use serde_json::Value;

use crate::objects;

const BUILT_IN: [&str; 5] = [
    "/api/v1/namespaces",
    "/api/v1/nodes",
    "/api/v1/pods",
    "/api/v1/services",
    "/apis/discovery.k8s.io/v1/endpointslices",
];

/// One of all ConfigMaps.
const MESH_CONFIG: (&str, &str) = ("/api/v1/configmaps", "fieldSelector=metadata.name%3Distio");

/// All of them. A kind that is not installed has none.
pub(crate) async fn documents(client: &Client) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in BUILT_IN {
        let objects: Option<Vec<Value>> = objects::list(client, path, "").await?;
        documents.extend(objects.into_iter().flatten().filter_map(document));
    }
    let (path, query) = MESH_CONFIG;
    let objects: Option<Vec<Value>> = objects::list(client, path, query).await?;
    documents.extend(objects.into_iter().flatten().filter_map(document));
    let custom = [
        paths::<AuthorizationPolicy>(),
        paths::<PeerAuthentication>(),
        paths::<RequestAuthentication>(),
        paths::<DestinationRule>(),
        paths::<RateLimitPolicy>(),
        paths::<ServiceEntry>(),
        paths::<VirtualService>(),
        paths::<WorkloadEntry>(),
        paths::<Gateway>(),
        paths::<GatewayClass>(),
        paths::<HTTPRoute>(),
        paths::<GRPCRoute>(),
        paths::<TLSRoute>(),
        paths::<TCPRoute>(),
        paths::<ReferenceGrant>(),
    ];
    for paths in custom {
        for path in paths {
            if let Some(objects) = objects::list::<Value>(client, &path, "").await? {
                documents.extend(objects.into_iter().filter_map(document));
                break;
            }
        }
    }
    Ok(documents)
}

/// Where the lists of a kind may be, the newest version first.
fn paths<K: CustomKind>() -> Vec<String> {
    K::VERSIONS.iter().map(|version| format!("/apis/{}/{version}/{}", K::GROUP, K::PLURAL)).collect()
}

fn document(mut value: Value) -> Option<Document> {
    // Who changed what is long, and says nothing about the mesh.
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(Document {
        file: Arc::from(Path::new("")),
        line: 0,
        api_version: text("/apiVersion"),
        kind: text("/kind"),
        namespace: text("/metadata/namespace"),
        name: Some(text("/metadata/name")).filter(|name| !name.is_empty())?,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_version_has_a_path_the_newest_first() {
        assert_eq!(paths::<PeerAuthentication>()[0], "/apis/security.istio.io/v1/peerauthentications");
        assert!(paths::<Gateway>().iter().all(|path| path.ends_with("/gateways")));
    }

    #[test]
    fn an_object_becomes_a_document_without_its_history() {
        let object = json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "a", "namespace": "shop", "managedFields": [{}] } });
        let got = document(object).unwrap();
        assert_eq!(got.key().to_string(), "Pod shop/a");
        assert!(!got.value.to_string().contains("managedFields"));
        assert!(document(json!({ "kind": "Pod" })).is_none());
    }
}
