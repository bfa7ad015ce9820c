//! Whether values are what a `values.schema.json` says: the words of JSON Schema that ours use.

use serde_json::{Map, Value};

/// Words that say nothing about values.
const REMARKS: [&str; 3] = ["$schema", "title", "description"];

/// Every place where `values` is not what `schema` says, in words.
pub(crate) fn offences(values: &Value, schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    judge(values, schema, "", &mut found);
    found
}

fn judge(value: &Value, schema: &Value, path: &str, found: &mut Vec<String>) {
    let Some(schema) = schema.as_object() else { return };
    let place = if path.is_empty() { "the values" } else { path };
    for (word, rule) in schema {
        match word.as_str() {
            "type" => {
                let kinds: Vec<_> = rule.as_str().into_iter().chain(strings(rule)).collect();
                if !kinds.iter().any(|kind| is_a(value, kind)) {
                    found.push(format!("{place} is {value}, and must be: {}", kinds.join(" or ")));
                }
            }
            "enum" => {
                let choices = rule.as_array().map_or(&[][..], Vec::as_slice);
                if !choices.contains(value) {
                    let choices: Vec<_> = choices.iter().map(plain).collect();
                    found.push(format!("{place} is {value}, and must be one of: {}", choices.join(", ")));
                }
            }
            "anyOf" => {
                let choices = rule.as_array().map_or(&[][..], Vec::as_slice);
                if !choices.iter().any(|choice| offences(value, choice).is_empty()) {
                    found.push(format!("{place} is {value}, which is none of what it may be"));
                }
            }
            "properties" => properties(value, rule, path, found),
            "additionalProperties" => additional(value, rule, schema, path, found),
            "required" => {
                for name in strings(rule).filter(|name| value.is_object() && value.get(name).is_none()) {
                    found.push(format!("{} is missing", below(path, name)));
                }
            }
            "items" => {
                for (number, one) in value.as_array().into_iter().flatten().enumerate() {
                    judge(one, rule, &format!("{path}[{number}]"), found);
                }
            }
            "minimum" => {
                if value.as_f64().zip(rule.as_f64()).is_some_and(|(is, least)| is < least) {
                    found.push(format!("{place} is {value}, and must be at least {rule}"));
                }
            }
            "minLength" | "maxLength" => {
                let length = value.as_str().map(|text| text.chars().count());
                let limit = rule.as_u64().and_then(|limit| usize::try_from(limit).ok());
                let wrong = length.zip(limit).is_some_and(|(length, limit)| {
                    if word == "minLength" { length < limit } else { length > limit }
                });
                if wrong {
                    let which = if word == "minLength" { "shorter" } else { "longer" };
                    found.push(format!("{place} is {value}, {which} than {rule} characters"));
                }
            }
            "pattern" => {
                let fits =
                    value.as_str().zip(rule.as_str()).is_none_or(|(text, pattern)| fits(text, pattern));
                if !fits {
                    found.push(format!("{place} is {value}, which does not look like {}", plain(rule)));
                }
            }
            remark if REMARKS.contains(&remark) => {}
            // A test keeps this from happening.
            unknown => found.push(format!("the schema of {place} says {unknown:?}, which is not understood")),
        }
    }
}

fn properties(value: &Value, rule: &Value, path: &str, found: &mut Vec<String>) {
    for (name, schema) in rule.as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            judge(value, schema, &below(path, name), found);
        }
    }
}

fn additional(value: &Value, rule: &Value, schema: &Map<String, Value>, path: &str, found: &mut Vec<String>) {
    let known = schema.get("properties").and_then(Value::as_object);
    let is_known = |name: &str| known.is_some_and(|known| known.contains_key(name));
    for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| !is_known(name)) {
        if rule != &Value::Bool(false) {
            judge(value, rule, &below(path, name), found);
            continue;
        }
        let names: Vec<_> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        found.push(format!("{} is not known; known are: {}", below(path, name), names.join(", ")));
    }
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

/// Patterns that cannot be read fit nothing: what cannot be judged is refused.
fn fits(text: &str, pattern: &str) -> bool {
    regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::install::charts::{Chart, WHOLE};
    use serde_json::json;

    fn charts() -> Vec<Chart> {
        let whole = Chart::load(WHOLE).unwrap();
        let names: Vec<_> =
            whole.parts.iter().map(|(part, _)| part.name.clone()).chain([whole.name]).collect();
        names.iter().map(|name| Chart::load(name).unwrap()).collect()
    }

    #[test]
    fn what_the_charts_say_by_themselves_is_what_they_allow() {
        for chart in charts() {
            assert_eq!(offences(&chart.values, &chart.schema), Vec::<String>::new(), "{}", chart.name);
        }
    }

    #[test]
    fn every_value_has_a_place_in_the_schema_and_the_reverse() {
        fn compare(values: &Value, schema: &Value, path: &str) {
            let (Some(values), Some(known)) = (values.as_object(), schema["properties"].as_object()) else {
                return;
            };
            let missing: Vec<_> = known.keys().filter(|name| !values.contains_key(*name)).collect();
            // Those of Kubernetes' own, which charts hand on.
            assert!(
                missing.iter().all(|name| ["limits", "requests", "claims", "type", "level", "role", "user"]
                    .contains(&name.as_str())),
                "{path}: {missing:?} cannot be found in values.yaml"
            );
            for (name, value) in values {
                compare(value, &known[name], &format!("{path}.{name}"));
            }
        }
        for chart in charts() {
            compare(&chart.values, &chart.schema, &chart.name);
        }
    }

    #[test]
    fn offences_name_the_place_and_the_remedy() {
        let schema = Chart::load("cni").unwrap().schema;
        let global = json!({ "logFormat": "xml" });
        for (values, expected) in [
            (json!({ "global": global }), "global.logFormat is \"xml\", and must be one of: text, json"),
            (json!({ "ipv66": true }), "ipv66 is not known; known are:"),
            (json!({ "ipv6": "yes" }), "ipv6 is \"yes\", and must be: boolean"),
            (json!({ "cniBinDir": "opt" }), "cniBinDir is \"opt\", which does not look like ^/"),
            (json!({ "resourceQuota": { "pods": 0 } }), "resourceQuota.pods is 0, and must be at least 1"),
            (json!({ "excludeNamespaces": [1] }), "excludeNamespaces[0] is 1, and must be: string"),
            (json!({ "probes": "sometimes" }), "probes is \"sometimes\", which is none"),
            (json!({ "global": { "hub": "" } }), "global.hub is \"\", shorter than 1"),
            (json!({ "global": { "imagePullSecrets": [{}] } }), "global.imagePullSecrets[0].name is missing"),
        ] {
            let found = offences(&values, &schema);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
        }
    }
}
