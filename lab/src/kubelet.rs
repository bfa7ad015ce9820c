//! Keeps a lab as a directory says: what kubelets, kube-proxies and cluster DNS do, in one loop.
//!
//! The loop wakes when the directory changes, when a process ends, and now and then; each pass reads everything and
//! does what is missing. So it does not matter what woke it, or what it missed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ambit_api::directory::{Directory, DirectoryError, Document, Loaded, ObjectKey, STATUS_FOLDER};
use notify::{RecursiveMode, Watcher as _};
use serde_json::json;

use crate::dns::{Dns, DnsError};
use crate::manifest::{self, Desired, DesiredPod, Host, Origin};
use crate::network::{Lab, LabError, NewPod};
use crate::pod::PodName;
use crate::runner::{Runner, Wake};
use crate::services;
use crate::status::{self, State};
use crate::token;

/// The lab's overlays are in the directory under this writer's name.
pub const WRITER: &str = "lab";
/// The lab's application.
const APP: &str = "ambit-lab-app";
/// Where the pods of Deployments are written.
const PODS: &str = "pods";
/// Where the nodes are written, if nobody has.
const NODES: &str = "nodes.yaml";
/// Several files are saved together: wait until none was for so long,
const QUIET: Duration = Duration::from_millis(20);
/// but not for ever.
const RESTLESS: Duration = Duration::from_millis(200);
/// How soon to look again at a pod that is starting or stopping.
const SOON: Duration = Duration::from_millis(25);
/// How soon to look again when nothing is expected: what a watch missed, and sockets that were closed.
const LATER: Duration = Duration::from_secs(1);

/// The running loop. Dropping it stops all pods, and takes back what it wrote to the directory.
#[derive(Debug)]
pub struct Kubelet {
    events: Sender<Event>,
    report: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the loop needs beside the lab and its directory.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What pods are made of: programs for images, files for mounts.
    pub host: Host,
    /// Between SIGTERM and SIGKILL, for pods that do not say.
    pub grace: Duration,
    /// Further arguments for the name servers.
    pub dns: Vec<String>,
}

/// How things were after the latest pass.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How many passes there were.
    pub passes: u64,
    /// Whether all that should run does, is ready, and can be reached by its services; and nothing else is left.
    pub settled: bool,
    /// The pods.
    pub pods: BTreeMap<PodName, State>,
    /// What stands in the way, worded for whoever wrote the directory.
    pub problems: Vec<String>,
}

/// Why there is no loop, or it did not get where it should.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The directory cannot be watched.
    #[error("cannot watch {path}: {source}; raise fs.inotify.max_user_watches", path = path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// The name servers did not start.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// The lab's application was not found.
    #[error("the lab's application is not at {seen}; build it: cargo build -p ambit-lab --bin {APP}")]
    NoApp {
        /// Where it was looked for.
        seen: String,
    },
    /// The loop's thread did not start.
    #[error("cannot start a thread: {0}; is the limit of processes reached?")]
    Thread(std::io::Error),
    /// It did not settle in time.
    #[error("the lab did not settle within {limit:?}; not ready: {waiting}; problems: {problems}")]
    Unsettled {
        /// The time it was given.
        limit: Duration,
        /// Pods that are not ready.
        waiting: String,
        /// What the loop reports.
        problems: String,
    },
}

impl Settings {
    /// The usual settings, with that application.
    pub fn new(app: impl Into<PathBuf>) -> Self {
        Self { host: Host::new(app), grace: Duration::from_secs(2), dns: Vec::new() }
    }

    /// The usual settings, with the application that was built beside the running program.
    pub fn found() -> Result<Self, KubeletError> {
        let own = std::env::current_exe().map_err(|err| KubeletError::NoApp { seen: err.to_string() })?;
        // A test runs in a folder below that of the programs.
        let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join(APP));
        let seen: Vec<_> = beside.collect();
        match seen.iter().find(|path| path.is_file()) {
            Some(app) => Ok(Self::new(app)),
            None => {
                let seen = seen.iter().map(|path| path.display().to_string());
                Err(KubeletError::NoApp { seen: seen.collect::<Vec<_>>().join(" nor ") })
            }
        }
    }
}

impl Kubelet {
    /// Starts the loop.
    pub fn start(lab: &Lab, directory: &Path, settings: Settings) -> Result<Self, KubeletError> {
        let directory = Directory::open(directory)?;
        let (events, inbox) = mpsc::channel();
        let waker = events.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is no change.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                // A loop that has ended needs no waking.
                let _ = waker.send(Event::Changed);
            }
        })
        .and_then(|mut watcher| watcher.watch(directory.path(), RecursiveMode::Recursive).map(|()| watcher))
        .map_err(|source| KubeletError::Watch { path: directory.path().to_owned(), source })?;
        let dns = Dns::start(lab.nodes(), lab.family(), lab.logs(), &settings.dns)?;
        let report = Arc::new(Shared::default());
        let mut keeper = Keeper {
            lab: lab.clone(),
            directory,
            settings,
            dns,
            running: BTreeMap::new(),
            stopping: Vec::new(),
            rules: None,
            wrote_nodes: false,
            problems: BTreeSet::new(),
            wake: waker_of(&events),
        };
        keeper.forget_earlier_run()?;
        let shared = Arc::clone(&report);
        let thread = thread::Builder::new()
            .name("lab-kubelet".to_owned())
            .spawn(move || {
                keeper.run(&inbox, &shared);
                keeper.take_back();
                if let Err(err) = watcher.unwatch(keeper.directory.path()) {
                    tracing::debug!(error = %err, "Directory was not watched any more");
                }
            })
            .map_err(KubeletError::Thread)?;
        Ok(Self { events, report, thread: Some(thread) })
    }

    /// How things were after the latest pass.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// Reads the directory as it is now, and waits until all is as it says.
    pub fn settle(&self, limit: Duration) -> Result<Report, KubeletError> {
        let deadline = Instant::now() + limit;
        let mut report = self.report.lock();
        // A pass may be under way that has read the directory already: the one after it has surely not.
        let enough = report.passes + 2;
        let _ = self.events.send(Event::Pass);
        let _ = self.events.send(Event::Pass);
        while !(report.passes >= enough && report.settled) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waiting = report.pods.iter().filter(|(_, state)| !state.ready);
                return Err(KubeletError::Unsettled {
                    limit,
                    waiting: waiting.map(|(pod, _)| pod.to_string()).collect::<Vec<_>>().join(", "),
                    problems: report.problems.join("; "),
                });
            }
            report = self.report.changed.wait_timeout(report, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(report.clone())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
enum Event {
    /// Something happened; more may follow at once.
    Changed,
    /// Someone waits for a pass.
    Pass,
    Stop,
}

#[derive(Debug, Default)]
struct Shared {
    report: Mutex<Report>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn waker_of(events: &Sender<Event>) -> Wake {
    let events = events.clone();
    Arc::new(move || {
        let _ = events.send(Event::Changed);
    })
}

/// The loop's own state.
struct Keeper {
    lab: Lab,
    directory: Directory,
    settings: Settings,
    dns: Dns,
    running: BTreeMap<PodName, Runner>,
    stopping: Vec<Stopping>,
    /// The rules in force on every node.
    rules: Option<String>,
    wrote_nodes: bool,
    /// Already logged.
    problems: BTreeSet<String>,
    wake: Wake,
}

/// A pod on its way out.
struct Stopping {
    runner: Runner,
    deadline: Instant,
}

impl Keeper {
    fn run(&mut self, inbox: &Receiver<Event>, shared: &Shared) {
        loop {
            let report = self.pass();
            let pause = self.pause(&report);
            {
                let mut shared = shared.lock();
                *shared = Report { passes: shared.passes + 1, ..report };
            }
            shared.changed.notify_all();
            if wait(inbox, pause) == Next::Stop {
                return;
            }
        }
    }

    /// One pass: read, stop, start, tell, lead.
    fn pass(&mut self) -> Report {
        let mut problems = Vec::new();
        let mut note = |outcome: Result<(), String>| problems.extend(outcome.err());
        let mut loaded = match self.directory.load() {
            Ok(loaded) => loaded,
            // What was read last stays in force.
            Err(err) => return self.unreadable(&err),
        };
        note(self.write_nodes(&loaded));
        note(self.give_addresses(&loaded));
        let names: Vec<_> = self.lab.nodes().iter().map(|node| node.name().to_owned()).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let desired = manifest::desired(&loaded.objects, &names, &self.settings.host);

        self.stop_others(&desired);
        self.bury(Instant::now());
        note(self.keep_tokens(&desired));
        note(self.start_missing(&desired));
        note(self.tend());
        // First the statuses, then new pods: whoever reads sees a pod complete, or not at all.
        let (states, told) = self.tell();
        note(told);
        note(self.keep_documents(&loaded, &desired));
        // With what was written just now, services lead to the pods just made.
        match self.directory.load() {
            Ok(again) => loaded = again,
            Err(err) => note(Err(err.to_string())),
        }
        note(self.lead(&loaded));

        problems.extend(loaded.problems.iter().chain(&desired.problems).map(ToString::to_string));
        let complete = desired
            .pods
            .keys()
            .all(|pod| states.get(pod).is_some_and(|state| state.ready || is_over(*state)));
        let settled = complete
            && problems.is_empty()
            && self.stopping.is_empty()
            && self.running.len() == desired.pods.len();
        self.log(&problems);
        Report { passes: 0, settled, pods: states, problems }
    }

    fn unreadable(&mut self, err: &DirectoryError) -> Report {
        let problems = vec![err.to_string()];
        self.log(&problems);
        let pods = self.running.iter().map(|(name, runner)| (name.clone(), runner.state())).collect();
        Report { passes: 0, settled: false, pods, problems }
    }

    /// Each problem once, and again if it went and came back.
    fn log(&mut self, problems: &[String]) {
        let now: BTreeSet<_> = problems.iter().cloned().collect();
        for problem in now.difference(&self.problems) {
            tracing::warn!(problem = %problem, "Directory cannot be followed wholly");
        }
        self.problems = now;
    }

    /// Until when nothing is to be done, as far as is known.
    fn pause(&self, report: &Report) -> Duration {
        let now = Instant::now();
        let starting =
            |name: &PodName| report.pods.get(name).is_none_or(|state| !state.ready && !is_over(*state));
        let next =
            self.running.iter().filter(|(name, _)| starting(name)).map(|(_, runner)| {
                runner.due().map_or(SOON, |due| due.saturating_duration_since(now)).max(SOON)
            });
        let stopping = (!self.stopping.is_empty()).then_some(SOON);
        next.chain(stopping).min().unwrap_or(LATER).min(LATER)
    }

    /// Nodes, for whoever reads the directory, if nobody has written any.
    fn write_nodes(&mut self, loaded: &Loaded) -> Result<(), String> {
        if loaded.objects.iter().any(|document| document.kind == "Node") {
            return Ok(());
        }
        let names: Vec<_> = self.lab.nodes().iter().map(|node| node.name()).collect();
        let described = manifest::node_labels(&loaded.objects, &names);
        let items = self.lab.nodes().iter().zip(described).map(|(node, described)| {
            let internal = node.ips().iter().map(|ip| json!({ "type": "InternalIP", "address": ip }));
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": described.name, "labels": described.labels },
                "status": { "addresses": internal.collect::<Vec<_>>() },
            })
        });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>() });
        if !self.wrote_nodes && self.directory.path().join(NODES).exists() {
            return Err(format!("{NODES} holds no nodes: write them there, or rename the file"));
        }
        self.wrote_nodes = true;
        self.directory.put(Path::new(NODES), &list).map_err(|err| err.to_string())
    }

    fn give_addresses(&self, loaded: &Loaded) -> Result<(), String> {
        for (key, overlay) in services::allocate(&loaded.objects, self.lab.family()) {
            self.directory.patch(WRITER, &key, &overlay).map_err(|err| err.to_string())?;
        }
        Ok(())
    }

    /// Begins to stop the pods that should not run, or not as they are.
    fn stop_others(&mut self, desired: &Desired) {
        let stays = |name: &PodName, runner: &Runner| {
            desired.pods.get(name).is_some_and(|wanted| wanted.fingerprint == runner.desired.fingerprint)
        };
        let gone: Vec<_> = self
            .running
            .iter()
            .filter(|(name, runner)| !stays(name, runner))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            let Some(runner) = self.running.remove(&name) else { continue };
            runner.ask_to_stop();
            if let Err(err) = self.directory.unpatch(WRITER, &key(&name)) {
                tracing::warn!(pod = %name, error = %err, "Status could not be taken back");
            }
            let grace = runner.desired.grace_seconds.map_or(self.settings.grace, Duration::from_secs);
            self.stopping.push(Stopping { runner, deadline: Instant::now() + grace });
        }
    }

    /// Removes the pods that have stopped, or had their time.
    fn bury(&mut self, now: Instant) {
        let over = |stopping: &Stopping| stopping.runner.is_over() || stopping.deadline <= now;
        for stopping in self.stopping.extract_if(.., |stopping| over(stopping)) {
            if let Err(err) = self.lab.remove_pod(stopping.runner.pod.name()) {
                tracing::warn!(pod = %stopping.runner.pod.name(), error = %err, "Pod could not be removed");
            }
        }
    }

    /// Gives a token to every account that a pod calls as, and takes back those of others.
    fn keep_tokens(&self, desired: &Desired) -> Result<(), String> {
        let Some(trust) = &self.settings.host.trust else { return Ok(()) };
        let running = self.running.values().map(|runner| &runner.desired);
        let stopping = self.stopping.iter().map(|stopping| &stopping.runner.desired);
        let pods = desired.pods.values().chain(running).chain(stopping);
        let wanted: BTreeSet<_> = pods.filter_map(|pod| pod.token.clone()).collect();
        for token in wanted.iter().filter(|token| !token.exists()) {
            token::write(token)
                .map_err(|err| format!("cannot write {}: {err}; run as root", token.display()))?;
        }
        // There is no such folder before the first token.
        let there = fs::read_dir(&trust.accounts).into_iter().flatten().flatten().map(|file| file.path());
        for left in there.filter(|path| !wanted.contains(path)) {
            fs::remove_file(&left).map_err(|err| format!("cannot remove {}: {err}", left.display()))?;
        }
        Ok(())
    }

    /// Makes the pods that are missing, all at once; one whose predecessor has not gone yet waits for it.
    fn start_missing(&mut self, desired: &Desired) -> Result<(), String> {
        let leaving: BTreeSet<_> = self.stopping.iter().map(|stopping| stopping.runner.pod.name()).collect();
        let missing = |name: &PodName| !self.running.contains_key(name) && !leaving.contains(name);
        let new: Vec<_> = desired
            .pods
            .iter()
            .filter(|(name, _)| missing(name))
            .map(|(name, pod)| NewPod { name: name.clone(), node: pod.node.clone() })
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let pods = self.lab.add_pods(&new).or_else(|err| self.add_each(&new, &err))?;
        for pod in pods {
            if let Some(wanted) = desired.pods.get(pod.name()) {
                let runner = Runner::new(pod.clone(), wanted.clone(), Arc::clone(&self.wake));
                self.running.insert(pod.name().clone(), runner);
            }
        }
        Ok(())
    }

    /// One bad pod must not keep the others from running.
    fn add_each(&self, new: &[NewPod], together: &LabError) -> Result<Vec<crate::pod::Pod>, String> {
        let one_by_one = new.iter().map(|new| self.lab.add_pods(std::slice::from_ref(new)));
        let (made, failed): (Vec<_>, Vec<_>) = one_by_one.partition(Result::is_ok);
        if made.is_empty() {
            return Err(together.to_string());
        }
        for err in failed.into_iter().filter_map(Result::err) {
            tracing::warn!(error = %err, "Pod could not be made");
        }
        Ok(made.into_iter().flatten().flatten().collect())
    }

    fn tend(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let mut all = Ok(());
        for runner in self.running.values_mut() {
            if let Err(err) = runner.tend(now) {
                all = Err(err.to_string());
            }
        }
        all
    }

    /// Writes the documents of replicas, and removes those of replicas that are wanted no more.
    fn keep_documents(&self, loaded: &Loaded, desired: &Desired) -> Result<(), String> {
        let expanded = |pod: &&DesiredPod| pod.origin == Origin::Expanded;
        for (name, pod) in &desired.pods {
            if self.running.contains_key(name) && expanded(&pod) && !holds(loaded, name, pod) {
                self.directory.put(&file_of(name), &pod.document).map_err(|err| err.to_string())?;
            }
        }
        for document in loaded.objects.iter().filter(|document| is_replica(document)) {
            let name = PodName::new(&document.namespace, &document.name);
            let wanted = desired.pods.get(&name).filter(expanded).is_some();
            if !wanted {
                self.directory.remove(&file_of(&name)).map_err(|err| err.to_string())?;
            }
        }
        Ok(())
    }

    /// Says how the pods are.
    fn tell(&self) -> (BTreeMap<PodName, State>, Result<(), String>) {
        let mut states = BTreeMap::new();
        let mut told = Ok(());
        for (name, runner) in &self.running {
            let state = runner.state();
            let overlay = status::overlay(&runner.pod, &runner.desired, &runner.uid, state);
            if let Err(err) = self.directory.patch(WRITER, &key(name), &overlay) {
                told = Err(err.to_string());
            }
            states.insert(name.clone(), state);
        }
        (states, told)
    }

    /// Has services and names lead to the pods that are ready.
    fn lead(&mut self, loaded: &Loaded) -> Result<(), String> {
        let services = services::services(&loaded.objects);
        let rules = services::ruleset(&services);
        if self.rules.as_ref() != Some(&rules) {
            for node in self.lab.nodes() {
                services::apply(node.netns(), &rules).map_err(|err| err.to_string())?;
            }
            self.rules = Some(rules);
        }
        self.dns.apply(&services).map_err(|err| err.to_string())
    }

    /// Statuses of pods that an earlier lab had, which died before it could take them back.
    fn forget_earlier_run(&self) -> Result<(), DirectoryError> {
        let folder = self.directory.path().join(STATUS_FOLDER).join(WRITER);
        let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.file_name());
        for file in files.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("Pod.")) {
            self.directory.remove(&Path::new(STATUS_FOLDER).join(WRITER).join(file))?;
        }
        Ok(())
    }

    /// Stops everything, and leaves the directory as users wrote it.
    fn take_back(&mut self) {
        self.stop_others(&Desired::default());
        let deadline = Instant::now() + self.settings.grace;
        let (_never, silent) = mpsc::channel::<()>();
        while Instant::now() < deadline && !self.stopping.iter().all(|stopping| stopping.runner.is_over()) {
            let _ = silent.recv_timeout(SOON);
        }
        for stopping in &mut self.stopping {
            stopping.deadline = Instant::now();
        }
        self.bury(Instant::now());
        let loaded = self.directory.load().unwrap_or_default();
        let files = loaded.objects.iter().filter(|document| is_replica(document));
        let files = files.map(|document| file_of(&PodName::new(&document.namespace, &document.name)));
        for file in files.chain(self.wrote_nodes.then(|| PathBuf::from(NODES))) {
            if let Err(err) = self.directory.remove(&file) {
                tracing::warn!(file = %file.display(), error = %err, "File could not be taken back");
            }
        }
        // Also of services that are no more.
        let addresses = self.directory.written(WRITER).into_iter().filter(|key| key.kind == "Service");
        for service in addresses {
            if let Err(err) = self.directory.unpatch(WRITER, &service) {
                tracing::warn!(service = %service, error = %err, "Address could not be taken back");
            }
        }
        // Only if nothing of others is in them.
        for folder in
            [PathBuf::from(PODS), Path::new(STATUS_FOLDER).join(WRITER), PathBuf::from(STATUS_FOLDER)]
        {
            let _ = fs::remove_dir(self.directory.path().join(folder));
        }
    }
}

fn is_over(state: State) -> bool {
    matches!(state.phase, status::Phase::Succeeded | status::Phase::Failed)
}

fn key(pod: &PodName) -> ObjectKey {
    ObjectKey::new("Pod", &pod.namespace, &pod.name)
}

fn file_of(pod: &PodName) -> PathBuf {
    Path::new(PODS).join(format!("{}.{}.yaml", pod.namespace, pod.name))
}

fn is_replica(document: &Document) -> bool {
    let annotations = document.value.get("metadata").and_then(|metadata| metadata.get("annotations"));
    document.kind == "Pod" && annotations.is_some_and(|all| all.get(manifest::EXPANDED_FROM).is_some())
}

/// Whether the directory has this very replica: a user may have labelled it since, and that stays.
fn holds(loaded: &Loaded, name: &PodName, pod: &DesiredPod) -> bool {
    let own = loaded.objects.iter().find(|document| {
        is_replica(document) && document.namespace == name.namespace && document.name == name.name
    });
    own.is_some_and(|document| document.value == pod.document)
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Pass,
    Stop,
}

/// Waits for something to do, and then until a burst of changes is over.
fn wait(inbox: &Receiver<Event>, pause: Duration) -> Next {
    let mut limit = Instant::now() + pause;
    let mut last = None;
    loop {
        match inbox.recv_timeout(limit.saturating_duration_since(Instant::now())) {
            Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Next::Stop,
            Ok(Event::Pass) | Err(RecvTimeoutError::Timeout) => return Next::Pass,
            Ok(Event::Changed) => {
                let now = Instant::now();
                let last = *last.get_or_insert(now + RESTLESS);
                limit = (now + QUIET).min(last);
            }
        }
    }
}
