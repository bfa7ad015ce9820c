//! The handshake: rustls decides, this carries the bytes.

use std::{io, mem, sync::Arc};

use rustls::{
    ClientConfig, CommonState, ExtractedSecrets, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    kernel::KernelConnection,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus},
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{
    Keys,
    incoming::Incoming,
    outgoing::Outgoing,
    record::{Failure, Opener, Sealer},
};
use crate::tls::secured::Session;

/// What a peer may say before the handshake is over: a chain of certificates, many times over.
const MAX_INCOMING: usize = 128 * 1024;
/// A flight with a short chain fits.
const READ: usize = 8 * 1024;

/// A connection whose handshake is over.
pub(super) struct Agreed<S> {
    pub(super) io: S,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    pub(super) keys: Box<dyn Keys>,
    pub(super) session: Box<Session>,
}

pub(super) async fn accept<S>(config: Arc<ServerConfig>, io: S) -> io::Result<Agreed<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = UnbufferedServerConnection::new(config).map_err(refused)?;
    let talk = Talk::with(&mut connection, io).await?;
    let session = Session::from(&**connection);
    let (secrets, keys) = connection.dangerous_into_kernel_connection().map_err(refused)?;
    talk.agreed(&secrets, Box::new(keys), session)
}

pub(super) async fn connect<S>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: S,
) -> io::Result<Agreed<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = UnbufferedClientConnection::new(config, name).map_err(refused)?;
    let talk = Talk::with(&mut connection, io).await?;
    let session = Session::from(&**connection);
    let (secrets, keys) = connection.dangerous_into_kernel_connection().map_err(refused)?;
    talk.agreed(&secrets, Box::new(keys), session)
}

/// What both sides of rustls can do.
trait Side: Send {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Whether the next thing that processing gives is something to send.
    fn wants_write(&self) -> bool;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn wants_write(&self) -> bool {
        CommonState::wants_write(self)
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn wants_write(&self) -> bool {
        CommonState::wants_write(self)
    }
}

fn refused(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The bytes of a handshake, both ways.
struct Talk<S> {
    io: S,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Application data that came with the peer's last message.
    early: Vec<u8>,
    /// Whether that was all it will ever say.
    closed: bool,
}

/// What one look at the connection's state led to.
enum Step {
    Again,
    Write,
    Read,
    Over,
    Failed(rustls::Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    /// Carries bytes until the handshake is over.
    async fn with(side: &mut impl Side, io: S) -> io::Result<Self> {
        let mut talk =
            Self { io, incoming: Vec::new(), outgoing: Vec::new(), early: Vec::new(), closed: false };
        loop {
            match talk.step(side)? {
                Step::Again => {}
                Step::Write => {
                    talk.io.write_all(&mem::take(&mut talk.outgoing)).await?;
                    talk.io.flush().await?;
                }
                Step::Read => talk.read().await?,
                Step::Over => return Ok(talk),
                Step::Failed(error) => {
                    talk.say_why(side).await;
                    return Err(refused(error));
                }
            }
        }
    }

    fn step(&mut self, side: &mut impl Side) -> io::Result<Step> {
        let UnbufferedStatus { discard, state } = side.process(&mut self.incoming);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(say)) => {
                encode(say, &mut self.outgoing)?;
                Step::Again
            }
            Ok(ConnectionState::TransmitTlsData(said)) => {
                said.done();
                Step::Write
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    self.early.extend_from_slice(record.map_err(refused)?.payload);
                }
                Step::Again
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Over,
            // It said goodbye together with the end of its handshake; too soon, and there are no secrets.
            Ok(ConnectionState::PeerClosed) => {
                self.closed = true;
                Step::Over
            }
            // Early data, which we never allow, and states that come after a goodbye of ours.
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) => Step::Failed(error),
        };
        self.incoming.drain(..discard);
        Ok(step)
    }

    async fn read(&mut self) -> io::Result<()> {
        if self.incoming.len() >= MAX_INCOMING {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the TLS handshake never ends"));
        }
        self.incoming.reserve(READ);
        match self.io.read_buf(&mut self.incoming).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// The alert that goes with a failure. Best effort: the failure is reported all the same.
    async fn say_why(&mut self, side: &mut impl Side) {
        // rustls must not look at the peer's bytes a second time: it would want to send a second alert.
        while side.wants_write() {
            let Ok(ConnectionState::EncodeTlsData(say)) = side.process(&mut []).state else { break };
            if encode(say, &mut self.outgoing).is_err() {
                break;
            }
        }
        if self.io.write_all(&self.outgoing).await.is_ok() {
            let _ = self.io.flush().await;
        }
    }

    fn agreed(
        self,
        secrets: &ExtractedSecrets,
        keys: Box<dyn Keys>,
        session: Session,
    ) -> io::Result<Agreed<S>> {
        let opener = Opener::new(&secrets.rx.1, secrets.rx.0).map_err(io::Error::other)?;
        let sealer = Sealer::new(&secrets.tx.1, secrets.tx.0).map_err(io::Error::other)?;
        Ok(Agreed {
            io: self.io,
            incoming: Incoming::new(opener, &self.early, &self.incoming, self.closed),
            outgoing: Outgoing::new(sealer),
            keys,
            session: Box::new(session),
        })
    }
}

fn encode<Data>(mut say: EncodeTlsData<'_, Data>, outgoing: &mut Vec<u8>) -> io::Result<()> {
    let start = outgoing.len();
    let required = match say.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => required_size,
        Err(error @ EncodeError::AlreadyEncoded) => return Err(io::Error::other(error)),
    };
    outgoing.resize(start + required, 0);
    say.encode(outgoing.get_mut(start..).unwrap_or_default()).map(drop).map_err(io::Error::other)
}

impl Keys for KernelConnection<ClientConnectionData> {
    fn next_sealer(&mut self) -> Result<Sealer, Failure> {
        let (next, secrets) = self.update_tx_secret()?;
        Sealer::new(&secrets, next)
    }

    fn next_opener(&mut self) -> Result<Opener, Failure> {
        let (next, secrets) = self.update_rx_secret()?;
        Opener::new(&secrets, next)
    }

    fn ticket(&mut self, ticket: &[u8]) -> Result<(), Failure> {
        self.handle_new_session_ticket(ticket).map_err(|_| Failure::Unreadable)
    }
}

impl Keys for KernelConnection<ServerConnectionData> {
    fn next_sealer(&mut self) -> Result<Sealer, Failure> {
        let (next, secrets) = self.update_tx_secret()?;
        Sealer::new(&secrets, next)
    }

    fn next_opener(&mut self) -> Result<Opener, Failure> {
        let (next, secrets) = self.update_rx_secret()?;
        Opener::new(&secrets, next)
    }

    fn ticket(&mut self, _: &[u8]) -> Result<(), Failure> {
        // Only servers give tickets.
        Err(Failure::Unexpected)
    }
}
