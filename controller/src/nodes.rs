//! Who calls, in a mesh without Kubernetes: each node has a token, in a file of the node's name; and each account that
//! calls for itself has one, in a file `NAMESPACE.ACCOUNT` of the folder `accounts` beside them.
//!
//! Whoever shows the token of a node is the tunnel of that node; whoever shows that of an account is that account, on no
//! node, so it speaks for nobody else. The directory is looked at again every second while callers come, and at once for
//! a token that is not known, so a new node need not wait. A file that cannot be a token is reported and lets nobody in;
//! a token of two lets neither in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ambit_model::{
    identity::Identity,
    name::{Namespace, Node, ServiceAccount},
};
use boring::{memcmp, sha::Sha256};
use tracing::{info, warn};

use crate::ca::caller::Caller;

/// How old knowledge of the directory may be. A token that was taken back is refused after this.
const LOOK: Duration = Duration::from_secs(1);
/// Strangers can make us look this often.
const LOOK_FOR_STRANGERS: Duration = Duration::from_millis(100);
/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;
/// A longer one is refused by gRPC: header lines are shorter.
const LONGEST_TOKEN: u64 = 8 * 1024;
/// The nodes of the largest clusters, and as many accounts.
const MOST_TOKENS: usize = 20_000;
/// The folder of the accounts' tokens.
const ACCOUNTS: &str = "accounts";

/// The nodes and accounts that have a token.
pub struct Nodes {
    path: PathBuf,
    tunnel: Identity,
    /// Tokens are kept and compared as hashes with a secret start: how long a comparison takes says nothing.
    salt: [u8; 32],
    known: Mutex<Known>,
}

impl Nodes {
    /// Reads the tokens in `path`, which must be there. Their callers are `tunnel`.
    pub fn open(path: impl Into<PathBuf>, tunnel: Identity) -> Result<Self, NodesError> {
        let path = path.into();
        let mut salt = [0; 32];
        boring::rand::rand_bytes(&mut salt).map_err(|_| NodesError::Random)?;
        let known = Known {
            files: BTreeMap::new(),
            tokens: Vec::new(),
            complaints: BTreeSet::new(),
            looked: Instant::now(),
        };
        let nodes = Self { path, tunnel, salt, known: Mutex::new(known) };
        nodes
            .locked()
            .look(&nodes.path, &nodes.salt)
            .map_err(|source| NodesError::Unreadable { path: nodes.path.clone(), source })?;
        Ok(nodes)
    }

    /// Who shows this token. Reads files now and then: not for the threads of tasks.
    pub fn identify(&self, token: &str) -> Result<Caller, NotANode> {
        let digest = digest(&self.salt, token.as_bytes());
        let mut known = self.locked();
        self.refresh(&mut known, LOOK);
        let mut found = known.find(&digest);
        if found.is_none() {
            self.refresh(&mut known, LOOK_FOR_STRANGERS);
            found = known.find(&digest);
        }
        Ok(match found.ok_or(NotANode)? {
            Holder::Node(node) => Caller { identity: self.tunnel.clone(), node: Some(node) },
            Holder::Account { namespace, name } => {
                let trust_domain = self.tunnel.trust_domain.clone();
                Caller { identity: Identity::new(trust_domain, namespace, name), node: None }
            }
        })
    }

    /// How many nodes may connect.
    pub fn len(&self) -> usize {
        let is_node = |(holder, _): &&(Holder, Digest)| matches!(holder, Holder::Node(_));
        self.locked().tokens.iter().filter(is_node).count()
    }

    /// Whether no node may connect.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn refresh(&self, known: &mut Known, age: Duration) {
        if known.looked.elapsed() < age {
            return;
        }
        if let Err(error) = known.look(&self.path, &self.salt) {
            known.complain(
                [format!("{}: {error}; what it last said stays in force", self.path.display())].into(),
            );
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes")
            .field("path", &self.path)
            .field("tunnel", &self.tunnel)
            .finish_non_exhaustive()
    }
}

/// A token that is not that of a node or account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token is not that of a node or account; compare the file of AUTH_TOKEN with that in the controller's --tokens directory"
)]
pub struct NotANode;

/// Why tokens cannot be read at all. The daemon must not start.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// No directory.
    #[error("cannot read the tokens in {path}: {source}; make the directory, with a file for each node", path = path.display())]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No random numbers.
    #[error("the crypto library has no random numbers")]
    Random,
}

/// What the directory last said.
struct Known {
    files: BTreeMap<String, Stamp>,
    tokens: Vec<(Holder, Digest)>,
    complaints: BTreeSet<String>,
    looked: Instant,
}

type Digest = [u8; 32];

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holder {
    Node(Node),
    Account { namespace: Namespace, name: ServiceAccount },
}

impl Holder {
    /// By the file, relative to the directory. A namespace has no dot in it.
    fn of(file: &str) -> Result<Self, &'static str> {
        let Some(account) = file.strip_prefix(ACCOUNTS).and_then(|rest| rest.strip_prefix('/')) else {
            return Ok(Self::Node(file.into()));
        };
        match account.split_once('.') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Account { namespace: namespace.into(), name: name.into() })
            }
            Some(_) | None => Err("names no account; call it NAMESPACE.ACCOUNT"),
        }
    }
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
    mode: u32,
}

impl Known {
    /// Whose a token is. Every token is compared, each in constant time.
    fn find(&self, digest: &Digest) -> Option<Holder> {
        let mut found = None;
        for (holder, token) in &self.tokens {
            if memcmp::eq(token, digest) {
                found = Some(holder);
            }
        }
        found.cloned()
    }

    /// Reads the tokens again if anything in the directory changed.
    fn look(&mut self, path: &Path, salt: &[u8; 32]) -> io::Result<()> {
        self.looked = Instant::now();
        let (files, mut complaints) = list(path)?;
        if files == self.files {
            return Ok(());
        }
        let mut holders: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for (name, stamp) in &files {
            match read(&path.join(name), stamp) {
                Ok(token) => {
                    holders.entry(digest(salt, token.trim().as_bytes())).or_default().push(name.clone())
                }
                Err(problem) => {
                    complaints.insert(format!("{}: {problem}", path.join(name).display()));
                }
            }
            if stamp.mode & 0o004 != 0 {
                complaints.insert(format!(
                    "{}: everybody can read this token; chmod 600",
                    path.join(name).display()
                ));
            }
        }
        self.tokens.clear();
        for (digest, files) in holders {
            match files.as_slice() {
                [file] => match Holder::of(file) {
                    Ok(holder) => self.tokens.push((holder, digest)),
                    Err(problem) => {
                        complaints.insert(format!("{}: {problem}", path.join(file).display()));
                    }
                },
                several => {
                    complaints
                        .insert(format!("{} have the same token; make one for each", several.join(" and ")));
                }
            }
        }
        self.files = files;
        self.complain(complaints);
        info!(tokens.path = %path.display(), tokens = self.tokens.len(), "Tokens of nodes and accounts read");
        Ok(())
    }

    fn complain(&mut self, complaints: BTreeSet<String>) {
        for complaint in complaints.difference(&self.complaints) {
            warn!(reason = %complaint, "Token not as it should be");
        }
        self.complaints = complaints;
    }
}

/// The files that may be tokens, by name, and complaints about the others.
fn list(path: &Path) -> io::Result<(BTreeMap<String, Stamp>, BTreeSet<String>)> {
    let (mut files, mut complaints) = (BTreeMap::new(), BTreeSet::new());
    list_folder(path, "", &mut files, &mut complaints)?;
    match list_folder(&path.join(ACCOUNTS), "accounts/", &mut files, &mut complaints) {
        // No account calls for itself.
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
        listed => listed?,
    }
    Ok((files, complaints))
}

fn list_folder(
    folder: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, Stamp>,
    complaints: &mut BTreeSet<String>,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        // A mounted secret is links to files.
        let Ok(found) = fs::metadata(entry.path()) else { continue };
        if !found.is_file() {
            continue;
        }
        if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.')) {
            complaints.insert(format!("{}: nobody is called so; remove the file", entry.path().display()));
            continue;
        }
        if files.len() >= MOST_TOKENS {
            complaints.insert(format!("{}: more than {MOST_TOKENS} tokens are not read", folder.display()));
            break;
        }
        let stamp = Stamp {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
            mode: found.mode(),
        };
        files.insert(format!("{prefix}{name}"), stamp);
    }
    Ok(())
}

fn read(path: &Path, stamp: &Stamp) -> Result<String, String> {
    if stamp.size > LONGEST_TOKEN {
        return Err(format!("longer than {LONGEST_TOKEN} bytes, so not a token"));
    }
    let token = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let visible = token.trim().bytes().all(|byte| byte.is_ascii_graphic());
    if token.trim().len() < SHORTEST_TOKEN || !visible {
        let remedy = "write one line of at least";
        return Err(format!(
            "not a token; {remedy} {SHORTEST_TOKEN} letters and digits: openssl rand -hex 32"
        ));
    }
    Ok(token)
}

fn digest(salt: &[u8; 32], token: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(salt);
    hash.update(token);
    hash.finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const ONE: &str = "one-0123456789abcdef";
    const TWO: &str = "two-0123456789abcdef";

    fn dir(tokens: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        tokens.iter().for_each(|(name, token)| put(dir.path(), name, token));
        dir
    }

    fn put(dir: &Path, name: &str, token: &str) {
        let path = dir.join(name);
        fs::write(&path, token).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn open(dir: &tempfile::TempDir) -> Nodes {
        Nodes::open(dir.path(), Identity::new("cluster.local", "istio-system", "ztunnel")).unwrap()
    }

    fn node(nodes: &Nodes, token: &str) -> Result<String, NotANode> {
        nodes.identify(token).map(|caller| caller.node.unwrap().to_string())
    }

    /// What is true after a look, waited for within bounds.
    fn soon(holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(10), "not within ten seconds");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_token_is_the_tunnel_of_its_node() {
        let dir = dir(&[("n1", ONE), ("n2", &format!("{TWO}\n"))]);
        let nodes = open(&dir);
        let caller = nodes.identify(ONE).unwrap();
        assert_eq!(caller.identity.to_string(), "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
        assert_eq!(caller.node, Some("n1".into()));
        assert_eq!(node(&nodes, TWO), Ok("n2".into()));
        for token in ["", "n1", "one-0123456789abcde", "one-0123456789abcdef0", "ONE-0123456789ABCDEF"] {
            assert_eq!(node(&nodes, token), Err(NotANode), "{token}");
        }
    }

    #[test]
    fn a_token_of_an_account_is_that_account_and_on_no_node() {
        let dir = dir(&[("n1", ONE)]);
        fs::create_dir(dir.path().join("accounts")).unwrap();
        put(dir.path(), "accounts/shop.gate.v2", TWO);
        put(dir.path(), "accounts/gate", "gate-0123456789abcdef");
        put(dir.path(), "accounts/shop.n1", ONE);
        let nodes = open(&dir);
        let caller = nodes.identify(TWO).unwrap();
        assert_eq!(caller.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/gate.v2");
        assert_eq!(caller.node, None);
        assert_eq!(nodes.identify("gate-0123456789abcdef"), Err(NotANode), "in no namespace");
        assert_eq!(nodes.identify(ONE), Err(NotANode), "a node's and an account's");
    }

    #[test]
    fn files_that_are_no_tokens_let_nobody_in() {
        let dir = dir(&[
            ("n1", ""),
            ("n2", "\n"),
            ("n3", "short"),
            (".n4", ONE),
            ("N5", TWO),
            ("n6", "two words, long enough"),
        ]);
        fs::create_dir(dir.path().join("n7")).unwrap();
        put(dir.path(), "n8", &"x".repeat(10_000));
        let nodes = open(&dir);
        assert_eq!(nodes.len(), 0);
        for token in ["", "\n", "short", ONE, TWO, "two words, long enough"] {
            assert!(node(&nodes, token).is_err(), "{token:?}");
        }
    }

    #[test]
    fn a_token_of_two_nodes_lets_neither_in() {
        let nodes = open(&dir(&[("n1", ONE), ("n2", ONE), ("n3", TWO)]));
        assert_eq!(node(&nodes, ONE), Err(NotANode));
        assert_eq!(node(&nodes, TWO), Ok("n3".into()));
    }

    #[test]
    fn tokens_come_change_and_go_while_it_runs() {
        let dir = dir(&[("n1", ONE)]);
        let nodes = open(&dir);
        put(dir.path(), "n2", TWO);
        soon(|| node(&nodes, TWO) == Ok("n2".into()));
        put(dir.path(), "n1", "new-0123456789abcdef");
        soon(|| node(&nodes, ONE) == Err(NotANode));
        assert_eq!(node(&nodes, "new-0123456789abcdef"), Ok("n1".into()));
        fs::remove_file(dir.path().join("n2")).unwrap();
        soon(|| node(&nodes, TWO).is_err());
    }

    #[test]
    fn a_mounted_secret_is_a_directory_of_tokens() {
        let dir = dir(&[]);
        fs::create_dir(dir.path().join("..v1")).unwrap();
        put(&dir.path().join("..v1"), "n1", ONE);
        symlink("..v1", dir.path().join("..data")).unwrap();
        symlink("..data/n1", dir.path().join("n1")).unwrap();
        assert_eq!(node(&open(&dir), ONE), Ok("n1".into()));
    }

    #[test]
    fn a_directory_that_is_not_there_stops_the_start_but_not_the_run() {
        let dir = dir(&[("n1", ONE)]);
        let missing = dir.path().join("missing");
        let error = Nodes::open(missing, Identity::new("td", "a", "b")).unwrap_err().to_string();
        assert!(error.contains("missing") && error.contains("make the directory"), "{error}");
        let nodes = open(&dir);
        drop(dir);
        nodes.locked().looked = Instant::now().checked_sub(LOOK).unwrap();
        assert_eq!(node(&nodes, ONE), Ok("n1".into()));
    }
}
