//! Puts the agent together: the only file that knows everyone.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ambit_api::directory::DirectoryError;
use ambit_runtime::{
    admin::{self, Address, Method, Pages, Response},
    metrics::{self, Registry},
    ready::{Pending, Ready},
    task::{self, Owned},
};
use ambit_wire::{spawn::Spawner, zds};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::{
    arrivals::{self, Arrivals, Ask},
    config::{Config, Probing, Source},
    enroll::Rules,
    farewell::Ending,
    feed::Tools,
    host::{self, HostError, Probes, Taken},
    install::{
        InstallError, Installer,
        conflist::{Entry, Ownership, PLUGIN},
    },
    ledger::{self, Ledger, Shown},
    metrics::Metrics,
    outside::Outside,
    post::Post,
    redirect::Capture,
    roster::View,
    site::{Cluster, Site},
    taint,
    watch::directory::WatchError,
};

/// How long the first pods may take before tunnels are told of them.
const FIRST_TRIES: Duration = Duration::from_secs(10);

/// How long pods may take to leave when the agent ends. Below the grace period of a Kubernetes pod.
const DEPARTURES: Duration = Duration::from_secs(20);

/// A running agent.
#[derive(Debug)]
pub struct App {
    config: Config,
    site: Site,
    tools: Arc<Tools>,
    rules: Arc<Rules>,
    server: zds::Server,
    doors: Vec<(admin::Server, Pages)>,
    admin_addresses: Vec<SocketAddr>,
    desk: mpsc::Receiver<Ask>,
    installer: Option<(Installer, Pending)>,
    synced: Pending,
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Watching it.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The cluster.
    #[error(
        "it is not known how to reach the API server: {0}; does the agent run in a pod with a service account, or is KUBECONFIG set?"
    )]
    Kubernetes(String),
    /// The node's own rules.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The address for probes.
    #[error(transparent)]
    Taken(#[from] Taken),
    /// The plugin's program.
    #[error("the agent's own program cannot be found: {0}; say with --plugin-program where the plugin's is")]
    Program(std::io::Error),
    /// An address for pages, or the plugin's socket.
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    /// The socket for tunnels.
    #[error("cannot listen for tunnels at {path}: {source}; does its directory exist, and may we write there?", path = path.display())]
    Zds {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl App {
    /// Opens and binds everything. Pods are touched only by [`App::run`].
    pub async fn start(config: Config, extra: impl FnOnce(Pages) -> Pages) -> Result<Self, StartError> {
        let ready = Ready::new();
        let metrics = Metrics::default();
        let addresses = config.probe_addresses();
        let prober = prober(&config);
        if prober.is_some() {
            for problem in host::look_around(addresses).await? {
                warn!(
                    problem,
                    "The address for kubelet's probes may be another's; choose one with --probe-address"
                );
            }
        }
        let site = Site::open(&config, &ready, &metrics).await?;
        let spawner = Spawner::new(|name, future| {
            task::spawn(name, future);
        });
        let (server, tunnels) = zds::server::bind(&config.zds_socket, spawner)
            .map_err(|source| StartError::Zds { path: config.zds_socket.clone(), source })?;
        let synced = ready.task("pods of this node");
        let installer = if config.plugin.install {
            Some((installer(&config)?, ready.task("the plugin in the runtime's configuration")))
        } else {
            None
        };
        let ledger = Ledger::default();
        let outside = Outside::default();
        let rules = Arc::new(Rules {
            excluded: config.excluded_namespaces.iter().cloned().collect(),
            dns: capture(config.dns_capture),
            probes: addresses,
        });
        let tools = Arc::new(Tools {
            probes: Probes::open(prober, addresses).await?,
            annotations: site.annotations.clone(),
            events: site.events.clone(),
            ipv6: capture(config.ipv6),
            host_proc: config.host_proc.clone(),
            tunnels,
            ledger: ledger.clone(),
            outside: outside.clone(),
            metrics: metrics.clone(),
        });
        let mut registry = Registry::new();
        let connected = tools.tunnels.clone();
        metrics.register(&mut registry, &ledger, move || connected.connected());
        let shared = registry.share();
        let (ask, desk) = mpsc::channel(arrivals::QUEUE);
        let arrivals = Arrivals {
            lookup: site.lookup.clone(),
            rules: Arc::clone(&rules),
            desk: ask,
            host_proc: config.host_proc.clone(),
            metrics,
        };
        let pages = pods(&ledger, &outside, health(&ready, Pages::new("Ambit node agent")));
        let pages = match &installer {
            Some((installer, _)) => plugins(installer, pages),
            None => pages,
        };
        let pages = extra(shared.pages(pages));
        let admin = admin::Server::bind(std::slice::from_ref(&config.admin)).await?;
        let admin_addresses = admin.local_addresses();
        let mut doors = vec![(admin, pages)];
        doors.extend(narrow_doors(&config, &ready, &shared, arrivals).await?);
        Ok(Self { config, site, tools, rules, server, doors, admin_addresses, desk, installer, synced })
    }

    /// Where the pages for operators are, with the real port.
    pub fn admin_addresses(&self) -> Vec<SocketAddr> {
        self.admin_addresses.clone()
    }

    /// Captures pods until `stop`.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { config, site, tools, rules, server, doors, mut desk, installer, synced, .. } = self;
        let (end, ended) = watch::channel(());
        let open: Vec<Owned> = doors.into_iter().map(|door| serve(door, ended.clone())).collect();
        let Site { mut watch, sandboxes, cluster, .. } = site;
        let uninstaller = installer.as_ref().map(|(installer, _)| installer.clone());
        let mut post = Post::new(Arc::clone(&tools), rules, sandboxes, config.host_proc.clone());
        let mut helpers = Vec::new();

        let follow = async {
            let view = watch.first().await;
            forget_absent(&tools, &view);
            post.see(view).await;
            post.first_tries(FIRST_TRIES).await;
            synced.done();
            info!(node = %config.node, source = %config.source, pods = post.members(), "Agent ready");
            helpers = help(&config, cluster.clone(), installer, &tools);
            tokio::select! {
                () = post.follow(watch, &mut desk) => {}
                () = server.serve(std::future::pending()) => {}
            }
        };
        tokio::select! {
            () = follow => {}
            () = stop => {}
        }
        // Whoever repairs what is about to be taken away must be gone first.
        drop(helpers);
        let clean = config.cleanup_on_exit || ending(cluster).await == Ending::Uninstalled;
        if clean {
            if let Some(installer) = uninstaller {
                uninstall(installer).await;
            }
            post.dissolve(DEPARTURES).await;
        }
        info!(cleaned = clean, "Agent ends");
        drop(end);
        drop(open);
    }
}

fn serve((door, pages): (admin::Server, Pages), mut ended: watch::Receiver<()>) -> Owned {
    let ended = async move {
        // The sender is only ever dropped.
        let _ = ended.changed().await;
    };
    task::spawn("admin", door.serve(pages, ended)).owned()
}

/// What goes on beside the pods: the plugin is kept installed, the node's own rules stand, the taint is taken off.
fn help(
    config: &Config,
    cluster: Option<Cluster>,
    installer: Option<(Installer, Pending)>,
    tools: &Arc<Tools>,
) -> Vec<Owned> {
    let mut helpers = Vec::new();
    let hands = Arc::clone(tools);
    let watching = async move { hands.probes.watch_over(&hands.metrics).await };
    helpers.push(task::spawn("probes", watching).owned());
    // Where it is not ours to install, it is taken for installed.
    let (installed, is_installed) = watch::channel(installer.is_none());
    match installer {
        Some((installer, ready)) => {
            let keeping = installer.keep(tools.metrics.clone(), ready, installed);
            helpers.push(task::spawn("install", keeping).owned());
        }
        // Kept for as long as anyone looks at it.
        None => helpers.push(task::spawn("install", async move { installed.closed().await }).owned()),
    }
    let Some(Cluster { client, own }) = cluster else { return helpers };
    if let Some(own) = own {
        helpers.push(task::spawn("own DaemonSet", async move { own.follow().await }).owned());
    }
    if config.cluster.remove_taint {
        let removal = taint::remove(client, config.node.clone(), tools.tunnels.synced(), is_installed);
        helpers.push(task::spawn("taint", removal).owned());
    }
    helpers
}

async fn ending(cluster: Option<Cluster>) -> Ending {
    match cluster.and_then(|cluster| cluster.own) {
        Some(own) => own.ending().await,
        None => Ending::Replaced,
    }
}

async fn uninstall(installer: Installer) {
    match tokio::task::spawn_blocking(move || installer.uninstall()).await {
        Ok(Ok(outcome)) => info!(files = ?outcome.changed, "The plugin was taken away"),
        Ok(Err(error)) => warn!(%error, "The plugin is still in the runtime's configuration"),
        Err(_) => warn!("The plugin is still in the runtime's configuration: the task that removes it died"),
    }
}

fn installer(config: &Config) -> Result<Installer, StartError> {
    let plugin = &config.plugin;
    let program = match &plugin.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(StartError::Program)?.with_file_name(PLUGIN),
    };
    let socket = config.plugin_socket().unwrap_or_default();
    Ok(Installer {
        program,
        bin_dir: plugin.bin_dir.clone(),
        conf_dir: plugin.conf_dir.clone(),
        ownership: if plugin.own_cni_config { Ownership::Own } else { Ownership::Chained },
        own: plugin.own_cni_config_file.clone(),
        entry: Entry {
            socket: socket.display().to_string(),
            excluded: config.excluded_namespaces.clone(),
            system: plugin.system_namespace.clone(),
            timeout_seconds: plugin.timeout,
        },
        same: Arc::default(),
    })
}

/// Listeners that offer one thing each, to those who may not have the other pages.
async fn narrow_doors(
    config: &Config,
    ready: &Ready,
    metrics: &metrics::Metrics,
    arrivals: Arrivals,
) -> Result<Vec<(admin::Server, Pages)>, StartError> {
    let socket = config.plugin_socket().map(Address::Unix);
    let wanted = [
        (config.health.clone(), health(ready, Pages::new("Ambit node agent: health"))),
        (config.telemetry.clone(), metrics.pages(Pages::new("Ambit node agent: metrics"))),
        (socket, arrivals.pages()),
    ];
    let mut doors = Vec::new();
    for (address, pages) in wanted {
        if let Some(address) = address {
            doors.push((admin::Server::bind(&[address]).await?, pages));
        }
    }
    Ok(doors)
}

fn forget_absent(tools: &Tools, view: &View) {
    let present = |key: &ambit_api::directory::ObjectKey| {
        view.pods.iter().any(|pod| pod.namespace == key.namespace && pod.name == key.name)
    };
    if let Err(error) = tools.annotations.forget_absent(present) {
        warn!(%error, "Annotations of pods that are gone are still there");
    }
}

fn health(ready: &Ready, pages: Pages) -> Pages {
    let waiting = ready.clone();
    ready
        .pages(pages)
        .page(Method::GET, "/healthz", "whether the process answers", |_| Response::text("ok\n"))
        .page(Method::GET, "/readyz", "whether the pods of this node have been looked at", move |_| {
            let pending = waiting.pending();
            if pending.is_empty() {
                Response::text("ready\n")
            } else {
                let text = format!("not ready, waiting for: {}\n", pending.join(", "));
                Response::text(text).with_status(http::StatusCode::SERVICE_UNAVAILABLE)
            }
        })
}

fn pods(ledger: &Ledger, outside: &Outside, pages: Pages) -> Pages {
    let (ledger, outside) = (ledger.clone(), outside.clone());
    let about =
        "each pod of this node: its state, and why; how many of its connections are outside of the mesh";
    pages.slow_page(Method::GET, "/debug/pods", about, move |_| {
        let (ledger, outside) = (ledger.clone(), outside.clone());
        async move {
            let counts = outside.count().await;
            let shown =
                |entry: ledger::Entry| Shown { connections_outside: counts.get(&entry.uid).copied(), entry };
            json(&ledger.entries().into_iter().map(shown).collect::<Vec<_>>())
        }
    })
}

fn plugins(installer: &Installer, pages: Pages) -> Pages {
    let installer = installer.clone();
    let about = "the runtime's configuration: its file, the plugins in their order, whether it is ours";
    pages.slow_page(Method::GET, "/debug/cni", about, move |_| {
        let installer = installer.clone();
        async move {
            let looked = tokio::task::spawn_blocking(move || installer.chained()).await;
            match looked.unwrap_or(Err(InstallError::Died)) {
                Ok(chained) => json(&chained),
                Err(error) => failed(&error),
            }
        }
    })
}

fn json(document: &impl Serialize) -> Response {
    match serde_json::to_vec_pretty(document) {
        Ok(json) => Response::json(json),
        Err(error) => failed(&error),
    }
}

fn failed(error: &impl ToString) -> Response {
    Response::text(error.to_string()).with_status(http::StatusCode::INTERNAL_SERVER_ERROR)
}

/// Kubelet's user. In Kubernetes there is a kubelet, whatever its program is called, and it is root's.
fn prober(config: &Config) -> Option<u32> {
    match (config.probes, &config.source) {
        (Probing::Off, _) => None,
        (Probing::User(user), _) => Some(user),
        (Probing::Auto, Source::Directory(_)) => host::kubelet(&config.host_proc),
        (Probing::Auto, Source::Kubernetes) => host::kubelet(&config.host_proc).or_else(|| {
            warn!(proc = %config.host_proc.display(), "No kubelet is seen; root's connections are taken for its probes. Is --host-proc the node's /proc?");
            Some(0)
        }),
    }
}

fn capture(on: bool) -> Capture {
    if on { Capture::On } else { Capture::Off }
}
