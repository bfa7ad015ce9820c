//! Asks the nameservers what the mesh does not own, in the client's own bytes.
//!
//! Only the ID is another on the way: it and the port, both drawn for each question, are what keeps
//! others from answering in the nameserver's place.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    time::{Instant, timeout},
};

use super::{packet::Asked, resolv_conf::ResolvConf};
use crate::metrics::Protocol;

/// The largest answer in a datagram that is expected beside what the client says it takes.
const DATAGRAM: usize = 4096;

/// How long a question is carried in all. Whoever asked has given up by then.
const DEADLINE: Duration = Duration::from_secs(10);

/// Makes the sockets of questions: in the pod's namespace, and marked, so that they are not captured
/// themselves.
pub trait Sockets: Send + Sync + 'static {
    /// A socket on a port of the kernel's choice, of the family of `to`.
    fn udp(&self, to: SocketAddr) -> io::Result<UdpSocket>;

    /// A socket that is not connected yet, of the family of `to`.
    fn tcp(&self, to: SocketAddr) -> io::Result<TcpSocket>;
}

/// Why a question was not answered by any nameserver.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is no nameserver.
    #[error("no nameserver is known; is there one in the tunnel's resolv.conf?")]
    NoNameserver,
    /// The last one that was asked did not answer.
    #[error("{nameserver} did not answer within {patience:?}; is it reachable from the pod?")]
    Silent {
        /// Who.
        nameserver: SocketAddr,
        /// How long was waited.
        patience: Duration,
    },
    /// The last one that was asked could not be reached.
    #[error("{nameserver} could not be asked: {source}")]
    Unreachable {
        /// Who.
        nameserver: SocketAddr,
        /// The operating system's word.
        source: io::Error,
    },
}

/// Asks nameservers.
#[derive(Debug)]
pub struct Forwarder<S> {
    sockets: S,
    conf: Arc<ResolvConf>,
    /// The nameserver that answered last is asked first.
    first: AtomicUsize,
}

impl<S: Sockets> Forwarder<S> {
    /// Asks the nameservers of `conf` through `sockets`.
    pub fn new(sockets: S, conf: Arc<ResolvConf>) -> Self {
        Self { sockets, conf, first: AtomicUsize::new(0) }
    }

    /// The answer to `packet`, as the nameserver gave it; in a datagram it may say that the client
    /// is to ask again in a stream.
    pub(super) async fn ask(
        &self,
        asked: &Asked,
        packet: &[u8],
        protocol: Protocol,
    ) -> Result<Vec<u8>, ForwardError> {
        let count = self.conf.nameservers.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut last = ForwardError::NoNameserver;
        let began = Instant::now();
        for turn in 0..count.saturating_mul(self.conf.attempts) {
            if began.elapsed() >= DEADLINE {
                break;
            }
            let at = (first + turn) % count.max(1);
            let Some(&nameserver) = self.conf.nameservers.get(at) else { continue };
            let patience = self.conf.patience;
            last = match timeout(patience, self.ask_one(asked, packet, protocol, nameserver)).await {
                Ok(Ok(answer)) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(source)) => ForwardError::Unreachable { nameserver, source },
                Err(_) => ForwardError::Silent { nameserver, patience },
            };
        }
        Err(last)
    }

    async fn ask_one(
        &self,
        asked: &Asked,
        packet: &[u8],
        protocol: Protocol,
        nameserver: SocketAddr,
    ) -> io::Result<Vec<u8>> {
        let id: u16 = rand::random();
        let question = with_id(packet, id);
        let answer = match protocol {
            Protocol::Udp => self.datagram(asked, &question, id, nameserver).await?,
            Protocol::Tcp => self.stream(asked, &question, id, nameserver).await?,
        };
        let own = packet.first_chunk().copied().map_or(0, u16::from_be_bytes);
        Ok(with_id(&answer, own))
    }

    async fn datagram(&self, asked: &Asked, question: &[u8], id: u16, to: SocketAddr) -> io::Result<Vec<u8>> {
        let socket = self.sockets.udp(to)?;
        // From here on the kernel drops whatever comes from elsewhere.
        socket.connect(to).await?;
        socket.send(question).await?;
        // One more than can come, to see when it was more.
        let limit = usize::from(asked.payload()).max(DATAGRAM);
        let mut answer = vec![0; limit + 1];
        loop {
            let length = socket.recv(&mut answer).await?;
            if let Some(answer) = answer.get(..length).filter(|answer| answer.len() <= limit)
                && asked.is_answered_by(answer, id)
            {
                return Ok(answer.to_vec());
            }
        }
    }

    async fn stream(&self, asked: &Asked, question: &[u8], id: u16, to: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = self.sockets.tcp(to)?.connect(to).await?;
        stream.write_all(&framed(question)?).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        if asked.is_answered_by(&answer, id) {
            Ok(answer)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is to another question"))
        }
    }
}

/// A message as it is in a stream: after its length.
pub(super) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a message has at most 65535 bytes"))?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    Ok(framed)
}

fn with_id(packet: &[u8], id: u16) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(place) = packet.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
    packet
}

#[cfg(test)]
mod tests;
