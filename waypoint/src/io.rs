//! What HTTP reads and writes: the client's side, and that of endpoints.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::Sleep};

use crate::{
    interim::{Interim, Moment},
    near::Near,
    upstream::dial::Inner,
};

/// Bytes of a tunnel's stream, or of a plain connection.
#[derive(Debug)]
pub enum Io {
    /// A stream of a tunnel.
    Tunnel(TunnelIo),
    /// A plain connection.
    Plain(TokioIo<TcpStream>),
}

/// A stream of a tunnel, or what stands for one.
#[derive(Debug)]
pub struct TunnelIo {
    stream: Near,
    unread: Bytes,
    finished: bool,
    patience: Option<Patience>,
    interim: Option<Interim>,
    /// Boxed, since few streams have one.
    _inner: Option<Box<Inner>>,
}

/// How long the head of a request may take, from its first byte. Who takes his time before it begins may: the
/// connection is idle.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    heads: Heads,
    /// Of the head with this number.
    timer: Option<(u64, Pin<Box<Sleep>>)>,
}

/// What a client's connection of HTTP/1 and whoever answers its requests tell each other.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// What is read now.
    pub heads: Heads,
    /// What is said before a response.
    pub interim: Interim,
}

/// Whether what is read now belongs to the head of a request; told by whoever answers requests. It counts: odd, a head
/// has come, and what follows is its body; even, what comes next is a head.
#[derive(Clone, Debug, Default)]
pub struct Heads(Arc<AtomicU64>);

impl Heads {
    /// A head has come.
    pub fn came(&self) {
        self.0.fetch_or(1, Ordering::Relaxed);
    }

    /// What comes next is a head.
    pub fn awaited(&self) {
        // From odd to the next even number, and from even to itself.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count + (count & 1)));
    }

    /// The number of the head that is awaited.
    fn under_way(&self) -> Option<u64> {
        let count = self.0.load(Ordering::Relaxed);
        (count & 1 == 0).then_some(count)
    }
}

impl TunnelIo {
    /// A stream of which `read` was read already.
    pub fn new(stream: impl Into<Near>, read: Bytes) -> Self {
        Self {
            stream: stream.into(),
            unread: read,
            finished: false,
            patience: None,
            interim: None,
            _inner: None,
        }
    }

    /// The same, with the tunnel that is its own.
    #[must_use]
    pub fn within(self, inner: Option<Inner>) -> Self {
        Self { _inner: inner.map(Box::new), ..self }
    }

    /// The same, whose heads of requests must come within `limit`, each.
    #[must_use]
    pub fn with_patience(self, limit: Duration, heads: Heads) -> Self {
        Self { patience: Some(Patience { limit, heads, timer: None }), ..self }
    }

    /// The same, on which interim responses are written between messages.
    #[must_use]
    pub fn with_interim(self, interim: Interim) -> Self {
        Self { interim: Some(interim), ..self }
    }

    /// Ready when all has left that is to leave before what HTTP does now.
    fn poll_before(&mut self, cx: &mut Context<'_>, moment: Moment) -> Poll<io::Result<()>> {
        let Self { stream, interim: Some(interim), .. } = self else { return Poll::Ready(Ok(())) };
        interim.poll_written(moment, |piece| stream.poll_write(cx, &[IoSlice::new(piece)]))
    }
}

impl Patience {
    /// An error when the head under way has taken too long.
    fn check(&mut self, cx: &mut Context<'_>, came: bool) -> io::Result<()> {
        let under_way = self.heads.under_way();
        self.timer.take_if(|(of, _)| Some(*of) != under_way);
        let Some(number) = under_way else { return Ok(()) };
        if came && self.timer.is_none() {
            self.timer = Some((number, Box::pin(tokio::time::sleep(self.limit))));
        }
        match self.timer.as_mut().map(|(_, timer)| timer.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Err(io::ErrorKind::TimedOut.into()),
            Some(Poll::Pending) | None => Ok(()),
        }
    }
}

impl Read for TunnelIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let piece = self.unread.is_empty().then(|| self.stream.poll_data(cx));
        let came = piece.as_ref().is_none_or(Poll::is_ready);
        if let Some(patience) = &mut self.patience {
            patience.check(cx, came)?;
        }
        if let Some(piece) = piece {
            match ready!(piece) {
                None => return Poll::Ready(Ok(())),
                Some(piece) => self.unread = piece?,
            }
        }
        let taken = self.unread.len().min(buf.remaining());
        buf.put_slice(self.unread.get(..taken).unwrap_or_default());
        self.unread.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl Write for TunnelIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_before(cx, Moment::Writes))?;
        self.stream.poll_write(cx, &[IoSlice::new(buf)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_before(cx, Moment::Writes))?;
        self.stream.poll_write(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_before(cx, Moment::Flushed)
    }

    /// Done when all has left: a stream that is dropped sooner takes the rest with it.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            ready!(self.stream.finish(cx))?;
            self.finished = true;
        }
        self.stream.poll_flushed(cx).map(Ok)
    }
}

impl Read for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_read(cx, buf),
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl Write for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_write(cx, buf),
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tunnel(io) => io.is_write_vectored(),
            Self::Plain(io) => io.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_flush(cx),
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_shutdown(cx),
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
