//! Builds everything, connects it, starts it, and ends it in order. The only file that knows everyone.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_proxy::{
    accept,
    identity::{self, Whose},
    metrics::Fetches,
    telemetry::Exports,
};
use ambit_runtime::{
    admin::{Address, Pages, Server},
    drain::{self, Drain, Mode as Ending, Watch},
    metrics::Registry,
    ready::Ready,
    signal, task,
    telemetry::LogControl,
    version,
    workers::Workers,
};
use ambit_wire::{
    channel::ControlPlane,
    codec,
    discovery::Mesh,
    tls::{Profile, revoked::Revocation},
    xds::{self, ClientMetrics},
};
use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, runtime::Handle, sync::Semaphore};

use crate::{
    accept::{Accept, handed::Listen},
    access::{Records, Tracer},
    admin,
    caller::{debug::Looks, fetch::Fetch, keys::KeyStore},
    config::Config,
    limits::Limits,
    metrics::Metrics,
    request::Proxy,
    served::Served,
    shared::{Settings, Shared},
    upstream::{Upstream, budgets::Budgets, destinations::Destinations, endpoints::Endpoints},
};

/// For connections that were told to end to write their records.
const LAST_MOMENT: Duration = Duration::from_millis(500);
/// How often what nobody uses is let go of.
const SWEEP: Duration = Duration::from_secs(10);
/// How many connections may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Runs the waypoint until it is told to end.
pub async fn run(config: Config, logs: LogControl) -> anyhow::Result<()> {
    tracing::info!(version = %version::line(), identity = %config.identity, "Starting");
    let (exit, shutdown) = signal::listen().context("cannot listen for signals")?;
    let workers = Workers::start(config.threads, "worker").context("cannot start workers")?;

    let ready = Ready::new();
    let state_manager = ready.task("state manager");
    let proxy = ready.task("proxy");

    let mut registry = Registry::new();
    registry.workers(workers.handles());
    let xds_metrics = Arc::new(ClientMetrics::default());
    let tag = config.istio_version.clone().unwrap_or_else(version::line);
    let metrics = Metrics::register(&mut registry, tag, xds_metrics.clone());

    let revocation = identity::revocation(config.tls.crl.as_deref())?;
    let profile = Profile::new(config.tls.compliance, config.tls.versions, revocation.clone())?;
    let trust_domain = config.identity.trust_domain.clone();
    let certificates = identity::certificates(&config.ca, Whose::Own, trust_domain, &profile)?;
    registry.collect(Fetches(certificates.clone()));
    certificates.prefetch(&config.identity).context("the own certificate cannot be asked for")?;
    let (mesh, subscription) = mesh(&config, &profile, xds_metrics)?;
    let exports = Exports::start(&config.telemetry, &profile, &logs, &mut registry)?;
    let records = Arc::new(Records {
        metrics: metrics.clone(),
        tracer: exports.spans.clone().map(|(sampler, spans)| Tracer::new(sampler, spans)),
        template: config.access.clone(),
    });
    let shared = Arc::new(Shared {
        records,
        mesh,
        served: Served::default(),
        certificates,
        revocation,
        metrics,
        keys: KeyStore::new(Fetch::with_system_roots()),
        endpoints: Endpoints::default(),
        destinations: Destinations::default(),
        budgets: Budgets::default(),
        limits: Limits::default(),
        looks: Looks::default(),
        handshakes: Semaphore::new(config.limits.handshakes),
        connections: Arc::new(Semaphore::new(config.limits.connections)),
        settings: settings(&config),
    });
    let watched = shared.clone();
    task::spawn("served", async move { watched.served.follow(watched.mesh.clone()).await });
    let shown =
        admin::Shown { config: config.clone(), shared: shared.clone(), subscription: subscription.clone() };
    serve_pages(&config, &ready, registry, admin::pages(shown, logs, exit)).await?;

    let serve = async {
        if let Some(subscription) = &subscription {
            subscription.synced().await;
        }
        state_manager.done();
        // Without a certificate nobody could be served: it is not ready, and says why.
        while let Err(error) = shared.certificates.get(&config.identity).await {
            tracing::warn!(%error, "No certificate yet");
            tokio::time::sleep(NO_CERTIFICATE).await;
        }
        let drain = serve(&config, &shared, &workers)?;
        proxy.done();
        Ok::<_, anyhow::Error>(drain)
    };
    let mut requested = std::pin::pin!(shutdown.requested());
    let outcome = tokio::select! {
        served = serve => match served {
            Ok(drain) => {
                let cause = requested.await;
                tracing::info!(cause = ?cause, deadline = ?config.drain, "Draining");
                drain.start(Ending::Graceful { deadline: config.drain }).await;
                Ok(())
            }
            Err(error) => Err(error),
        },
        cause = &mut requested => {
            tracing::info!(cause = ?cause, "Ended before it served");
            Ok(())
        }
    };
    tokio::task::spawn_blocking(move || workers.shutdown(LAST_MOMENT)).await?;
    // Now nobody records any more.
    exports.end().await;
    tracing::info!("Ended");
    outcome
}

/// How long to wait before asking again; the store itself asks the CA at its own pace.
const NO_CERTIFICATE: Duration = Duration::from_secs(1);

/// The mesh, and the subscription that keeps it up to date.
fn mesh(
    config: &Config,
    profile: &Profile,
    metrics: Arc<ClientMetrics>,
) -> anyhow::Result<(Mesh, Option<xds::Handle>)> {
    let (mesh, discovery) = Mesh::new(None);
    let discovery = match config.listen {
        Listen::Tunnels(_) => discovery,
        // What captures this pod opens the tunnels of its outgoing connections, too.
        Listen::Handed { .. } => discovery.behind_ztunnel(),
    };
    let Some(settings) = &config.xds.channel else {
        anyhow::bail!("XDS_ADDRESS is empty; a waypoint is told by a control plane what it serves");
    };
    let control_plane = ControlPlane::new(settings.clone(), profile).context("XDS")?;
    let types = [(codec::ADDRESS, xds::Mode::Wildcard), (codec::SERVICE_CONFIG, xds::Mode::Wildcard)];
    let (client, handle) = xds::Client::new(&config.own.info, types, control_plane, discovery, metrics);
    task::spawn("xds", client.run(std::future::pending()));
    Ok((mesh, Some(handle)))
}

fn settings(config: &Config) -> Settings {
    Settings {
        identity: config.identity.clone(),
        ip: config.own.ip,
        network: config.own.network.clone(),
        hbone: config.hbone.clone(),
        listen: config.listen,
        names_clients: config.names_clients,
        spread: Default::default(),
        keepalive: config.keepalive,
        limits: config.limits,
        started: Instant::now(),
    }
}

/// Accepts on every worker.
fn serve(config: &Config, shared: &Arc<Shared>, workers: &Workers) -> anyhow::Result<Drain> {
    let (drain, watch) = drain::channel();
    // All sockets first: it serves on every worker or not at all.
    let listeners = workers.handles().iter().map(|_| listen_all(config)).collect::<anyhow::Result<Vec<_>>>();
    for (worker, listeners) in workers.handles().iter().zip(listeners?) {
        let upstream = start(worker, listeners, shared, &watch)?;
        task::spawn_on(worker, "keeper", keep(upstream, shared.clone()));
    }
    Ok(drain)
}

/// The listeners of one worker.
fn listen_all(config: &Config) -> anyhow::Result<Vec<std::net::TcpListener>> {
    let mut listeners = Vec::new();
    for address in config.listen.addresses() {
        match (listen(address, config), config.listen) {
            (Ok(listener), _) => listeners.push(listener),
            // A pod without IPv6 has no such loopback address, and its ztunnel does not call there.
            (Err(error), Listen::Handed { .. })
                if address.is_ipv6() && error.kind() == io::ErrorKind::AddrNotAvailable =>
            {
                tracing::debug!(%address, "Not listened at: there is no IPv6");
            }
            (Err(error), _) => return Err(error).with_context(|| format!("cannot listen at {address}")),
        }
    }
    Ok(listeners)
}

fn listen(address: SocketAddr, config: &Config) -> io::Result<std::net::TcpListener> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if let Some(keepalive) = &config.keepalive {
        keepalive.apply(&socket)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn start(
    worker: &Handle,
    listeners: Vec<std::net::TcpListener>,
    shared: &Arc<Shared>,
    watch: &Watch,
) -> io::Result<Arc<Upstream>> {
    let _inside = worker.enter();
    let upstream = Arc::new(Upstream::new(shared.clone()));
    let accepting = Accept::new(Arc::new(Proxy::new(upstream.clone())));
    for listener in listeners {
        let listener = TcpListener::from_std(listener)?;
        let (accepting, how) = (accepting.clone(), shared.settings.listen);
        let serve = move |stream, held| {
            let accepting = accepting.clone();
            match how {
                Listen::Tunnels(_) => task::spawn("tunnel", accepting.serve(stream, held)),
                Listen::Handed { .. } => {
                    task::spawn("handed", Box::pin(accepting.serve_handed(stream, held)))
                }
            };
        };
        task::spawn_on(worker, "accept", accept::accept(listener, watch.clone(), serve));
    }
    Ok(upstream)
}

/// Keeps one worker's connections in step with what changes: certificates, revocations, time.
async fn keep(upstream: Arc<Upstream>, shared: Arc<Shared>) {
    let mut revocations = match &shared.revocation {
        Revocation::Loaded(lists) => Some(lists.changes()),
        Revocation::NotConfigured => None,
    };
    let mut certificate = shared.certificates.subscribe(&shared.settings.identity).ok();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        let tunnels = upstream.dial().tunnels();
        tokio::select! {
            _ = sweep.tick() => upstream.sweep(),
            () = changed(revocations.as_mut()) => {
                tunnels.close_revoked(|_, chain| shared.revocation.is_revoked(chain));
            }
            // New tunnels bear the new certificate; what is open was proven and goes on.
            () = changed(certificate.as_mut()) => tunnels.retire(|_| true),
        }
    }
}

/// Resolves when the watched value changes; never when there is none, or no longer.
async fn changed<T>(watched: Option<&mut tokio::sync::watch::Receiver<T>>) {
    let Some(watched) = watched else { return std::future::pending().await };
    if watched.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Admin, metrics and readiness, each on its own port.
async fn serve_pages(config: &Config, ready: &Ready, registry: Registry, admin: Pages) -> anyhow::Result<()> {
    let metrics = registry.share().pages(Pages::new("waypoint metrics"));
    let readiness = ready.pages(Pages::new("waypoint readiness"));
    let servers =
        [(config.pages.admin, admin), (config.pages.metrics, metrics), (config.pages.readiness, readiness)];
    for (address, pages) in servers {
        let server = Server::bind(&[Address::Tcp(address)]).await?;
        task::spawn("pages", server.serve(pages, std::future::pending()));
    }
    Ok(())
}
