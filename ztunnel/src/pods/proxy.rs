//! What serves one pod: its listeners, on every worker.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use ambit_runtime::{
    drain::{self, Drain, Mode, Watch},
    task,
};
use ambit_model::identity::Identity;
use ambit_wire::{cert::store::Status, tls::revoked::Revocation};
use tokio::{net::TcpListener, runtime::Handle, sync::watch};

use super::{Pod, netns};
use crate::{
    dns,
    inbound::{self, Inbound},
    outbound::Outbound,
    refusal::Refusal,
    socket,
    tunnel::wildcard,
};

/// The wait before accepting again when the process has run out of descriptors: long enough for
/// some to be returned, short enough not to be noticed.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// The ports of a pod's listeners (protocols 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Redirected outgoing connections.
    pub outbound: u16,
    /// Redirected incoming connections.
    pub plaintext: u16,
    /// Tunnels.
    pub hbone: u16,
    /// Redirected DNS queries, if they are captured.
    pub dns: Option<u16>,
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
    outbound: std::net::TcpListener,
    plaintext: std::net::TcpListener,
    hbone: std::net::TcpListener,
    dns: Vec<dns::Sockets>,
}

impl PodProxy {
    /// Opens the pod's listeners on every worker and serves them.
    pub fn start(
        pod: Arc<Pod>,
        workers: &[Handle],
        ports: Ports,
        dns: Option<&Arc<dns::Server>>,
    ) -> io::Result<Self> {
        // All sockets first: a pod is served on every worker or not at all.
        let listeners = pod.netns.enter(|| {
            workers.iter().enumerate().map(|(n, _)| listen(&pod, ports, n == 0)).collect::<io::Result<Vec<_>>>()
        })?;
        let (drain, watch) = drain::channel();
        let serving = workers.iter().zip(listeners);
        let outbound: Arc<[_]> = serving
            .map(|(worker, listeners)| serve(&pod, worker, listeners, dns, &watch))
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
            Mode::Immediate => pod.connections.end_all(&Refusal::ShuttingDown),
            Mode::Graceful { .. } => {}
        }
        drain.start(mode).await;
        pod.connections.end_all(&Refusal::ShuttingDown);
    }
}

fn listen(pod: &Pod, ports: Ports, with_dns: bool) -> io::Result<Listeners> {
    let settings = &pod.tunnel.settings;
    let ipv6 = settings.ipv6 && netns::has_ipv6();
    let any = |port| SocketAddr::new(wildcard(ipv6), port);
    let open = |port| socket::listen(any(port), &settings.sockets, pod.transparent);
    let local = [Some(IpAddr::from(Ipv4Addr::LOCALHOST)), ipv6.then_some(Ipv6Addr::LOCALHOST.into())];
    let dns = ports.dns.filter(|_| with_dns).map(|port| {
        let at = local.into_iter().flatten().map(|ip| SocketAddr::new(ip, port));
        at.map(|address| {
            Ok(dns::Sockets {
                udp: socket::udp(address, &settings.sockets)?,
                tcp: socket::listen(address, &settings.sockets, false)?,
            })
        })
        .collect::<io::Result<Vec<_>>>()
    });
    Ok(Listeners {
        outbound: open(ports.outbound)?,
        plaintext: open(ports.plaintext)?,
        hbone: open(ports.hbone)?,
        dns: dns.transpose()?.unwrap_or_default(),
    })
}

fn serve(
    pod: &Arc<Pod>,
    worker: &Handle,
    listeners: Listeners,
    dns: Option<&Arc<dns::Server>>,
    watch: &Watch,
) -> io::Result<Arc<Outbound>> {
    let _inside = worker.enter();
    let outgoing = TcpListener::from_std(listeners.outbound)?;
    let plaintext = TcpListener::from_std(listeners.plaintext)?;
    let hbone = TcpListener::from_std(listeners.hbone)?;

    let outbound = Outbound::new(pod.clone());
    let opening = outbound.clone();
    task::spawn_on(worker, "outbound", accept(outgoing, watch.clone(), move |stream, held| {
        let outbound = opening.clone();
        task::spawn("outbound connection", async move {
            let _held = held;
            outbound.serve(stream).await;
        });
    }));
    let served = pod.clone();
    task::spawn_on(worker, "inbound plaintext", accept(plaintext, watch.clone(), move |stream, held| {
        let pod = served.clone();
        task::spawn("plaintext connection", async move {
            let _held = held;
            inbound::plaintext::serve(pod, stream).await;
        });
    }));
    let inbound = Inbound::new(pod.clone());
    task::spawn_on(worker, "inbound", accept(hbone, watch.clone(), move |stream, held| {
        task::spawn("inbound tunnel", inbound.clone().serve(stream, held));
    }));
    if let Some(server) = dns {
        for sockets in listeners.dns {
            task::spawn_on(worker, "dns", server.clone().serve(pod.clone(), sockets, watch.clone()));
        }
    }
    Ok(outbound)
}

/// Keeps what is open in step with what changes: policies, the pod itself, certificates.
async fn keep(pod: Arc<Pod>, outbound: Arc<[Arc<Outbound>]>, watch: Watch) {
    let tunnel = pod.tunnel.clone();
    let mut mesh_changes = tunnel.mesh.changes();
    let mut revocations = match &tunnel.revocation {
        Revocation::Loaded(lists) => Some(lists.changes()),
        Revocation::NotConfigured => None,
    };
    let mut certificate: Option<(Identity, watch::Receiver<Status>)> = None;
    let mut draining = std::pin::pin!(watch.signaled());
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
            _ = &mut draining => return,
            changed = mesh_changes.changed() => if changed.is_err() { return },
            () = changed(revocations.as_mut()) => {
                let revoked = |_: &_, chain: &[_]| tunnel.revocation.is_revoked(chain);
                outbound.iter().for_each(|one| one.dial().pool().close_revoked(revoked));
            }
            () = changed(certificate.as_mut().map(|(_, status)| status)) => {
                // New connections bear the new certificate; what is open was proven and goes on.
                outbound.iter().for_each(|one| one.dial().pool().retire(|_| true));
            }
        }
    }
}

/// Resolves when the watched value changes; never when there is none, or no longer.
async fn changed<T>(watched: Option<&mut watch::Receiver<T>>) {
    let Some(watched) = watched else { return std::future::pending().await };
    if watched.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Accepts until told to drain. What waits in the queue at that moment is still accepted; what comes
/// later finds the listener of the tunnel that takes over.
async fn accept(listener: TcpListener, watch: Watch, mut serve: impl FnMut(tokio::net::TcpStream, Watch)) {
    let draining = watch.clone();
    let mut drained = Box::pin(draining.signaled());
    loop {
        let accepted = poll_fn(|cx| match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
            // The queue is empty, so nothing is lost by closing now.
            Poll::Pending => drained.as_mut().poll(cx).map(|_| None),
        })
        .await;
        match accepted {
            Some(Ok((stream, _))) => serve(stream, watch.clone()),
            Some(Err(error)) if is_exhausted(&error) => {
                tracing::warn!(error = %error, "Cannot accept connections; is the open file limit too low?");
                tokio::time::sleep(EXHAUSTED).await;
            }
            Some(Err(error)) => tracing::debug!(error = %error, "A connection went away before it was accepted"),
            None => return,
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| exhausted.contains(&code))
}
