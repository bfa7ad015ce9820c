//! Builds everything, connects it, starts it, and ends it in order. The only file that knows everyone.

use std::{sync::Arc, time::Duration};

use ambit_proxy::{
    identity::{self, Whose},
    metrics::Fetches,
};
use ambit_runtime::{
    admin::{Address, Pages, Server},
    drain::Mode as Ending,
    metrics::Registry,
    ready::{Pending, Ready},
    signal, task,
    telemetry::LogControl,
    version,
    workers::Workers,
};
use ambit_wire::{
    channel::ControlPlane,
    codec,
    discovery::{Demand, Mesh},
    tls::Profile,
    xds::{self, ClientMetrics},
};
use anyhow::Context as _;
use futures_util::FutureExt as _;

use crate::{
    admin,
    config::{Config, Mode, Pod as PodConfig},
    dns::{self, ResolvConf},
    local,
    metrics::{Build, Held, Metrics},
    pods::{
        Locals, Pod,
        follow::{Follower, Served},
        identities,
        names::Names,
        netns::{Home, Netns},
        proxy::{Place, PodProxy, Ports, Redirected},
    },
    socket,
    tunnel::{OriginalSource, PodName, Settings, Tunnel},
};

/// Runs the tunnel until it is told to end.
pub async fn run(config: Config, logs: LogControl) -> anyhow::Result<()> {
    tracing::info!(version = %version::line(), "Starting");
    let (exit, shutdown) = signal::listen().context("cannot listen for signals")?;
    let workers = Workers::start(config.threads, "worker").context("cannot start workers")?;
    let home = Home::of_this_thread().context("cannot read the own network namespace")?;

    let ready = Ready::new();
    let state_manager = ready.task("state manager");
    let serving = Readiness::of(&config, &ready);

    let mut registry = Registry::new();
    registry.workers(workers.handles());
    let xds_metrics = Arc::new(ClientMetrics::default());
    let build = Build { tag: config.istio_version.clone().unwrap_or_else(version::line) };
    let metrics = Metrics::register(&mut registry, &build, xds_metrics.clone());

    let revocation = identity::revocation(config.tls.crl.as_deref())?;
    let profile = Profile::new(config.tls.compliance, config.tls.versions, revocation.clone())?;
    let whose = match &config.mode {
        Mode::Shared(_) => Whose::Others,
        Mode::Dedicated(_) => Whose::Own,
    };
    let trust_domain = config.own.identity.as_ref().map(|own| own.trust_domain.clone()).unwrap_or_default();
    let certificates = identity::certificates(&config.ca, whose, trust_domain, &profile)?;
    let (mesh, subscription) = mesh(&config, &profile, xds_metrics)?;
    let tunnel = Arc::new(Tunnel {
        mesh,
        certificates,
        revocation,
        metrics,
        locals: Locals::default(),
        settings: settings(&config),
    });
    if let Some(node) = &config.own.node {
        let warm = identities::keep_warm(tunnel.mesh.clone(), node.clone(), tunnel.certificates.clone());
        task::spawn("certificate prefetch", warm);
    }

    registry.collect(Fetches(tunnel.certificates.clone()));
    registry.collect(Held(tunnel.clone()));
    let names = names(&config)?;
    let ports = ports(&config);
    let served = Arc::new(Served::default());
    let shown = admin::Shown {
        config: config.clone(),
        tunnel: tunnel.clone(),
        served: served.clone(),
        subscription: subscription.clone(),
    };
    serve_pages(&config, &ready, registry, admin::pages(shown, logs, exit)).await?;

    let serve = async {
        if let Some(subscription) = &subscription {
            subscription.synced().await;
        }
        state_manager.done();
        let place = Place { home, workers: workers.handles().to_vec(), ports, names };
        serve(&config, place, &tunnel, &served, serving).await
    };
    let outcome = tokio::select! {
        outcome = serve => outcome,
        cause = shutdown.requested() => {
            tracing::info!(cause = ?cause, deadline = ?config.drain, "Draining");
            Ok(())
        }
    };
    served.stop(Ending::Graceful { deadline: config.drain }).await;
    tracing::info!("Ended");
    // What is left on the workers has had its time.
    tokio::task::spawn_blocking(move || workers.shutdown(LAST_MOMENT)).await?;
    outcome
}

/// For connections that were told to end to write their records.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// The readiness of what carries traffic, by the names of protocols 10.4.
enum Readiness {
    Shared(Pending),
    Dedicated { proxy: Pending, dns: Option<Pending> },
}

impl Readiness {
    fn of(config: &Config, ready: &Ready) -> Self {
        match &config.mode {
            Mode::Shared(_) => Self::Shared(ready.task("workload proxy manager")),
            Mode::Dedicated(_) => Self::Dedicated {
                proxy: ready.task("proxy"),
                dns: config.dns.is_some().then(|| ready.task("dns proxy")),
            },
        }
    }
}

/// Carries traffic: of the pods that the node agent names, or of the one that this process is in.
async fn serve(
    config: &Config,
    place: Place,
    tunnel: &Arc<Tunnel>,
    served: &Arc<Served>,
    readiness: Readiness,
) -> anyhow::Result<()> {
    match (&config.mode, readiness) {
        (Mode::Shared(in_pod), Readiness::Shared(ready)) => {
            serve_own_pod(config, &place, tunnel, served).await?;
            let follower = Follower::new(in_pod.agent.clone(), place, tunnel.clone(), served.clone());
            follower.run(ready).await.context("the node agent breaks the protocol")
        }
        (Mode::Dedicated(pod), Readiness::Dedicated { proxy, dns }) => {
            let name = pod_name(pod);
            let netns = Netns::own(&place.home)?;
            let transparent = match tunnel.settings.original_source {
                OriginalSource::Never => false,
                OriginalSource::Auto | OriginalSource::Required => socket::can_be_transparent(),
            };
            let pod = Arc::new(Pod::new(name.to_string(), name, netns, transparent, tunnel.clone()));
            served.adopt(PodProxy::start(pod, &place)?).await;
            proxy.done();
            if let Some(dns) = dns {
                dns.done();
            }
            std::future::pending().await
        }
        (Mode::Shared(_), Readiness::Dedicated { .. }) | (Mode::Dedicated(_), Readiness::Shared(_)) => {
            anyhow::bail!("readiness does not fit PROXY_MODE")
        }
    }
}

/// The tunnel's own pod takes tunnels too, so that its metrics can be scraped in mutual TLS
/// (protocols 5.8, self listener).
async fn serve_own_pod(
    config: &Config,
    place: &Place,
    tunnel: &Arc<Tunnel>,
    served: &Served,
) -> anyhow::Result<()> {
    let Some(name) = own_pod_name(config) else { return Ok(()) };
    let ports = Ports { redirected: None, ..place.ports };
    let place = Place { ports, names: None, ..place.clone() };
    let netns = Netns::own(&place.home)?;
    // No node agent gave it a uid; this one says what it is in the dump.
    let uid = format!("{}/{}", name.namespace, name.name);
    let pod = Arc::new(Pod::new(uid, name, netns, false, tunnel.clone()));
    served.adopt(PodProxy::start(pod, &place).context("cannot listen in the tunnel's own pod")?).await;
    Ok(())
}

fn own_pod_name(config: &Config) -> Option<PodName> {
    let identity = config.own.identity.as_ref()?;
    let name = &config.own.info.pod_name;
    (!name.is_empty()).then(|| PodName {
        namespace: identity.namespace.clone(),
        name: name.as_str().into(),
        service_account: identity.service_account.clone(),
    })
}

fn pod_name(pod: &PodConfig) -> PodName {
    let PodConfig { namespace, name, service_account } = pod.clone();
    PodName { namespace, name, service_account }
}

/// The mesh, and the subscription that keeps it up to date.
fn mesh(
    config: &Config,
    profile: &Profile,
    metrics: Arc<ClientMetrics>,
) -> anyhow::Result<(Mesh, Option<xds::Handle>)> {
    let (mesh, discovery) = Mesh::new(config.own.node.clone());
    let local = config.xds.local.as_ref().map(|source| local::load(source, discovery.writer()));
    if let Some(followed) = local.transpose()?.flatten() {
        task::spawn("local mesh", followed.run(std::future::pending()));
    }
    let Some(settings) = &config.xds.channel else { return Ok((mesh, None)) };
    let control_plane = ControlPlane::new(settings.clone(), profile).context("XDS")?;
    let addresses = if config.xds.on_demand { xds::Mode::OnDemand } else { xds::Mode::Wildcard };
    let types = [(codec::ADDRESS, addresses), (codec::AUTHORIZATION, xds::Mode::Wildcard)];
    let (client, handle) = xds::Client::new(&config.own.info, types, control_plane, discovery, metrics);
    task::spawn("xds", client.run(std::future::pending()));
    let mesh = match addresses {
        xds::Mode::Wildcard => mesh,
        xds::Mode::OnDemand => mesh.on_demand(demand(handle.clone())),
    };
    Ok((mesh, Some(handle)))
}

fn demand(handle: xds::Handle) -> Demand {
    Demand::new(move |name| {
        let handle = handle.clone();
        async move { handle.demand(codec::ADDRESS, &name, DEMAND_LIMIT).await }.boxed()
    })
}

/// How long one resource is waited for.
const DEMAND_LIMIT: Duration = Duration::from_secs(5);

/// How names are answered: what the operator decided, and the nameservers of this process.
fn names(config: &Config) -> anyhow::Result<Option<Arc<Names>>> {
    let Some(dns) = &config.dns else { return Ok(None) };
    let path = &dns.resolv_conf;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let settings = dns::Settings {
        cluster_domain: config.own.cluster_domain.clone(),
        preferred_namespace: dns.preferred_namespace.clone(),
        ipv6: config.ipv6,
    };
    let nameservers = Arc::new(ResolvConf::parse(&text));
    let limit = config.limits.dns_queries_per_pod;
    Ok(Some(Arc::new(Names { listen: dns.listen, settings, nameservers, limit })))
}

fn ports(config: &Config) -> Ports {
    let redirected =
        Redirected { outbound: config.ports.outbound, plaintext: config.ports.inbound_plaintext };
    Ports { redirected: config.proxy.then_some(redirected), hbone: config.ports.inbound }
}

fn settings(config: &Config) -> Settings {
    let (mark, reuse_port) = match &config.mode {
        Mode::Shared(in_pod) => (Some(in_pod.mark), in_pod.port_reuse),
        Mode::Dedicated(_) => (None, true),
    };
    Settings {
        sockets: socket::Options { mark, keepalive: config.keepalive, reuse_port },
        hbone: config.hbone.clone(),
        spread: Default::default(),
        network: config.own.network.clone(),
        own_ports: config.ports.own().into(),
        response_baggage: config.response_baggage,
        tunnel_to_localhost: config.localhost_app_tunnel,
        original_source: config.original_source.into(),
        same_node: config.same_node,
        ipv6: config.ipv6,
        limits: config.limits,
    }
}

/// Admin, metrics and readiness, each on its own port.
async fn serve_pages(config: &Config, ready: &Ready, registry: Registry, admin: Pages) -> anyhow::Result<()> {
    let metrics = registry.share().pages(Pages::new("ztunnel metrics"));
    let readiness = ready.pages(Pages::new("ztunnel readiness"));
    let servers =
        [(config.pages.admin, admin), (config.pages.metrics, metrics), (config.pages.readiness, readiness)];
    for (address, pages) in servers {
        let server = Server::bind(&[Address::Tcp(address)]).await?;
        task::spawn("pages", server.serve(pages, std::future::pending()));
    }
    Ok(())
}
