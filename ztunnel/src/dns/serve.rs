//! The listening side: datagrams and streams, one pod's questions (protocols 9).

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use ambit_model::{snapshot::Snapshot, workload::Workload};
use ambit_runtime::task;
use ambit_wire::discovery::Mesh;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    answer::{Answer, Settings, answer},
    forward::{Forwarder, Sockets, framed},
    packet::{Asked, Unusable},
};
use crate::{
    metrics::{DnsSeries, Metrics, Protocol},
    refusal::Refusal,
};

/// How long a stream may be without a whole question (protocols 9).
const STREAM_PATIENCE: Duration = Duration::from_secs(5);

/// The largest question: what one datagram can hold.
const LARGEST: usize = 65_535;

/// After an error of a listening socket, which may persist, such as a full table of descriptors.
const PAUSE: Duration = Duration::from_millis(20);

/// Nobody sends from the discard port.
const DISCARD: u16 = 9;

/// Whoever takes over answers what comes from now on: what was queued here before is read in less.
const SILENCE: Duration = Duration::from_millis(20);

/// Resolvers ask again, or somebody else, after five seconds.
const POD_PATIENCE: Duration = Duration::from_secs(4);

/// Answers the questions of one pod.
pub struct Resolver<S> {
    mesh: Mesh,
    settings: Settings,
    client: Client,
    forwarder: Forwarder<S>,
    metrics: Arc<Metrics>,
    /// Room for questions and streams under way.
    room: Arc<Semaphore>,
    limit: usize,
}

/// Finds the workload of the pod that is served.
type Client = Box<dyn Fn(&Snapshot) -> Option<Arc<Workload>> + Send + Sync>;

impl<S> std::fmt::Debug for Resolver<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<S: Sockets> Resolver<S> {
    /// Answers for the pod that `client` finds, with at most `limit` questions under way.
    pub fn new(
        mesh: Mesh,
        settings: Settings,
        client: impl Fn(&Snapshot) -> Option<Arc<Workload>> + Send + Sync + 'static,
        forwarder: Forwarder<S>,
        metrics: Arc<Metrics>,
        limit: usize,
    ) -> Arc<Self> {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        let room = Arc::new(Semaphore::new(limit));
        Arc::new(Self { mesh, settings, client: Box::new(client), forwarder, metrics, room, limit })
    }

    /// The reply to a datagram that needs nobody else; `None` when a nameserver must be asked, or the
    /// packet deserves none.
    pub fn at_once(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let nobody = SocketAddr::from(([0; 4], 0));
        match self.decide(packet, nobody, Protocol::Udp) {
            Decided::Reply(reply) => Some(reply),
            Decided::Ignore | Decided::Forward(_) => None,
        }
    }

    /// Answers datagrams until `stop`, and then those that wait or are under way.
    pub async fn serve_udp(self: Arc<Self>, socket: UdpSocket, stop: impl Future<Output = ()>) {
        let (socket, under_way) = (Arc::new(socket), TaskTracker::new());
        let (mut stop, mut leaving) = (pin!(stop), false);
        let mut packet = vec![0; LARGEST];
        loop {
            let received = tokio::select! {
                received = socket.recv_from(&mut packet) => received,
                () = &mut stop, if !leaving => {
                    leaving = true;
                    leave(&socket).await;
                    continue;
                }
                () = sleep(SILENCE), if leaving => break,
            };
            match received {
                Ok((length, client)) => {
                    let packet = packet.get(..length).unwrap_or_default();
                    self.datagram(&socket, packet, client, &under_way).await;
                }
                Err(error) => paused(&error).await,
            }
        }
        under_way.close();
        under_way.wait().await;
    }

    /// Answers streams until `stop`, and then the questions that are under way.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener, stop: impl Future<Output = ()>) {
        let (under_way, stopping) = (TaskTracker::new(), CancellationToken::new());
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok((stream, client)) => self.accepted(stream, client, &under_way, &stopping),
                    Err(error) => paused(&error).await,
                }
            }
        };
        tokio::select! {
            () = stop => {}
            () = accept => {}
        }
        drop(listener);
        stopping.cancel();
        under_way.close();
        under_way.wait().await;
    }

    async fn datagram(
        self: &Arc<Self>,
        socket: &Arc<UdpSocket>,
        packet: &[u8],
        client: SocketAddr,
        under_way: &TaskTracker,
    ) {
        let question = if self.knows_its_pod() {
            match self.decide(packet, client, Protocol::Udp) {
                Decided::Ignore => return,
                Decided::Reply(reply) => return send(socket, &reply, client).await,
                Decided::Forward(question) => Some(question),
            }
        } else {
            None
        };
        let Some(room) = self.room() else {
            // Who got no answer asks again.
            let Some(question) = question else { return };
            return send(socket, &question.asked.failed(), client).await;
        };
        let (own, socket, packet) = (self.clone(), socket.clone(), packet.to_vec());
        let later = async move {
            if let Some(reply) = own.in_time(question, &packet, client).await {
                send(&socket, &reply, client).await;
            }
            drop(room);
        };
        task::spawn("dns question", under_way.track_future(later));
    }

    /// The reply to a datagram that must wait: for a nameserver, or for word of the pod that asks.
    async fn in_time(
        &self,
        question: Option<Box<Question>>,
        packet: &[u8],
        client: SocketAddr,
    ) -> Option<Vec<u8>> {
        let question = match question {
            Some(question) => question,
            None => {
                self.word_of_the_pod().await;
                match self.decide(packet, client, Protocol::Udp) {
                    Decided::Ignore => return None,
                    Decided::Reply(reply) => return Some(reply),
                    Decided::Forward(question) => question,
                }
            }
        };
        Some(self.forward(&question, packet).await)
    }

    fn knows_its_pod(&self) -> bool {
        (self.client)(&self.mesh.current()).is_some()
    }

    /// Waits a little for what the control plane says of the pod. A pod that has just started asks for its first name
    /// before the API server has its address.
    async fn word_of_the_pod(&self) {
        if !self.knows_its_pod() {
            // Who is not known by then is refused.
            let _ = self.mesh.wait_for(POD_PATIENCE, |mesh| (self.client)(mesh)).await;
        }
    }

    fn accepted(
        self: &Arc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        under_way: &TaskTracker,
        stopping: &CancellationToken,
    ) {
        // Without room the stream is closed: the client asks again.
        let Some(room) = self.room() else { return };
        let (own, stopping) = (self.clone(), stopping.clone());
        let serve = async move {
            if let Err(error) = own.stream(stream, client, &stopping).await {
                tracing::event!(target: "dns", tracing::Level::DEBUG, client.addr = %client, error = %error, "Stream ended");
            }
            drop(room);
        };
        task::spawn("dns stream", under_way.track_future(serve));
    }

    async fn stream(
        &self,
        mut stream: TcpStream,
        client: SocketAddr,
        stopping: &CancellationToken,
    ) -> io::Result<()> {
        loop {
            let next = timeout(STREAM_PATIENCE, read_message(&mut stream));
            let packet = tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                packet = next => match packet {
                    Ok(packet) => packet?,
                    // It has nothing more to ask.
                    Err(_) => return Ok(()),
                },
            };
            let Some(packet) = packet else { return Ok(()) };
            self.word_of_the_pod().await;
            let reply = match self.decide(&packet, client, Protocol::Tcp) {
                Decided::Ignore => return Ok(()),
                Decided::Reply(reply) => reply,
                Decided::Forward(question) => self.forward(&question, &packet).await,
            };
            timeout(STREAM_PATIENCE, stream.write_all(&framed(&reply)?)).await??;
        }
    }

    /// What can be said at once is said at once: the mesh's own names need no waiting.
    fn decide(&self, packet: &[u8], client: SocketAddr, protocol: Protocol) -> Decided {
        let asked = match Asked::read(packet) {
            Ok(asked) => asked,
            Err(Unusable::Ignore) => return Decided::Ignore,
            Err(Unusable::Reply(reply)) => return Decided::Reply(reply),
        };
        let mesh = self.mesh.current();
        let workload = (self.client)(&mesh);
        let series = self.metrics.dns.request(asked.type_word(), protocol, workload.as_deref());
        let decided = match (asked.name(), asked.family()) {
            (Some(name), Some(family)) => {
                answer(&mesh, &self.settings, workload.as_deref(), &name, family, &mut rand::rng())
            }
            _ if workload.is_none() => Answer::Refuse,
            _ => Answer::Forward,
        };
        let question = Question { asked, series, client, protocol, at: Instant::now() };
        match decided {
            Answer::Owned(owned) => {
                question.log("owned", None);
                let limit = match protocol {
                    Protocol::Udp => question.asked.payload(),
                    Protocol::Tcp => u16::MAX,
                };
                Decided::Reply(question.asked.owned(&owned, limit))
            }
            Answer::Refuse => {
                question.log("refused", Some("the pod is not known to the control plane"));
                Decided::Reply(question.asked.failed())
            }
            Answer::Forward => Decided::Forward(Box::new(question)),
        }
    }

    async fn forward(&self, question: &Question, packet: &[u8]) -> Vec<u8> {
        let answered = self.forwarder.ask(&question.asked, packet, question.protocol).await;
        question.series.forwarded(question.at.elapsed(), answered.is_ok());
        match answered {
            Ok(answer) => {
                question.log("forwarded", None);
                answer
            }
            Err(error) => {
                question.log("failed", Some(&error.to_string()));
                question.asked.failed()
            }
        }
    }

    fn room(&self) -> Option<OwnedSemaphorePermit> {
        let room = self.room.clone().try_acquire_owned().ok();
        if room.is_none() {
            self.metrics.refused(&Refusal::Overload { what: "DNS questions of this pod", limit: self.limit });
        }
        room
    }
}

enum Decided {
    Ignore,
    Reply(Vec<u8>),
    Forward(Box<Question>),
}

struct Question {
    asked: Asked,
    series: Arc<DnsSeries>,
    client: SocketAddr,
    protocol: Protocol,
    at: Instant,
}

impl Question {
    fn log(&self, outcome: &'static str, error: Option<&str>) {
        tracing::event!(target: "dns", tracing::Level::DEBUG,
            client.addr = %self.client,
            dns.name = self.asked.shown(),
            dns.r#type = self.asked.type_word(),
            protocol = self.protocol.word(),
            outcome,
            duration = format!("{}ms", self.at.elapsed().as_millis()),
            error,
            "Question answered"
        );
    }
}

/// `None` when the stream ended before a message began.
/// Gives the port up without closing: the kernel hands a connected socket nothing but its peer's
/// datagrams, and all others to the tunnel that shares the port. It can still read what it has, and
/// reply.
async fn leave(socket: &UdpSocket) {
    let nobody = socket.local_addr().map(|own| SocketAddr::new(own.ip(), DISCARD));
    let left = match nobody {
        Ok(nobody) => socket.connect(nobody).await,
        Err(error) => Err(error),
    };
    if let Err(error) = left {
        tracing::event!(target: "dns", tracing::Level::WARN, error = %error, "Questions that come while another tunnel takes over may be lost");
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await?;
    Ok(Some(packet))
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::event!(target: "dns", tracing::Level::DEBUG, client.addr = %client, error = %error, "Answer could not be sent");
    }
}

async fn paused(error: &io::Error) {
    tracing::event!(target: "dns", tracing::Level::DEBUG, error = %error, "Listening failed; trying again");
    sleep(PAUSE).await;
}
