//! Puts the agent together: the only file that knows everyone.

use std::{path::Path, sync::Arc, time::Duration};

use ambit_api::directory::{Directory, DirectoryError};
use ambit_runtime::{
    admin::{self, Method, Pages, Response},
    metrics::Registry,
    ready::{Pending, Ready},
    task,
};
use ambit_wire::{spawn::Spawner, zds};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::{
    annotate::Annotations,
    config::{Config, Probing, Source},
    enroll::Rules,
    feed::{Feed, Tools},
    host::{self, HostError, Probes},
    ledger::Ledger,
    metrics::Metrics,
    netns::{Annotated, NetnsSource},
    redirect::Capture,
    roster::{Roster, View},
    watch::{Watch, WatchError},
};

/// How long the first pods may take before tunnels are told of them.
const FIRST_TRIES: Duration = Duration::from_secs(10);

/// How long pods may take to leave when the agent ends. Below the grace period of a Kubernetes pod.
const DEPARTURES: Duration = Duration::from_secs(20);

/// A running agent.
#[derive(Debug)]
pub struct App {
    config: Config,
    watch: Watch,
    feed: Feed,
    tools: Arc<Tools>,
    roster: Roster,
    rules: Rules,
    server: zds::Server,
    admin: admin::Server,
    pages: Pages,
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
    /// The node's own rules.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The admin address.
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    /// The socket for tunnels.
    #[error("cannot listen for tunnels at {path}: {source}; does its directory exist, and may we write there?", path = path.display())]
    Zds {
        /// The socket.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl App {
    /// Opens and binds everything. Pods are touched only by [`App::run`].
    pub async fn start(config: Config, extra: impl FnOnce(Pages) -> Pages) -> Result<Self, StartError> {
        let Source::Directory(path) = &config.source;
        let directory = Arc::new(Directory::open(path)?);
        let watch = Watch::start(Arc::clone(&directory), &config.node)?;
        let spawner = Spawner::new(|name, future| {
            task::spawn(name, future);
        });
        let (server, tunnels) = zds::server::bind(&config.zds_socket, spawner)
            .map_err(|source| StartError::Zds { path: config.zds_socket.clone(), source })?;
        let admin = admin::Server::bind(std::slice::from_ref(&config.admin)).await?;
        let ready = Ready::new();
        let synced = ready.task("pods of this node");
        let ledger = Ledger::default();
        let metrics = Metrics::default();
        let tools = Arc::new(Tools {
            probes: Probes::open(prober(config.probes)).await?,
            annotations: Annotations::new(directory, &config.node),
            ipv6: capture(config.ipv6),
            tunnels,
            ledger: ledger.clone(),
            metrics: metrics.clone(),
        });
        let mut registry = Registry::new();
        let connected = tools.tunnels.clone();
        metrics.register(&mut registry, &ledger, move || connected.connected());
        let pages = extra(registry.share().pages(pages(&ready, &ledger)));
        let rules = Rules {
            excluded: config.excluded_namespaces.iter().cloned().collect(),
            dns: capture(config.dns_capture),
        };
        let feed = Feed::new(Arc::clone(&tools));
        let roster = Roster::default();
        Ok(Self { config, watch, feed, tools, roster, rules, server, admin, pages, synced })
    }

    /// Where the pages for operators are, with the real port.
    pub fn admin_addresses(&self) -> Vec<std::net::SocketAddr> {
        self.admin.local_addresses()
    }

    /// Captures pods until `stop`.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let (end, ended) = oneshot::channel::<()>();
        let pages = std::mem::replace(&mut self.pages, Pages::new(""));
        let Self { config, mut watch, mut feed, tools, mut roster, rules, server, admin, synced, .. } = self;
        let admin_task = task::spawn("admin", admin.serve(pages, until(ended))).owned();

        let follow = async {
            let view = first_view(&mut watch).await;
            forget_absent(&tools, &view);
            enact(&mut feed, &tools, &mut roster, &rules, &view);
            feed.first_tries(FIRST_TRIES).await;
            if roster.all_have_addresses() {
                let uids = roster.uids().map(str::to_owned).collect();
                if let Err(error) = tools.probes.retain(uids).await {
                    warn!(%error, "Probes of pods that are gone are still let through");
                }
            }
            synced.done();
            info!(node = %config.node, source = %config.source, pods = roster.uids().count(), "Agent ready");
            let follow = async {
                loop {
                    watch.changed().await;
                    match watch.read().await {
                        Ok(view) => enact(&mut feed, &tools, &mut roster, &rules, &view),
                        Err(error) => warn!(%error, "The directory cannot be read; pods stay as they are"),
                    }
                }
            };
            tokio::select! {
                () = follow => {}
                () = server.serve(std::future::pending()) => {}
            }
        };
        tokio::select! {
            () = follow => {}
            () = stop => {}
        }
        if config.cleanup_on_exit {
            feed.carry_out(roster.dissolve());
            feed.departures(DEPARTURES).await;
            if let Err(error) = tools.probes.remove().await {
                warn!(%error, "The node's own rules are still in force");
            }
        }
        info!(cleaned = config.cleanup_on_exit, "Agent ends");
        drop(end);
        drop(admin_task);
    }
}

async fn until(ended: oneshot::Receiver<()>) {
    // The sender is only ever dropped.
    let _ = ended.await;
}

/// The first view. Without one there is nothing to do but to try again.
async fn first_view(watch: &mut Watch) -> View {
    loop {
        match watch.read().await {
            Ok(view) => return view,
            Err(error) => warn!(%error, "The directory cannot be read"),
        }
        watch.changed().await;
    }
}

fn enact(feed: &mut Feed, tools: &Tools, roster: &mut Roster, rules: &Rules, view: &View) {
    let plan = roster.reconcile(view, rules, &|pod| Annotated.find(pod));
    tools.ledger.bystanders(&plan.bystanders);
    feed.carry_out(plan.changes);
}

fn forget_absent(tools: &Tools, view: &View) {
    let present = |key: &ambit_api::directory::ObjectKey| {
        view.pods.iter().any(|pod| pod.namespace == key.namespace && pod.name == key.name)
    };
    if let Err(error) = tools.annotations.forget_absent(present) {
        warn!(%error, "Annotations of pods that are gone are still there");
    }
}

fn pages(ready: &Ready, ledger: &Ledger) -> Pages {
    let waiting = ready.clone();
    let ledger = ledger.clone();
    ready
        .pages(Pages::new("Ambit node agent"))
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
        .page(Method::GET, "/debug/pods", "each pod of this node: its state, and why", move |_| {
            match serde_json::to_vec_pretty(&ledger.entries()) {
                Ok(json) => Response::json(json),
                Err(error) => {
                    Response::text(error.to_string()).with_status(http::StatusCode::INTERNAL_SERVER_ERROR)
                }
            }
        })
}

fn prober(probing: Probing) -> Option<u32> {
    match probing {
        Probing::Auto => host::kubelet(Path::new("/proc")),
        Probing::Off => None,
        Probing::User(user) => Some(user),
    }
}

fn capture(on: bool) -> Capture {
    if on { Capture::On } else { Capture::Off }
}
