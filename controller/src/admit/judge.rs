//! Whether an object is admitted. Pure; the same for the webhook and for whoever analyses files.

use std::collections::BTreeSet;

use ambit_api::{
    CustomKind as _, authorization_policy as policies, directory::typed, peer_authentication as peers,
    request_authentication as tokens, selector::TargetRef, service_entry as entries,
};
use ambit_model::{authz::Action, name::Namespace};
use serde_json::Value;

use crate::{
    cluster::{
        L7Deny, Settings,
        object::{
            Attachment, AuthorizationPolicy, Content, Object, ParentTarget, Parsed, Rejection,
            RequestAuthentication, Route, RouteContent, parse_value,
        },
    },
    translate::policy_status::{APPLIES_TO_NOTHING, TIMEOUT_NOT_USED, l7_message},
};

/// Longer warnings are cut by the API server.
const WARNING: usize = 256;

/// The object that somebody wants to write.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its API group.
    pub group: &'a str,
    /// Its version within the group.
    pub version: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// Its namespace; empty for kinds without one.
    pub namespace: &'a str,
    /// Its name; empty when the API server is to make one up.
    pub name: &'a str,
    /// All of it.
    pub object: &'a Value,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is of no kind that the mesh reads.
    NotOurs,
    /// It is admitted; the warnings say what in it does not do what it says.
    Admitted(Vec<String>),
    /// It is not.
    Refused(Rejection),
}

/// Judges an object.
pub fn judge(settings: &Settings, asked: &Asked<'_>) -> Verdict {
    let Asked { group, version, kind, namespace, name, object } = *asked;
    let parsed = match parse_value(group, version, kind, namespace, name, object) {
        Parsed::Object(parsed) => parsed,
        Parsed::Unknown => return Verdict::NotOurs,
        Parsed::Bad { rejection, .. } => return Verdict::Refused(rejection),
    };
    let mut warnings = Vec::new();
    let judged = match &parsed {
        Object::AuthorizationPolicy(policy) => of_policy(settings, policy, object, &mut warnings),
        Object::PeerAuthentication(policy) => {
            of_peer_authentication(settings, &policy.meta.name.namespace, object, &mut warnings)
        }
        Object::RequestAuthentication(policy) => {
            of_request_authentication(settings, policy, object, &mut warnings)
        }
        Object::ServiceEntry(_) => of_service_entry(object, &mut warnings),
        Object::Route(route) => {
            of_route(route, &mut warnings);
            Ok(())
        }
        Object::Namespace(_)
        | Object::Node(_)
        | Object::Pod(_)
        | Object::Service(_)
        | Object::EndpointSlice(_)
        | Object::WorkloadEntry(_)
        | Object::DestinationRule(_)
        | Object::RateLimitPolicy(_)
        | Object::VirtualService(_)
        | Object::Gateway(_)
        | Object::GatewayClass(_)
        | Object::ReferenceGrant(_)
        | Object::MeshConfig(_) => Ok(()),
    };
    match judged {
        Ok(()) => Verdict::Admitted(warnings.into_iter().map(cut).collect()),
        Err(rejection) => Verdict::Refused(rejection),
    }
}

fn of_policy(
    settings: &Settings,
    policy: &AuthorizationPolicy,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Rejection> {
    let spec = read::<policies::AuthorizationPolicy>(object)?.spec;
    of_targets(settings, &policy.meta.name.namespace, spec.target_ref.as_ref(), &spec.target_refs)?;
    for (rule, one) in spec.rules.iter().enumerate() {
        for (when, condition) in one.when.iter().enumerate() {
            of_key(&format!("spec.rules[{rule}].when[{when}].key"), &condition.key)?;
        }
    }
    if matches!(policy.attachment, Attachment::Targets(_)) {
        return Ok(());
    }
    match &policy.content {
        Content::Audit { .. } => Err(needs_waypoint("AUDIT")),
        Content::Custom { .. } => Err(needs_waypoint("CUSTOM")),
        Content::Undecodable(reason) => Err(Rejection::new("spec", reason.clone(), "correct it")),
        Content::Rules { action, rules, dry_run } => {
            if *dry_run && !settings.dry_run_policies {
                warnings.push(
                    "this dry-run policy is not judged: start the controller with --dry-run-policies=true"
                        .to_owned(),
                );
            }
            if rules.is_empty() && *action == Action::Deny {
                warnings.push(
                    "a DENY policy without rules denies nothing; write rules: [{}] to deny all".to_owned(),
                );
            }
            let Some(message) = l7_message(*action, rules, settings.l7_deny) else { return Ok(()) };
            if *action == Action::Deny && settings.l7_deny == L7Deny::Refuse {
                let index = rules.iter().position(|rule| !rule.left_out.is_empty()).unwrap_or_default();
                let attributes = rules.get(index).map(|rule| rule.left_out.join(", ")).unwrap_or_default();
                return Err(Rejection::new(
                    format!("spec.rules[{index}]"),
                    format!(
                        "tunnels do not see {attributes}, so this DENY cannot be enforced as it is written"
                    ),
                    "attach the policy to a waypoint with targetRefs, or deny by port, address or identity",
                ));
            }
            warnings.push(message);
            Ok(())
        }
    }
}

fn needs_waypoint(action: &str) -> Rejection {
    Rejection::new(
        "spec.action",
        format!("{action} needs a waypoint: tunnels only have ALLOW and DENY"),
        "attach the policy to a waypoint with targetRefs, or choose ALLOW or DENY",
    )
}

fn of_request_authentication(
    settings: &Settings,
    policy: &RequestAuthentication,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Rejection> {
    let spec = read::<tokens::RequestAuthentication>(object)?.spec;
    of_targets(settings, &policy.meta.name.namespace, spec.target_ref.as_ref(), &spec.target_refs)?;
    if policy.attachment.targets().is_empty() {
        warnings.push(APPLIES_TO_NOTHING.to_owned());
    }
    if policy.names_timeout {
        warnings.push(TIMEOUT_NOT_USED.to_owned());
    }
    Ok(())
}

fn of_targets(
    settings: &Settings,
    namespace: &Namespace,
    one: Option<&TargetRef>,
    several: &[TargetRef],
) -> Result<(), Rejection> {
    if let Some(target) = one {
        of_target(settings, namespace, "spec.targetRef", target)?;
    }
    for (index, target) in several.iter().enumerate() {
        of_target(settings, namespace, &format!("spec.targetRefs[{index}]"), target)?;
    }
    Ok(())
}

fn of_target(
    settings: &Settings,
    namespace: &Namespace,
    field: &str,
    target: &TargetRef,
) -> Result<(), Rejection> {
    let group = match target.kind.as_str() {
        "Gateway" | "GatewayClass" => "gateway.networking.k8s.io",
        "Service" => "",
        "ServiceEntry" => entries::ServiceEntry::GROUP,
        other => {
            return Err(Rejection::new(
                format!("{field}.kind"),
                format!("{other:?} cannot have policies"),
                "name a Gateway, GatewayClass, Service or ServiceEntry",
            ));
        }
    };
    let kubernetes_own = group.is_empty() && target.group == "core";
    if target.group != group && !kubernetes_own {
        return Err(Rejection::new(
            format!("{field}.group"),
            format!("{:?} has no {}", target.group, target.kind),
            format!("write {group:?}"),
        ));
    }
    if target.name.is_empty() {
        return Err(Rejection::new(format!("{field}.name"), "is missing", format!("name a {}", target.kind)));
    }
    if target.kind == "GatewayClass" && *namespace != settings.root_namespace {
        return Err(Rejection::new(
            format!("{field}.kind"),
            "GatewayClass counts only in the root namespace",
            format!("move the policy to {}, or name a Gateway", settings.root_namespace),
        ));
    }
    Ok(())
}

/// Attributes that a waypoint can judge, beside those of connections. A misspelt one would match nothing.
fn of_key(field: &str, key: &str) -> Result<(), Rejection> {
    const PLAIN: [&str; 11] = [
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "remote.ip",
        "destination.ip",
        "destination.port",
        "connection.sni",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
    ];
    let bracketed = |prefix: &str| {
        let inside = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']'));
        inside.is_some_and(|inside| !inside.is_empty())
    };
    if PLAIN.contains(&key)
        || bracketed("request.headers")
        || bracketed("request.auth.claims")
        || key.starts_with("experimental.envoy.filters.")
    {
        return Ok(());
    }
    Err(Rejection::new(
        field,
        format!("{key:?} is not an attribute"),
        "write one such as source.ip, destination.port or request.headers[name]",
    ))
}

fn of_peer_authentication(
    settings: &Settings,
    namespace: &Namespace,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Rejection> {
    let spec = read::<peers::PeerAuthentication>(object)?.spec;
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
    if !spec.port_level_mtls.is_empty() && !selects {
        return Err(Rejection::new(
            "spec.portLevelMtls",
            "needs a selector: ports are those of chosen workloads",
            "add spec.selector, or set spec.mtls for all ports",
        ));
    }
    if selects && *namespace == settings.root_namespace {
        warnings.push(format!(
            "in {namespace} only a PeerAuthentication without selector counts; put it beside the workloads"
        ));
    }
    let mut modes = spec.port_level_mtls.values().map(|tls| tls.mode).chain(spec.mtls.map(|tls| tls.mode));
    if modes.any(|mode| mode == peers::Mode::Disable) {
        warnings
            .push("DISABLE is taken for PERMISSIVE: captured workloads always accept mutual TLS".to_owned());
    }
    Ok(())
}

fn of_service_entry(object: &Value, warnings: &mut Vec<String>) -> Result<(), Rejection> {
    let spec = read::<entries::ServiceEntry>(object)?.spec;
    let resolution = spec.resolution;
    let refuse = |field: String, what: &str, remedy: &str| Err(Rejection::new(field, what, remedy));
    let selects = spec.workload_selector.as_ref().is_some_and(|selector| !selector.labels.is_empty());
    if selects && !spec.endpoints.is_empty() {
        return refuse("spec".to_owned(), "has endpoints and a workloadSelector", "remove one of the two");
    }
    for (index, host) in spec.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        let wildcard = host.starts_with('*');
        match resolution {
            _ if host == "*" => {
                return refuse(field, "stands for every name", "name a domain, *.example.com");
            }
            entries::Resolution::Dns | entries::Resolution::DnsRoundRobin
                if wildcard && spec.endpoints.is_empty() && !selects =>
            {
                let remedy = "write endpoints, or choose resolution DYNAMIC_DNS or NONE";
                return refuse(field, "stands for many names, which DNS cannot look up", remedy);
            }
            entries::Resolution::DynamicDns if !wildcard => {
                let remedy = "write *.domain, or choose resolution DNS";
                return refuse(field, "must stand for many names with resolution DYNAMIC_DNS", remedy);
            }
            entries::Resolution::None
            | entries::Resolution::Static
            | entries::Resolution::Dns
            | entries::Resolution::DnsRoundRobin
            | entries::Resolution::DynamicDns => {}
        }
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in spec.ports.iter().enumerate() {
        if port.name.is_empty() {
            return refuse(format!("spec.ports[{index}].name"), "is missing", "name the port, such as http");
        }
        if !names.insert(port.name.as_str()) {
            return refuse(
                format!("spec.ports[{index}].name"),
                "is taken by another port",
                "choose another name",
            );
        }
        if !numbers.insert(port.number) {
            return refuse(
                format!("spec.ports[{index}].number"),
                "is taken by another port",
                "remove one of them",
            );
        }
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{index}]");
        match resolution {
            entries::Resolution::None | entries::Resolution::DynamicDns => {
                let remedy = "remove endpoints, or choose resolution STATIC or DNS";
                return refuse("spec.endpoints".to_owned(), "are not used with this resolution", remedy);
            }
            entries::Resolution::Static if endpoint.address.parse::<std::net::IpAddr>().is_err() => {
                let remedy = "write an IP address, or choose resolution DNS";
                return refuse(
                    format!("{field}.address"),
                    "must be an IP address with resolution STATIC",
                    remedy,
                );
            }
            entries::Resolution::Static | entries::Resolution::Dns | entries::Resolution::DnsRoundRobin => {}
        }
        if let Some(name) = endpoint.ports.keys().find(|name| !names.contains(name.as_str())) {
            let what = "is not the name of a port of the entry";
            return refuse(format!("{field}.ports.{name}"), what, "write a name from spec.ports");
        }
    }
    if resolution == entries::Resolution::Static && spec.endpoints.is_empty() && !selects {
        warnings
            .push("nobody answers: with resolution STATIC write endpoints or a workloadSelector".to_owned());
    }
    if spec.ports.is_empty() {
        warnings.push("it has no ports, so nothing can be reached through it".to_owned());
    }
    Ok(())
}

/// What in a route does nothing. Its parents and backends may still come; its status tells of them.
fn of_route(route: &Route, warnings: &mut Vec<String>) {
    for parent in &route.parents {
        if let ParentTarget::WrongGroup { kind, group } = &parent.to {
            warnings.push(format!("a parent is a {kind} of a group that has none; write group: {group:?}"));
        }
    }
    if matches!(&route.content, RouteContent::Requests(requests) if requests.names_hosts) {
        warnings.push(
            "hostnames are not compared for parents that are services; match the header Host".to_owned(),
        );
    }
}

fn read<T: serde::de::DeserializeOwned>(object: &Value) -> Result<T, Rejection> {
    typed(object)
        .map_err(|error| Rejection::new(error.field, error.what, "give it the shape that its kind has"))
}

fn cut(warning: String) -> String {
    if warning.len() <= WARNING {
        return warning;
    }
    const ELLIPSIS: &str = "...";
    let longest = WARNING - ELLIPSIS.len();
    let end = (0..=longest).rev().find(|at| warning.is_char_boundary(*at)).unwrap_or_default();
    format!("{}{ELLIPSIS}", warning.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambit_api::directory::read_text;

    /// `admitted`, the first warning, or `refused: field`.
    fn told(settings: &Settings, yaml: &str) -> String {
        let loaded = read_text(std::path::Path::new("f.yaml"), yaml);
        assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
        let document = &loaded.objects[0];
        let asked = Asked {
            group: document.group(),
            version: document.version(),
            kind: &document.kind,
            namespace: &document.namespace,
            name: &document.name,
            object: &document.value,
        };
        match judge(settings, &asked) {
            Verdict::NotOurs => "not ours".to_owned(),
            Verdict::Admitted(warnings) => {
                assert!(warnings.iter().all(|warning| warning.len() <= WARNING), "{warnings:?}");
                warnings.first().cloned().unwrap_or_else(|| "admitted".to_owned())
            }
            Verdict::Refused(rejection) => {
                assert!(!rejection.remedy.is_empty() && !rejection.what.is_empty());
                format!("refused: {}", rejection.field)
            }
        }
    }

    fn policy(namespace: &str, spec: &str) -> String {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: \
             {namespace}}}\nspec: {spec}\n"
        )
    }

    #[test]
    fn policies_are_kept_out_when_they_cannot_be_enforced_where_they_are() {
        for (namespace, spec, expected) in [
            ("a", "{}", "admitted"),
            ("a", "{rules: [{}]}", "admitted"),
            ("a", "{action: CUSTOM, provider: {name: x}, rules: [{}]}", "refused: spec.action"),
            ("a", "{action: AUDIT, rules: [{}]}", "refused: spec.action"),
            (
                "a",
                "{action: AUDIT, targetRefs: [{kind: Service, group: '', name: s}], rules: [{}]}",
                "admitted",
            ),
            (
                "a",
                "{action: CUSTOM, targetRefs: [{kind: Service, group: '', name: s}], rules: [{}]}",
                "refused: spec.provider.name",
            ),
            (
                "a",
                "{targetRefs: [{kind: Service, name: s}], rules: [{to: [{operation: {paths: ['{*}']}}]}]}",
                "refused: spec.rules[0].to[0].operation.paths[0]",
            ),
            ("a", "{targetRefs: [{kind: Pod, name: s}]}", "refused: spec.targetRefs[0].kind"),
            ("a", "{targetRefs: [{kind: Gateway, name: s}]}", "refused: spec.targetRefs[0].group"),
            (
                "a",
                "{targetRefs: [{kind: Service, name: s}, {kind: Service, name: ''}]}",
                "refused: spec.targetRefs[1].name",
            ),
            ("a", "{targetRef: {kind: Service, name: s, namespace: b}}", "refused: spec.targetRef.namespace"),
            (
                "a",
                "{targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}]}",
                "refused: spec.targetRefs[0].kind",
            ),
            (
                "istio-system",
                "{targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}]}",
                "admitted",
            ),
            (
                "a",
                "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: s}]}",
                "refused: spec",
            ),
            ("a", "{rules: [{form: []}]}", "refused: spec.rules[0].form"),
            (
                "a",
                "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}",
                "refused: spec.rules[0].from[0].source.ipBlocks[0]",
            ),
            (
                "a",
                "{rules: [{when: [{key: source.adress, values: [x]}]}]}",
                "refused: spec.rules[0].when[0].key",
            ),
            (
                "a",
                "{rules: [{when: [{key: 'request.headers[]', values: [x]}]}]}",
                "refused: spec.rules[0].when[0].key",
            ),
            (
                "a",
                "{action: DENY}",
                "a DENY policy without rules denies nothing; write rules: [{}] to deny all",
            ),
        ] {
            assert_eq!(told(&Settings::default(), &policy(namespace, spec)), expected, "{spec}");
        }
    }

    #[test]
    fn a_denial_that_tunnels_cannot_see_is_never_admitted_in_silence() {
        let deny = policy("a", "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}");
        let attached = policy(
            "a",
            "{action: DENY, targetRefs: [{kind: Service, name: s}], rules: [{to: [{operation: {methods: [GET]}}]}]}",
        );
        let allow = policy("a", "{rules: [{to: [{operation: {methods: [GET]}}]}]}");
        for (l7_deny, says) in [
            (L7Deny::Deny, "so more is denied"),
            (L7Deny::Upstream, "denies nothing"),
            (L7Deny::Refuse, "refused: spec.rules[0]"),
        ] {
            let settings = Settings { l7_deny, ..Settings::default() };
            let told_of_deny = told(&settings, &deny);
            assert!(told_of_deny.contains(says), "{l7_deny:?}: {told_of_deny}");
            assert_eq!(told(&settings, &attached), "admitted", "a waypoint sees it");
            assert!(told(&settings, &allow).contains("less is allowed"), "compatibility demands it");
        }
    }

    #[test]
    fn peer_authentications_need_workloads_for_their_ports() {
        let of = |namespace: &str, spec: &str| {
            format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: \
                 {namespace}}}\nspec: {spec}\n"
            )
        };
        for (namespace, spec, expected) in [
            ("a", "{mtls: {mode: STRICT}}", "admitted"),
            ("a", "{portLevelMtls: {'80': {mode: STRICT}}}", "refused: spec.portLevelMtls"),
            ("a", "{selector: {}, portLevelMtls: {'80': {mode: STRICT}}}", "refused: spec.portLevelMtls"),
            ("a", "{selector: {matchLabels: {a: b}}, portLevelMtls: {'80': {mode: STRICT}}}", "admitted"),
            (
                "a",
                "{selector: {matchLabels: {a: b}}, portLevelMtls: {'0': {mode: STRICT}}}",
                "refused: spec.portLevelMtls.0",
            ),
            ("a", "{mtls: {mode: Strict}}", "refused: spec.mtls.mode"),
            (
                "a",
                "{mtls: {mode: DISABLE}}",
                "DISABLE is taken for PERMISSIVE: captured workloads always accept mutual TLS",
            ),
            (
                "istio-system",
                "{selector: {matchLabels: {a: b}}}",
                "in istio-system only a PeerAuthentication without selector counts; put it beside the workloads",
            ),
        ] {
            assert_eq!(told(&Settings::default(), &of(namespace, spec)), expected, "{spec}");
        }
    }

    #[test]
    fn request_authentications_are_kept_out_or_warned_of_when_waypoints_cannot_do_as_they_say() {
        let of = |spec: &str| {
            format!(
                "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: p, namespace: a}}\n\
                 spec: {spec}\n"
            )
        };
        let web = "targetRefs: [{kind: Service, group: '', name: web}]";
        for (spec, expected) in [
            (format!("{{{web}, jwtRules: [{{issuer: 'https://a'}}]}}"), "admitted"),
            (format!("{{{web}, jwtRules: [{{issuer: a}}]}}"), "refused: spec.jwtRules[0].jwksUri"),
            ("{targetRefs: [{kind: Gateway, name: g}]}".to_owned(), "refused: spec.targetRefs[0].group"),
            (
                "{targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: c}]}".to_owned(),
                "refused: spec.targetRefs[0].kind",
            ),
            ("{selector: {matchLabels: {a: b}}}".to_owned(), APPLIES_TO_NOTHING),
            (format!("{{{web}, jwtRules: [{{issuer: 'https://a', timeout: 1s}}]}}"), TIMEOUT_NOT_USED),
        ] {
            assert_eq!(told(&Settings::default(), &of(&spec)), expected, "{spec}");
        }
    }

    #[test]
    fn entries_that_contradict_themselves_are_kept_out() {
        let of = |spec: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: a}}\nspec: \
                 {spec}\n"
            )
        };
        let port = "ports: [{number: 80, name: http, protocol: HTTP}]";
        for (spec, expected) in [
            (format!("{{hosts: [a.example], {port}, resolution: DNS}}"), "admitted"),
            (format!("{{hosts: [], {port}}}"), "refused: spec.hosts"),
            (format!("{{hosts: ['*'], {port}}}"), "refused: spec.hosts[0]"),
            (
                format!("{{hosts: [a.example, '*.b.example'], {port}, resolution: DNS}}"),
                "refused: spec.hosts[1]",
            ),
            (format!("{{hosts: [a.example], {port}, resolution: DYNAMIC_DNS}}"), "refused: spec.hosts[0]"),
            (format!("{{hosts: ['*.b.example'], {port}, resolution: DYNAMIC_DNS}}"), "admitted"),
            (
                format!(
                    "{{hosts: [a.example], {port}, resolution: STATIC, endpoints: [{{address: b.example}}]}}"
                ),
                "refused: spec.endpoints[0].address",
            ),
            (
                format!("{{hosts: [a.example], {port}, endpoints: [{{address: 10.0.0.1}}]}}"),
                "refused: spec.endpoints",
            ),
            (
                format!(
                    "{{hosts: [a.example], {port}, resolution: STATIC, workloadSelector: {{labels: {{a: b}}}}, \
                     endpoints: [{{address: 10.0.0.1}}]}}"
                ),
                "refused: spec",
            ),
            (
                format!(
                    "{{hosts: [a.example], {port}, resolution: STATIC, endpoints: [{{address: 10.0.0.1, ports: {{htpp: \
                     81}}}}]}}"
                ),
                "refused: spec.endpoints[0].ports.htpp",
            ),
            (
                format!("{{hosts: [a.example], {port}, resolution: STATIC}}"),
                "nobody answers: with resolution STATIC write endpoints or a workloadSelector",
            ),
            (
                "{hosts: [a.example], ports: [{number: 80, name: a}, {number: 80, name: b}]}".to_owned(),
                "refused: spec.ports[1].number",
            ),
            (
                "{hosts: [a.example], ports: [{number: 80, name: a}, {number: 81, name: a}]}".to_owned(),
                "refused: spec.ports[1].name",
            ),
            ("{hosts: [a.example], ports: [{number: 80}]}".to_owned(), "refused: spec.ports[0].name"),
            (
                "{hosts: [a.example], ports: [{number: 99999, name: a}]}".to_owned(),
                "refused: spec.ports[].number",
            ),
        ] {
            assert_eq!(told(&Settings::default(), &of(&spec)), expected, "{spec}");
        }
    }

    #[test]
    fn routes_of_services_are_judged_and_those_of_gateways_are_not() {
        let of = |spec: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec: \
                 {spec}\n"
            )
        };
        let web = "parentRefs: [{group: '', kind: Service, name: web}]";
        let bad = "rules: [{filters: [{type: ExtensionRef}]}]";
        for (spec, expected) in [
            (format!("{{{web}, rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}"), "admitted"),
            (format!("{{{web}, {bad}}}"), "refused: spec.rules[0].filters[0].type"),
            (format!("{{parentRefs: [{{name: front}}], {bad}}}"), "admitted"),
            (
                format!("{{{web}, hostnames: [a.example]}}"),
                "hostnames are not compared for parents that are services; match the header Host",
            ),
            (
                "{parentRefs: [{kind: Service, name: web}]}".to_owned(),
                "a parent is a Service of a group that has none; write group: \"\"",
            ),
        ] {
            assert_eq!(told(&Settings::default(), &of(&spec)), expected, "{spec}");
        }
    }

    #[test]
    fn other_kinds_are_none_of_its_business() {
        let yaml = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: 7\n";
        assert_eq!(told(&Settings::default(), yaml), "not ours");
    }

    #[test]
    fn a_name_that_is_still_to_be_made_up_is_no_mistake() {
        let object = serde_json::json!({ "metadata": { "generateName": "p-" }, "spec": { "rules": [{}] } });
        let asked = Asked {
            group: "security.istio.io",
            version: "v1",
            kind: "AuthorizationPolicy",
            namespace: "a",
            name: "",
            object: &object,
        };
        assert_eq!(judge(&Settings::default(), &asked), Verdict::Admitted(Vec::new()));
    }
}
