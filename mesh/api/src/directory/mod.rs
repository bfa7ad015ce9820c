//! A directory of the YAML that Kubernetes users write, for meshes without Kubernetes.
//!
//! ```text
//! DIR/**/*.yaml|yml|json                          objects, written by users; several documents a file
//! DIR/made/<writer>/<Kind>.<namespace>.<name>.yaml     objects, made by machines for an object
//! DIR/status/<writer>/<Kind>.<namespace>.<name>.yaml   overlays, written by machines
//! ```
//!
//! An overlay is a partial object, merged (RFC 7386) over the user's object of the same kind, namespace and
//! name; the overlays of several writers are merged in the alphabetical order of the writers. One without a
//! base object is ignored. So a user's file is never rewritten by a machine, and each machine owns its files.
//!
//! [`Directory::load`] reads everything, again and again; files that did not change are not parsed twice.
//! One bad document does not spoil the others: it becomes a [`Problem`] that names file, line, field and
//! remedy. Reading is plain `std::fs`; whoever wants to be woken by changes watches [`Directory::path`].
//!
//! A mounted ConfigMap works as a directory: names that begin with a dot are skipped, and a link to a file
//! is followed as long as it stays inside the directory. Links out of it are a problem, never followed.

mod document;
mod overlay;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

pub use document::{Document, FieldError, typed};
use walk::{Cache, Found};

/// A longer file is not read: nobody writes one by hand, and parsing it would hold up everything else.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// More objects than this are not read; ten times what one mesh was ever measured with.
pub const MAX_OBJECTS: usize = 100_000;
/// The folder of overlays inside the directory.
pub const STATUS_FOLDER: &str = "status";
/// The folder of objects that machines make. Whatever is in it may be removed by who made it.
pub const MADE_FOLDER: &str = "made";

/// A directory of objects.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    cache: Mutex<Cache>,
}

impl Directory {
    /// Opens a directory, which must exist.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DirectoryError> {
        let path = path.into();
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => Ok(Self { path, cache: Mutex::default() }),
            Ok(_) => Err(DirectoryError::NotADirectory { path }),
            Err(source) => Err(DirectoryError::Unreadable { path, source }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads every object, with overlays merged in. The order is stable: by path, then as written.
    pub fn load(&self) -> Result<Loaded, DirectoryError> {
        let root = self
            .path
            .canonicalize()
            .map_err(|source| DirectoryError::Unreadable { path: self.path.clone(), source })?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let found = walk::walk(&root, &mut cache);
        Ok(assemble(found))
    }

    /// Writes `writer`'s overlay of one object, in place of its earlier one. Nothing is touched when the
    /// overlay already says so.
    pub fn patch(&self, writer: &str, key: &ObjectKey, overlay: &Value) -> Result<(), DirectoryError> {
        self.put(&overlay::file_of(writer, key)?, overlay)
    }

    /// Removes `writer`'s overlay of one object. It is no error if there was none.
    pub fn unpatch(&self, writer: &str, key: &ObjectKey) -> Result<(), DirectoryError> {
        self.remove(&overlay::file_of(writer, key)?)
    }

    /// Writes the objects that `writer` makes for another one, in place of those that it made before.
    pub fn make(&self, writer: &str, key: &ObjectKey, objects: &[Value]) -> Result<(), DirectoryError> {
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        self.put(&made_for(writer, key)?, &list)
    }

    /// Removes the objects that `writer` made for another one. It is no error if there were none.
    pub fn unmake(&self, writer: &str, key: &ObjectKey) -> Result<(), DirectoryError> {
        self.remove(&made_for(writer, key)?)
    }

    /// For which objects `writer` has made others, and of which it has an overlay, whether these are there or not.
    pub fn written(&self, writer: &str) -> BTreeSet<ObjectKey> {
        let folders = [MADE_FOLDER, STATUS_FOLDER].map(|folder| self.path.join(folder).join(writer));
        let files =
            folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
        files.filter_map(|file| overlay::key_of(file.file_name().to_str()?)).collect()
    }

    /// Writes one document to a file (its path is relative to the directory), atomically: a reader sees the
    /// old file or the new one. Folders are made on the way.
    pub fn put(&self, file: &Path, document: &Value) -> Result<(), DirectoryError> {
        let path = self.inside(file)?;
        let text = serde_yaml_ng::to_string(document).map_err(|source| DirectoryError::Unwritable {
            path: path.clone(),
            source: std::io::Error::other(source),
        })?;
        if std::fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        write_atomically(&path, text.as_bytes()).map_err(|source| DirectoryError::Unwritable { path, source })
    }

    /// Removes a file (its path is relative to the directory). It is no error if there was none.
    pub fn remove(&self, file: &Path) -> Result<(), DirectoryError> {
        let path = self.inside(file)?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(DirectoryError::Unwritable { path, source }),
        }
    }

    /// The full path of a relative one, which must stay inside the directory.
    fn inside(&self, file: &Path) -> Result<PathBuf, DirectoryError> {
        let plain = file.components().all(|part| matches!(part, Component::Normal(_)));
        if plain && file.file_name().is_some() {
            Ok(self.path.join(file))
        } else {
            Err(DirectoryError::BadName { name: file.display().to_string() })
        }
    }
}

/// Where the objects are that `writer` makes for another one.
pub fn made_for(writer: &str, key: &ObjectKey) -> Result<PathBuf, DirectoryError> {
    overlay::file_in(MADE_FOLDER, writer, key)
}

/// Reads one YAML value: a piece of an object, say, that another object holds as text.
pub fn read_value(text: &str) -> Result<Value, String> {
    document::parse_yaml(text).map(Option::unwrap_or_default).map_err(|error| error.what)
}

/// What a directory holds.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Its objects, overlays merged in, in stable order, each key once.
    pub objects: Vec<Document>,
    /// What could not be read.
    pub problems: Vec<Problem>,
    /// Objects of which an overlay could not be read: what is known of them from before is better.
    pub stale: BTreeSet<ObjectKey>,
    /// Whether a limit kept objects from being read: what is missing here may still be there.
    pub truncated: bool,
}

/// Reads a text as if it were a file of the directory: what is piped into a command, say.
pub fn read_text(file: &Path, text: &str) -> Loaded {
    let contents = document::read_yaml(&Arc::from(file), text);
    assemble(Found { documents: contents.documents, problems: contents.problems, ..Found::default() })
}

/// Names one object: kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind, `Pod`.
    pub kind: String,
    /// Its namespace; empty for kinds without one.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// Names an object.
    pub fn new(kind: impl Into<String>, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        if namespace.is_empty() { write!(f, "{kind} {name}") } else { write!(f, "{kind} {namespace}/{name}") }
    }
}

/// Something in the directory that could not be read, worded for whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 is the file as a whole.
    pub line: usize,
    /// The object, when so much could be read.
    pub key: Option<ObjectKey>,
    /// The field, `metadata.name`; empty is the document as a whole.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}; {}", self.what, self.remedy)
    }
}

/// Why the directory as a whole cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// There is a file where a directory is needed.
    #[error("{path} is not a directory; name the directory that holds the YAML files", path = path.display())]
    NotADirectory {
        /// Where.
        path: PathBuf,
    },
    /// It is missing or may not be read.
    #[error("cannot read {path}: {source}; create it, or give this process the right to read it", path = path.display())]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file in it could not be written or removed.
    #[error("cannot write {path}: {source}; check its owner, mode and free space", path = path.display())]
    Unwritable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A name cannot be part of a file name.
    #[error("{name:?} cannot be part of a file name here; use letters, digits, '-', '_' and '.'")]
    BadName {
        /// The name.
        name: String,
    },
}

/// Merges overlays over objects and keeps the first of each key.
fn assemble(found: Found) -> Loaded {
    let Found { documents, mut problems, overlays, stale, mut truncated } = found;
    let mut first: BTreeMap<(String, ObjectKey), (PathBuf, usize)> = BTreeMap::new();
    let mut objects = Vec::new();
    for mut document in documents {
        let key = document.key();
        let identity = (document.group().to_owned(), key.clone());
        if let Some((file, line)) = first.get(&identity) {
            problems.push(Problem {
                file: document.file.to_path_buf(),
                line: document.line,
                key: Some(key),
                field: String::new(),
                what: format!("is written twice, first at {}:{line}, which counts", file.display()),
                remedy: "remove one of the two".to_owned(),
            });
            continue;
        }
        if objects.len() >= MAX_OBJECTS {
            problems.push(Problem {
                file: document.file.to_path_buf(),
                line: document.line,
                key: None,
                field: String::new(),
                what: format!(
                    "the directory holds more than {MAX_OBJECTS} objects; this and later ones are not read"
                ),
                remedy: "split the directory".to_owned(),
            });
            truncated = true;
            break;
        }
        first.insert(identity, (document.file.to_path_buf(), document.line));
        if let Some(overlays) = overlays.get(&key) {
            overlay::merge_all(&mut document, overlays);
        }
        objects.push(document);
    }
    Loaded { objects, problems, stale, truncated }
}

fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // The leading dot keeps readers away until the rename.
    let mut file = tempfile::Builder::new()
        .prefix(".writing-")
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|failed| failed.error)?;
    Ok(())
}
