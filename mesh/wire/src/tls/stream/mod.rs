//! TLS 1.3 as a byte stream, made for bulk: after rustls' handshake the records are ours.
//!
//! One read takes many records and opens them in place; what is written gathers in one buffer, is sealed
//! there, and leaves with one write. Both buffers belong to the thread ([`buffers`]): a connection at rest
//! holds none. [`record`] protects records, [`agree`] drives rustls through the handshake, and rustls goes
//! on to derive new keys when either side asks for them. Why: `docs/decisions/0005-copying.md`.

mod agree;
mod buffers;
mod incoming;
mod outgoing;
mod record;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::{agree::Agreed, incoming::Incoming, outgoing::Outgoing};
use super::secured::Session;

/// A TLS 1.3 connection over `S`.
pub struct TlsStream<S> {
    shared: Arc<Shared<S>>,
    session: Box<Session>,
}

/// Serves a handshake on `io`. `config` must allow TLS 1.3 only, and the extraction of secrets.
pub async fn accept<S>(config: Arc<ServerConfig>, io: S) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    agree::accept(config, io).await.map(TlsStream::new)
}

/// Makes a handshake on `io`. `config` must allow TLS 1.3 only, and the extraction of secrets.
pub async fn connect<S>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: S,
) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    agree::connect(config, name, io).await.map(TlsStream::new)
}

impl<S> TlsStream<S> {
    fn new(agreed: Agreed<S>) -> Self {
        let Agreed { io, incoming, outgoing, keys, session } = agreed;
        let state = State { io, incoming, outgoing, keys, corked: false };
        Self { shared: Arc::new(Shared(Mutex::new(state))), session }
    }

    /// What the handshake agreed on.
    pub fn session(&self) -> &Session {
        &self.session
    }
}

impl<S: AsyncWrite + Unpin + Send + 'static> TlsStream<S> {
    /// The means to make flushing the holder's affair.
    pub fn cork(&self) -> Corked {
        Corked(self.shared.clone())
    }
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").finish_non_exhaustive()
    }
}

/// A second handle on a stream's way out, for who drives it.
pub struct Corked(Arc<dyn Flush>);

impl Corked {
    /// From now on the stream's own `flush` leaves small amounts in the buffer, so that what several frames
    /// say in one turn leaves with one write: the holder must flush at the end of each turn.
    pub fn engage(&self) {
        self.0.engage();
    }

    /// Writes what has gathered.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }
}

impl fmt::Debug for Corked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Corked")
    }
}

trait Flush: Send + Sync {
    fn engage(&self);
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// Behind a lock that is never contended: the stream and its [`Corked`] live in one task.
struct Shared<S>(Mutex<State<S>>);

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        // A panic between two records leaves no half-done work that anybody would trust: it has ended.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin + Send> Flush for Shared<S> {
    fn engage(&self) {
        self.lock().corked = true;
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_flush(cx)
    }
}

struct State<S> {
    io: S,
    incoming: Incoming,
    outgoing: Outgoing,
    keys: Box<dyn Keys>,
    corked: bool,
}

/// Derives the next keys of a connection, and keeps tickets if anybody wants them.
trait Keys: Send + Sync {
    /// The next key to seal with.
    fn next_sealer(&mut self) -> Result<record::Sealer, record::Failure>;
    /// The next key to open with.
    fn next_opener(&mut self) -> Result<record::Opener, record::Failure>;
    /// A ticket that the peer offers for a later connection.
    fn ticket(&mut self, ticket: &[u8]) -> Result<(), record::Failure>;
}

impl<S: AsyncWrite + Unpin> State<S> {
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.outgoing.poll_drain(&mut self.io, self.keys.as_mut(), cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.shared.lock();
        let State { io, incoming, outgoing, keys, .. } = state;
        let read = incoming.poll_read(io, keys.as_mut(), outgoing, cx, buf);
        if outgoing.is_urgent() {
            // An alert or an answer to a key update. If it does not go now, it goes with the next write.
            let _ = outgoing.poll_drain(io, keys.as_mut(), cx);
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let state = &mut *self.shared.lock();
        if state.outgoing.is_full() {
            ready!(state.outgoing.poll_drain(&mut state.io, state.keys.as_mut(), cx))?;
        }
        let mut taken = 0;
        for buf in bufs {
            let written = state.outgoing.append(buf, state.keys.as_mut())?;
            taken += written;
            if written < buf.len() {
                break;
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.shared.lock();
        if state.corked && !state.outgoing.is_full() { Poll::Ready(Ok(())) } else { state.poll_flush(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.shared.lock();
        state.outgoing.say_goodbye(state.keys.as_mut())?;
        ready!(state.poll_flush(cx))?;
        Pin::new(&mut state.io).poll_shutdown(cx)
    }
}
