//! The CustomResourceDefinitions of the Istio kinds that the mesh reads: same group, versions and names, the schema of
//! what it understands; and of our own. What it does not know is kept, so that the controller can say so.
//!
//! `install/crds/` holds them as YAML; `cargo run -p ambit-api --example crds` writes them anew.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::authorization_policy::{AuthorizationPolicy, AuthorizationPolicySpec};
use crate::destination_rule::{DestinationRule, DestinationRuleSpec};
use crate::kind::CustomKind;
use crate::peer_authentication::{PeerAuthentication, PeerAuthenticationSpec};
use crate::rate_limit_policy::{RateLimitPolicy, RateLimitPolicySpec};
use crate::request_authentication::{RequestAuthentication, RequestAuthenticationSpec};
use crate::service_entry::{ServiceEntry, ServiceEntrySpec};
use crate::virtual_service::{VirtualService, VirtualServiceSpec};
use crate::workload_entry::{WorkloadEntry, WorkloadEntrySpec};
use crate::workload_group::{WorkloadGroup, WorkloadGroupSpec};

/// The extension by which the API server keeps fields that a schema does not name.
const KEEP_UNKNOWN: &str = "x-kubernetes-preserve-unknown-fields";

/// A definition, and the file that it is kept in.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// `security.istio.io_authorizationpolicies.yaml`.
    pub file: String,
    /// The object.
    pub object: Value,
}

impl Definition {
    /// The text of the file.
    pub fn yaml(&self) -> Result<String, serde_yaml_ng::Error> {
        Ok(format!("# Written by mesh/api/src/crds.rs.\n{}", serde_yaml_ng::to_string(&self.object)?))
    }
}

/// A column of `kubectl get`.
struct Column(&'static str, &'static str);

/// All of them.
pub fn all() -> Vec<Definition> {
    vec![
        definition::<AuthorizationPolicy, AuthorizationPolicySpec>("ap", &[Column("Action", ".spec.action")]),
        definition::<PeerAuthentication, PeerAuthenticationSpec>("pa", &[Column("Mode", ".spec.mtls.mode")]),
        definition::<RequestAuthentication, RequestAuthenticationSpec>("ra", &[]),
        definition::<ServiceEntry, ServiceEntrySpec>(
            "se",
            &[
                Column("Hosts", ".spec.hosts"),
                Column("Location", ".spec.location"),
                Column("Resolution", ".spec.resolution"),
            ],
        ),
        definition::<VirtualService, VirtualServiceSpec>(
            "vs",
            &[Column("Gateways", ".spec.gateways"), Column("Hosts", ".spec.hosts")],
        ),
        definition::<WorkloadEntry, WorkloadEntrySpec>("we", &[Column("Address", ".spec.address")]),
        definition::<WorkloadGroup, WorkloadGroupSpec>("wg", &[]),
        definition::<DestinationRule, DestinationRuleSpec>("dr", &[Column("Host", ".spec.host")]),
        definition::<RateLimitPolicy, RateLimitPolicySpec>("rlp", &[]),
    ]
}

fn definition<K: CustomKind, S: JsonSchema>(short: &str, columns: &[Column]) -> Definition {
    let columns: Vec<_> = columns
        .iter()
        .map(|Column(name, path)| json!({ "name": name, "type": "string", "jsonPath": path }))
        .chain([json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" })])
        .collect();
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": structural::<S>(),
            // Several write conditions, each its own: without the key, whoever applies one takes away all others.
            "status": {
                "type": "object",
                KEEP_UNKNOWN: true,
                "properties": {
                    "conditions": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["type"],
                        "items": {
                            "type": "object",
                            "required": ["type"],
                            "properties": { "type": { "type": "string" } },
                            KEEP_UNKNOWN: true,
                        },
                    },
                },
            },
        },
    });
    let versions = K::VERSIONS.iter().enumerate().map(|(place, name)| {
        json!({
            "name": name,
            "served": true,
            "storage": place == 0,
            "subresources": { "status": {} },
            "additionalPrinterColumns": columns,
            "schema": { "openAPIV3Schema": schema },
        })
    });
    let mut categories = vec![K::GROUP.replace('.', "-")];
    if K::GROUP.ends_with(".istio.io") {
        categories.insert(0, "istio-io".to_owned());
    }
    let object = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{}.{}", K::PLURAL, K::GROUP) },
        "spec": {
            "group": K::GROUP,
            "names": {
                "kind": K::KIND,
                "listKind": format!("{}List", K::KIND),
                "plural": K::PLURAL,
                "singular": K::KIND.to_lowercase(),
                "shortNames": [short],
                "categories": categories,
            },
            "scope": "Namespaced",
            "versions": versions.collect::<Vec<_>>(),
        },
    });
    Definition { file: format!("{}_{}.yaml", K::GROUP, K::PLURAL), object }
}

/// The schema of `S` as Kubernetes wants it: no references, one type at each place, nothing that constrains beside it.
fn structural<S: JsonSchema>() -> Value {
    let root = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<S>();
    let mut root = root.to_value();
    let definitions = root.as_object_mut().and_then(|root| root.remove("$defs")).unwrap_or(Value::Null);
    settle(&root, &definitions)
}

fn settle(schema: &Value, definitions: &Value) -> Value {
    let Some(schema) = schema.as_object() else { return anything() };
    let mut schema = flatten(schema, definitions);
    let nullable = take_null(&mut schema, definitions);
    let mut settled = Map::new();
    for word in ["description", "type", "enum", "required", "minimum", "maximum"] {
        if let Some(value) = schema.remove(word) {
            settled.insert(word.to_owned(), value);
        }
    }
    // What links in documentation is only noise in `kubectl explain`.
    if let Some(Value::String(text)) = settled.get_mut("description") {
        *text = text.replace("[`", "").replace("`]", "").replace('`', "");
    }
    // A number that ours cannot hold is refused when it is written.
    match schema.get("format").and_then(Value::as_str) {
        Some("uint32") => drop(settled.insert("maximum".to_owned(), json!(u32::MAX))),
        Some("uint16") => drop(settled.insert("maximum".to_owned(), json!(u16::MAX))),
        Some(_) | None => {}
    }
    if let Some(items) = schema.get("items") {
        settled.insert("items".to_owned(), settle(items, definitions));
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let properties = properties.iter().map(|(name, one)| (name.clone(), settle(one, definitions)));
        settled.insert("properties".to_owned(), Value::Object(properties.collect()));
        settled.insert(KEEP_UNKNOWN.to_owned(), json!(true));
    } else if let Some(values @ Value::Object(_)) = schema.get("additionalProperties") {
        settled.insert("additionalProperties".to_owned(), settle(values, definitions));
    } else if settled.get("type").is_none_or(|kind| kind == "object") {
        settled.insert(KEEP_UNKNOWN.to_owned(), json!(true));
    }
    if nullable {
        settled.insert("nullable".to_owned(), json!(true));
    }
    Value::Object(settled)
}

/// What a place without a schema accepts.
fn anything() -> Value {
    json!({ KEEP_UNKNOWN: true })
}

/// The schema that a reference means, with the description of the place; and alternatives that are single words as an
/// `enum`.
fn flatten(schema: &Map<String, Value>, definitions: &Value) -> Map<String, Value> {
    let mut schema = schema.clone();
    let referred = schema.remove("$ref").and_then(|to| {
        let name = to.as_str()?.rsplit('/').next()?.to_owned();
        definitions.get(&name)?.as_object().cloned()
    });
    for (word, value) in referred.into_iter().flatten() {
        schema.entry(word).or_insert(value);
    }
    if let Some(Value::Array(choices)) = schema.remove("oneOf") {
        let words = |choice: &Value| match (choice.get("const"), choice.get("enum")) {
            (Some(word), _) => vec![word.clone()],
            (None, Some(Value::Array(words))) => words.clone(),
            (None, _) => Vec::new(),
        };
        schema.insert("type".to_owned(), json!("string"));
        schema.insert("enum".to_owned(), choices.iter().flat_map(words).collect());
    }
    schema
}

/// Whether `null` is accepted, too; it is no longer mentioned then.
fn take_null(schema: &mut Map<String, Value>, definitions: &Value) -> bool {
    if let Some(Value::Array(kinds)) = schema.get("type") {
        let (nulls, others): (Vec<_>, Vec<_>) = kinds.iter().cloned().partition(|kind| kind == "null");
        if let Some(kind) = others.into_iter().next() {
            schema.insert("type".to_owned(), kind);
        }
        return !nulls.is_empty();
    }
    let Some(Value::Array(choices)) = schema.remove("anyOf") else { return false };
    let is_null = |choice: &&Value| choice.get("type").is_some_and(|kind| kind == "null");
    if let Some(choice) = choices.iter().find(|choice| !is_null(choice)).and_then(Value::as_object) {
        for (word, value) in flatten(choice, definitions) {
            schema.entry(word).or_insert(value);
        }
    }
    choices.iter().any(|choice| is_null(&choice))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every schema in it, with the path to it.
    fn places(schema: &Value, path: &str, found: &mut Vec<(String, Value)>) {
        found.push((path.to_owned(), schema.clone()));
        for (name, one) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            places(one, &format!("{path}.{name}"), found);
        }
        for word in ["items", "additionalProperties"] {
            if let Some(one) = schema.get(word) {
                places(one, &format!("{path}[]"), found);
            }
        }
    }

    #[test]
    fn schemas_are_structural() {
        const WORDS: [&str; 13] = [
            "x-kubernetes-list-type",
            "x-kubernetes-list-map-keys",
            "type",
            "description",
            "properties",
            "items",
            "additionalProperties",
            "enum",
            "required",
            "nullable",
            "minimum",
            "maximum",
            KEEP_UNKNOWN,
        ];
        for definition in all() {
            for version in definition.object["spec"]["versions"].as_array().unwrap() {
                let mut found = Vec::new();
                places(&version["schema"]["openAPIV3Schema"], "", &mut found);
                assert!(found.len() > 5);
                for (path, schema) in found {
                    let place = format!("{}{path}", definition.file);
                    let schema = schema.as_object().unwrap();
                    for word in schema.keys() {
                        assert!(WORDS.contains(&word.as_str()), "{place}: {word} is not structural");
                    }
                    let typed = schema.get("type").is_some_and(Value::is_string);
                    assert!(typed || schema.contains_key(KEEP_UNKNOWN), "{place} has no type: {schema:?}");
                    // The API server accepts one or the other.
                    assert!(
                        !(schema.contains_key("properties") && schema.contains_key("additionalProperties")),
                        "{place}"
                    );
                    if schema.contains_key("properties") && !path.is_empty() {
                        assert_eq!(
                            schema.get(KEEP_UNKNOWN),
                            Some(&json!(true)),
                            "{place} forgets what it does not know"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn places_have_the_types_that_are_read() {
        let policies = &all()[0].object;
        assert_eq!(policies["metadata"]["name"], "authorizationpolicies.security.istio.io");
        let versions = policies["spec"]["versions"].as_array().unwrap();
        assert_eq!((&versions[0]["name"], &versions[0]["storage"]), (&json!("v1"), &json!(true)));
        assert_eq!((&versions[1]["name"], &versions[1]["storage"]), (&json!("v1beta1"), &json!(false)));
        let spec = &versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        assert_eq!(spec["action"]["enum"], json!(["ALLOW", "DENY", "AUDIT", "CUSTOM"]));
        assert_eq!(spec["action"]["type"], "string");
        assert_eq!(spec["selector"]["type"], "object");
        assert_eq!(spec["selector"]["nullable"], true);
        let source = &spec["rules"]["items"]["properties"]["from"]["items"]["properties"]["source"];
        assert_eq!(source["properties"]["ipBlocks"]["items"], json!({ "type": "string" }));
    }
}
