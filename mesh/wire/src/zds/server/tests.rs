//! The server against real clients, and against peers that are none.

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
        let ((), from_old, from_new) = tokio::join!(agent.handle.remove("a"), hear(&mut old), hear(&mut new));
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
