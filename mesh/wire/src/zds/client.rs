//! The tunnel's end: one session with the node agent, request by request.
//!
//! Reconnecting, and what happens to pods meanwhile, is its user's business.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    frame::{Ack, FrameError, Hello, Request},
    socket::{Packet, Packets, ReceiveError},
};

/// How long the agent may leave our few bytes lying: it reads while it waits for them.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// A session: the agent asks, the tunnel answers each question before it hears the next.
///
/// ```text
/// connect → Snapshot { Add | Keep | Del }* → SnapshotSent → Live { Add | Del }* → closed
/// ```
#[derive(Debug)]
pub struct Session {
    packets: Packets,
    phase: Phase,
    owes_answer: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Snapshot,
    Live,
}

/// Why no session could be begun.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error("no node agent at {path}; is the agent running on this node, and is the directory shared?")]
    Connect {
        /// Where it should listen.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The agent took the connection and not the greeting.
    #[error(transparent)]
    Hello(#[from] SessionError),
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The agent, or the way to it, is gone: connect again.
    #[error("the node agent is gone")]
    Receive(#[source] ReceiveError),
    /// The answer could not be sent: connect again.
    #[error("the node agent does not take our answer")]
    Send(#[source] io::Error),
    /// The agent breaks the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// What an agent must not do. Unlike the rest, this does not heal by connecting again.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// A packet that cannot be understood.
    #[error("the node agent sent {0}")]
    Frame(#[from] FrameError),
    /// A packet that is cut, or carries too much.
    #[error("the node agent sent too much: {0}")]
    Packet(#[source] ReceiveError),
    /// A pod without its namespace.
    #[error("the node agent added pod {uid} without a network namespace")]
    NoNamespace {
        /// The pod.
        uid: String,
    },
    /// A descriptor where none belongs.
    #[error("the node agent sent a descriptor with a message that has none")]
    StrayDescriptor,
    /// `Keep` belongs to the snapshot.
    #[error("the node agent sent Keep for pod {uid} after the snapshot")]
    KeepAfterSnapshot {
        /// The pod.
        uid: String,
    },
    /// There is one snapshot a session.
    #[error("the node agent sent a second snapshot")]
    SecondSnapshot,
    /// The caller's own mistake: it must answer what it heard before it listens again.
    #[error("the last request was not answered")]
    Unanswered,
}

impl Session {
    /// Connects to the agent at `path` and greets it.
    pub async fn connect(path: &Path) -> Result<Self, ConnectError> {
        let packets = Packets::connect(path)
            .map_err(|source| ConnectError::Connect { path: path.to_owned(), source })?;
        Ok(Self::over(packets).await?)
    }

    /// Greets the agent at the other end of `packets`.
    pub async fn over(packets: Packets) -> Result<Self, SessionError> {
        let session = Self { packets, phase: Phase::Snapshot, owes_answer: false };
        session.send(&Hello.encode().map_err(Violation::Frame)?).await?;
        Ok(session)
    }

    /// The agent's next request. Can be cancelled without losing one.
    pub async fn next(&mut self) -> Result<Request<OwnedFd>, SessionError> {
        if self.owes_answer {
            return Err(Violation::Unanswered.into());
        }
        let packet = self.packets.receive().await.map_err(SessionError::from_receive)?;
        let request = complete(packet)?;
        self.phase = self.phase.after(&request)?;
        self.owes_answer = true;
        Ok(request)
    }

    /// Answers the request that [`Session::next`] returned: done, or why not.
    pub async fn ack(&mut self, outcome: Result<(), String>) -> Result<(), SessionError> {
        let packet = Ack(outcome).encode().map_err(Violation::Frame)?;
        self.send(&packet).await?;
        self.owes_answer = false;
        Ok(())
    }

    async fn send(&self, packet: &[u8]) -> Result<(), SessionError> {
        tokio::time::timeout(WRITE_LIMIT, self.packets.send(packet, None))
            .await
            .map_err(|_| SessionError::Send(io::ErrorKind::TimedOut.into()))?
            .map_err(SessionError::Send)
    }
}

impl Phase {
    fn after(self, request: &Request<OwnedFd>) -> Result<Self, Violation> {
        match (self, request) {
            (Self::Snapshot, Request::SnapshotSent) => Ok(Self::Live),
            (Self::Live, Request::SnapshotSent) => Err(Violation::SecondSnapshot),
            (Self::Live, Request::Keep { uid }) => Err(Violation::KeepAfterSnapshot { uid: uid.clone() }),
            (Self::Snapshot, Request::Keep { .. }) => Ok(self),
            (Self::Snapshot | Self::Live, Request::Add { .. } | Request::Del { .. }) => Ok(self),
        }
    }
}

/// Joins a request with the descriptor that came beside it: one with `Add`, none with all others.
fn complete(packet: Packet) -> Result<Request<OwnedFd>, Violation> {
    match (Request::decode(&packet.bytes)?, packet.descriptor) {
        (Request::Add { uid, info, netns: () }, Some(netns)) => Ok(Request::Add { uid, info, netns }),
        (Request::Add { uid, .. }, None) => Err(Violation::NoNamespace { uid }),
        (Request::Keep { .. } | Request::Del { .. } | Request::SnapshotSent, Some(_)) => {
            Err(Violation::StrayDescriptor)
        }
        (Request::Keep { uid }, None) => Ok(Request::Keep { uid }),
        (Request::Del { uid }, None) => Ok(Request::Del { uid }),
        (Request::SnapshotSent, None) => Ok(Request::SnapshotSent),
    }
}

impl SessionError {
    fn from_receive(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Truncated | ReceiveError::TooManyDescriptors => Violation::Packet(error).into(),
            ReceiveError::Closed | ReceiveError::DescriptorLost | ReceiveError::Io(_) => Self::Receive(error),
        }
    }

    /// Whether the agent broke the protocol, rather than going away.
    pub fn is_violation(&self) -> bool {
        match self {
            Self::Violation(_) => true,
            Self::Receive(_) | Self::Send(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::{
        super::{
            frame::{LIMIT, PodInfo},
            socket::open_descriptors,
        },
        *,
    };

    /// An agent that says whatever the test wants.
    struct Liar {
        packets: Packets,
        namespace: File,
    }

    impl Liar {
        async fn meets() -> (Self, Session) {
            let (a, b) = Packets::pair().unwrap();
            let session = Session::over(b).await.unwrap();
            let hello = a.receive().await.unwrap();
            assert_eq!(Hello::decode(&hello.bytes).unwrap(), Hello);
            (Self { packets: a, namespace: File::open("/proc/self/ns/net").unwrap() }, session)
        }

        async fn bare(&self, request: &Request) {
            self.packets.send(&request.encode().unwrap(), None).await.unwrap();
        }

        async fn with_namespace(&self, request: &Request) {
            self.packets.send(&request.encode().unwrap(), Some(self.namespace.as_fd())).await.unwrap();
        }
    }

    fn add(uid: &str) -> Request {
        Request::Add { uid: uid.into(), info: PodInfo::default(), netns: () }
    }

    fn keep(uid: &str) -> Request {
        Request::Keep { uid: uid.into() }
    }

    macro_rules! violates {
        ($outcome:expr, $violation:pat) => {
            let outcome = $outcome;
            assert!(matches!(outcome, Err(SessionError::Violation($violation))), "{outcome:?}");
        };
    }

    #[tokio::test]
    async fn a_snapshot_and_then_changes() {
        let (agent, mut session) = Liar::meets().await;
        let other = async {
            agent.with_namespace(&add("a")).await;
            assert_eq!(Ack::decode(&agent.packets.receive().await.unwrap().bytes).unwrap(), Ack(Ok(())));
            agent.bare(&keep("b")).await;
            agent.packets.receive().await.unwrap();
            agent.bare(&Request::SnapshotSent).await;
            agent.packets.receive().await.unwrap();
            agent.bare(&Request::Del { uid: "a".into() }).await;
            let refused = agent.packets.receive().await.unwrap();
            assert_eq!(Ack::decode(&refused.bytes).unwrap(), Ack(Err("no".into())));
        };
        let own = async {
            assert!(matches!(session.next().await, Ok(Request::Add { uid, .. }) if uid == "a"));
            session.ack(Ok(())).await.unwrap();
            assert!(matches!(session.next().await, Ok(Request::Keep { uid }) if uid == "b"));
            session.ack(Ok(())).await.unwrap();
            assert!(matches!(session.next().await, Ok(Request::SnapshotSent)));
            session.ack(Ok(())).await.unwrap();
            assert!(matches!(session.next().await, Ok(Request::Del { uid }) if uid == "a"));
            session.ack(Err("no".into())).await.unwrap();
        };
        tokio::join!(other, own);
    }

    #[tokio::test]
    async fn an_agent_that_lies_is_caught_and_leaks_nothing() {
        let before = open_descriptors();
        for _ in 0..20 {
            let (agent, mut session) = Liar::meets().await;
            agent.bare(&add("a")).await;
            violates!(session.next().await, Violation::NoNamespace { .. });

            let (agent, mut session) = Liar::meets().await;
            agent.with_namespace(&keep("a")).await;
            violates!(session.next().await, Violation::StrayDescriptor);

            let (agent, mut session) = Liar::meets().await;
            let namespace = agent.namespace.as_fd();
            agent.packets.send(b"\x0a\x03\x0a\x01u", Some(namespace)).await.unwrap();
            violates!(session.next().await, Violation::Frame(FrameError::NoInfo { .. }));

            let (agent, mut session) = Liar::meets().await;
            agent.packets.send(&[0xff; 40], Some(agent.namespace.as_fd())).await.unwrap();
            violates!(session.next().await, Violation::Frame(FrameError::Malformed(_)));

            let (agent, mut session) = Liar::meets().await;
            agent.packets.send(&[0; LIMIT + 1], None).await.unwrap();
            violates!(session.next().await, Violation::Packet(ReceiveError::Truncated));
        }
        assert_eq!(open_descriptors(), before);
    }

    #[tokio::test]
    async fn after_the_snapshot_there_is_no_keep_and_no_other_snapshot() {
        for lie in [keep("a"), Request::SnapshotSent] {
            let (agent, mut session) = Liar::meets().await;
            agent.bare(&Request::SnapshotSent).await;
            session.next().await.unwrap();
            session.ack(Ok(())).await.unwrap();
            agent.bare(&lie).await;
            assert!(session.next().await.unwrap_err().is_violation());
        }
    }

    #[tokio::test]
    async fn a_request_must_be_answered_before_the_next() {
        let (agent, mut session) = Liar::meets().await;
        agent.bare(&keep("a")).await;
        agent.bare(&keep("b")).await;
        session.next().await.unwrap();
        violates!(session.next().await, Violation::Unanswered);
        session.ack(Ok(())).await.unwrap();
        assert!(session.next().await.is_ok());
    }

    #[tokio::test]
    async fn an_agent_that_goes_is_no_violation() {
        let (agent, mut session) = Liar::meets().await;
        drop(agent);
        let error = session.next().await.unwrap_err();
        assert!(matches!(error, SessionError::Receive(ReceiveError::Closed)) && !error.is_violation());
    }

    #[tokio::test]
    async fn without_an_agent_the_error_says_where_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let error = Session::connect(&dir.path().join("z.sock")).await.unwrap_err();
        assert!(error.to_string().contains("z.sock"), "{error}");
    }

    #[tokio::test]
    async fn an_abandoned_wait_loses_no_request() {
        let (agent, mut session) = Liar::meets().await;
        tokio::select! {
            biased;
            _ = session.next() => panic!("nothing was sent"),
            () = std::future::ready(()) => {}
        }
        agent.with_namespace(&add("a")).await;
        assert!(matches!(session.next().await, Ok(Request::Add { .. })));
    }
}
