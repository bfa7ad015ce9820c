//! Overlays: where they lie, and how they are merged.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{DirectoryError, Document, ObjectKey, STATUS_FOLDER};

/// One writer's partial object.
#[derive(Clone, Debug)]
pub(super) struct Overlay {
    pub(super) writer: String,
    pub(super) value: Value,
}

/// The file of a writer's overlay, relative to the directory.
pub(super) fn file_of(writer: &str, key: &ObjectKey) -> Result<PathBuf, DirectoryError> {
    file_in(STATUS_FOLDER, writer, key)
}

/// The file in which a writer says something about an object, relative to the directory.
pub(super) fn file_in(folder: &str, writer: &str, key: &ObjectKey) -> Result<PathBuf, DirectoryError> {
    for part in [writer, &key.kind, &key.name] {
        if !is_plain(part) {
            return Err(DirectoryError::BadName { name: part.to_owned() });
        }
    }
    let whole = is_plain(&key.namespace) || key.namespace.is_empty();
    if !whole || key.namespace.contains('.') || key.kind.contains('.') {
        return Err(DirectoryError::BadName { name: key.to_string() });
    }
    let file = format!("{}.{}.{}.yaml", key.kind, key.namespace, key.name);
    Ok(Path::new(folder).join(writer).join(file))
}

/// The object that a file of overlays is for.
pub(super) fn key_of(file_name: &str) -> Option<ObjectKey> {
    let stem = file_name.strip_suffix(".yaml")?;
    let (kind, rest) = stem.split_once('.')?;
    let (namespace, name) = rest.split_once('.')?;
    (!kind.is_empty() && !name.is_empty()).then(|| ObjectKey::new(kind, namespace, name))
}

/// Merges overlays, sorted by writer, over an object. What the object *is* stays as the user wrote it.
pub(super) fn merge_all(document: &mut Document, overlays: &[Overlay]) {
    let identity = ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace"]
        .map(|at| (at, document.value.pointer(at).cloned()));
    for overlay in overlays {
        merge(&mut document.value, &overlay.value);
    }
    for (at, was) in identity {
        restore(&mut document.value, at, was);
    }
}

/// Merges a patch into a value, after RFC 7386.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (name, change) in patch {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

fn restore(value: &mut Value, pointer: &str, was: Option<Value>) {
    let (parent, field) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    let Some(Value::Object(fields)) = value.pointer_mut(parent) else { return };
    match was {
        Some(was) => fields.insert(field.to_owned(), was),
        None => fields.remove(field),
    };
}

fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 253
        && !part.starts_with('.')
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merging_follows_the_examples_of_rfc_7386() {
        for (mut target, patch, want) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            merge(&mut target, &patch);
            assert_eq!(target, want, "patch {patch}");
        }
    }

    #[test]
    fn a_file_name_and_its_key_say_the_same() {
        for key in [ObjectKey::new("Pod", "shop", "web-1.a"), ObjectKey::new("Node", "", "n1.example.com")] {
            let file = file_of("lab", &key).unwrap();
            assert_eq!(key_of(file.file_name().unwrap().to_str().unwrap()), Some(key));
        }
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        for (writer, key) in [
            ("..", ObjectKey::new("Pod", "a", "b")),
            ("a/b", ObjectKey::new("Pod", "a", "b")),
            ("a", ObjectKey::new("Pod", "a", "../../b")),
            ("a", ObjectKey::new("Pod", "..", "b")),
            ("a", ObjectKey::new("", "a", "b")),
        ] {
            assert!(file_of(writer, &key).is_err(), "{writer} {key}");
        }
    }

    proptest::proptest! {
        #[test]
        fn merging_the_same_patch_again_changes_nothing(a in value(), b in value()) {
            let mut once = a;
            merge(&mut once, &b);
            let mut twice = once.clone();
            merge(&mut twice, &b);
            proptest::prop_assert_eq!(once, twice);
        }
    }

    fn value() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            "[ab]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            proptest::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect()))
        })
    }
}
