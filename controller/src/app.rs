//! The only file that knows everyone: builds the controller, starts it, ends it.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::SystemTime,
};

use ambit_api::directory::{Directory, DirectoryError};
use ambit_runtime::{
    admin,
    drain::{self, Drain, Mode, Outcome, Watch},
    metrics::Registry,
    ready::{Pending, Ready},
    signal,
    task::{self, Task},
    telemetry::LogControl,
    version,
};
use ambit_wire::{
    ca,
    channel::{ControlStream, incoming},
    codec::{ADDRESS, AUTHORIZATION, WORKLOAD},
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
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, metadata::MetadataMap};
use tracing::{error, info, warn};

use crate::{
    admin::{Shown, pages},
    ca::{
        Desk, Signer,
        authority::{Terms, TermsError},
        figures,
        file::{self, FileError},
        in_force::InForce,
        revocation::{PassOn, PassOnError},
        root::{self, REVOCATION_LISTS, Root, RootError},
        serving::{Serving, ServingError},
    },
    config::{Config, Source},
    engine::{self, Engine},
    metrics::{Figures, Measured},
    nodes::{Nodes, NodesError},
    source::directory,
};

/// What is pushed, in this order. Policies go before the workloads that name them: a tunnel takes a name that it does
/// not know for no policy. Workloads alone are for Envoy based proxies, which ask for no more (protocols 1.3).
const TYPES: [&str; 3] = [AUTHORIZATION, ADDRESS, WORKLOAD];
/// Connections whose handshake is done and that nobody has begun to serve yet.
const ACCEPTED: usize = 64;

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
        let Source::Directory(path) = &config.source;
        let source = Directory::open(path)?;
        let nodes = Nodes::open(&config.access.tokens, config.access.tunnel_identity(&config.mesh))?;
        let nodes = Arc::new(nodes);
        if nodes.is_empty() {
            warn!(tokens.path = %config.access.tokens.display(), "No node has a token yet, so nobody can connect");
        }
        let (root, lists) = authority(config).await?;
        let in_force = InForce::fixed(root);
        let serving = Serving::new(
            &profile,
            in_force.clone(),
            config.authority.server_names(&config.mesh),
            config.authority.server_ttl,
        )?;
        let listener =
            listen(config.listen).await.map_err(|source| StartError::Listen(config.listen, source))?;
        let address = listener.local_addr().map_err(|source| StartError::Listen(config.listen, source))?;
        let admin = admin::Server::bind(std::slice::from_ref(&config.admin)).await?;

        let ready = Ready::new();
        let configured = ready.task("configuration");
        let authenticator = ByToken(Arc::clone(&nodes));
        let spawner = Spawner::new(|name, future| {
            task::spawn(name, future);
        });
        let (server, publisher) = Server::new(TYPES, Limits::default(), authenticator, spawner);
        let sink = Measured::new(publisher.clone());
        let changes = sink.changes();
        let engine = Engine::new(config.mesh.settings(), sink);
        let (cluster, synced) = (engine.view(), engine.synced());
        let trusted = config.access.trusted(&config.mesh);
        let desk = Desk::new(
            in_force.clone(),
            Signer::Authority,
            terms,
            Arc::clone(&nodes),
            trusted,
            cluster.clone(),
            synced.clone(),
        );
        let (problems, seen_problems) = watch::channel(Vec::new());

        let mut registry = Registry::new();
        registry.collect(Figures {
            publisher: publisher.clone(),
            cluster: cluster.clone(),
            problems: seen_problems.clone(),
            desk: desk.clone(),
            nodes,
            changes,
        });
        registry.collect(figures::Figures { in_force, desk: desk.clone(), kept: None, told: None });
        let shown =
            Shown { publisher: publisher.clone(), cluster, problems: seen_problems, ready: ready.clone() };
        let pages = pages(shown, &registry.share());
        let pages = logs.map(|logs| logs.pages(pages.clone())).unwrap_or(pages);

        let (drain, watch) = drain::channel();
        let (failed, failures) = mpsc::channel(1);
        let parts = Parts { watch, failed };
        let (events, received) = mpsc::channel(engine::QUEUE);
        let admin_addresses = admin.local_addresses();
        let tls = serving.tls();
        parts.start("admin pages", |stop| admin.serve(pages, stop));
        parts.start("engine", |stop| engine.run(received, stop));
        parts.start("source", |stop| directory::run_telling(source, events, problems, stop));
        parts.start("own certificate", |stop| serving.rotate(stop));
        if let Some(lists) = lists {
            parts.start("revocation lists", |stop| lists.follow(stop));
        }
        parts.start("readiness", |stop| async move {
            tokio::select! {
                () = stop => {}
                never = tell_when(synced, configured) => match never {},
            }
        });
        let connections = parts.accept(incoming(listener, Some(tls)));
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

/// The parts of a controller, each ended by the drain.
struct Parts {
    watch: Watch,
    failed: mpsc::Sender<&'static str>,
}

impl Parts {
    /// Starts a part. It is told to stop by the future that `run` is given, and cut off when the drain is out of
    /// patience; if it ends by itself, that is a failure.
    fn start<F>(&self, name: &'static str, run: impl FnOnce(Stop) -> F) -> Task
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (watch, failed) = (self.watch.clone(), self.failed.clone());
        let told = self.watch.clone();
        let part = run(Box::pin(async move {
            told.signaled().await;
        }));
        let part = task::spawn(name, async move {
            let forced = watch.clone();
            tokio::select! {
                () = part => {}
                () = forced.forced() => {}
            }
        });
        let watch = self.watch.clone();
        task::spawn("supervisor", async move {
            part.await;
            if watch.mode().is_none() {
                // Full: another part has failed already.
                let _ = failed.try_send(name);
            }
        })
    }

    /// Hands connections on until the drain starts, and then closes the listener, so that the next connection is
    /// refused at once and not left waiting.
    fn accept(
        &self,
        connections: impl Stream<Item = io::Result<ControlStream>> + Send + 'static,
    ) -> ReceiverStream<io::Result<ControlStream>> {
        let (hand_on, accepted) = mpsc::channel(ACCEPTED);
        self.start("listener", |stop| async move {
            tokio::pin!(connections, stop);
            loop {
                let next = tokio::select! {
                    () = &mut stop => return,
                    next = connections.next() => next,
                };
                let Some(connection) = next else { return };
                if hand_on.send(connection).await.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(accepted)
    }
}

type Stop = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Subscribers are known by the token of their node.
struct ByToken(Arc<Nodes>);

impl Authenticator for ByToken {
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let token = ca::bearer(metadata);
        let nodes = Arc::clone(&self.0);
        let identified = tokio::task::spawn_blocking(move || nodes.identify(token.as_deref())).await;
        let caller = identified
            .map_err(|_| Status::unavailable("the controller is ending; try again"))?
            .map_err(|stranger| Status::unauthenticated(stranger.to_string()))?;
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

/// What signs, its root where tunnels find it, and the revocation lists passed on.
async fn authority(config: &Config) -> Result<(Root, Option<PassOn>), StartError> {
    let settings = config.authority.clone();
    let trust_domain = config.mesh.trust_domain.as_str().into();
    // It may wait for another controller that makes the root.
    let made = tokio::task::spawn_blocking(move || {
        let root = root::open(&settings.ca_dir, &trust_domain, settings.root_ttl, SystemTime::now())?;
        if let Some(path) = &settings.root_cert {
            file::publish(path, root.authority.roots().as_bytes())?;
        }
        let lists =
            settings.crl_out.map(|to: PathBuf| PassOn::start(settings.ca_dir.join(REVOCATION_LISTS), to));
        Ok((root, lists.transpose()?))
    });
    made.await.map_err(|_| StartError::Failed("authority"))?
}

/// Tells that the configuration is known and published; then has nothing more to do.
async fn tell_when(mut synced: watch::Receiver<bool>, configured: Pending) -> Infallible {
    if synced.wait_for(|synced| *synced).await.is_ok() {
        configured.done();
        info!("Controller is ready");
    }
    std::future::pending().await
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

/// Why the controller does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No signals.
    #[error("signals cannot be listened for: {0}")]
    Signals(#[source] io::Error),
    /// No source.
    #[error(transparent)]
    Source(#[from] DirectoryError),
    /// No tokens.
    #[error(transparent)]
    Tokens(#[from] NodesError),
    /// Lifetimes that make no sense.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// No authority.
    #[error(transparent)]
    Root(#[from] RootError),
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
    /// So is that of the pages.
    #[error("{0}; --admin chooses another address")]
    Admin(#[from] admin::BindError),
    /// A part ended.
    #[error("the {0} of the controller ended; the log says why")]
    Failed(&'static str),
}
