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
    let shared = Arc::new(Shared { state: Mutex::new(State::default()), connected: watch::Sender::new(0) });
    Ok((Server { listener, spawner, shared: Arc::clone(&shared) }, Handle(shared)))
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    connected: watch::Sender<usize>,
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
        let reason = converse(&packets, id, snapshot, queue).await.err();
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
        state.tunnels.push(Tunnel { id, queue: sender });
        let snapshot = state.pods.iter().map(|(uid, pod)| (uid.clone(), pod.clone())).collect();
        self.connected.send_replace(state.tunnels.len());
        Some(Entered { id, snapshot, queue })
    }

    /// Takes these tunnels away, and only these: another may have come since.
    fn forget(&self, state: &mut State, ids: &[u64]) {
        state.tunnels.retain(|tunnel| !ids.contains(&tunnel.id));
        self.connected.send_replace(state.tunnels.len());
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.tunnels.clear();
        self.connected.send_replace(0);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn greeted(packets: &Packets) -> Result<(), Lost> {
    let Hello = Hello::decode(&answer(packets).await?)?;
    Ok(())
}

/// The snapshot, then every change, until the tunnel or the server is gone.
async fn converse(
    packets: &Packets,
    id: u64,
    snapshot: Vec<(String, Pod)>,
    mut queue: mpsc::Receiver<Order>,
) -> Result<(), Lost> {
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
mod tests {
    use std::{fs::File, path::PathBuf};

    use tokio::sync::oneshot;

    use super::{
        super::{client::Session, socket::open_descriptors},
        *,
    };

    /// A served socket in a directory of its own.
    struct Agent {
        handle: Handle,
        path: PathBuf,
        stop: Option<oneshot::Sender<()>>,
        _dir: tempfile::TempDir,
    }

    impl Agent {
        fn start() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("z.sock");
            let spawner = Spawner::new(|_, task| {
                tokio::task::spawn_local(task);
            });
            let (server, handle) = bind(&path, spawner).unwrap();
            let (stop, stopped) = oneshot::channel::<()>();
            tokio::task::spawn_local(server.serve(async move {
                let _ = stopped.await;
            }));
            Self { handle, path, stop: Some(stop), _dir: dir }
        }

        async fn tunnel(&self) -> Session {
            let before = self.handle.connected();
            let session = Session::connect(&self.path).await.unwrap();
            self.wait_for(before + 1).await;
            session
        }

        /// A tunnel that has taken its snapshot; what it was told.
        async fn synced_tunnel(&self) -> (Session, Vec<String>) {
            let mut session = self.tunnel().await;
            let told = snapshot(&mut session).await;
            (session, told)
        }

        async fn wait_for(&self, connected: usize) {
            let mut seen = self.handle.connections();
            timeout(Duration::from_secs(5), seen.wait_for(|n| *n == connected)).await.unwrap().unwrap();
        }

        async fn add(&self, uid: &str) -> Result<(), AddError> {
            self.handle.add(uid, info(uid), Some(namespace())).await
        }
    }

    fn info(uid: &str) -> PodInfo {
        PodInfo { name: uid.into(), namespace: "shop".into(), service_account: "sa".into() }
    }

    fn namespace() -> Arc<OwnedFd> {
        Arc::new(File::open("/proc/self/ns/net").unwrap().into())
    }

    fn word(request: &Request<OwnedFd>) -> String {
        match request {
            Request::Add { uid, info, .. } => {
                assert_eq!(*info, self::info(uid));
                format!("add {uid}")
            }
            Request::Keep { uid } => format!("keep {uid}"),
            Request::Del { uid } => format!("del {uid}"),
            Request::SnapshotSent => "sent".into(),
        }
    }

    async fn hear(session: &mut Session) -> String {
        let request = timeout(Duration::from_secs(5), session.next()).await.unwrap().unwrap();
        session.ack(Ok(())).await.unwrap();
        word(&request)
    }

    async fn snapshot(session: &mut Session) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            match hear(session).await {
                sent if sent == "sent" => return told,
                other => told.push(other),
            }
        }
    }

    async fn locally<T>(test: impl Future<Output = T>) -> T {
        tokio::task::LocalSet::new().run_until(test).await
    }

    #[tokio::test]
    async fn a_tunnel_hears_the_snapshot_and_then_each_change() {
        locally(async {
            let agent = Agent::start();
            assert!(matches!(agent.add("a").await, Err(AddError::NoTunnel)));
            agent.handle.add("b", info("b"), None).await.unwrap();
            let (mut tunnel, told) = agent.synced_tunnel().await;
            assert_eq!(told, ["add a", "keep b"]);
            let (added, heard) = tokio::join!(agent.add("c"), hear(&mut tunnel));
            added.unwrap();
            assert_eq!(heard, "add c");
            let ((), heard) = tokio::join!(agent.handle.remove("a"), hear(&mut tunnel));
            assert_eq!(heard, "del a");
        })
        .await;
    }

    #[tokio::test]
    async fn a_refusal_reaches_whoever_added_the_pod() {
        locally(async {
            let agent = Agent::start();
            let (mut tunnel, _) = agent.synced_tunnel().await;
            let refuse = async {
                tunnel.next().await.unwrap();
                tunnel.ack(Err("port taken".into())).await.unwrap();
            };
            let (added, ()) = tokio::join!(agent.add("a"), refuse);
            assert!(matches!(added, Err(AddError::Refused(reason)) if reason == "port taken"));
            // It is listed all the same: the next tunnel may manage.
            assert_eq!(agent.synced_tunnel().await.1, ["add a"]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_pod_removed_before_it_was_taken_up_is_in_no_snapshot() {
        locally(async {
            let agent = Agent::start();
            assert!(agent.add("a").await.is_err());
            agent.handle.remove("a").await;
            assert!(agent.synced_tunnel().await.1.is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn of_two_tunnels_the_latest_gets_new_pods_and_both_get_removals() {
        locally(async {
            let agent = Agent::start();
            let (mut old, _) = agent.synced_tunnel().await;
            let (mut new, _) = agent.synced_tunnel().await;
            let (added, heard) = tokio::join!(agent.add("a"), hear(&mut new));
            added.unwrap();
            assert_eq!(heard, "add a");
            let ((), from_old, from_new) =
                tokio::join!(agent.handle.remove("a"), hear(&mut old), hear(&mut new));
            assert_eq!((from_old.as_str(), from_new.as_str()), ("del a", "del a"));
            // The old one leaves late: the new one stays the one that is told.
            drop(old);
            agent.wait_for(1).await;
            let (added, heard) = tokio::join!(agent.add("b"), hear(&mut new));
            added.unwrap();
            assert_eq!(heard, "add b");
        })
        .await;
    }

    #[tokio::test]
    async fn when_the_latest_leaves_the_one_before_takes_over() {
        locally(async {
            let agent = Agent::start();
            let (mut old, _) = agent.synced_tunnel().await;
            let (new, _) = agent.synced_tunnel().await;
            drop(new);
            agent.wait_for(1).await;
            let (added, heard) = tokio::join!(agent.add("a"), hear(&mut old));
            added.unwrap();
            assert_eq!(heard, "add a");
        })
        .await;
    }

    #[tokio::test]
    async fn a_tunnel_that_leaves_while_its_answer_is_awaited_blocks_nobody() {
        locally(async {
            let agent = Agent::start();
            let (mut old, _) = agent.synced_tunnel().await;
            let (mut new, _) = agent.synced_tunnel().await;
            let leave = async {
                new.next().await.unwrap();
                drop(new);
            };
            let (added, ()) = tokio::join!(agent.add("a"), leave);
            assert!(matches!(added, Err(AddError::Broken)));
            agent.wait_for(1).await;
            let ((), heard) = tokio::join!(agent.handle.remove("a"), hear(&mut old));
            assert_eq!(heard, "del a");
        })
        .await;
    }

    #[tokio::test]
    async fn a_silent_tunnel_holds_up_only_itself_and_is_let_go() {
        locally(async {
            let agent = Agent::start();
            let (mut silent, _) = agent.synced_tunnel().await;
            let (mut live, _) = agent.synced_tunnel().await;
            let removal = tokio::task::spawn_local({
                let handle = agent.handle.clone();
                async move { handle.remove("a").await }
            });
            assert_eq!(hear(&mut live).await, "del a");
            silent.next().await.unwrap();
            // Its answer is still due; the other one goes on.
            let (added, heard) = tokio::join!(agent.add("b"), hear(&mut live));
            added.unwrap();
            assert_eq!(heard, "add b");
            assert!(!removal.is_finished());
            tokio::time::pause();
            tokio::time::advance(DEADLINE + Duration::from_millis(1)).await;
            tokio::time::resume();
            removal.await.unwrap();
            agent.wait_for(1).await;
        })
        .await;
    }

    #[tokio::test]
    async fn peers_that_are_no_tunnels_are_let_go_and_leak_nothing() {
        locally(async {
            let agent = Agent::start();
            let (mut good, _) = agent.synced_tunnel().await;
            let ns = namespace();
            let before = open_descriptors();
            let lies: [(&[u8], bool); 5] = [
                (b"\x08\x07", false),
                (&[0xff; 64], true),
                (b"\x08\x01", true),
                (&[1; 1500], false),
                (b"", true),
            ];
            for (bytes, descriptor) in lies {
                let liar = Packets::connect(&agent.path).unwrap();
                liar.send(bytes, descriptor.then(|| ns.as_fd())).await.unwrap();
                let end = timeout(Duration::from_secs(5), liar.receive()).await.unwrap();
                assert!(matches!(end, Err(ReceiveError::Closed)), "{end:?}");
            }
            assert_eq!(agent.handle.connected(), 1);
            assert_eq!(open_descriptors(), before);
            // One that greets well and then talks on its own.
            let babbler = Packets::connect(&agent.path).unwrap();
            babbler.send(&Hello.encode().unwrap(), None).await.unwrap();
            babbler.receive().await.unwrap();
            babbler.send(&Ack(Ok(())).encode().unwrap(), None).await.unwrap();
            babbler.send(&Ack(Ok(())).encode().unwrap(), None).await.unwrap();
            assert!(matches!(babbler.receive().await, Err(ReceiveError::Closed)));
            agent.wait_for(1).await;
            let (added, heard) = tokio::join!(agent.add("z"), hear(&mut good));
            added.unwrap();
            assert_eq!(heard, "add z");
        })
        .await;
    }

    #[tokio::test]
    async fn a_removed_pods_descriptor_is_closed() {
        locally(async {
            let agent = Agent::start();
            let (mut tunnel, _) = agent.synced_tunnel().await;
            let before = open_descriptors();
            for _ in 0..20 {
                let (added, _) = tokio::join!(agent.add("a"), hear(&mut tunnel));
                added.unwrap();
                assert_eq!(open_descriptors(), before + 1);
                tokio::join!(agent.handle.remove("a"), hear(&mut tunnel));
            }
            assert_eq!(open_descriptors(), before);
        })
        .await;
    }

    #[tokio::test]
    async fn changes_made_during_the_snapshot_follow_it() {
        locally(async {
            let agent = Agent::start();
            assert!(agent.add("a").await.is_err());
            let mut tunnel = agent.tunnel().await;
            let remove = agent.handle.remove("a");
            let heard = async { [hear(&mut tunnel).await, hear(&mut tunnel).await, hear(&mut tunnel).await] };
            let ((), heard) = tokio::join!(remove, heard);
            assert_eq!(heard, ["add a", "sent", "del a"]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_pod_that_cannot_be_told_is_not_listed() {
        locally(async {
            let agent = Agent::start();
            let error = agent.add(&"u".repeat(2000)).await.unwrap_err();
            assert!(matches!(error, AddError::Undescribable(_)));
            assert!(agent.synced_tunnel().await.1.is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn a_stopped_agent_says_goodbye() {
        locally(async {
            let mut agent = Agent::start();
            let (mut tunnel, _) = agent.synced_tunnel().await;
            drop(agent.stop.take());
            let end = timeout(Duration::from_secs(5), tunnel.next()).await.unwrap();
            assert!(!end.unwrap_err().is_violation());
        })
        .await;
    }
}
