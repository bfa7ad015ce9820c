//! What serves one pod: its listeners, on every worker.

use std::{io, net::SocketAddr, sync::Arc};

use ambit_model::identity::Identity;
use ambit_proxy::accept::accept;
use ambit_runtime::{
    drain::{self, Drain, Mode, Watch},
    task,
};
use ambit_wire::{cert::store::Status, tls::revoked::Revocation};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    Pod,
    names::{Arrivals, Names},
    netns::{self, Home},
};
use crate::{
    inbound::{self, Inbound},
    outbound::Outbound,
    refusal::Refusal,
    socket::{self, Reach},
    tunnel::wildcard,
};

/// The ports of a pod's listeners (protocols 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Redirected connections; none in the tunnel's own pod, which only takes tunnels.
    pub redirected: Option<Redirected>,
    /// Tunnels.
    pub hbone: u16,
}

/// Where pods are served from, and at which ports.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where threads come back to from a pod's namespace.
    pub home: Home,
    /// The workers, each with its own listeners in every pod.
    pub workers: Vec<Handle>,
    /// The ports of the listeners.
    pub ports: Ports,
    /// How DNS queries are answered, if they are captured.
    pub names: Option<Arc<Names>>,
}

/// The ports that redirected connections arrive at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirected {
    /// Outgoing ones.
    pub outbound: u16,
    /// Incoming ones.
    pub plaintext: u16,
}

/// A pod that is being served.
#[derive(Debug)]
pub struct PodProxy {
    pod: Arc<Pod>,
    outbound: Arc<[Arc<Outbound>]>,
    drain: Drain,
}

/// The sockets of one worker.
struct Listeners {
    redirected: Option<[std::net::TcpListener; 2]>,
    hbone: std::net::TcpListener,
    dns: Vec<Arrivals>,
}

impl PodProxy {
    /// Opens the pod's listeners on every worker and serves them.
    pub fn start(pod: Arc<Pod>, place: &Place) -> io::Result<Self> {
        let Place { workers, ports, names, .. } = place;
        // All sockets first: a pod is served on every worker or not at all.
        let listeners = pod.netns.enter(|| {
            workers
                .iter()
                .enumerate()
                .map(|(n, _)| listen(&pod, *ports, names.as_deref().filter(|_| n == 0)))
                .collect::<io::Result<Vec<_>>>()
        })?;
        let (drain, watch) = drain::channel();
        let serving = workers.iter().zip(listeners);
        let outbound: Arc<[_]> = serving
            .map(|(worker, listeners)| serve(&pod, worker, listeners, names.as_deref(), &watch))
            .collect::<io::Result<_>>()?;
        if let Some(first) = workers.first() {
            task::spawn_on(first, "pod keeper", keep(pod.clone(), outbound.clone(), watch));
        }
        pod.tunnel.locals.insert(pod.clone());
        Ok(Self { pod, outbound, drain })
    }

    /// The pod.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// What it opens, worker by worker.
    pub fn outbound(&self) -> &[Arc<Outbound>] {
        &self.outbound
    }

    /// Stops serving: at once, or when what is open is done.
    pub async fn stop(self, mode: Mode) {
        let Self { pod, outbound, drain } = self;
        drop(outbound);
        pod.tunnel.locals.remove(&pod);
        match mode {
            Mode::Immediate => {
                pod.connections.end_all(&Refusal::ShuttingDown);
                drain.start(mode).await;
            }
            Mode::Graceful { deadline } => {
                let end = Instant::now() + deadline;
                drain.start(mode).await;
                // What comes from a neighbour on this node is carried by the neighbour's tasks, and known
                // to its drain alone. It has the same time, and past it ends all the same.
                let _ = timeout_at(end, pod.connections.until_none()).await;
            }
        }
        pod.connections.end_all(&Refusal::ShuttingDown);
    }
}

fn listen(pod: &Pod, ports: Ports, names: Option<&Names>) -> io::Result<Listeners> {
    let settings = &pod.tunnel.settings;
    let ipv6 = settings.ipv6 && netns::has_ipv6();
    let any = |port| SocketAddr::new(wildcard(ipv6), port);
    let open = |port, from| socket::listen(any(port), &settings.sockets, pod.transparent, from);
    let dns = match names {
        Some(names) => names.listen(pod, ipv6)?,
        None => Vec::new(),
    };
    Ok(Listeners {
        redirected: match ports.redirected {
            Some(Redirected { outbound, plaintext }) => {
                Some([open(outbound, Reach::Pod)?, open(plaintext, Reach::Network)?])
            }
            None => None,
        },
        hbone: open(ports.hbone, Reach::Network)?,
        dns,
    })
}

fn serve(
    pod: &Arc<Pod>,
    worker: &Handle,
    listeners: Listeners,
    names: Option<&Names>,
    watch: &Watch,
) -> io::Result<Arc<Outbound>> {
    let _inside = worker.enter();
    let hbone = TcpListener::from_std(listeners.hbone)?;
    let outbound = Outbound::new(pod.clone());
    if let Some([outgoing, plaintext]) = listeners.redirected {
        let (outgoing, plaintext) = (TcpListener::from_std(outgoing)?, TcpListener::from_std(plaintext)?);
        let opening = outbound.clone();
        task::spawn_on(
            worker,
            "outbound",
            accept(outgoing, watch.clone(), move |stream, held| {
                task::spawn("outbound connection", opening.clone().serve(stream, held));
            }),
        );
        let served = pod.clone();
        task::spawn_on(
            worker,
            "inbound plaintext",
            accept(plaintext, watch.clone(), move |stream, held| {
                task::spawn("plaintext connection", inbound::plaintext::serve(served.clone(), stream, held));
            }),
        );
    }
    let inbound = Inbound::new(pod.clone());
    task::spawn_on(
        worker,
        "inbound",
        accept(hbone, watch.clone(), move |stream, held| {
            task::spawn("inbound tunnel", inbound.clone().serve(stream, held));
        }),
    );
    if let Some(names) = names {
        names.serve(pod, worker, listeners.dns, watch)?;
    }
    Ok(outbound)
}

/// Keeps what is open in step with what changes: policies, the pod itself, certificates. Until the last
/// connection has ended: one that outlives the order to drain can still lose its right.
async fn keep(pod: Arc<Pod>, outbound: Arc<[Arc<Outbound>]>, watch: Watch) {
    let tunnel = pod.tunnel.clone();
    let mut mesh_changes = tunnel.mesh.changes();
    let mut revocations = match &tunnel.revocation {
        Revocation::Loaded(lists) => Some(lists.changes()),
        Revocation::NotConfigured => None,
    };
    let mut certificate: Option<(Identity, watch::Receiver<Status>)> = None;
    let mut ended = std::pin::pin!(async {
        // The watch goes at once, since the drain waits for it.
        drained(watch).await;
        pod.connections.until_none().await;
    });
    loop {
        let mesh = tunnel.mesh.current();
        pod.judge(&mesh);
        let identity = pod.workload_in(&mesh).map(|workload| workload.identity());
        if certificate.as_ref().map(|(of, _)| of) != identity.as_ref() {
            certificate = identity.and_then(|identity| {
                let status = tunnel.certificates.subscribe(&identity).ok()?;
                Some((identity, status))
            });
        }
        drop(mesh);
        tokio::select! {
            () = &mut ended => return,
            changed = mesh_changes.changed() => if changed.is_err() { return },
            () = changed(revocations.as_mut()) => {
                let revoked = |_: &_, chain: &[_]| tunnel.revocation.is_revoked(chain);
                outbound.iter().for_each(|one| one.dial().pool().close_revoked(revoked));
                // Neighbours on the node meet without TLS: nobody else would look at this certificate.
                let own = certificate.as_ref().and_then(|(identity, _)| tunnel.certificates.held(identity));
                if let Some(own) = own.filter(|own| tunnel.revocation.is_revoked(own.chain())) {
                    let whose = own.identity().map(ToString::to_string).unwrap_or_default();
                    pod.connections.end_identified(&Refusal::Revoked(whose));
                }
            }
            () = changed(certificate.as_mut().map(|(_, status)| status)) => {
                // New connections bear the new certificate; what is open was proven and goes on.
                outbound.iter().for_each(|one| one.dial().pool().retire(|_| true));
            }
        }
    }
}

async fn drained(watch: Watch) {
    watch.signaled().await;
}

/// Resolves when the watched value changes; never when there is none, or no longer.
async fn changed<T>(watched: Option<&mut watch::Receiver<T>>) {
    let Some(watched) = watched else { return std::future::pending().await };
    if watched.changed().await.is_err() {
        std::future::pending().await
    }
}
