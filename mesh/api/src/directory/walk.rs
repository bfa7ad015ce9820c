//! Goes through the directory: which files are read, in which order, and which need not be read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::document::{self, Contents};
use super::overlay::{self, Overlay};
use super::{Document, MAX_FILE_BYTES, MAX_OBJECTS, ObjectKey, Problem, STATUS_FOLDER};

/// Deeper folders are not read: nobody nests so, but a loop of mounts may.
const MAX_DEPTH: usize = 16;
/// More files are not read: each holds at least one object, or an overlay of one by a few writers.
const MAX_FILES: usize = 4 * MAX_OBJECTS;
/// A file written so shortly before it was read may change again without its time changing.
const TOO_FRESH: Duration = Duration::from_secs(2);

/// Everything found, before overlays are merged.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) documents: Vec<Document>,
    pub(super) problems: Vec<Problem>,
    pub(super) overlays: BTreeMap<ObjectKey, Vec<Overlay>>,
    pub(super) stale: BTreeSet<ObjectKey>,
    pub(super) truncated: bool,
}

/// What was read before, by file.
#[derive(Debug, Default)]
pub(super) struct Cache {
    files: HashMap<PathBuf, (Stamp, Arc<Contents>)>,
    overlays: HashMap<PathBuf, (Stamp, Arc<serde_json::Value>)>,
}

/// Equal stamps mean equal contents.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: SystemTime,
    changed: (i64, i64),
}

/// Reads everything below `root`, which is canonical.
pub(super) fn walk(root: &Path, cache: &mut Cache) -> Found {
    let mut found = Found::default();
    let mut files = Vec::new();
    list(root, root, 0, &mut files, &mut found);
    let (overlays, objects): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|path| path.starts_with(root.join(STATUS_FOLDER)));

    let mut kept = Cache::default();
    for path in objects {
        read_objects(path, cache, &mut kept, &mut found);
    }
    for path in overlays {
        read_overlay(root, path, cache, &mut kept, &mut found);
    }
    for writers in found.overlays.values_mut() {
        writers.sort_by(|a, b| a.writer.cmp(&b.writer));
    }
    *cache = kept;
    found
}

fn read_objects(path: PathBuf, old: &mut Cache, kept: &mut Cache, found: &mut Found) {
    let (stamp, text) = match open(&path, old.files.get(&path).map(|(stamp, _)| stamp)) {
        Opened::Gone => return,
        Opened::Bad(problem) => return found.problems.push(*problem),
        Opened::Unchanged => {
            if let Some((stamp, contents)) = old.files.remove(&path) {
                take(&contents, found);
                kept.files.insert(path, (stamp, contents));
            }
            return;
        }
        Opened::Read(stamp, text) => (stamp, text),
    };
    let file: Arc<Path> = Arc::from(path.as_path());
    let json = path.extension().is_some_and(|extension| extension == "json");
    let contents = if json { document::read_json(&file, &text) } else { document::read_yaml(&file, &text) };
    take(&contents, found);
    if let Some(stamp) = stamp {
        kept.files.insert(path, (stamp, Arc::new(contents)));
    }
}

fn take(contents: &Contents, found: &mut Found) {
    found.documents.extend(contents.documents.iter().cloned());
    found.problems.extend(contents.problems.iter().cloned());
}

fn read_overlay(root: &Path, path: PathBuf, old: &mut Cache, kept: &mut Cache, found: &mut Found) {
    let place = path.strip_prefix(root).unwrap_or(&path);
    let parts: Vec<_> = place.iter().filter_map(|part| part.to_str()).collect();
    let key = match parts.as_slice() {
        [_, _, file] => overlay::key_of(file),
        _ => None,
    };
    let (Some(key), Some(writer)) = (key, parts.get(1).map(|writer| (*writer).to_owned())) else {
        return found.problems.push(whole_file(
            &path,
            "is not the name of an overlay",
            "name it status/<writer>/<Kind>.<namespace>.<name>.yaml, or move it out of the folder status",
        ));
    };
    let (stamp, text) = match open(&path, old.overlays.get(&path).map(|(stamp, _)| stamp)) {
        Opened::Gone => return,
        Opened::Bad(problem) => {
            found.stale.insert(key.clone());
            return found.problems.push(Problem { key: Some(key), ..*problem });
        }
        Opened::Unchanged => {
            if let Some((stamp, value)) = old.overlays.remove(&path) {
                found.overlays.entry(key).or_default().push(Overlay { writer, value: (*value).clone() });
                kept.overlays.insert(path, (stamp, value));
            }
            return;
        }
        Opened::Read(stamp, text) => (stamp, text),
    };
    let value = match document::parse_yaml(&text) {
        Ok(Some(value)) if value.is_object() => value,
        Ok(None) => return,
        Ok(Some(_)) => {
            found.stale.insert(key.clone());
            return found.problems.push(Problem {
                key: Some(key),
                ..whole_file(&path, "is not an object", "write the fields that it adds, such as status")
            });
        }
        Err(error) => {
            found.stale.insert(key.clone());
            return found.problems.push(Problem {
                line: error.line + 1,
                key: Some(key),
                ..whole_file(
                    &path,
                    &format!("is not valid YAML: {}", error.what),
                    "have its writer write it again",
                )
            });
        }
    };
    if let Some(stamp) = stamp {
        kept.overlays.insert(path, (stamp, Arc::new(value.clone())));
    }
    found.overlays.entry(key).or_default().push(Overlay { writer, value });
}

/// What came of opening a file.
enum Opened {
    Gone,
    Unchanged,
    /// Its text, and its stamp if that may be trusted.
    Read(Option<Stamp>, String),
    Bad(Box<Problem>),
}

fn open(path: &Path, known: Option<&Stamp>) -> Opened {
    let bad = |what: &str, remedy: &str| Opened::Bad(Box::new(whole_file(path, what, remedy)));
    let failed = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            return Opened::Gone;
        }
        bad(&format!("cannot be read: {error}"), "give this process the right to read it")
    };
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return failed(error),
    };
    if !meta.is_file() {
        return bad("is neither a file nor a folder", "replace it by a plain file");
    }
    if meta.len() > MAX_FILE_BYTES {
        return bad("is longer than 4 MiB", "split it into several files");
    }
    let stamp = Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.len(),
        modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        changed: (meta.ctime(), meta.ctime_nsec()),
    };
    if known == Some(&stamp) {
        return Opened::Unchanged;
    }
    let settled = SystemTime::now().duration_since(stamp.modified).is_ok_and(|age| age > TOO_FRESH);
    match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Opened::Read(settled.then_some(stamp), text),
            Err(_) => bad("is not UTF-8 text", "save it as UTF-8"),
        },
        Err(error) => failed(error),
    }
}

/// Lists files to read, by path. Folders that are links are not entered; links to files must stay inside.
fn list(root: &Path, folder: &Path, depth: usize, files: &mut Vec<PathBuf>, found: &mut Found) {
    if depth > MAX_DEPTH {
        found.problems.push(whole_file(
            folder,
            "lies too deep and is not read",
            "use at most 16 levels of folders",
        ));
        return;
    }
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => {
            found.problems.push(whole_file(
                folder,
                &format!("cannot be read: {error}"),
                "give this process the right to read it",
            ));
            return;
        }
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let Some(meta) = std::fs::symlink_metadata(&path).ok().filter(|_| !hidden) else { continue };
        if meta.is_dir() {
            list(root, &path, depth + 1, files, found);
        } else if is_wanted(&path) {
            if meta.is_symlink() && !stays_inside(root, &path) {
                found.problems.push(whole_file(
                    &path,
                    "is a link out of the directory",
                    "copy the file here",
                ));
            } else if files.len() >= MAX_FILES {
                found.problems.push(whole_file(
                    &path,
                    "is one file too many and is not read",
                    "split the directory",
                ));
                return;
            } else {
                files.push(path);
            }
        }
    }
}

fn is_wanted(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json")
}

/// A link that leads nowhere counts as inside: opening it says what is to be said.
fn stays_inside(root: &Path, link: &Path) -> bool {
    link.canonicalize()
        .map_or_else(|error| error.kind() == std::io::ErrorKind::NotFound, |real| real.starts_with(root))
}

fn whole_file(path: &Path, what: &str, remedy: &str) -> Problem {
    Problem {
        file: path.to_path_buf(),
        line: 0,
        key: None,
        field: String::new(),
        what: what.to_owned(),
        remedy: remedy.to_owned(),
    }
}
