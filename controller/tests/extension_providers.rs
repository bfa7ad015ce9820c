//! Whom CUSTOM policies ask: what is read of the mesh configuration, and what comes of it at waypoints.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::{sync::Arc, time::Duration};

use ambit_controller::cluster::object::{Key, Kind, Name, Object, Parsed, Provider, parse};
use ambit_controller::cluster::{Cluster, UnknownProvider};
use ambit_controller::source::Event;
use ambit_controller::source::standing::{Verdict, judge};
use ambit_controller::translate::status;
use ambit_model::authz::{
    Authorizer, AuthorizerParts, BodyForm, CheckProtocol, Content, GrpcCheck, HttpCheck, Longer, OnFailure,
    SharedBody, Text,
};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use support::{at_the_door, cluster, config, objects};

/// The mesh configuration with this text, indented by four.
fn mesh(providers: &str) -> String {
    mesh_in("istio-system", providers)
}

fn mesh_in(namespace: &str, providers: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: {namespace}}}\ndata:\n  mesh: |\n    \
         trustDomain: cluster.local\n    extensionProviders: {providers}\n---\n"
    )
}

fn grpc(fields: &str) -> String {
    mesh(&format!("[{{name: opa, envoyExtAuthzGrpc: {{{fields}}}}}]"))
}

fn http(fields: &str) -> String {
    mesh(&format!("[{{name: opa, envoyExtAuthzHttp: {{service: opa.shop, port: 80, {fields}}}}}]"))
}

/// What is known of provider `opa`.
fn opa(yaml: &str) -> Arc<Authorizer> {
    match cluster(yaml).provider(&"opa".into()) {
        Ok(Provider::Authorizer(authorizer)) => authorizer.clone(),
        other => panic!("{other:?}"),
    }
}

fn parts() -> AuthorizerParts {
    AuthorizerParts {
        namespace: "".into(),
        hostname: "opa.shop".into(),
        port: 80,
        timeout: Duration::from_secs(10),
        on_failure: OnFailure::Deny(StatusCode::FORBIDDEN),
        body: None,
        protocol: CheckProtocol::Grpc(GrpcCheck::default()),
    }
}

#[test]
fn a_provider_is_read_as_istio_has_it() {
    let body = |longer, form| Some(SharedBody { limit: 8192, longer, form });
    let deny = |status| OnFailure::Deny(StatusCode::from_u16(status).unwrap());
    for (fields, want) in [
        ("service: opa.shop, port: 80", parts()),
        ("service: shop/opa.shop, port: 80", AuthorizerParts { namespace: "shop".into(), ..parts() }),
        (
            "service: opa.shop, port: 80, timeout: 600s",
            AuthorizerParts { timeout: Duration::from_secs(600), ..parts() },
        ),
        (
            "service: opa.shop, port: 80, timeout: 0.25s",
            AuthorizerParts { timeout: Duration::from_millis(250), ..parts() },
        ),
        (
            "service: opa.shop, port: 80, timeout: 50ms",
            AuthorizerParts { timeout: Duration::from_millis(50), ..parts() },
        ),
        (
            "service: opa.shop, port: 80, failOpen: true, clearRouteCache: true",
            AuthorizerParts { on_failure: OnFailure::Allow, ..parts() },
        ),
        (
            "service: opa.shop, port: 80, statusOnError: '503'",
            AuthorizerParts { on_failure: deny(503), ..parts() },
        ),
        (
            "service: opa.shop, port: 80, statusOnError: 503",
            AuthorizerParts { on_failure: deny(503), ..parts() },
        ),
        (
            "service: opa.shop, port: 80, includeRequestBodyInCheck: {maxRequestBytes: 8192}",
            AuthorizerParts { body: body(Longer::Refused, BodyForm::Text), ..parts() },
        ),
        (
            "service: opa.shop, port: 80, includeRequestBodyInCheck: {maxRequestBytes: 8192, allowPartialMessage: true, packAsBytes: true}",
            AuthorizerParts { body: body(Longer::Cut, BodyForm::Bytes), ..parts() },
        ),
    ] {
        assert_eq!(*opa(&grpc(fields)).parts(), want, "{fields}");
    }
    let names = |list: &[&str]| list.iter().map(|name| Text::Exact((*name).into())).collect::<Vec<_>>();
    let fields = "pathPrefix: /check, includeRequestHeadersInCheck: [cookie, 'x-*', '*-id'], includeHeadersInCheck: [x-old], \
                  includeAdditionalHeadersInCheck: {x-mesh: 'yes'}, headersToUpstreamOnAllow: [x-user], \
                  headersToDownstreamOnAllow: [set-cookie], headersToDownstreamOnDeny: [content-type]";
    let mut request_headers = names(&["cookie"]);
    request_headers.extend([
        Text::Prefix("x-".into()),
        Text::Suffix("-id".into()),
        Text::Exact("x-old".into()),
    ]);
    let check = HttpCheck {
        path_prefix: "/check".into(),
        request_headers,
        added_headers: vec![(HeaderName::from_static("x-mesh"), HeaderValue::from_static("yes"))],
        upstream_on_allow: names(&["x-user"]),
        downstream_on_allow: names(&["set-cookie"]),
        downstream_on_deny: Some(names(&["content-type"])),
    };
    let protocol = CheckProtocol::Http(Box::new(check));
    assert_eq!(*opa(&http(fields)).parts(), AuthorizerParts { protocol, ..parts() });
    let plain = CheckProtocol::Http(Box::default());
    assert_eq!(*opa(&http("")).parts(), AuthorizerParts { protocol: plain, ..parts() });
}

#[test]
fn a_mistake_is_named_by_its_field() {
    let good = "service: opa.shop, port: 80";
    let of_grpc = |fields: &str| grpc(&format!("{good}, {fields}"));
    for (yaml, field) in [
        (mesh("x"), "extensionProviders"),
        (mesh("["), ""),
        (mesh("[{envoyExtAuthzGrpc: {service: a, port: 1}}]"), "extensionProviders[0].name"),
        (mesh("[{name: a}, {name: a}]"), "extensionProviders[1].name"),
        (
            mesh(
                "[{name: a, envoyExtAuthzGrpc: {service: a, port: 1}, envoyExtAuthzHttp: {service: a, port: 1}}]",
            ),
            "extensionProviders[0]",
        ),
        (grpc("port: 80"), "extensionProviders[0].envoyExtAuthzGrpc.service"),
        (grpc("service: '*.shop', port: 80"), "extensionProviders[0].envoyExtAuthzGrpc.service"),
        (grpc("service: a/b/c, port: 80"), "extensionProviders[0].envoyExtAuthzGrpc.service"),
        (grpc("service: /opa.shop, port: 80"), "extensionProviders[0].envoyExtAuthzGrpc.service"),
        (grpc("service: opa.shop"), "extensionProviders[0].envoyExtAuthzGrpc.port"),
        (grpc("service: opa.shop, port: 70000"), "extensionProviders[0].envoyExtAuthzGrpc.port"),
        (of_grpc("timeout: soon"), "extensionProviders[0].envoyExtAuthzGrpc.timeout"),
        (of_grpc("timeout: 0s"), "extensionProviders[0].envoyExtAuthzGrpc.timeout"),
        (of_grpc("timeout: 99999999999999999999s"), "extensionProviders[0].envoyExtAuthzGrpc.timeout"),
        (of_grpc("timeout: 1.2.3s"), "extensionProviders[0].envoyExtAuthzGrpc.timeout"),
        (of_grpc("statusOnError: '200'"), "extensionProviders[0].envoyExtAuthzGrpc.statusOnError"),
        (
            of_grpc("failOpen: true, statusOnError: never"),
            "extensionProviders[0].envoyExtAuthzGrpc.statusOnError",
        ),
        (of_grpc("failopen: true"), "extensionProviders[0].envoyExtAuthzGrpc.failopen"),
        (
            of_grpc("includeRequestBodyInCheck: {}"),
            "extensionProviders[0].envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes",
        ),
        (
            of_grpc("includeRequestBodyInCheck: {maxRequestBytes: 99999999}"),
            "extensionProviders[0].envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes",
        ),
        (
            of_grpc("includeRequestBodyInCheck: {maxBytes: 1}"),
            "extensionProviders[0].envoyExtAuthzGrpc.includeRequestBodyInCheck.maxBytes",
        ),
        (of_grpc("pathPrefix: /a"), "extensionProviders[0].envoyExtAuthzGrpc.pathPrefix"),
        (http("pathPrefix: check"), "extensionProviders[0].envoyExtAuthzHttp.pathPrefix"),
        (
            http("headersToUpstreamOnAllow: [x-a, 'x a']"),
            "extensionProviders[0].envoyExtAuthzHttp.headersToUpstreamOnAllow[1]",
        ),
        (
            http("includeRequestHeadersInCheck: ['x-*-y']"),
            "extensionProviders[0].envoyExtAuthzHttp.includeRequestHeadersInCheck[0]",
        ),
        (
            http("includeAdditionalHeadersInCheck: {host: a}"),
            "extensionProviders[0].envoyExtAuthzHttp.includeAdditionalHeadersInCheck",
        ),
        (
            http("includeAdditionalHeadersInCheck: {'a b': a}"),
            "extensionProviders[0].envoyExtAuthzHttp.includeAdditionalHeadersInCheck[a b]",
        ),
        (
            http("includeRequestBodyInCheck: {maxRequestBytes: 9, packAsBytes: true}"),
            "extensionProviders[0].envoyExtAuthzHttp.includeRequestBodyInCheck.packAsBytes",
        ),
    ] {
        let Parsed::Bad { rejection, instead } = at_the_door(&yaml) else { panic!("{yaml}") };
        let want = if field.is_empty() { "data.mesh".to_owned() } else { format!("data.mesh.{field}") };
        assert_eq!(rejection.field, want, "{yaml}\n{rejection}");
        assert!(!rejection.remedy.is_empty(), "{yaml}");
        let Some(Object::MeshConfig(instead)) = instead else { panic!("{instead:?}") };
        assert!(instead.providers.is_err(), "nobody is known until it is corrected");
    }
}

#[test]
fn what_is_no_authorizer_and_what_is_not_the_mesh_configuration_is_left_alone() {
    let others = cluster(&mesh("[{name: zip, zipkin: {service: zip.shop, port: 9411}}]"));
    assert_eq!(others.provider(&"zip".into()), Ok(&Provider::Other));
    assert_eq!(others.provider(&"opa".into()), Err(UnknownProvider::Missing));
    let empty = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n";
    assert_eq!(cluster(empty).provider(&"opa".into()), Err(UnknownProvider::Missing));
    let elsewhere = mesh_in("shop", "[{name: opa, envoyExtAuthzGrpc: {service: opa.shop, port: 80}}]");
    assert_eq!(cluster(&elsewhere).provider(&"opa".into()), Err(UnknownProvider::NoConfig));
    let other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: istio-system}\ndata: {mesh: '['}\n";
    assert_eq!(at_the_door(other), Parsed::Unknown);
}

/// A service with a waypoint, and one that may be asked about it.
const SHOP: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: istio-waypoint}
spec: {controllerName: istio.io/mesh-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{value: 10.5.0.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: gate}}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: opa, namespace: shop}
spec: {clusterIP: 10.1.0.2, ports: [{name: grpc, port: 80}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  action: CUSTOM
  provider: {name: opa}
  rules: [{to: [{operation: {paths: ['/admin/*']}}]}]
---
";

const KNOWN: &str = "[{name: opa, envoyExtAuthzGrpc: {service: opa.shop.svc.cluster.local, port: 80}}]";

/// Whom the waypoint asks: the host name.
fn asked(cluster: &Cluster) -> Option<String> {
    let config = config(cluster, "shop/gate", "shop/web.shop.svc.cluster.local").unwrap();
    let mut policies = config.policies();
    match &policies.next().unwrap().content {
        Content::Custom { authorizer, .. } => {
            authorizer.as_ref().map(|authorizer| authorizer.parts().hostname.to_string())
        }
        other @ (Content::Rules { .. } | Content::Audit { .. } | Content::Undecodable { .. }) => {
            panic!("{other:?}")
        }
    }
}

fn told(cluster: &Cluster) -> (bool, &'static str, String) {
    let key = Key { kind: Kind::AuthorizationPolicy, name: Name::new("shop", "ask") };
    let conditions = status::of(cluster, &key);
    let [condition] = conditions.as_slice() else { panic!("{conditions:?}") };
    (condition.status, condition.reason, condition.message.clone())
}

#[test]
fn a_policy_asks_whom_the_mesh_knows_and_its_author_is_told_whom_it_does_not() {
    let opa = "opa.shop.svc.cluster.local";
    let strange = KNOWN.replace("opa.shop", "gone.shop");
    for (yaml, want, condition, words) in [
        (mesh(KNOWN), Some(opa), (true, "Accepted"), "about what matches, opa is asked"),
        (String::new(), None, (false, "UnknownProvider"), "create ConfigMap istio-system/istio"),
        (
            mesh("[]"),
            None,
            (false, "UnknownProvider"),
            "add it to extensionProviders in key mesh of ConfigMap istio-system/istio",
        ),
        (mesh("[{name: opa, zipkin: {}}]"), None, (false, "UnknownProvider"), "is no external authorizer"),
        (
            mesh(&strange),
            Some("gone.shop.svc.cluster.local"),
            (false, "UnknownProvider"),
            "does not exist: what matches is denied",
        ),
        (
            mesh(&strange.replace("port: 80", "port: 80, failOpen: true")),
            Some("gone.shop.svc.cluster.local"),
            (false, "UnknownProvider"),
            "goes on, as failOpen says",
        ),
        (
            mesh(&KNOWN.replace("service: opa", "service: shop/opa")),
            Some(opa),
            (true, "Accepted"),
            "opa is asked",
        ),
        (
            mesh(&KNOWN.replace("service: opa", "service: other/opa")),
            Some(opa),
            (false, "UnknownProvider"),
            "does not exist",
        ),
    ] {
        let cluster = cluster(&format!("{SHOP}{yaml}"));
        assert_eq!(asked(&cluster).as_deref(), want, "{yaml}");
        let (status, reason, message) = told(&cluster);
        assert_eq!((status, reason), condition, "{yaml}: {message}");
        assert!(message.contains(words), "{yaml}: {message}");
    }
}

#[test]
fn a_configuration_that_breaks_leaves_the_one_before_in_force() {
    let written = |providers: &str| {
        let yaml = mesh(providers);
        parse(
            ambit_api::directory::read_text(std::path::Path::new("mesh.yaml"), &yaml)
                .objects
                .first()
                .unwrap(),
        )
    };
    let Verdict::Understood(before) = judge(written(KNOWN), None) else { panic!("understood") };
    assert!(matches!(judge(written("[{}]"), Some(&before)), Verdict::Kept(_)));
    let Verdict::Replaced(first, _) = judge(written("[{}]"), None) else { panic!("replaced") };
    let mut broken = cluster(SHOP);
    broken.apply(Event::Upsert(first.object.unwrap()));
    assert_eq!(asked(&broken), None);
    let (status, reason, message) = told(&broken);
    assert_eq!((status, reason), (false, "UnknownProvider"));
    assert!(message.contains("data.mesh.extensionProviders[0].name: is missing"), "{message}");
}

/// A secret of the authorizer's is in no dump.
#[test]
fn added_headers_are_shown_without_their_values() {
    let authorizer = opa(&http("includeAdditionalHeadersInCheck: {x-key: hunter2}"));
    let shown: Value = json!(*authorizer);
    assert_eq!(shown.pointer("/protocol/http/addedHeaders"), Some(&json!(["x-key"])));
    assert!(!shown.to_string().contains("hunter2") && !format!("{authorizer:?}").contains("hunter2"));
    assert_eq!(objects(&http("")).len(), 1);
}
