//! One document of a file: its place, its name and its fields.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_yaml_ng::Value as Yaml;

use super::{ObjectKey, Problem};

/// Kinds that have no namespace.
const CLUSTER_SCOPED: [&str; 8] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "GatewayClass",
    "Namespace",
    "Node",
    "PersistentVolume",
    "StorageClass",
];

/// One object, as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The file it is in.
    pub file: Arc<Path>,
    /// The line at which it starts, from 1.
    pub line: usize,
    /// Its group and version, `security.istio.io/v1`.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace: `default` when a namespaced object names none, empty for kinds without one.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// All of it.
    pub value: Value,
}

impl Document {
    /// Its kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.kind, &self.namespace, &self.name)
    }

    /// Its API group; empty is Kubernetes' own.
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// Its version within the group.
    pub fn version(&self) -> &str {
        self.api_version.split_once('/').map_or(&self.api_version, |(_, version)| version)
    }

    /// Reads it as a typed object.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, FieldError> {
        typed(&self.value)
    }

    /// The problem of a field of this document.
    pub fn problem(
        &self,
        field: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        Problem {
            file: self.file.to_path_buf(),
            line: self.line,
            key: Some(self.key()),
            field: field.into(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

/// Reads a value as a typed object.
pub fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        FieldError {
            field: if field == "." { String::new() } else { field },
            what: error.into_inner().to_string(),
        }
    })
}

/// A field that does not have the shape its kind asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct FieldError {
    /// Path of the field, `spec.ports[0].number`.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
}

/// What one file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub(super) documents: Vec<Document>,
    pub(super) problems: Vec<Problem>,
}

/// Reads the documents of one file. Each is judged alone.
pub(super) fn read_yaml(file: &Arc<Path>, text: &str) -> Contents {
    let mut contents = Contents::default();
    for (line, chunk) in split(text) {
        match parse_yaml(&chunk) {
            Ok(None) => {}
            Ok(Some(value)) => admit(&mut contents, file, line + leading_blank_lines(&chunk), value),
            Err(error) => contents.problems.push(Problem {
                file: file.to_path_buf(),
                line: line + error.line,
                key: None,
                field: String::new(),
                what: format!("is not valid YAML: {}", error.what),
                remedy: "correct the line; what it last said stays in force".to_owned(),
            }),
        }
    }
    contents
}

/// Reads a JSON file: one or several values, one after the other.
pub(super) fn read_json(file: &Arc<Path>, text: &str) -> Contents {
    let mut contents = Contents::default();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    loop {
        let from = values.byte_offset();
        match values.next() {
            None => return contents,
            Some(Ok(value)) => {
                let rest = text.get(from..).unwrap_or_default();
                let blank = rest.len() - rest.trim_start().len();
                let before = text.get(..from + blank).unwrap_or_default();
                admit(&mut contents, file, 1 + before.matches('\n').count(), value);
            }
            Some(Err(error)) => {
                contents.problems.push(Problem {
                    file: file.to_path_buf(),
                    line: error.line(),
                    key: None,
                    field: String::new(),
                    what: format!("is not valid JSON: {error}"),
                    remedy: "correct the line; what it last said stays in force".to_owned(),
                });
                return contents;
            }
        }
    }
}

/// Reads a single YAML value; nothing but comments is `None`.
pub(super) fn parse_yaml(text: &str) -> Result<Option<Value>, Malformed> {
    let mut yaml: Yaml = serde_yaml_ng::from_str(text).map_err(|error| Malformed {
        line: error.location().map_or(0, |at| at.line().saturating_sub(1)),
        what: error.to_string(),
    })?;
    yaml.apply_merge().map_err(|error| Malformed { line: 0, what: error.to_string() })?;
    if yaml.is_null() {
        return Ok(None);
    }
    serde_json::to_value(yaml).map(Some).map_err(|error| Malformed { line: 0, what: error.to_string() })
}

/// Text that is not YAML: where (lines after its first) and why.
pub(super) struct Malformed {
    pub(super) line: usize,
    pub(super) what: String,
}

/// Adds a value as a document, or its items if it is a list, or the problem that it is neither.
fn admit(contents: &mut Contents, file: &Arc<Path>, line: usize, value: Value) {
    let is_list = value.get("kind").and_then(Value::as_str) == Some("List");
    if is_list && let Some(Value::Array(items)) = value.get("items") {
        for item in items {
            admit_one(contents, file, line, item.clone());
        }
    } else {
        admit_one(contents, file, line, value);
    }
}

fn admit_one(contents: &mut Contents, file: &Arc<Path>, line: usize, value: Value) {
    match name(file, line, value) {
        Ok(document) => contents.documents.push(document),
        Err(problem) => contents.problems.push(*problem),
    }
}

/// Finds out what an object is called.
fn name(file: &Arc<Path>, line: usize, value: Value) -> Result<Document, Box<Problem>> {
    let problem = |field: &str, what: &str, remedy: &str| {
        Box::new(Problem {
            file: file.to_path_buf(),
            line,
            key: None,
            field: field.to_owned(),
            what: what.to_owned(),
            remedy: remedy.to_owned(),
        })
    };
    if !value.is_object() {
        return Err(problem("", "is not an object", "start it with apiVersion, kind and metadata"));
    }
    let text = |field: &str| -> Result<Option<String>, Box<Problem>> {
        match value.pointer(&format!("/{}", field.replace('.', "/"))) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(problem(field, "is not a string", "put it in quotes")),
        }
    };
    let needed = |field: &str, remedy: &str| {
        text(field)?.filter(|text| !text.is_empty()).ok_or_else(|| problem(field, "is missing", remedy))
    };
    let api_version = needed("apiVersion", "write the group and version, such as v1 or apps/v1")?;
    let kind = needed("kind", "write the kind of the object, such as Pod")?;
    let name = needed("metadata.name", "name the object")?;
    let namespace = if CLUSTER_SCOPED.contains(&kind.as_str()) {
        String::new()
    } else {
        text("metadata.namespace")?.filter(|text| !text.is_empty()).unwrap_or_else(|| "default".to_owned())
    };
    for (field, part) in [("kind", &kind), ("metadata.name", &name), ("metadata.namespace", &namespace)] {
        if part.len() > 253 || part.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/') {
            return Err(problem(field, "is not a name", "use at most 253 letters, digits, '-' and '.'"));
        }
    }
    Ok(Document { file: Arc::clone(file), line, api_version, kind, namespace, name, value })
}

/// Splits a file at its `---` lines, each part with the line it starts at. A line that begins with `---` in
/// its first column always parts documents: inside one, even a block of text is indented.
fn split(text: &str) -> Vec<(usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parts = Vec::new();
    let mut current = String::new();
    let mut start = 1;
    for (index, line) in text.lines().enumerate() {
        let marker = |mark: &str| {
            line.strip_prefix(mark).filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
        };
        if let Some(rest) = marker("---") {
            parts.push((start, std::mem::take(&mut current)));
            start = index + 1;
            current.push_str("   ");
            current.push_str(rest);
        } else if marker("...").is_some() {
            parts.push((start, std::mem::take(&mut current)));
            start = index + 1;
        } else if !(line.starts_with('%') && current.trim().is_empty()) {
            current.push_str(line);
        }
        current.push('\n');
    }
    parts.push((start, current));
    parts.retain(|(_, part)| !part.trim().is_empty());
    parts
}

/// Lines of blanks and comments before the first line that says something.
fn leading_blank_lines(text: &str) -> usize {
    text.lines().take_while(|line| line.trim().is_empty() || line.trim_start().starts_with('#')).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Contents {
        read_yaml(&Arc::from(Path::new("f.yaml")), text)
    }

    fn object(kind: &str, name: &str) -> String {
        format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\n")
    }

    #[test]
    fn every_document_knows_the_line_it_starts_at() {
        let text = format!(
            "# shop\n\n{}---\n{}--- # third\n\n{}",
            object("Pod", "a"),
            object("Pod", "b"),
            object("Node", "n")
        );
        let got = read(&text);
        let places: Vec<_> = got.documents.iter().map(|d| (d.line, d.key().to_string())).collect();
        assert_eq!(
            places,
            [(3, "Pod default/a".to_owned()), (7, "Pod default/b".to_owned()), (12, "Node n".to_owned())]
        );
        assert!(got.problems.is_empty());
    }

    #[test]
    fn a_bad_document_leaves_its_neighbours_alone_and_is_found_by_its_line() {
        let text = format!("{}---\na: [1\nb: 2\n---\n{}", object("Pod", "a"), object("Pod", "b"));
        let got = read(&text);
        assert_eq!(got.documents.len(), 2);
        let [problem] = got.problems.as_slice() else { panic!("one problem, not {:?}", got.problems) };
        assert!((5..=7).contains(&problem.line), "line {}", problem.line);
        assert!(problem.to_string().contains("is not valid YAML"));
    }

    #[test]
    fn a_key_written_twice_is_a_mistake_not_a_choice() {
        let got = read("apiVersion: v1\nkind: Pod\nkind: Node\nmetadata: {name: a}\n");
        assert!(got.documents.is_empty());
        assert!(got.problems[0].what.contains("duplicate"), "{}", got.problems[0]);
    }

    #[test]
    fn what_has_no_name_is_told_what_is_missing() {
        for (text, field) in [
            ("kind: Pod\nmetadata: {name: a}\n", "apiVersion"),
            ("apiVersion: v1\nmetadata: {name: a}\n", "kind"),
            ("apiVersion: v1\nkind: Pod\n", "metadata.name"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: 7}\n", "metadata.name"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: a/b}\n", "metadata.name"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: [b]}\n", "metadata.namespace"),
        ] {
            let got = read(text);
            assert_eq!(got.problems.len(), 1, "{text}");
            assert_eq!(got.problems[0].field, field, "{text}");
            assert!(!got.problems[0].remedy.is_empty());
        }
        assert_eq!(read("- 1\n").problems[0].what, "is not an object");
    }

    #[test]
    fn comments_directives_and_empty_documents_are_nothing() {
        let got = read(&format!("%YAML 1.2\n---\n# nothing\n---\n---\n{}...\n# end\n", object("Pod", "a")));
        assert_eq!(got.documents.len(), 1);
        assert!(got.problems.is_empty());
    }

    #[test]
    fn a_list_is_its_items() {
        let got = read(
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- {kind: Pod}\n",
        );
        assert_eq!((got.documents.len(), got.problems.len()), (1, 1));
    }

    #[test]
    fn a_separator_inside_a_block_of_text_is_text() {
        let got = read(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  x: |\n    one\n    ---\n    two\n",
        );
        assert_eq!(got.documents[0].value["data"]["x"], "one\n---\ntwo\n");
    }

    #[test]
    fn json_values_follow_each_other() {
        let text = "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"}}\n\n{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"b\"}}\n{";
        let got = read_json(&Arc::from(Path::new("f.json")), text);
        assert_eq!(got.documents.iter().map(|d| d.line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(got.problems.len(), 1);
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path() {
        let got = read("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: x}]}\n");
        let error = got.documents[0].parse::<k8s_openapi::api::core::v1::Service>().unwrap_err();
        assert_eq!(error.field, "spec.ports[0].port");
    }

    #[test]
    fn an_alias_bomb_is_refused_quickly() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..40 {
            let alias = format!("*a{}", n - 1);
            text.push_str(&format!("a{n}: &a{n} [{}]\n", [alias.as_str(); 9].join(", ")));
        }
        assert_eq!(read(&text).problems.len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panicking(text in "[-a-z:{}\\[\\]&*|>#%.\" \n]{0,200}") {
            read(&text);
            read_json(&Arc::from(Path::new("f")), &text);
        }

        #[test]
        fn lines_of_documents_are_where_the_text_has_them(blanks in proptest::collection::vec(0usize..4, 1..8)) {
            let mut text = String::new();
            let mut lines = Vec::new();
            for (n, blank) in blanks.iter().enumerate() {
                text.push_str("---\n");
                text.push_str(&"\n# why\n".repeat(*blank));
                lines.push(1 + text.matches('\n').count());
                text.push_str(&object("Pod", &format!("p{n}")));
            }
            let got: Vec<_> = read(&text).documents.iter().map(|d| d.line).collect();
            proptest::prop_assert_eq!(got, lines);
        }
    }
}
