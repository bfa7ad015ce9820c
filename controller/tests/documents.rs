//! What pages of the documentation tell users to write, put through the controller.

mod support;

use ambit_controller::cluster::object::{Kind, Provider};
use ambit_model::authz::Content;
use support::{cluster, conditions, config, fenced};

const EXTERNAL_AUTHORIZATION: &str = include_str!("../../docs/tasks/external-authorization.md");
const FAULTS: &str = include_str!("../../docs/tasks/faults.md");
const VIRTUAL_SERVICE: &str = include_str!("../../docs/tasks/virtual-service.md");

/// What the pages take for granted.
const SHOP: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: ambit-waypoint}
spec: {controllerName: ambit.io/waypoint-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: ambit-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{value: 10.5.0.1}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: waypoint}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}]}
";

#[test]
fn external_authorization_is_set_up_by_its_page() {
    let documents = fenced(EXTERNAL_AUTHORIZATION);
    assert_eq!(documents.len(), 3);
    let read = documents.into_iter().flat_map(|piece| piece.split("---\n"));
    // The authorizer's pods are no business of the controller, which reads no Deployments.
    let read = read.filter(|document| !document.contains("kind: Deployment\n"));
    let all = [SHOP].into_iter().chain(read).collect::<Vec<_>>().join("\n---\n");
    let cluster = cluster(&all);
    assert_eq!(
        conditions(&cluster, Kind::AuthorizationPolicy, "shop", "ask"),
        ["WaypointAccepted=true Accepted"]
    );
    let config = config(&cluster, "shop/waypoint", "shop/web.shop.svc.cluster.local").unwrap();
    let policy = config.policies().next().unwrap();
    let Content::Custom { provider, authorizer: Some(authorizer), .. } = &policy.content else {
        panic!("{policy:?}")
    };
    assert_eq!(provider.as_str(), "ext-authz-grpc");
    assert_eq!(authorizer.parts().port, 9000);
    assert!(matches!(cluster.provider(&"ext-authz-http".into()), Ok(Provider::Authorizer(_))));
}

#[test]
fn the_virtual_services_of_the_pages_apply() {
    const V2: &str = "
apiVersion: v1
kind: Service
metadata: {name: web-v2, namespace: shop}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}]}
";
    for page in [FAULTS, VIRTUAL_SERVICE] {
        let all = [vec![SHOP, V2], fenced(page)].concat().join("\n---\n");
        let cluster = cluster(&all);
        assert_eq!(
            conditions(&cluster, Kind::VirtualService, "shop", "web"),
            [
                "Accepted=true Accepted",
                "ResolvedRefs=true ResolvedRefs",
                "ResolvedWaypoints=true ResolvedWaypoints"
            ]
        );
        let config = config(&cluster, "shop/waypoint", "shop/web.shop.svc.cluster.local").unwrap();
        assert_eq!(config.parts().http.len(), 1);
    }
}
