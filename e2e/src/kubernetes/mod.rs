//! A real Kubernetes cluster of two nodes on this machine, in namespaces of its own: kube-apiserver, controllers,
//! scheduler, and on each [`node`] a real kubelet, kube-proxy and containerd. `make cluster-up` is this, too.
//!
//! A process of its own, the [`keeper`], holds a cluster and takes it down without a trace. A [`Cluster`] is a handle
//! that any process may have. Stories share one cluster, which takes half a minute to start: [`Cluster::shared`] brings
//! it up for the first story and hands it from one to the next (one at a time, also between processes); it goes when
//! none has used it for a while. A story leaves the cluster as it found it: it works in namespaces of its own, and
//! deletes them. [`Cluster::up`] is a cluster for one owner, gone when the handle is dropped or its process dies.
//!
//! Every node has its own network, mounts, processes, host name and control groups, so no path and no process of the
//! machine is shared between nodes. The addresses are the same in every cluster: nodes 10.89.0.11 and .12, the API
//! server 10.89.0.10, pods 10.244.{1,2}.0/24, services 10.96.0.0/16. Nothing of it is in the machine's own network
//! namespace, except a port on loopback that leads to the API server.

mod cgroup;
mod control_plane;
mod daemon;
mod forward;
pub mod home;
pub mod image;
pub mod images;
pub mod keeper;
mod kubectl;
mod network;
mod node;
mod pki;

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ambit_lab::netns::Netns;
use ambit_lab::{Output, process};
use anyhow::{Context as _, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};

pub use self::image::Image;
pub use self::kubectl::Kubectl;

use self::home::{CONTROL, Held, Home};
use self::keeper::Order;
use crate::wait::Stop;

/// Half a minute, on two cores that do nothing else.
const UP_LIMIT: Duration = Duration::from_secs(240);
const DOWN_LIMIT: Duration = Duration::from_secs(90);
/// A story may be slow; the next one waits for it.
const TURN_LIMIT: Duration = Duration::from_secs(1200);
/// Shorter than a keeper waits for its first user.
const LEASE_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// How long the stories' cluster waits for the next story.
const BETWEEN_STORIES: Duration = Duration::from_secs(45);
/// The name of the cluster that stories share.
pub const STORIES: &str = "stories";

/// A cluster to use.
#[derive(Debug)]
pub struct Cluster {
    home: Home,
    binaries: PathBuf,
    kubectl: Kubectl,
    runtime: tokio::runtime::Runtime,
    lease: Option<Held>,
    keeper: Option<Child>,
}

/// Which cluster, made of what.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name: a-z and 0-9.
    pub name: String,
    /// The folder of all clusters' files.
    pub root: PathBuf,
    /// Where kubernetes, coredns and pause are (`.ci/cluster-programs` makes them).
    pub programs: PathBuf,
    /// Where the programs of this project are.
    pub binaries: PathBuf,
}

/// How long a cluster stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// Until it is told to go.
    UntilDown,
    /// Until nobody has used it for so long.
    WhileUsed(Duration),
}

impl Options {
    /// A cluster of that name, with everything where a build puts it: found from where the running program is.
    pub fn found(name: &str) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("where is this program?")?;
        let mut above = own.ancestors().skip(1);
        // A test runs in a folder below.
        let binaries = above.find(|dir| dir.join("ambit-cluster").is_file()).with_context(|| {
            format!("ambit-cluster is not beside {}; run `cargo build --workspace --bins`", own.display())
        })?;
        let target = binaries.parent().context("the programs are in no folder")?;
        Ok(Self {
            name: name.to_owned(),
            root: target.join("clusters"),
            programs: target.join("tools/kubernetes"),
            binaries: binaries.to_owned(),
        })
    }

    fn home(&self) -> anyhow::Result<Home> {
        Home::new(&self.name, &self.root)
    }
}

/// Why there can be no cluster here; a test that is skipped for it says so. That programs are missing which could be
/// built is no such reason.
pub fn impossible() -> Option<String> {
    if !crate::town::is_root() {
        return Some("a cluster needs namespaces and mounts: run as root".to_owned());
    }
    let built = Options::found(STORIES).is_ok_and(|options| options.programs.join("kubernetes").is_file());
    let go = Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!built && go.is_err())
        .then(|| "the cluster's programs are not built, and there is no Go to build them".to_owned())
}

/// Tells a story on the shared cluster, or says loudly why it cannot be told here.
pub fn story(told: impl FnOnce(&Cluster) -> anyhow::Result<()>) -> anyhow::Result<()> {
    match impossible() {
        Some(why) => {
            tell(&format!("SKIPPED: {why}"));
            Ok(())
        }
        None => told(&Cluster::shared()?),
    }
}

impl Cluster {
    /// Brings a cluster up for this process alone. It goes with the handle, or with the process.
    pub fn up(options: &Options) -> anyhow::Result<Self> {
        let home = options.home()?;
        let Some(keeper) = start_keeper(options, &home, Stay::WhileUsed(Duration::ZERO))? else {
            bail!("cluster {} is up already: take another name", home.name());
        };
        // Its keeper looks at the lease, too, for a moment.
        let what = "the beginning of our use of the cluster";
        let lease = Stop::default().until_every(PAUSE, LEASE_LIMIT, what, || Held::take(&home.lease()))?;
        Self::new(options, home, Some(lease), Some(keeper))
    }

    /// The cluster that all stories share, for one story at a time: waits for its turn.
    pub fn shared() -> anyhow::Result<Self> {
        let options = Options::found(STORIES)?;
        let home = options.home()?;
        let lease = Stop::default().until_every(PAUSE, TURN_LIMIT, "our turn with the cluster", || {
            if !is_kept(&home)? {
                // Its keeper stays without us, so it is not our child to wait for.
                let started = start_keeper(&options, &home, Stay::WhileUsed(BETWEEN_STORIES));
                // Another story may have been faster: then the cluster is that one's.
                if !is_kept(&home)? {
                    started?;
                }
            }
            let lease = if home.ready().exists() { Held::take(&home.lease())? } else { None };
            Ok(lease.filter(|_| home.ready().exists()))
        })?;
        Self::new(&options, home, Some(lease), None)
    }

    /// A cluster that is up, which others may use at the same time.
    pub fn attach(options: &Options) -> anyhow::Result<Self> {
        let home = options.home()?;
        ensure!(home.ready().exists(), "cluster {} is not up: run `make cluster-up`", home.name());
        Self::new(options, home, None, None)
    }

    /// Brings a cluster up that stays after this process.
    pub fn leave_up(options: &Options) -> anyhow::Result<Self> {
        let home = options.home()?;
        ensure!(
            start_keeper(options, &home, Stay::UntilDown)?.is_some(),
            "cluster {} is up already: take it down, or take another name",
            home.name()
        );
        Self::new(options, home, None, None)
    }

    /// Takes a cluster down, whatever state it is in; nothing of it is left.
    pub fn take_down(options: &Options) -> anyhow::Result<()> {
        let home = options.home()?;
        for (signal, limit) in [(Signal::SIGTERM, DOWN_LIMIT), (Signal::SIGKILL, DOWN_LIMIT)] {
            let Some(keeper) = keeper::of(&home) else { continue };
            // Gone meanwhile is what we want.
            let _ = kill(keeper, signal);
            let what = format!("the end of cluster {}", home.name());
            let gone = || Ok((!is_kept(&home)?).then_some(()));
            // What does not go when it is asked to is killed; then only the sweeping is left.
            if Stop::default().until_every(PAUSE, limit, &what, gone).is_ok() {
                break;
            }
        }
        let what = format!("the end of the keeper of cluster {}", home.name());
        let lock = Stop::default().until_every(PAUSE, LEASE_LIMIT, &what, || {
            // The last keeper takes the folder of all clusters with it.
            fs::create_dir_all(home.root())?;
            Held::take(&home.lock())
        })?;
        let swept = keeper::sweep(&home);
        let _ = fs::remove_file(home.log());
        lock.remove();
        // Stays while other clusters are in it.
        let _ = fs::remove_dir(home.root());
        swept
    }

    fn new(
        options: &Options,
        home: Home,
        lease: Option<Held>,
        keeper: Option<Child>,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let kubectl = Kubectl::new(&home, &options.programs);
        let binaries = options.binaries.clone();
        Ok(Self { home, binaries, kubectl, runtime, lease, keeper })
    }

    /// The path of its administrator's configuration.
    pub fn kubeconfig(&self) -> PathBuf {
        self.home.kubeconfig()
    }

    /// Its names and places.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// `kubectl`, as its administrator.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// A client of its API, as its administrator; to be used in [`Cluster::block_on`].
    pub fn client(&self) -> anyhow::Result<kube::Client> {
        // The second call of a process finds it done.
        let _ = ambit_wire::tls::install_provider();
        self.block_on(async {
            let kubeconfig = Kubeconfig::read_from(self.kubeconfig())?;
            let config =
                kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            Ok(kube::Client::try_from(config)?)
        })
    }

    /// Runs something that waits, to its end.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Gives every node an image, unless it has this very one already.
    pub fn load_image(&self, image: &Image) -> anyhow::Result<()> {
        let mark = self.home.share().join(format!("{}.loaded", image.file_name()));
        let fingerprint = image.fingerprint()?;
        if fs::read_to_string(&mark).is_ok_and(|loaded| loaded == fingerprint) {
            return Ok(());
        }
        keeper::import(&self.home, &[keeper::Archive::make(&self.home, image)?])?;
        fs::write(&mark, fingerprint).with_context(|| format!("cannot write {}", mark.display()))
    }

    /// Gives every node the images of the mesh, made of the programs beside the running one.
    pub fn load_mesh(&self) -> anyhow::Result<()> {
        images::mesh(&self.binaries)?.iter().try_for_each(|image| self.load_image(image))
    }

    /// Runs a command on a node (`n1`, `n2`), as its root, in at most `limit`.
    pub fn in_node(&self, node: &str, argv: &[&str], limit: Duration) -> anyhow::Result<Output> {
        node::run(&self.home, node, argv, limit)
    }

    /// Runs a command of this machine in the control plane's network namespace, from where every pod is reached.
    pub fn in_control(&self, argv: &[&str], limit: Duration) -> anyhow::Result<Output> {
        Ok(process::run(Some(&self.home.netns(CONTROL)), &process::Program::line(argv), limit)?)
    }

    /// The network namespace of a node, or of the control plane (`ctl`).
    pub fn netns(&self, place: &str) -> Netns {
        self.home.netns(place)
    }

    /// Ends the API server.
    pub fn stop_api_server(&self) -> anyhow::Result<()> {
        keeper::order(&self.home, &Order::StopApiServer)
    }

    /// Starts it again; returns when it serves.
    pub fn start_api_server(&self) -> anyhow::Result<()> {
        keeper::order(&self.home, &Order::StartApiServer)
    }

    /// Cuts a node's power and boots it again; its disk stays. Returns when its daemons run.
    pub fn reboot(&self, node: &str) -> anyhow::Result<()> {
        keeper::order(&self.home, &Order::Reboot(node.to_owned()))
    }

    /// Takes it down; what goes wrong on the way is told, which dropping it would not do.
    pub fn down(mut self) -> anyhow::Result<()> {
        self.release()
    }

    fn release(&mut self) -> anyhow::Result<()> {
        // Its keeper sees that nobody uses it.
        drop(self.lease.take());
        let Some(mut keeper) = self.keeper.take() else { return Ok(()) };
        let status = Stop::default()
            .until_every(PAUSE, DOWN_LIMIT, "the end of the cluster", || Ok(keeper.try_wait()?))?;
        ensure!(status.success(), "the cluster did not go as it should: {}", said(&self.home));
        let _ = fs::remove_file(self.home.log());
        let _ = fs::remove_dir(self.home.root());
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(err) = self.release() {
            tell(&format!("{err:#}"));
        }
    }
}

/// Whether a keeper holds it: on its way up, up, or on its way down.
fn is_kept(home: &Home) -> anyhow::Result<bool> {
    match Held::take(&home.lock())? {
        // The file was made by asking.
        Some(held) => {
            held.remove();
            Ok(false)
        }
        None => Ok(home.lock().exists()),
    }
}

/// Starts a keeper and waits until its cluster is up; `None` if there is one already.
fn start_keeper(options: &Options, home: &Home, stay: Stay) -> anyhow::Result<Option<Child>> {
    let missing: Vec<_> = ["kubernetes", "coredns", "pause"]
        .into_iter()
        .filter(|name| !options.programs.join(name).is_file())
        .collect();
    ensure!(
        missing.is_empty(),
        "{} missing in {}: run .ci/cluster-programs",
        missing.join(", "),
        options.programs.display()
    );
    if is_kept(home)? {
        return Ok(None);
    }
    // The last keeper takes it with it.
    fs::create_dir_all(home.root()).with_context(|| format!("cannot make {}", home.root().display()))?;
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(home.log())
        .with_context(|| format!("cannot write {}", home.log().display()))?;
    // A session of its own: what ends its starter, the terminal or a runner of tests, does not end it.
    let mut command = Command::new("setsid");
    command.arg(options.binaries.join("ambit-cluster")).args(["keep", "--name", home.name()]);
    command.arg("--dir").arg(home.root()).arg("--programs").arg(&options.programs);
    if let Stay::WhileUsed(idle) = stay {
        command.arg("--idle").arg(idle.as_secs().to_string());
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut keeper = command.spawn().context("cannot start ambit-cluster; is util-linux installed?")?;
    Stop::default().until_every(PAUSE, UP_LIMIT, "a cluster", || {
        if let Some(status) = keeper.try_wait()? {
            let said = said(home);
            let _ = fs::remove_file(home.log());
            bail!("the cluster did not come up ({status}): {said}");
        }
        Ok(fs::read_to_string(home.ready()).is_ok_and(|pid| pid == keeper.id().to_string()).then_some(()))
    })?;
    Ok(Some(keeper))
}

fn said(home: &Home) -> String {
    fs::read_to_string(home.log()).unwrap_or_else(|err| format!("(no log: {err})"))
}

/// To whoever started us, or to a keeper's log.
fn tell(line: &str) {
    // Nobody listens: then nobody misses it.
    let _ = writeln!(io::stderr(), "{line}");
}
