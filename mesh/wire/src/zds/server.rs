//! The agent's end: tells every tunnel of the node which pods are here.
//!
//! Usually there is one tunnel. While it is being replaced there are two: a new pod goes to the one
//! that came last, a removal to all, and one that leaves takes only itself away. Each tunnel has a
//! task and a queue of its own, so none can hold up another, nor the caller for longer than a deadline.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time::{MissedTickBehavior, timeout},
};
use tracing::{debug, info, warn};

use super::{
    frame::{Ack, FrameError, Hello, PodInfo, Request},
    socket::{Listener, Packets, ReceiveError},
};
use crate::spawn::Spawner;

/// How long a tunnel may take to read a request, and again to answer it.
const DEADLINE: Duration = Duration::from_secs(5);

/// At most five connections a second: a tunnel that is refused and returns at once must not keep the
/// agent busy with snapshots.
const ACCEPT_EVERY: Duration = Duration::from_millis(200);

/// More tunnels than any rollout has; the next is turned away.
const MOST_TUNNELS: usize = 16;

/// Requests that may wait for one tunnel. Four times the pods a node can have; a tunnel that is
/// further behind is let go, and told everything anew when it returns.
const QUEUE: usize = 1024;

/// Accepts tunnels and keeps them up to date.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    spawner: Spawner,
    shared: Arc<Shared>,
}

/// Tells the tunnels of a [`Server`] what changed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

/// Why a pod was not taken up. The pod stays on the list that every new tunnel gets.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// No tunnel is connected.
    #[error("no tunnel is connected to the agent; is ztunnel running on this node?")]
    NoTunnel,
    /// The tunnel said no.
    #[error("the tunnel refused the pod: {0}")]
    Refused(String),
    /// The tunnel went away, or did not answer in time.
    #[error("the tunnel was lost before it answered")]
    Broken,
    /// The pod cannot be told: its names are too long for the protocol.
    #[error("the pod cannot be described to the tunnel: {0}")]
    Undescribable(#[from] FrameError),
}

/// Binds the socket at `path`. Nobody is served until [`Server::serve`] runs.
pub fn bind(path: &Path, spawner: Spawner) -> io::Result<(Server, Handle)> {
    let listener = Listener::bind(path)?;
    let shared = Arc::new(Shared {
        state: Mutex::new(State::default()),
        connected: watch::Sender::new(0),
        synced: watch::Sender::new(0),
    });
    Ok((Server { listener, spawner, shared: Arc::clone(&shared) }, Handle(shared)))
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    connected: watch::Sender<usize>,
    /// How many of them have acknowledged the whole list.
    synced: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    /// By UID; what a new tunnel is told.
    pods: BTreeMap<String, Pod>,
    /// In the order they came: the last is the one that gets new pods.
    tunnels: Vec<Tunnel>,
    last_id: u64,
    closed: bool,
}

#[derive(Debug, Clone)]
struct Pod {
    info: PodInfo,
    netns: Option<Arc<OwnedFd>>,
}

#[derive(Debug)]
struct Tunnel {
    id: u64,
    queue: mpsc::Sender<Order>,
    synced: bool,
}

/// One request on its way, and who waits for the answer. A waiter that is gone does not matter, and
/// a tunnel that goes drops the order, which wakes the waiter.
#[derive(Debug)]
struct Order {
    request: Vec<u8>,
    netns: Option<Arc<OwnedFd>>,
    answer: oneshot::Sender<Result<(), String>>,
}

/// What a tunnel's task works through: first the snapshot, then the queue.
struct Entered {
    id: u64,
    snapshot: Vec<(String, Pod)>,
    queue: mpsc::Receiver<Order>,
}

/// Why a tunnel is let go.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("it closed the connection")]
    Closed,
    #[error("it did not answer within {DEADLINE:?}")]
    Silent,
    #[error("it spoke out of turn")]
    OutOfTurn,
    #[error("it sent a descriptor")]
    StrayDescriptor,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("receiving failed: {0}")]
    Receive(#[source] ReceiveError),
    #[error("sending failed: {0}")]
    Send(#[source] io::Error),
}

impl Server {
    /// Serves tunnels until `stop`; then every connection is closed, which no tunnel minds: it keeps
    /// its pods and waits for the next agent.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.accept() => {}
            () = stop => {}
        }
        self.shared.close();
    }

    async fn accept(&self) {
        let mut pace = tokio::time::interval(ACCEPT_EVERY);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            match self.listener.accept().await {
                Ok(packets) => {
                    let shared = Arc::clone(&self.shared);
                    self.spawner.spawn("zds tunnel", async move { shared.attend(packets).await });
                }
                // A full table of descriptors, mostly: the pace keeps this from spinning.
                Err(error) => warn!(%error, "A tunnel could not be accepted"),
            }
        }
    }
}

impl Handle {
    /// Puts a pod on the list and tells the latest tunnel, returning its answer. Without a namespace
    /// the pod is only listed: tunnels keep what they have.
    pub async fn add(&self, uid: &str, info: PodInfo, netns: Option<Arc<OwnedFd>>) -> Result<(), AddError> {
        let request = Request::Add { uid: uid.to_owned(), info: info.clone(), netns: () }.encode()?;
        let told = {
            let mut state = self.0.lock();
            state.pods.insert(uid.to_owned(), Pod { info, netns: netns.clone() });
            let Some(netns) = netns else { return Ok(()) };
            let latest = state.tunnels.last().ok_or(AddError::NoTunnel)?;
            let (id, told) = (latest.id, latest.tell(request, Some(netns)));
            if told.is_none() {
                self.0.forget(&mut state, &[id]);
            }
            told.ok_or(AddError::Broken)?
        };
        match told.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(AddError::Refused(reason)),
            Err(_) => Err(AddError::Broken),
        }
    }

    /// Takes a pod off the list and out of every tunnel; returns when each has answered or is gone.
    pub async fn remove(&self, uid: &str) {
        // What cannot be named has never been added.
        let Ok(request) = (Request::Del { uid: uid.to_owned() }).encode() else { return };
        let told = {
            let mut state = self.0.lock();
            state.pods.remove(uid);
            let mut lost = Vec::new();
            let mut told = Vec::with_capacity(state.tunnels.len());
            for tunnel in &state.tunnels {
                match tunnel.tell(request.clone(), None) {
                    Some(answer) => told.push(answer),
                    None => lost.push(tunnel.id),
                }
            }
            self.0.forget(&mut state, &lost);
            told
        };
        for answer in join_all(told).await {
            if let Ok(Err(reason)) = answer {
                warn!(pod.uid = %uid, reason, "The tunnel did not remove the pod");
            }
        }
    }

    /// How many tunnels are connected and have greeted.
    pub fn connected(&self) -> usize {
        *self.0.connected.borrow()
    }

    /// How many tunnels have acknowledged the whole list of pods; changes with them.
    pub fn synced(&self) -> watch::Receiver<usize> {
        self.0.synced.subscribe()
    }

    /// Changes whenever a tunnel comes or goes.
    pub fn connections(&self) -> watch::Receiver<usize> {
        self.0.connected.subscribe()
    }
}

impl Tunnel {
    /// Queues a request; `None` if the tunnel is gone or too far behind. Having missed one it must be
    /// forgotten, which ends its session: it is told everything anew when it returns.
    fn tell(
        &self,
        request: Vec<u8>,
        netns: Option<Arc<OwnedFd>>,
    ) -> Option<oneshot::Receiver<Result<(), String>>> {
        let (answer, told) = oneshot::channel();
        match self.queue.try_send(Order { request, netns, answer }) {
            Ok(()) => Some(told),
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => None,
        }
    }
}

impl Shared {
    /// One tunnel from greeting to end.
    async fn attend(&self, packets: Packets) {
        if let Err(reason) = greeted(&packets).await {
            debug!(%reason, "A connection to the agent did not greet as a tunnel");
            return;
        }
        let Some(Entered { id, snapshot, queue }) = self.enter() else {
            warn!(tunnels.most = MOST_TUNNELS, "Tunnel turned away: too many, or the agent is stopping");
            return;
        };
        info!(tunnel = id, pods = snapshot.len(), "Tunnel connected");
        let reason = self.converse(&packets, id, snapshot, queue).await.err();
        self.forget(&mut self.lock(), &[id]);
        match reason {
            None | Some(Lost::Closed) => info!(tunnel = id, "Tunnel disconnected"),
            Some(reason) => warn!(tunnel = id, %reason, "Tunnel let go"),
        }
    }

    /// Joins the tunnels. List and queue are taken in one step: no change falls between them.
    fn enter(&self) -> Option<Entered> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let mut state = self.lock();
        if state.closed || state.tunnels.len() >= MOST_TUNNELS {
            return None;
        }
        state.last_id += 1;
        let id = state.last_id;
        state.tunnels.push(Tunnel { id, queue: sender, synced: false });
        let snapshot = state.pods.iter().map(|(uid, pod)| (uid.clone(), pod.clone())).collect();
        self.count(&state);
        Some(Entered { id, snapshot, queue })
    }

    /// Takes these tunnels away, and only these: another may have come since.
    fn forget(&self, state: &mut State, ids: &[u64]) {
        state.tunnels.retain(|tunnel| !ids.contains(&tunnel.id));
        self.count(state);
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.tunnels.clear();
        self.count(&state);
    }

    /// The snapshot, then every change, until the tunnel or the server is gone.
    async fn converse(
        &self,
        packets: &Packets,
        id: u64,
        snapshot: Vec<(String, Pod)>,
        queue: mpsc::Receiver<Order>,
    ) -> Result<(), Lost> {
        tell_all(packets, id, snapshot).await?;
        {
            let mut state = self.lock();
            for tunnel in state.tunnels.iter_mut().filter(|tunnel| tunnel.id == id) {
                tunnel.synced = true;
            }
            self.count(&state);
        }
        tell_changes(packets, queue).await
    }

    fn count(&self, state: &State) {
        let connected = state.tunnels.len();
        self.connected.send_if_modified(|before| std::mem::replace(before, connected) != connected);
        let synced = state.tunnels.iter().filter(|tunnel| tunnel.synced).count();
        self.synced.send_if_modified(|before| std::mem::replace(before, synced) != synced);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn greeted(packets: &Packets) -> Result<(), Lost> {
    let Hello = Hello::decode(&answer(packets).await?)?;
    Ok(())
}

async fn tell_all(packets: &Packets, id: u64, snapshot: Vec<(String, Pod)>) -> Result<(), Lost> {
    for (uid, Pod { info, netns }) in snapshot {
        let request = match &netns {
            Some(_) => Request::Add { uid: uid.clone(), info, netns: () },
            None => Request::Keep { uid: uid.clone() },
        };
        if let Ack(Err(reason)) = ask(packets, &request.encode()?, netns.as_deref()).await? {
            warn!(tunnel = id, pod.uid = %uid, reason, "The tunnel refused a pod of the snapshot");
        }
    }
    ask(packets, &Request::SnapshotSent.encode()?, None).await?;
    Ok(())
}

async fn tell_changes(packets: &Packets, mut queue: mpsc::Receiver<Order>) -> Result<(), Lost> {
    while let Some(order) = next_order(packets, &mut queue).await? {
        let Ack(outcome) = ask(packets, &order.request, order.netns.as_deref()).await?;
        // Whoever asked may have given up; that is their right.
        let _ = order.answer.send(outcome);
    }
    Ok(())
}

/// The next change; `None` when the server ends. Between changes a tunnel is silent, so anything
/// heard from it means that it left, or lies. (Istio's agent looks every five seconds; we are woken.)
async fn next_order(packets: &Packets, queue: &mut mpsc::Receiver<Order>) -> Result<Option<Order>, Lost> {
    tokio::select! {
        order = queue.recv() => Ok(order),
        heard = packets.receive() => match heard {
            Ok(_) => Err(Lost::OutOfTurn),
            Err(error) => Err(Lost::from_receive(error)),
        },
    }
}

async fn ask(packets: &Packets, request: &[u8], netns: Option<&OwnedFd>) -> Result<Ack, Lost> {
    timeout(DEADLINE, packets.send(request, netns.map(AsFd::as_fd)))
        .await
        .map_err(|_| Lost::Silent)?
        .map_err(
            |error| if error.kind() == io::ErrorKind::BrokenPipe { Lost::Closed } else { Lost::Send(error) },
        )?;
    Ok(Ack::decode(&answer(packets).await?)?)
}

async fn answer(packets: &Packets) -> Result<Vec<u8>, Lost> {
    let packet =
        timeout(DEADLINE, packets.receive()).await.map_err(|_| Lost::Silent)?.map_err(Lost::from_receive)?;
    if packet.descriptor.is_some() { Err(Lost::StrayDescriptor) } else { Ok(packet.bytes) }
}

impl Lost {
    fn from_receive(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Closed => Self::Closed,
            ReceiveError::Truncated
            | ReceiveError::TooManyDescriptors
            | ReceiveError::DescriptorLost
            | ReceiveError::Io(_) => Self::Receive(error),
        }
    }
}

#[cfg(test)]
mod tests;
