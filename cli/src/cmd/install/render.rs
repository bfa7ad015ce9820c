//! From charts and values to objects: what `helm template` does, for as much of Helm as our charts use.

mod functions;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, bail};
use gotmpl::{Template, Value as Word};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::charts::Chart;
use super::object::Object;
use super::{schema, values};

/// The name of the release, in labels.
const RELEASE: &str = "ambit";
/// Where templates of the kind that Helm prints after an installation are.
const NOTES: &str = "templates/NOTES.txt";

/// What charts make of values.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// The objects, in the order in which they are installed.
    pub(crate) objects: Vec<Object>,
    /// What to tell the operator.
    pub(crate) notes: String,
}

/// Renders `chart` with `said` over what it says by itself.
pub(crate) fn render(chart: &Chart, said: &Value, namespace: &str) -> anyhow::Result<Rendered> {
    let whole = values::of_chart(chart, said);
    let mut wrong = offences(chart, &whole, "");
    let mut parts = Vec::new();
    for (part, condition) in &chart.parts {
        if values::switched_on(&whole, condition) {
            let values = values::of_part(part, &whole);
            wrong.extend(offences(part, &values, &part.name));
            parts.push((part, values));
        }
    }
    // What all parts share is wrong once, not once for each.
    wrong.sort();
    wrong.dedup();
    if !wrong.is_empty() {
        bail!("these values cannot be installed:\n  {}", wrong.join("\n  "));
    }
    let mut texts = Vec::new();
    let mut notes = String::new();
    for (chart, values) in std::iter::once((chart, whole.clone())).chain(parts) {
        for (path, text) in template(chart, &values, namespace)? {
            if path == NOTES {
                // As with Helm, those of the whole.
                if notes.is_empty() {
                    notes = text;
                }
            } else {
                texts.push((format!("{}/{path}", chart.name), text));
            }
        }
    }
    let mut objects = Vec::new();
    for (path, text) in texts {
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let value = Value::deserialize(document).with_context(|| {
                format!("{path} with these values is not YAML; are quotes missing in a value?")
            })?;
            if !value.is_null() {
                objects.push(Object::new(value).with_context(|| format!("in {path}"))?);
            }
        }
    }
    objects.sort_by_key(Object::order);
    Ok(Rendered { objects, notes })
}

/// Where `values` are not what `chart` allows. Paths begin at the whole.
fn offences(chart: &Chart, values: &Value, part: &str) -> Vec<String> {
    let place = |offence: String| {
        let is_shared = offence.starts_with("global.");
        if part.is_empty() || is_shared { offence } else { format!("{part}.{offence}") }
    };
    schema::offences(values, &chart.schema).into_iter().map(place).collect()
}

/// The texts of a chart's templates, by their paths.
fn template(chart: &Chart, values: &Value, namespace: &str) -> anyhow::Result<Vec<(&'static str, String)>> {
    // `include` executes what is defined here, which is known when all of it is parsed.
    let parsed: Arc<OnceLock<Template>> = Arc::default();
    let mut templates = functions::all(Template::new(&chart.name), &parsed);
    let mut paths = Vec::new();
    for (path, text) in chart.templates() {
        // Here files are looked up by a function that is a value, which wants to be called by name.
        let text = text.replace("$.Files.Get", "call $.Files.Get");
        let text = if path.ends_with(".tpl") {
            text
        } else {
            paths.push(path);
            format!("{{{{define {path:?}}}}}{text}{{{{end}}}}")
        };
        templates = templates.parse(&text).with_context(|| format!("in {}/{path}", chart.name))?;
    }
    let templates = parsed.get_or_init(|| templates);
    let context = context(chart, values, namespace);
    let execute = |path: &'static str| {
        let text = templates.execute_template_to_string(path, &context);
        Ok((path, text.with_context(|| format!("in {}/{path}", chart.name))?))
    };
    paths.into_iter().map(execute).collect()
}

/// What templates see as `.`.
fn context(chart: &Chart, values: &Value, namespace: &str) -> Word {
    let seen = functions::word(&json!({
        "Values": values,
        "Chart": { "Name": chart.name, "Version": chart.version, "AppVersion": chart.app_version },
        "Release": { "Name": RELEASE, "Namespace": namespace },
    }));
    let get = |args: &[Word]| {
        let path = args.first().and_then(Word::as_str).unwrap_or_default();
        // As with Helm, what is not there is empty.
        Ok(Word::from(Chart::extra(path).unwrap_or_default()))
    };
    let files = BTreeMap::from([("Get".to_owned(), Word::Function(Arc::new(get)))]);
    let Word::Map(seen) = seen else { return seen };
    let mut seen = Arc::unwrap_or_clone(seen);
    seen.insert("Files".into(), Word::from(files));
    Word::from(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::install::charts::{self, WHOLE};

    fn rendered(said: &Value) -> anyhow::Result<Rendered> {
        render(&Chart::load(WHOLE)?, said, "istio-system")
    }

    fn find<'a>(rendered: &'a Rendered, kind: &str, name: &str) -> &'a Value {
        let found = rendered.objects.iter().find(|object| object.key.kind == kind && object.key.name == name);
        &found.unwrap_or_else(|| panic!("no {kind} {name}")).value
    }

    #[test]
    fn the_default_has_every_part() {
        let rendered = rendered(&json!({})).unwrap();
        let deployment = find(&rendered, "Deployment", "ambit-controller");
        assert_eq!(deployment["metadata"]["labels"]["istio.io/rev"], "default");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], format!("ambit/controller:{}", env!("CARGO_PKG_VERSION")));
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        find(&rendered, "DaemonSet", "ambit-cni-node");
        find(&rendered, "DaemonSet", "ztunnel");
        find(&rendered, "Service", "istiod");
        find(&rendered, "ValidatingWebhookConfiguration", "ambit-validator-istio-system");
        let policies = find(&rendered, "CustomResourceDefinition", "authorizationpolicies.security.istio.io");
        assert_eq!(policies["metadata"]["labels"]["app.kubernetes.io/part-of"], "ambit");
        assert!(rendered.notes.contains("istio.io/dataplane-mode=ambient"), "{}", rendered.notes);
    }

    #[test]
    fn a_revision_ends_names_and_tells_tunnels_where_to_go() {
        let rendered =
            rendered(&json!({ "global": { "revision": "v2", "istioNamespace": "mesh" } })).unwrap();
        find(&rendered, "Deployment", "ambit-controller-v2");
        find(&rendered, "ClusterRole", "ambit-controller-v2-mesh");
        find(&rendered, "Service", "istiod-v2");
        find(&rendered, "ValidatingWebhookConfiguration", "ambit-validator-v2-mesh");
        let tunnel = find(&rendered, "DaemonSet", "ztunnel");
        let env = tunnel["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        assert!(env.contains(&json!({ "name": "XDS_ADDRESS", "value": "https://istiod-v2.mesh.svc:15012" })));
        assert!(
            rendered.objects.iter().all(|object| object
                .key
                .namespace
                .as_deref()
                .is_none_or(|ns| ns == "mesh"))
        );
    }

    #[test]
    fn every_definition_that_is_carried_is_installed() {
        let rendered = rendered(&json!({})).unwrap();
        let installed =
            rendered.objects.iter().filter(|object| object.key.kind == "CustomResourceDefinition");
        let carried = charts::definitions().count();
        assert!(carried >= 13);
        assert_eq!(installed.count(), carried, "a file of install/crds is not in base/templates/crds.yaml");
    }

    #[test]
    fn what_is_switched_off_is_not_there() {
        let said = json!({ "base": { "enabled": false }, "cni": { "enabled": false }, "ztunnel": { "enabled": false } });
        let rendered = rendered(&said).unwrap();
        assert!(
            rendered
                .objects
                .iter()
                .all(|object| object.key.name.contains("ambit-") || object.key.name == "istiod")
        );
        assert!(!rendered.objects.iter().any(|object| object.key.kind == "DaemonSet"));
    }

    #[test]
    fn definitions_come_first_and_the_webhook_last() {
        let rendered = rendered(&json!({ "base": { "namespace": { "create": true } } })).unwrap();
        let kinds: Vec<_> = rendered.objects.iter().map(|object| object.key.kind.as_str()).collect();
        assert_eq!(kinds[0], "Namespace");
        assert_eq!(kinds[1], "CustomResourceDefinition");
        assert_eq!(kinds.last(), Some(&"ValidatingWebhookConfiguration"));
        let place = |kind: &str, name: &str| {
            rendered
                .objects
                .iter()
                .position(|object| object.key.kind == kind && object.key.name == name)
                .unwrap()
        };
        // A tunnel must be there before pods are made to wait for one.
        assert!(place("DaemonSet", "ztunnel") < place("DaemonSet", "ambit-cni-node"));
        assert!(place("Deployment", "ambit-controller") < place("DaemonSet", "ztunnel"));
    }

    #[test]
    fn every_preset_can_be_installed() {
        for said in ["default", "minimal", "production", "canary"].map(|name| charts::profile(name).unwrap())
        {
            rendered(&said).unwrap();
        }
        for said in ["gke", "eks", "openshift", "k3s", "minikube"].map(|name| charts::platform(name).unwrap())
        {
            rendered(&said).unwrap();
        }
    }

    #[test]
    fn a_mistake_is_told_once_with_its_place() {
        let error =
            rendered(&json!({ "global": { "hubb": "x" }, "cni": { "probe": 1 } })).unwrap_err().to_string();
        assert_eq!(error.matches("global.hubb is not known").count(), 1, "{error}");
        assert!(error.contains("cni.probe is not known; known are:"), "{error}");
        let error =
            rendered(&json!({ "controller": { "ca": { "certManager": { "enabled": true } } } })).unwrap_err();
        assert!(format!("{error:#}").contains("say which issuer signs"), "{error:#}");
    }

    #[test]
    fn nobody_may_more_than_is_written_in_the_chart() {
        let rendered = rendered(&json!({})).unwrap();
        let mut capabilities = BTreeMap::new();
        for object in &rendered.objects {
            let Some(pod) = object.value.pointer("/spec/template/spec") else { continue };
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{}", object.key);
            for container in pod["containers"].as_array().unwrap() {
                let context = &container["securityContext"];
                assert_eq!(context["readOnlyRootFilesystem"], true, "{}", object.key);
                assert_eq!(context["allowPrivilegeEscalation"], false, "{}", object.key);
                assert_ne!(context["privileged"], true, "{}", object.key);
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{}", object.key);
                assert!(container["resources"]["requests"]["memory"].is_string(), "{}", object.key);
                let added = context["capabilities"]["add"].as_array().cloned().unwrap_or_default();
                capabilities.insert(object.key.name.clone(), json!(added));
            }
        }
        let expected = BTreeMap::from([
            ("ambit-cni-node".to_owned(), json!(["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "DAC_OVERRIDE"])),
            ("ambit-controller".to_owned(), json!([])),
            ("ztunnel".to_owned(), json!(["NET_ADMIN", "SYS_ADMIN"])),
        ]);
        assert_eq!(capabilities, expected);
    }

    #[test]
    fn what_was_said_cannot_become_yaml() {
        let said = json!({ "global": { "logLevel": "info\"}\n- x: {y: \"" } });
        let rendered = rendered(&said).unwrap();
        let env =
            &find(&rendered, "DaemonSet", "ztunnel")["spec"]["template"]["spec"]["containers"][0]["env"];
        let level = env.as_array().unwrap().iter().find(|one| one["name"] == "RUST_LOG").unwrap();
        assert_eq!(level["value"], said["global"]["logLevel"]);
    }
}
