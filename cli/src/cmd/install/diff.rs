//! What a change changes, for people: unified, and without what is secret.

use serde_json::Value;
use similar::TextDiff;

/// Lines around each change.
const CONTEXT: usize = 2;
/// What the API server writes by itself.
const NOISE: [&str; 5] = ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"];

/// The lines that differ; none if nothing does.
pub(crate) fn lines(title: &str, before: &Value, after: &Value) -> Option<String> {
    let (mut before, mut after) = (settled(before), settled(after));
    if before == after {
        return None;
    }
    hide_secrets(&mut before, &mut after);
    let text = |value: &Value| serde_yaml_ng::to_string(value).unwrap_or_else(|_| value.to_string());
    let (before, after) = (text(&before), text(&after));
    let differing = TextDiff::from_lines(&before, &after);
    let mut unified = differing.unified_diff();
    Some(unified.context_radius(CONTEXT).header(title, title).to_string())
}

/// What was asked for, without what the cluster adds as time goes by.
fn settled(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
        if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            for word in NOISE {
                metadata.remove(word);
            }
        }
    }
    object
}

/// That something secret changes may be seen; what it is, may not.
fn hide_secrets(before: &mut Value, after: &mut Value) {
    let is_secret = |object: &Value| object.get("kind").is_some_and(|kind| kind == "Secret");
    if !is_secret(before) && !is_secret(after) {
        return;
    }
    for field in ["data", "stringData"] {
        let old = before.get(field).cloned().unwrap_or_default();
        for (key, value) in after.get_mut(field).and_then(Value::as_object_mut).into_iter().flatten() {
            let is_same = old.get(key) == Some(value);
            *value = Value::from(if is_same { "(hidden)" } else { "(hidden, new)" });
        }
        for (_, value) in before.get_mut(field).and_then(Value::as_object_mut).into_iter().flatten() {
            *value = Value::from("(hidden)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_was_asked_for_counts() {
        let before =
            json!({ "kind": "Service", "metadata": { "name": "a", "resourceVersion": "1" }, "status": {} });
        let after = json!({ "kind": "Service", "metadata": { "name": "a", "resourceVersion": "2" } });
        assert_eq!(lines("a", &before, &after), None);
        let after = json!({ "kind": "Service", "metadata": { "name": "a", "labels": { "x": "y" } } });
        let shown = lines("Service a", &before, &after).unwrap();
        assert!(shown.contains("+  labels:\n+    x: y\n"), "{shown}");
        assert!(shown.starts_with("--- Service a\n+++ Service a\n"), "{shown}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let before = json!({ "kind": "Secret", "data": { "kept": "c2VjcmV0MQ==", "old": "c2VjcmV0Mg==" } });
        let after = json!({ "kind": "Secret", "data": { "kept": "c2VjcmV0MQ==", "new": "c2VjcmV0Mw==" }, "stringData": { "x": "plain" } });
        let shown = lines("Secret a", &before, &after).unwrap();
        assert!(!shown.contains("c2V") && !shown.contains("plain"), "{shown}");
        assert!(shown.contains("-  old: (hidden)") && shown.contains("+  new: (hidden, new)"), "{shown}");
    }
}
