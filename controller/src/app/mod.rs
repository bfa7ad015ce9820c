//! The only file that knows everyone: builds the controller, starts it, ends it.

mod duties;
mod parts;
mod signing;
mod site;

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ambit_api::directory::DirectoryError;
use ambit_runtime::{
    admin::{self, Address, BindError, Pages},
    drain::{self, Drain, Mode, Outcome},
    metrics::Registry,
    ready::{Pending, Ready},
    signal,
    telemetry::LogControl,
    version,
};
use ambit_wire::{
    ca,
    channel::{Entrance, HANDSHAKES, incoming},
    codec::{ADDRESS, AUTHORIZATION, SERVICE_CONFIG, WORKLOAD},
    spawn::Spawner,
    tls::{Compliance, ComplianceError, Profile, Versions, revoked::Revocation},
    xds::{
        Publisher, Server,
        ledger::Limits,
        server::{Authenticator, Caller, builder},
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tonic::{Status, metadata::MetadataMap};
use tracing::{error, info, warn};

use self::{
    duties::{Duties, Needs, bundles},
    parts::Parts,
    site::Site,
};
use crate::{
    admin::{Shown, health_pages, pages},
    ca::{
        Desk,
        authority::{Terms, TermsError},
        figures,
        file::FileError,
        keeping::KeepError,
        revocation::PassOnError,
        root::RootError,
        serving::{Serving, ServingError},
    },
    callers::Callers,
    config::Config,
    engine::{self, Engine, View},
    gateways,
    metrics::{Doors, Figures, Measured},
    nodes::NodesError,
    reviewer::Unreviewed,
    status,
};

/// What is pushed, in this order. Policies go before the workloads that name them: a tunnel takes a name that it does
/// not know for no policy. What a waypoint knows of a service goes before the service that names it. Workloads alone are for Envoy based proxies, which ask for no more (protocols 1.3).
const TYPES: [&str; 4] = [AUTHORIZATION, SERVICE_CONFIG, ADDRESS, WORKLOAD];

/// Runs the controller until a signal, or until a part of it fails.
pub async fn run(config: Config, logs: &LogControl) -> Result<(), StartError> {
    info!(version = version::line(), source = %config.source, "Controller starts");
    let (_exit, shutdown) = signal::listen().map_err(StartError::Signals)?;
    let mut controller = Controller::start(&config, Some(logs)).await?;
    let outcome = tokio::select! {
        cause = shutdown.requested() => {
            info!(?cause, "Controller ends");
            Ok(())
        }
        part = controller.failed() => {
            error!(part, "A part of the controller ended; so does the controller, to be started anew");
            Err(StartError::Failed(part))
        }
    };
    controller.stop(Mode::Graceful { deadline: config.drain_deadline }).await;
    outcome
}

/// A controller that runs.
#[derive(Debug)]
pub struct Controller {
    address: SocketAddr,
    admin: Vec<SocketAddr>,
    ready: Ready,
    publisher: Publisher,
    drain: Drain,
    failures: mpsc::Receiver<&'static str>,
}

impl Controller {
    /// Reads what it needs, listens, and starts every part. It is ready later: see [`Controller::ready`].
    pub async fn start(config: &Config, logs: Option<&LogControl>) -> Result<Self, StartError> {
        let terms = Terms::new(&config.authority)?;
        let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured)?;
        let site = Site::open(config).await?;
        let signing = site.signing(config).await?;
        let in_force = signing.in_force.clone();
        let serving =
            Serving::new(&profile, in_force.clone(), config.server_names(), config.authority.server_ttl)?;
        let listener =
            listen(config.listen).await.map_err(|source| StartError::Listen(config.listen, source))?;
        let address = listener.local_addr().map_err(|source| StartError::Listen(config.listen, source))?;
        let admin = admin::Server::bind(std::slice::from_ref(&config.admin)).await?;
        let health = bind(config.health.as_ref()).await?;
        let telemetry = bind(config.telemetry.as_ref()).await?;

        let ready = Ready::new();
        let configured = ready.task("configuration");
        let cluster = View::new(config.mesh.settings());
        let callers = site.callers(config, &cluster)?;
        let authenticator = ByToken(callers.clone());
        let spawner = Spawner::new(|name, future| {
            ambit_runtime::task::spawn(name, future);
        });
        let (server, publisher) = Server::new(TYPES, Limits::default(), authenticator, spawner);
        let sink = Measured::new(publisher.clone());
        let changes = sink.changes();
        let engine = Engine::on(cluster.clone(), sink);
        let (synced, changed) = (engine.synced(), engine.changes());
        let trusted = config.access.trusted(&config.mesh);
        let desk = Desk::new(
            in_force.clone(),
            signing.signer.clone(),
            terms,
            callers.clone(),
            trusted,
            cluster.clone(),
            synced.clone(),
        );
        let (problems, seen_problems) = watch::channel(Vec::new());

        let mut registry = Registry::new();
        site.collect(&callers, &mut registry);
        registry.collect(Figures {
            publisher: publisher.clone(),
            cluster: cluster.clone(),
            problems: seen_problems.clone(),
            desk: desk.clone(),
            nodes: site.nodes(),
            changes,
        });
        let kept_gateways = gateways::Counts::default();
        registry.collect(kept_gateways.clone());
        let (kept, told) = (signing.kept.clone(), signing.told.clone());
        registry.collect(figures::Figures { in_force: in_force.clone(), desk: desk.clone(), kept, told });
        let duties = Duties::open(config, &mut registry).await?;
        let entrance = Entrance::new(listener, HANDSHAKES);
        registry.collect(Doors { tunnels: entrance.turned_away(), webhook: duties.turned_away() });
        let shown = Shown {
            publisher: publisher.clone(),
            cluster: cluster.clone(),
            problems: seen_problems.clone(),
            ready: ready.clone(),
            desk: desk.clone(),
            at: config.admin.clone(),
        };
        let metrics = registry.share();
        let pages = pages(shown, &metrics);
        let pages = logs.map(|logs| logs.pages(pages.clone())).unwrap_or(pages);

        let (drain, watch) = drain::channel();
        let (failed, failures) = mpsc::channel(1);
        let parts = Parts { watch, failed };
        let (events, received) = mpsc::channel(engine::QUEUE);
        let admin_addresses = admin.local_addresses();
        let tls = serving.tls();
        parts.start("admin pages", |stop| admin.serve(pages, stop));
        if let Some(server) = health {
            let pages = health_pages(Pages::new("Health of an Ambit controller"), &ready);
            parts.start("health pages", |stop| server.serve(pages, stop));
        }
        if let Some(server) = telemetry {
            let pages = metrics.pages(Pages::new("Metrics of an Ambit controller"));
            parts.start("metrics pages", |stop| server.serve(pages, stop));
        }
        parts.start("engine", |stop| engine.run(received, stop));
        let (leads, leader) = watch::channel(false);
        if let Some(form) = config.form() {
            let inputs = gateways::Inputs {
                view: cluster.clone(),
                synced: synced.clone(),
                changed: changed.clone(),
                leader: leader.clone(),
            };
            let hand = site.hand()?;
            parts.start("gateways", |stop| gateways::run(hand, form, inputs, kept_gateways, stop));
        }
        match site.client() {
            // It is alone.
            None => drop(leads.send_replace(true)),
            Some(client) => {
                let status = status::Inputs {
                    view: cluster,
                    synced: synced.clone(),
                    changed,
                    problems: seen_problems,
                    leader: leader.clone(),
                };
                let needs = Needs { leads, status, tls: serving.tls(), bundle: bundles(&parts, in_force) };
                duties.start(&parts, &client, config, needs);
            }
        }
        signing.keep_up(&parts, &leader);
        site.tell(&parts, events, problems);
        parts.start("own certificate", |stop| serving.rotate(stop));
        parts.start("readiness", |stop| async move {
            tokio::select! {
                () = stop => {}
                never = tell_when(synced, configured) => match never {},
            }
        });
        let connections = parts.accept(incoming(entrance, Some(tls)));
        parts.start("server", |stop| async move {
            let services = builder().add_service(server).add_service(ca::service(Arc::new(desk)));
            // At the end every connection is told that it takes no more requests, so nobody returns on it.
            if let Err(error) = services.serve_with_incoming_shutdown(connections, stop).await {
                error!(%error, "The server failed");
            }
        });
        let closing = publisher.clone();
        parts.start("streams", |stop| async move {
            stop.await;
            closing.close();
        });
        info!(address = %address, admin = ?admin_addresses, "Controller listens");
        Ok(Self { address, admin: admin_addresses, ready, publisher, drain, failures })
    }

    /// Where tunnels connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the pages are.
    pub fn admin(&self) -> &[SocketAddr] {
        &self.admin
    }

    /// Completes when everything is known and published.
    pub async fn ready(&self) {
        self.ready.wait().await;
    }

    /// What is published, and to whom.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Completes when a part ended that should not have, and names it.
    pub async fn failed(&mut self) -> &'static str {
        match self.failures.recv().await {
            Some(part) => part,
            None => "everything",
        }
    }

    /// Ends every part: nobody new is let in, streams are ended cleanly so that subscribers look for another
    /// controller at once, and what is left at the deadline is cut.
    pub async fn stop(self, mode: Mode) {
        match self.drain.start(mode).await {
            Outcome::Finished => info!("Controller ended"),
            Outcome::Forced { left } => warn!(left, "Controller ended before every part did"),
        }
    }
}

/// Subscribers are known by their token.
struct ByToken(Callers);

impl Authenticator for ByToken {
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let caller = self.0.identify(ca::bearer(metadata)).await.map_err(Status::from)?;
        let node = caller.node.map(|node| node.to_string());
        Ok(Caller {
            name: match &node {
                Some(node) => format!("{} on {node}", caller.identity),
                None => caller.identity.to_string(),
            },
            namespace: caller.identity.namespace.to_string(),
            service_account: caller.identity.service_account.to_string(),
            node,
        })
    }
}

/// Tells that the configuration is known and published; then has nothing more to do.
async fn tell_when(mut synced: watch::Receiver<bool>, configured: Pending) -> Infallible {
    if synced.wait_for(|synced| *synced).await.is_ok() {
        configured.done();
        info!("Controller is ready");
    }
    std::future::pending().await
}

/// Pages at an address of their own, if they should have one.
async fn bind(address: Option<&Address>) -> Result<Option<admin::Server>, BindError> {
    match address {
        Some(address) => admin::Server::bind(std::slice::from_ref(address)).await.map(Some),
        None => Ok(None),
    }
}

/// On a machine without IPv6, "every address" is every IPv4 address.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if error.kind() == io::ErrorKind::Unsupported || is_no_ipv6(&error) => {
            match address.ip() {
                IpAddr::V6(ip) if ip.is_unspecified() => {
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
                }
                IpAddr::V4(_) | IpAddr::V6(_) => Err(error),
            }
        }
        bound => bound,
    }
}

fn is_no_ipv6(error: &io::Error) -> bool {
    /// EAFNOSUPPORT and EADDRNOTAVAIL: built without IPv6, or switched off.
    const NO_FAMILY: i32 = 97;
    error.raw_os_error() == Some(NO_FAMILY) || error.kind() == io::ErrorKind::AddrNotAvailable
}

impl StartError {
    fn kubernetes(error: kube::Error) -> Self {
        Self::Kubernetes(Box::new(error))
    }
}

/// Why the controller does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No signals.
    #[error("signals cannot be listened for: {0}")]
    Signals(#[source] io::Error),
    /// No source.
    #[error(transparent)]
    Source(#[from] DirectoryError),
    /// Nobody is said to be a node.
    #[error("--tokens is needed with --source directory:PATH: a directory with a token for each node")]
    NoTokens,
    /// No tokens.
    #[error(transparent)]
    Tokens(#[from] NodesError),
    /// No way to the API server.
    #[error("the API server cannot be found: {0}; run in a pod with a service account, or set KUBECONFIG")]
    Kubernetes(#[source] Box<kube::Error>),
    /// Nobody could be reviewed.
    #[error(transparent)]
    Reviewer(#[from] Unreviewed),
    /// Lifetimes that make no sense.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// No authority.
    #[error(transparent)]
    Root(#[from] RootError),
    /// No authority in Kubernetes.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// The root cannot be given to tunnels.
    #[error(transparent)]
    File(#[from] FileError),
    /// Bad revocation lists.
    #[error(transparent)]
    Lists(#[from] PassOnError),
    /// No TLS.
    #[error(transparent)]
    Compliance(#[from] ComplianceError),
    /// No certificate of our own.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The address is taken.
    #[error(
        "cannot listen on {0}: {1}; is another controller running there? --listen chooses another address"
    )]
    Listen(SocketAddr, #[source] io::Error),
    /// So is that of the webhook.
    #[error("cannot listen on {0} for the API server: {1}; --webhook chooses another address")]
    Webhook(SocketAddr, #[source] io::Error),
    /// So is that of the pages.
    #[error("{0}; --admin chooses another address")]
    Admin(#[from] BindError),
    /// A part ended.
    #[error("the {0} of the controller ended; the log says why")]
    Failed(&'static str),
}
