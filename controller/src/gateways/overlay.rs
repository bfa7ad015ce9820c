//! What a user lays over what is made for a Gateway: pieces of objects in a ConfigMap, merged as Kubernetes' strategic
//! merge patches are. Pure.
//!
//! Maps are merged field by field; lists of things that have a key are merged thing by thing, all others are replaced;
//! `null` takes a field away, and so does `$patch: delete` a thing from its list.

use std::collections::BTreeMap;

use ambit_api::directory::read_value;
use serde_json::{Map, Value};

use super::manifest::Made;

/// The word by which a patch says what else to do with a map.
const DIRECTIVE: &str = "$patch";

/// The pieces, by what they are laid over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overlays(BTreeMap<Made, Value>);

impl Overlays {
    /// Reads the ConfigMap's texts. What is no piece of an object is a mistake, so that a slip in a name is seen.
    pub fn read(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut overlays = BTreeMap::new();
        for (key, text) in data {
            let Some(made) = Made::ALL.into_iter().find(|made| made.parameter() == key) else {
                let known = Made::ALL.map(Made::parameter).join(", ");
                return Err(format!("key {key:?} is none of {known}; rename or remove it"));
            };
            let value = read_value(text).map_err(|what| format!("{key}: {what}; write YAML"))?;
            match value {
                Value::Null => {}
                Value::Object(_) => drop(overlays.insert(made, value)),
                Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    return Err(format!("{key}: is no piece of an object; write fields and values"));
                }
            }
        }
        Ok(Self(overlays))
    }

    /// What is laid over such an object.
    pub fn over(&self, made: Made) -> Option<&Value> {
        self.0.get(&made)
    }
}

/// Lays `patch` over `target`.
pub fn merge(target: &mut Value, patch: &Value) {
    merge_field("", target, patch);
}

fn merge_field(field: &str, target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => merge_maps(target, patch),
        (Value::Array(target), Value::Array(patch)) => match key_of(field, patch) {
            Some(key) => merge_lists(key, target, patch),
            None => target.clone_from(patch),
        },
        // Nothing was there: what the patch takes away of it need not be written.
        (target, Value::Object(patch)) => {
            let mut fresh = Map::new();
            merge_maps(&mut fresh, patch);
            *target = Value::Object(fresh);
        }
        (target, patch) => target.clone_from(patch),
    }
}

fn merge_maps(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    if patch.get(DIRECTIVE).and_then(Value::as_str) == Some("replace") {
        target.clear();
    }
    for (field, change) in patch.iter().filter(|(field, _)| *field != DIRECTIVE) {
        if change.is_null() {
            target.remove(field);
        } else {
            merge_field(field, target.entry(field.clone()).or_insert(Value::Null), change);
        }
    }
}

fn merge_lists(key: &str, target: &mut Vec<Value>, patch: &[Value]) {
    for change in patch {
        let there = target.iter().position(|one| one.get(key) == change.get(key));
        let deletes = change.get(DIRECTIVE).and_then(Value::as_str) == Some("delete");
        match there {
            Some(place) if deletes => drop(target.remove(place)),
            Some(place) => {
                if let Some(one) = target.get_mut(place) {
                    merge_field("", one, change);
                }
            }
            None if deletes => {}
            None => {
                let mut fresh = Value::Null;
                merge_field("", &mut fresh, change);
                target.push(fresh);
            }
        }
    }
}

/// By what the things of a list are known, as Kubernetes' API has it; none of a list that is one value.
fn key_of(field: &str, patch: &[Value]) -> Option<&'static str> {
    let has = |key: &str| patch.iter().all(|one| one.get(key).is_some());
    let key = match field {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => "name",
        "volumeMounts" => "mountPath",
        "topologySpreadConstraints" => "topologyKey",
        "hostAliases" => "ip",
        // Containers' and Services' have the same name and different keys.
        "ports" if has("containerPort") => "containerPort",
        "ports" => "port",
        _ => return None,
    };
    has(key).then_some(key)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_are_merged_as_kubernetes_merges_them() {
        for (mut target, patch, want) in [
            (json!({"a": {"b": 1}}), json!({"a": {"c": 2}}), json!({"a": {"b": 1, "c": 2}})),
            (json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": null}}), json!({"a": {"c": 2}})),
            (json!({"a": {"b": 1}}), json!({"a": {"$patch": "replace", "c": 2}}), json!({"a": {"c": 2}})),
            (json!({}), json!({"a": {"b": null, "c": 1}}), json!({"a": {"c": 1}})),
            (
                json!({"containers": [{"name": "p", "image": "i", "env": [{"name": "A", "value": "1"}]}]}),
                json!({"containers": [{"name": "p", "env": [{"name": "B", "value": "2"}]}]}),
                json!({"containers": [{"name": "p", "image": "i",
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}]}),
            ),
            (
                json!({"env": [{"name": "A", "value": "1"}]}),
                json!({"env": [{"name": "A", "$patch": "delete"}, {"name": "C", "$patch": "delete"}]}),
                json!({"env": []}),
            ),
            (
                json!({"ports": [{"port": 1, "name": "a"}]}),
                json!({"ports": [{"port": 1, "nodePort": 3}, {"port": 2}]}),
                json!({"ports": [{"port": 1, "name": "a", "nodePort": 3}, {"port": 2}]}),
            ),
            (
                json!({"ports": [{"containerPort": 1}]}),
                json!({"ports": [{"containerPort": 2}]}),
                json!({"ports": [{"containerPort": 1}, {"containerPort": 2}]}),
            ),
            (json!({"tolerations": [1, 2]}), json!({"tolerations": [3]}), json!({"tolerations": [3]})),
            (json!({"args": ["a"]}), json!({"args": ["b"]}), json!({"args": ["b"]})),
        ] {
            merge(&mut target, &patch);
            assert_eq!(target, want, "patch {patch}");
        }
    }

    #[test]
    fn a_slip_in_the_parameters_is_told() {
        let read = |key: &str, text: &str| Overlays::read(&[(key.to_owned(), text.to_owned())].into());
        assert_eq!(
            read("deployment", "spec: {replicas: 3}").unwrap().over(Made::Deployment),
            Some(&json!({"spec": {"replicas": 3}}))
        );
        assert_eq!(read("service", "# nothing").unwrap(), Overlays::default());
        for (key, text, part) in [
            ("deploymnet", "spec: {}", "horizontalPodAutoscaler"),
            ("service", "spec: [", "service: "),
            ("service", "3", "is no piece"),
        ] {
            let error = read(key, text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_parameters_in_the_page_on_traces_set_the_waypoints_environment() {
        let page = include_str!("../../../docs/tasks/tracing.md");
        let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let documents = blocks.flat_map(|block| block.split("---\n")).map(|text| read_value(text).unwrap());
        let maps: Vec<_> = documents.filter(|document| document["kind"] == "ConfigMap").collect();
        assert_eq!(maps.len(), 2);
        for map in maps {
            let data: BTreeMap<String, String> = serde_json::from_value(map["data"].clone()).unwrap();
            let overlays = Overlays::read(&data).unwrap();
            let container = json!({"name": "istio-proxy", "env": [{"name": "A", "value": "1"}]});
            let mut made = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
            merge(&mut made, overlays.over(Made::Deployment).unwrap());
            let containers = made["spec"]["template"]["spec"]["containers"].as_array().unwrap();
            assert_eq!(containers.len(), 1, "the page names the container as it is made");
            let names: Vec<_> =
                containers[0]["env"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
            assert!(names.contains(&&json!("A")) && names.contains(&&json!("OTEL_EXPORTER_OTLP_ENDPOINT")));
        }
    }
}
