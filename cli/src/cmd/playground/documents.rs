//! Changes single objects in the YAML that a playground follows. All else in a file stays as it is written, comments
//! included.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ambit_api::directory::{Directory, Document, Loaded, MADE_FOLDER, ObjectKey, STATUS_FOLDER, read_text};
use ambit_lab::kubelet;
use ambit_lab::manifest::EXPANDED_FROM;
use anyhow::{Context as _, anyhow, bail};
use serde_json::{Map, Value};

use super::state::Node;

/// The YAML.
#[derive(Debug)]
pub(crate) struct Documents {
    directory: Directory,
}

/// One object and where it is written.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) key: ObjectKey,
    pub(crate) file: PathBuf,
    text: String,
    range: Range<usize>,
    value: Value,
}

/// What applying an object did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    Created,
    Changed,
    Unchanged,
}

impl Applied {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
        }
    }
}

/// A change of labels: what to set, what to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LabelChange {
    Set(String, String),
    Remove(String),
}

impl std::str::FromStr for LabelChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} changes no label; write KEY=VALUE to set one, KEY- to remove one");
        match (text.split_once('='), text.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() => Ok(Self::Set(key.to_owned(), value.to_owned())),
            (None, Some(key)) if !key.is_empty() => Ok(Self::Remove(key.to_owned())),
            (_, _) => Err(wrong()),
        }
    }
}

/// How an object is named on the command line: `kind`, `namespace`, `name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    kind: String,
    namespace: Option<String>,
    name: String,
}

impl Wanted {
    /// `namespace/kind/name`, or `kind/name` for what has no namespace.
    pub(crate) fn path(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty()).collect();
        match parts.as_slice() {
            [kind, name] => Ok(Self::new(kind, None, name)),
            [namespace, kind, name] => Ok(Self::new(kind, Some(namespace), name)),
            _ => Err(format!("{text:?} names no object; write NAMESPACE/KIND/NAME, or KIND/NAME")),
        }
    }

    /// A kind as people type it, and a name, perhaps with its namespace.
    pub(crate) fn new(kind: &str, namespace: Option<&str>, name: &str) -> Self {
        let kind = match kind.to_ascii_lowercase().as_str() {
            "ns" | "namespaces" => "namespace".to_owned(),
            "po" | "pods" => "pod".to_owned(),
            "svc" | "services" => "service".to_owned(),
            "deploy" | "deployments" => "deployment".to_owned(),
            "ap" | "authorizationpolicies" => "authorizationpolicy".to_owned(),
            "pa" | "peerauthentications" => "peerauthentication".to_owned(),
            "ra" | "requestauthentications" => "requestauthentication".to_owned(),
            "dr" | "destinationrules" => "destinationrule".to_owned(),
            "vs" | "virtualservices" => "virtualservice".to_owned(),
            "rlp" | "ratelimitpolicies" => "ratelimitpolicy".to_owned(),
            other => other.to_owned(),
        };
        Self { kind, namespace: namespace.map(str::to_owned), name: name.to_owned() }
    }

    fn is(&self, key: &ObjectKey) -> bool {
        key.kind.eq_ignore_ascii_case(&self.kind)
            && key.name == self.name
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

impl Documents {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { directory: Directory::open(path)? })
    }

    /// Everything, with what machines say of it.
    pub(crate) fn load(&self) -> anyhow::Result<Loaded> {
        Ok(self.directory.load()?)
    }

    /// The one object of that name.
    pub(crate) fn find(&self, wanted: &Wanted) -> anyhow::Result<Found> {
        let loaded = self.load()?;
        let found: Vec<_> = loaded.objects.iter().filter(|document| wanted.is(&document.key())).collect();
        match found.as_slice() {
            [document] => self.place(document),
            [] => {
                let alike = loaded.objects.iter().map(Document::key);
                let alike = alike.filter(|key| key.kind.eq_ignore_ascii_case(&wanted.kind));
                let alike: Vec<_> = alike.map(|key| key.to_string()).collect();
                let there = if alike.is_empty() { "none of that kind".to_owned() } else { alike.join(", ") };
                bail!("there is no {wanted} in {}; there is: {there}", self.directory.path().display())
            }
            several => {
                let names: Vec<_> = several.iter().map(|document| document.key().to_string()).collect();
                bail!("{wanted} could be {}; write its namespace", names.join(" or "))
            }
        }
    }

    /// Adds an object, or puts it in the place of the one of that name.
    pub(crate) fn apply(&self, key: &ObjectKey, text: &str) -> anyhow::Result<Applied> {
        let there = self.load()?.objects.into_iter().find(|document| document.key() == *key);
        let Some(document) = there else {
            let file = format!("applied.{}.{}.{}.yaml", key.kind, key.namespace, key.name);
            self.write(&self.directory.path().join(file), &ended(text))?;
            return Ok(Applied::Created);
        };
        let found = self.place(&document)?;
        if found.text().trim() == text.trim() {
            return Ok(Applied::Unchanged);
        }
        self.replace(&found, text)?;
        Ok(Applied::Changed)
    }

    /// Writes the object anew.
    pub(crate) fn replace(&self, found: &Found, text: &str) -> anyhow::Result<()> {
        let mut whole = found.text.clone();
        whole.replace_range(found.range.clone(), &ended(text));
        self.write(&found.file, &whole)
    }

    /// Removes the object; a file that holds nothing else goes with it.
    pub(crate) fn delete(&self, found: &Found) -> anyhow::Result<()> {
        let mut whole = found.text.clone();
        whole.replace_range(found.range.clone(), "");
        let rest = read_text(&found.file, &whole);
        if rest.objects.is_empty() && rest.problems.is_empty() {
            return fs::remove_file(&found.file)
                .with_context(|| format!("cannot remove {}; run as root", found.file.display()));
        }
        self.write(&found.file, &whole)
    }

    fn place(&self, document: &Document) -> anyhow::Result<Found> {
        let file = self.directory.path().join(&document.file);
        let text = fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}; run as root", file.display()))?;
        let key = document.key();
        for range in chunks(&text) {
            let chunk = text.get(range.clone()).unwrap_or_default();
            match read_text(&document.file, chunk).objects.as_slice() {
                [only] if only.key() == key => {
                    let value = only.value.clone();
                    return Ok(Found { key, file, range, value, text });
                }
                _ => {}
            }
        }
        Err(anyhow!(
            "{key} is an item of a list, or in JSON, in {}; change it there with an editor: it is read again when saved",
            file.display()
        ))
    }

    fn write(&self, file: &Path, text: &str) -> anyhow::Result<()> {
        let unusable = || format!("cannot write {}; run as root", file.display());
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        // The leading dot keeps readers away until the rename.
        let next = file.with_file_name(format!(".writing-{}-{name}", std::process::id()));
        fs::write(&next, text).and_then(|()| fs::rename(&next, file)).with_context(unusable)
    }
}

impl Found {
    /// As it is written, comments included.
    pub(crate) fn text(&self) -> &str {
        self.text.get(self.range.clone()).unwrap_or_default()
    }

    /// The object with other labels, as YAML; `None` when it has them already. Comments inside it are lost.
    pub(crate) fn relabelled(&self, changes: &[LabelChange]) -> anyhow::Result<Option<String>> {
        let mut value = self.value.clone();
        let metadata = value
            .get_mut("metadata")
            .and_then(Value::as_object_mut)
            .with_context(|| format!("{} has no metadata", self.key))?;
        let labels = metadata.entry("labels").or_insert_with(|| Value::Object(Map::new()));
        if labels.is_null() {
            *labels = Value::Object(Map::new());
        }
        let labels = labels.as_object_mut().with_context(|| format!("{}: labels are no map", self.key))?;
        for change in changes {
            match change {
                LabelChange::Set(key, to) => drop(labels.insert(key.clone(), Value::from(to.as_str()))),
                LabelChange::Remove(key) => drop(labels.remove(key)),
            }
        }
        if labels.is_empty() {
            metadata.remove("labels");
        }
        if value == self.value { Ok(None) } else { Ok(Some(serde_yaml_ng::to_string(&value)?)) }
    }
}

/// The objects of a text, each with its own YAML.
pub(crate) fn parse(file: &Path, text: &str) -> anyhow::Result<Vec<(ObjectKey, String)>> {
    let whole = read_text(file, text);
    if !whole.problems.is_empty() {
        let problems: Vec<_> = whole.problems.iter().map(ToString::to_string).collect();
        bail!("nothing was changed:\n  {}", problems.join("\n  "));
    }
    if whole.objects.is_empty() {
        bail!("{} holds no objects", file.display());
    }
    let mut objects = Vec::new();
    for range in chunks(text) {
        let chunk = text.get(range).unwrap_or_default();
        match read_text(file, chunk).objects.as_slice() {
            [only] if !chunk.trim_start().starts_with('{') => objects.push((only.key(), chunk.to_owned())),
            items => {
                for item in items {
                    objects.push((item.key(), serde_yaml_ng::to_string(&item.value)?));
                }
            }
        }
    }
    Ok(objects)
}

/// Where the documents of a text are, without the lines that separate them.
fn chunks(text: &str) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        let mark = line.trim_end();
        if mark == "---" || mark.starts_with("--- ") {
            chunks.push(start..at);
            start = at + line.len();
        }
        at += line.len();
    }
    chunks.push(start..text.len());
    chunks.retain(|chunk| !text.get(chunk.clone()).unwrap_or_default().trim().is_empty());
    chunks
}

fn ended(text: &str) -> String {
    if text.ends_with('\n') || text.is_empty() { text.to_owned() } else { format!("{text}\n") }
}

/// Whether the directory holds anything that a user wrote.
pub(crate) fn is_empty(directory: &Path) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name());
    names.all(|name| name == STATUS_FOLDER || name == MADE_FOLDER)
}

/// Removes what a lab that was killed has left among the user's YAML: replicas, waypoints, statuses, its nodes.
pub(crate) fn take_back(directory: &Path, nodes: &[Node]) {
    let Ok(documents) = Documents::open(directory) else { return };
    let Ok(loaded) = documents.load() else { return };
    let is_replica = |document: &Document| {
        let annotations = document.value.get("metadata").and_then(|metadata| metadata.get("annotations"));
        document.kind == "Pod" && annotations.is_some_and(|all| all.get(EXPANDED_FROM).is_some())
    };
    let is_node = |document: &Document| {
        document.kind == "Node"
            && document.file.ends_with("nodes.yaml")
            && nodes.iter().any(|node| node.name == document.name && has_addresses(document, node))
    };
    let left = loaded.objects.iter().filter(|document| is_replica(document) || is_node(document));
    let files: BTreeSet<_> = left.map(|document| directory.join(&document.file)).collect();
    let status = directory.join(STATUS_FOLDER);
    let made = directory.join(MADE_FOLDER);
    let agents = nodes.iter().map(|node| status.join(format!("agent-{}", node.name)));
    let others = [status.join(kubelet::WRITER), status.join("controller"), made.join("controller")];
    for folder in agents.chain(others) {
        // What is not there need not be removed.
        let _ = fs::remove_dir_all(folder);
    }
    for file in files {
        let _ = fs::remove_file(file);
    }
    // Only if nothing of others is in them.
    for folder in [directory.join("pods"), made, status] {
        let _ = fs::remove_dir(folder);
    }
}

/// Whether the document was written by the lab: with the addresses of its node.
fn has_addresses(document: &Document, node: &Node) -> bool {
    let addresses = document.value.get("status").and_then(|status| status.get("addresses")?.as_array());
    let written =
        addresses.into_iter().flatten().filter_map(|one| one.get("address")?.as_str()?.parse().ok());
    written.collect::<Vec<IpAddr>>() == node.ips
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "# The shop.\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n# Its front.\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {}\n";

    fn directory() -> (tempfile::TempDir, Documents) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("shop.yaml"), TWO).unwrap();
        let documents = Documents::open(dir.path()).unwrap();
        (dir, documents)
    }

    fn labelled(documents: &Documents, changes: &[&str]) -> Option<String> {
        let changes: Vec<_> = changes.iter().map(|change| change.parse().unwrap()).collect();
        let found = documents.find(&Wanted::new("ns", None, "shop")).unwrap();
        let text = found.relabelled(&changes).unwrap()?;
        documents.replace(&found, &text).unwrap();
        Some(text)
    }

    #[test]
    fn a_label_changes_one_document_and_no_other() {
        let (dir, documents) = directory();
        labelled(&documents, &["istio.io/dataplane-mode=ambient", "x=1"]).unwrap();
        let text = fs::read_to_string(dir.path().join("shop.yaml")).unwrap();
        assert!(text.contains("istio.io/dataplane-mode: ambient"), "{text}");
        assert!(text.ends_with(TWO.split_once("---").unwrap().1), "{text}");
        assert_eq!(labelled(&documents, &["x=1"]), None);
        labelled(&documents, &["x-", "istio.io/dataplane-mode-"]).unwrap();
        let loaded = documents.load().unwrap();
        assert_eq!((loaded.objects.len(), loaded.problems.len()), (2, 0));
        assert_eq!(loaded.objects[0].value["metadata"].get("labels"), None);
    }

    #[test]
    fn what_changes_no_label_is_told_how_to() {
        for bad in ["", "-", "=x", "key"] {
            let err = bad.parse::<LabelChange>().unwrap_err();
            assert!(err.contains("KEY=VALUE"), "{err}");
        }
        assert_eq!("a=".parse(), Ok(LabelChange::Set("a".to_owned(), String::new())));
        assert_eq!("a=b-".parse(), Ok(LabelChange::Set("a".to_owned(), "b-".to_owned())));
    }

    #[test]
    fn applying_creates_changes_or_leaves() {
        let (dir, documents) = directory();
        let apply = |text: &str| {
            let objects = parse(Path::new("x.yaml"), text).unwrap();
            objects.iter().map(|(key, text)| documents.apply(key, text).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(apply(TWO), [Applied::Unchanged, Applied::Unchanged]);
        assert_eq!(
            apply(&TWO.replace("spec: {}", "spec: {ports: []}")),
            [Applied::Unchanged, Applied::Changed]
        );
        let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "guest"}},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"a": "b"}}}]}"#;
        assert_eq!(apply(list), [Applied::Created, Applied::Changed]);
        let loaded = documents.load().unwrap();
        assert_eq!((loaded.objects.len(), loaded.problems), (3, vec![]));
        let text = fs::read_to_string(dir.path().join("shop.yaml")).unwrap();
        assert!(text.contains("# Its front."), "{text}");
    }

    #[test]
    fn nothing_is_applied_of_a_file_with_a_mistake() {
        let err = parse(Path::new("x.yaml"), &format!("{TWO}---\nkind: [\n")).unwrap_err().to_string();
        assert!(err.contains("nothing was changed") && err.contains("x.yaml:"), "{err}");
        assert!(parse(Path::new("x.yaml"), "# nothing\n").is_err());
    }

    #[test]
    fn an_object_is_found_by_what_people_type() {
        let (_dir, documents) = directory();
        for path in ["shop/svc/web", "shop/Service/web", "service/web"] {
            let found = documents.find(&Wanted::path(path).unwrap()).unwrap();
            assert!(found.text().starts_with("# Its front."), "{}", found.text());
        }
        let err = documents.find(&Wanted::path("shop/svc/cart").unwrap()).unwrap_err().to_string();
        assert!(err.contains("Service shop/web"), "{err}");
        assert!(Wanted::path("web").is_err() && Wanted::path("a/b/c/d").is_err());
    }

    #[test]
    fn a_deleted_object_takes_its_file_along_when_it_was_alone() {
        let (dir, documents) = directory();
        for path in ["service/web", "namespace/shop"] {
            assert!(dir.path().join("shop.yaml").exists());
            let found = documents.find(&Wanted::path(path).unwrap()).unwrap();
            documents.delete(&found).unwrap();
        }
        assert!(is_empty(dir.path()));
    }
}
