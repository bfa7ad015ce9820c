//! What pages of the documentation tell users to write, put through the controller.

mod support;

use ambit_controller::cluster::object::{Kind, Provider};
use ambit_model::{
    authz::Content,
    name::ServiceKey,
    route::{ExternalAuth, Filter},
};
use support::{cluster, conditions, config, fenced};

const ENDPOINTS: &str = include_str!("../../docs/tasks/endpoints.md");
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
fn endpoints_are_compared_as_their_page_says() {
    let documents = fenced(ENDPOINTS);
    let rule = documents.into_iter().find(|one| one.contains("ambit.io/success-rate-")).unwrap();
    let cluster = cluster(&format!("{SHOP}\n---\n{rule}"));
    assert_eq!(
        conditions(&cluster, Kind::DestinationRule, "shop", "web"),
        ["WaypointAccepted=true Accepted"]
    );
    let web = "shop/web.shop.svc.cluster.local";
    let config = config(&cluster, "shop/waypoint", web).unwrap();
    let policy = config.traffic(&ServiceKey::parse(web).unwrap()).unwrap().policy(None, 80).unwrap();
    let rate = policy.outliers.success_rate.as_ref().unwrap();
    assert_eq!((rate.factor, rate.least_endpoints, rate.least_requests), (1900, 5, 100));
    assert_eq!((rate.interval.as_secs(), policy.outliers.server), (10, None));
}

#[test]
fn external_authorization_is_set_up_by_its_page() {
    let documents = fenced(EXTERNAL_AUTHORIZATION);
    assert_eq!(documents.len(), 4);
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
    assert_eq!(
        conditions(&cluster, Kind::HttpRoute, "shop", "web")[..2],
        ["Accepted=true Accepted", "ResolvedRefs=true ResolvedRefs"]
    );
    let [open, asking] = config.parts().http[0].route.rules() else { panic!("two rules") };
    assert!(open.filters.is_empty());
    let [Filter::ExternalAuth(ExternalAuth::Asks(asked))] = asking.filters.as_slice() else {
        panic!("{asking:?}")
    };
    assert_eq!(asked.parts().port, 8000);
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
