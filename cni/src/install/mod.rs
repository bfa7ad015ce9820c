//! Puts the plugin where the node's runtime finds it, keeps it there, and takes it away again.
//!
//! Others write into the same directory: the cluster's network is upgraded, another one is installed. So the
//! directory is watched, and every change is answered by looking at the whole of it again.

pub mod conflist;

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_runtime::ready::Pending;
use notify::{EventKind, RecursiveMode, Watcher as _};
use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use self::conflist::{Entry, Files, Ownership, PLUGIN, Plan};
use crate::metrics::Metrics;

/// Without a sign of change the directory is looked at all the same: signs get lost on some file systems.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Changes come in bursts; one look covers them. It also bounds how often we and another program that
/// will not have us in its file can undo each other.
const BURST: Duration = Duration::from_millis(100);

/// A configuration is a page of JSON; what is longer is not one.
const LONGEST: u64 = 1024 * 1024;

/// More files than any node has; the rest is not looked at.
const MOST_FILES: usize = 100;

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Installer {
    /// The plugin's program, as the agent's image has it.
    pub program: PathBuf,
    /// Where the runtime looks for programs.
    pub bin_dir: PathBuf,
    /// Where it looks for configurations.
    pub conf_dir: PathBuf,
    /// Whose file we are in.
    pub ownership: Ownership,
    /// The name of our own file.
    pub own: String,
    /// What the plugin is told.
    pub entry: Entry,
    /// The programs that were last found to be the same.
    pub same: Arc<Mutex<Option<[Stamp; 2]>>>,
}

/// What tells a file from a changed one without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        let modified = (found.mtime(), found.mtime_nsec());
        Ok(Self { inode: found.ino(), length: found.len(), modified })
    }
}

/// What a look at the directory led to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Files that were written or removed.
    pub changed: Vec<String>,
    /// What is wrong.
    pub problems: Vec<String>,
    /// The file in which the runtime finds our plugin.
    pub active: Option<String>,
}

/// With what the runtime starts pods, for operators: the page `/debug/cni`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chained {
    /// Where its configurations are, as the agent sees it.
    pub directory: PathBuf,
    /// The configuration it takes; none if it can use none.
    pub file: Option<String>,
    /// The plugins there, in their order.
    pub plugins: Vec<String>,
    /// Whether that file is our own.
    pub owned: bool,
}

/// Why the plugin could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file.
    #[error("cannot {what} {path}: {source}; is the node's directory mounted, and writable?", path = path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The task that did it died.
    #[error("the task that installs the plugin died")]
    Died,
}

impl Installer {
    /// Installs what is missing. Doing it again does nothing.
    pub fn install(&self) -> Result<Outcome, InstallError> {
        // The program first: a chain that names a program which is not there stops every pod.
        let copied = self.copy_program()?;
        let plan = conflist::install(&self.files()?, self.ownership, &self.own, &self.entry);
        let mut outcome = self.carry_out(plan)?;
        outcome.changed.extend(copied.then(|| PLUGIN.to_owned()));
        Ok(outcome)
    }

    /// Removes everything of ours.
    pub fn uninstall(&self) -> Result<Outcome, InstallError> {
        let mut outcome = self.carry_out(conflist::uninstall(&self.files()?, &self.own))?;
        // The program last, for the same reason.
        let program = self.bin_dir.join(PLUGIN);
        if remove(&program)? {
            outcome.changed.push(PLUGIN.to_owned());
        }
        Ok(outcome)
    }

    /// With what the runtime would start a pod now.
    pub fn chained(&self) -> Result<Chained, InstallError> {
        let (file, plugins) = conflist::in_force(&self.files()?).unzip();
        let owned = file.as_ref() == Some(&self.own);
        Ok(Chained { directory: self.conf_dir.clone(), file, plugins: plugins.unwrap_or_default(), owned })
    }

    /// Installs, and repairs for ever after. `installed` says whether the runtime would find us now.
    pub async fn keep(self, metrics: Metrics, ready: Pending, installed: watch::Sender<bool>) {
        let (sign, mut changed) = mpsc::channel(1);
        let _watcher = self.watch(sign);
        let installer = Arc::new(self);
        let mut told = Outcome::default();
        let mut first = true;
        loop {
            let hand = Arc::clone(&installer);
            let done = tokio::task::spawn_blocking(move || hand.install()).await;
            match done.unwrap_or(Err(InstallError::Died)) {
                Ok(outcome) => {
                    if !outcome.changed.is_empty() {
                        let file = outcome.active.as_deref().unwrap_or_default();
                        info!(files = ?outcome.changed, chain = file, first, "The plugin was put into the runtime's configuration");
                        if !first {
                            metrics.reinstalled();
                        }
                    }
                    if outcome.problems != told.problems {
                        for problem in &outcome.problems {
                            warn!(directory = %installer.conf_dir.display(), problem, "The runtime's configuration");
                        }
                    }
                    match outcome.active {
                        Some(_) => ready.done(),
                        None => ready.again(),
                    }
                    installed.send_replace(outcome.active.is_some());
                    first = first && outcome.active.is_none();
                    told = outcome;
                }
                Err(error) => {
                    warn!(%error, "The plugin could not be installed");
                    ready.again();
                    installed.send_replace(false);
                }
            }
            let _ = timeout(LOOK_EVERY, changed.recv()).await;
            sleep(BURST).await;
            while changed.try_recv().is_ok() {}
        }
    }

    /// Signs of change. Without them the directory is looked at from time to time, which is enough.
    fn watch(&self, sign: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
        let heard = move |event: notify::Result<notify::Event>| {
            let only_read = event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_)));
            if !only_read {
                // Full: a sign is waiting already.
                let _ = sign.try_send(());
            }
        };
        let watched = notify::recommended_watcher(heard).and_then(|mut watcher| {
            watcher.watch(&self.conf_dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watched {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                let directory = self.conf_dir.display();
                warn!(%error, %directory, every = ?LOOK_EVERY, "The runtime's configuration cannot be watched, and is looked at now and then");
                None
            }
        }
    }

    fn copy_program(&self) -> Result<bool, InstallError> {
        let target = self.bin_dir.join(PLUGIN);
        let stamps = || -> io::Result<[Stamp; 2]> { Ok([Stamp::of(&self.program)?, Stamp::of(&target)?]) };
        let runs = fs::metadata(&target).is_ok_and(|found| found.permissions().mode() & 0o111 != 0);
        let mut same = self.same.lock().unwrap_or_else(PoisonError::into_inner);
        if runs && same.is_some() && stamps().ok() == *same {
            return Ok(false);
        }
        let new = fs::read(&self.program).map_err(|source| failed("read", &self.program, source))?;
        let copy = !runs || fs::read(&target).map_or(true, |old| old != new);
        if copy {
            replace(&target, &new, 0o755)?;
        }
        *same = stamps().ok();
        Ok(copy)
    }

    fn files(&self) -> Result<Files, InstallError> {
        let mut files = Files::new();
        let listed = fs::read_dir(&self.conf_dir).map_err(|source| failed("list", &self.conf_dir, source))?;
        for entry in listed.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !conflist::is_configuration(&name) || files.len() >= MOST_FILES {
                continue;
            }
            match read(&entry.path()) {
                Ok(text) => {
                    files.insert(name, text);
                }
                // Another program removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // A directory, say. The runtime cannot read it either.
                Err(error) => {
                    warn!(file = %entry.path().display(), %error, "A network configuration cannot be read")
                }
            }
        }
        Ok(files)
    }

    fn carry_out(&self, plan: Plan) -> Result<Outcome, InstallError> {
        let mut changed = Vec::new();
        for conflist::Write { name, content, like } in plan.writes {
            let like = fs::metadata(self.conf_dir.join(like));
            // No file to be like: nobody else has any business with it.
            let mode = like.map_or(0o600, |found| found.permissions().mode() & 0o777);
            replace(&self.conf_dir.join(&name), content.as_bytes(), mode)?;
            changed.push(name);
        }
        for name in plan.removals {
            if remove(&self.conf_dir.join(&name))? {
                changed.push(name);
            }
        }
        Ok(Outcome { changed, problems: plan.problems, active: plan.active })
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Whoever opens the file finds the old content or the new, and after a crash too.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    let failed = |what| move |source| failed(what, path, source);
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(PLUGIN);
    // Runtimes read no file of such a name. A former try may have left one.
    let hidden = directory.join(format!(".{name}.ambit-new"));
    let mut file = File::create(&hidden).map_err(failed("write"))?;
    file.set_permissions(Permissions::from_mode(mode)).map_err(failed("write"))?;
    file.write_all(content).map_err(failed("write"))?;
    file.sync_all().map_err(failed("write"))?;
    drop(file);
    fs::rename(&hidden, path).map_err(failed("replace"))?;
    // The rename itself, where directories can be synced.
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
    Ok(())
}

/// Whether there was anything.
fn remove(path: &Path) -> Result<bool, InstallError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(failed("remove", path, source)),
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> InstallError {
    InstallError::File { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use ambit_runtime::{ready::Ready, task};

    use super::*;

    const NET: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}"#;

    struct Node {
        dir: tempfile::TempDir,
        installer: Installer,
    }

    fn node(ownership: Ownership) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["bin", "conf"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("program"), "one").unwrap();
        let entry =
            Entry { socket: "/s".into(), excluded: Vec::new(), system: "s".into(), timeout_seconds: 1 };
        let installer = Installer {
            program: at("program"),
            bin_dir: at("bin"),
            conf_dir: at("conf"),
            ownership,
            own: "02-ambit-cni.conflist".into(),
            entry,
            same: Arc::default(),
        };
        Node { dir, installer }
    }

    impl Node {
        fn put(&self, name: &str, text: &str, mode: u32) {
            let path = self.dir.path().join("conf").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.dir.path().join("conf").join(name)).unwrap_or_default()
        }

        fn mode(&self, path: &str) -> u32 {
            fs::metadata(self.dir.path().join(path)).unwrap().permissions().mode() & 0o777
        }

        fn names(&self) -> Vec<String> {
            let listed = ["bin", "conf"].map(|name| fs::read_dir(self.dir.path().join(name)).unwrap());
            let mut names: Vec<String> = listed
                .into_iter()
                .flatten()
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn everything_is_put_in_once_and_taken_out_without_a_trace() {
        let node = node(Ownership::Chained);
        node.put("10-net.conflist", NET, 0o640);
        let outcome = node.installer.install().unwrap();
        assert_eq!(outcome.changed, ["10-net.conflist", PLUGIN]);
        assert!(node.text("10-net.conflist").contains(PLUGIN));
        assert_eq!((node.mode("conf/10-net.conflist"), node.mode("bin/ambit-cni")), (0o640, 0o755));
        assert_eq!(node.installer.install().unwrap().changed, Vec::<String>::new());
        fs::write(node.dir.path().join("program"), "another").unwrap();
        assert_eq!(node.installer.install().unwrap().changed, [PLUGIN]);
        fs::write(node.dir.path().join("bin").join(PLUGIN), "somebody else's").unwrap();
        assert_eq!(node.installer.install().unwrap().changed, [PLUGIN]);
        assert_eq!(node.names(), ["10-net.conflist", PLUGIN]);

        node.installer.uninstall().unwrap();
        assert_eq!(node.names(), ["10-net.conflist"]);
        assert!(!node.text("10-net.conflist").contains(PLUGIN));
        assert_eq!(node.mode("conf/10-net.conflist"), 0o640);
        assert_eq!(node.installer.uninstall().unwrap().changed, Vec::<String>::new());
    }

    #[test]
    fn what_is_told_of_the_chain_is_read_from_the_disk() {
        let chained = |node: &Node| {
            let now = node.installer.chained().unwrap();
            (now.file, now.plugins.join(" "), now.owned)
        };
        let name = "10-net.conflist";
        let shared = node(Ownership::Chained);
        assert_eq!(chained(&shared), (None, String::new(), false));
        shared.put(name, NET, 0o644);
        shared.installer.install().unwrap();
        assert_eq!(chained(&shared), (Some(name.to_owned()), "bridge ambit-cni".to_owned(), false));
        shared.put(name, NET, 0o644);
        assert_eq!(chained(&shared), (Some(name.to_owned()), "bridge".to_owned(), false));

        let owner = node(Ownership::Own);
        owner.put(name, NET, 0o644);
        owner.installer.install().unwrap();
        let own = Some(owner.installer.own.clone());
        assert_eq!(chained(&owner), (own, "bridge ambit-cni".to_owned(), true));
        fs::remove_dir_all(owner.dir.path().join("conf")).unwrap();
        assert!(owner.installer.chained().is_err());
    }

    #[test]
    fn a_missing_program_changes_no_chain() {
        let node = node(Ownership::Chained);
        node.put("10-net.conflist", NET, 0o644);
        fs::remove_file(node.dir.path().join("program")).unwrap();
        let error = node.installer.install().unwrap_err().to_string();
        assert!(error.contains("program") && error.contains("mounted"), "{error}");
        assert_eq!(node.text("10-net.conflist"), NET);
    }

    #[test]
    fn a_file_of_our_own_is_as_closed_as_the_primarys() {
        let node = node(Ownership::Own);
        node.put("10-net.conflist", NET, 0o600);
        node.installer.install().unwrap();
        assert_eq!(node.mode("conf/02-ambit-cni.conflist"), 0o600);
        assert_eq!(node.text("10-net.conflist"), NET);
    }

    #[tokio::test]
    async fn what_others_rewrite_is_repaired() {
        let node = node(Ownership::Chained);
        let (installed, mut seen) = watch::channel(false);
        let metrics = Metrics::default();
        let ready = Ready::new();
        let pending = ready.task("the plugin");
        let keeping =
            task::spawn("install", node.installer.clone().keep(metrics, pending, installed)).owned();
        node.put("10-net.conflist", NET, 0o644);
        let soon = Duration::from_secs(20);
        timeout(soon, seen.wait_for(|seen| *seen)).await.unwrap().unwrap();
        timeout(soon, ready.wait()).await.unwrap();
        for (name, text) in
            [("10-net.conflist", NET.replace("bridge", "ptp")), ("00-new.conflist", NET.into())]
        {
            node.put(name, &text, 0o644);
            let repaired = async {
                while !node.text(name).contains(PLUGIN) {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(soon, repaired).await.expect(name);
        }
        drop(keeping);
    }
}
