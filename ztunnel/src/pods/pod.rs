//! One pod that is served: who it is, where it lives, what is open.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_model::{authz::Policy, snapshot::Snapshot, workload::Workload};
use ambit_wire::cert::{Certificate, store::CertError};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};

use super::netns::Netns;
use crate::{
    connections::Connections,
    refusal::Refusal,
    socket::{self, Reach, Source},
    tunnel::{PodName, Tunnel},
};

/// How long a connection waits for the control plane to tell about its pod (protocols 5.3).
const WORKLOAD_LIMIT: Duration = Duration::from_secs(5);

/// One pod that is served.
#[derive(Debug)]
pub struct Pod {
    /// The pod's key at the node agent.
    pub uid: String,
    /// Who it is.
    pub name: PodName,
    /// Where it lives.
    pub netns: Netns,
    /// What is open.
    pub connections: Arc<Connections>,
    /// TLS handshakes that may be under way.
    pub handshakes: Arc<Semaphore>,
    /// Whether its sockets may bear its clients' addresses.
    pub transparent: bool,
    /// The process around it.
    pub tunnel: Arc<Tunnel>,
    judged_on: Mutex<Grounds>,
}

/// What the pod's open connections were last judged on: while that is the same, so are the verdicts.
///
/// The policies are kept alive, so that an address in memory cannot come to mean another policy.
#[derive(Debug, Default)]
struct Grounds {
    workload: Option<Arc<Workload>>,
    policies: Vec<Arc<Policy>>,
}

impl Grounds {
    fn are(&self, other: &Self) -> bool {
        let same_workload = match (&self.workload, &other.workload) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            (None, Some(_)) | (Some(_), None) => false,
        };
        same_workload
            && self.policies.len() == other.policies.len()
            && self.policies.iter().zip(&other.policies).all(|(old, new)| Arc::ptr_eq(old, new))
    }
}

impl Pod {
    /// A pod of which nothing is open yet.
    pub fn new(uid: String, name: PodName, netns: Netns, transparent: bool, tunnel: Arc<Tunnel>) -> Self {
        let limits = tunnel.settings.limits;
        Self {
            uid,
            name,
            netns,
            connections: Connections::new(limits.connections_per_pod),
            handshakes: Arc::new(Semaphore::new(limits.handshakes_per_pod)),
            transparent,
            tunnel,
            judged_on: Mutex::default(),
        }
    }

    /// What the control plane says of the pod.
    pub fn workload_in<'s>(&self, mesh: &'s Snapshot) -> Option<&'s Arc<Workload>> {
        let PodName { namespace, name, service_account } = &self.name;
        mesh.local_workload(namespace, name, service_account)
    }

    /// What the control plane says of the pod; waits a little for what is on its way.
    pub async fn workload(&self) -> Result<Arc<Workload>, Refusal> {
        if let Some(workload) = self.workload_in(&self.tunnel.mesh.current()) {
            return Ok(workload.clone());
        }
        let known = self.tunnel.mesh.wait_for(WORKLOAD_LIMIT, |mesh| self.workload_in(mesh).cloned()).await;
        known.ok_or_else(|| Refusal::UnknownPod(self.name.to_string()))
    }

    /// The pod's own certificate.
    pub async fn certificate(&self, workload: &Workload) -> Result<Arc<Certificate>, Refusal> {
        let identity = workload.identity();
        self.tunnel
            .certificates
            .get(&identity)
            .await
            .map_err(|error: CertError| Refusal::NoCertificate { identity, reason: error.to_string() })
    }

    /// Connects from inside the pod's namespace.
    pub async fn connect(&self, to: SocketAddr, reach: Reach) -> Result<TcpStream, Unreached> {
        self.connect_from(Source::Own, to, reach).await.map_err(|error| error.of(to))
    }

    /// Connects from inside the pod's namespace to its application, with the address of `client`.
    pub async fn connect_as(&self, client: IpAddr, to: SocketAddr) -> Result<TcpStream, Unreached> {
        for _ in 0..PORTS_TRIED {
            let source = Source::Of(client, rand::random_range(socket::BORROWED_PORTS));
            match self.connect_from(source, to, Reach::Pod).await {
                // The port has such a connection already, or somebody listens at it.
                Err(Failed::Io(error)) if is_taken(&error) => {}
                connected => return connected.map_err(|error| error.of(to)),
            }
        }
        self.connect_from(Source::Of(client, 0), to, Reach::Pod).await.map_err(|error| error.of(to))
    }

    async fn connect_from(&self, source: Source, to: SocketAddr, reach: Reach) -> Result<TcpStream, Failed> {
        let settings = &self.tunnel.settings;
        let limit = settings.limits.connect;
        let open = || socket::outgoing(to, source, &settings.sockets, reach);
        let socket = self.netns.enter(open).map_err(Failed::Io)?;
        match timeout(limit, socket.connect(to)).await {
            Ok(connected) => connected.map_err(Failed::Io),
            Err(_) => Err(Failed::Silent(limit)),
        }
    }

    /// Judges what is open again, if anything changed that could change a verdict.
    pub fn judge(&self, mesh: &Snapshot) {
        let Some(workload) = self.workload_in(mesh) else { return };
        if self.changed(mesh, workload) {
            self.connections.judge(mesh, workload);
        }
    }

    fn changed(&self, mesh: &Snapshot, workload: &Arc<Workload>) -> bool {
        let policies = mesh.shared_policies_on(workload).cloned().collect();
        let grounds = Grounds { workload: Some(workload.clone()), policies };
        let mut judged_on = self.judged_on.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = !judged_on.are(&grounds);
        *judged_on = grounds;
        changed
    }
}

/// How many ports are tried for a socket with a client's address before the kernel chooses: with half of them
/// in use by the same client, one in 256 connections goes so far.
const PORTS_TRIED: usize = 8;

/// What went wrong when connecting.
enum Failed {
    Io(io::Error),
    Silent(Duration),
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse)
}

impl Failed {
    fn of(self, to: SocketAddr) -> Unreached {
        match self {
            Self::Io(error) => Unreached::Failed { to, reason: error.to_string() },
            Self::Silent(limit) => Unreached::Silent { to, limit },
        }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreached {
    /// It was refused, or cannot be tried.
    Failed {
        /// Where to.
        to: SocketAddr,
        /// The operating system's word.
        reason: String,
    },
    /// Nobody answered.
    Silent {
        /// Where.
        to: SocketAddr,
        /// How long was waited.
        limit: Duration,
    },
}

impl Unreached {
    /// What it means of an application.
    pub fn of_application(self) -> Refusal {
        match self {
            Self::Failed { to, reason } => Refusal::Connect { to, reason },
            Self::Silent { to, limit } => {
                Refusal::Connect { to, reason: format!("no answer within {limit:?}") }
            }
        }
    }

    /// What it means of the HBONE port, which a NetworkPolicy may keep silent.
    pub fn of_tunnel(self) -> Refusal {
        match self {
            Self::Failed { to, reason } => Refusal::Connect { to, reason },
            Self::Silent { to, limit } => Refusal::Timeout { to, limit },
        }
    }
}
