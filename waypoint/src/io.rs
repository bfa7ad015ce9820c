//! A stream of a tunnel as HTTP reads and writes it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use ambit_wire::hbone::TunnelStream;
use bytes::{Buf as _, Bytes, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::Sleep};

/// The most that one write takes: a few frames of the tunnel.
const MOST: usize = 64 * 1024;

/// Bytes of a tunnel's stream, or of a plain connection.
#[derive(Debug)]
pub enum Io {
    /// A stream of a tunnel.
    Tunnel(TunnelIo),
    /// A plain connection.
    Plain(TokioIo<TcpStream>),
}

/// A stream of a tunnel.
#[derive(Debug)]
pub struct TunnelIo {
    stream: TunnelStream,
    unread: Bytes,
    finished: bool,
    patience: Option<Patience>,
}

/// How long the head of a request may take, from its first byte. Who takes his time before it begins may: the
/// connection is idle.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    heads: Heads,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Whether what is read now belongs to the head of a request; told by whoever answers requests.
#[derive(Clone, Debug)]
pub struct Heads(Arc<AtomicBool>);

impl Default for Heads {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Heads {
    /// A head has come; what follows is its body.
    pub fn came(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// What comes next is a head.
    pub fn awaited(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn are_awaited(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl TunnelIo {
    /// A stream of which `read` was read already.
    pub fn new(stream: TunnelStream, read: Bytes) -> Self {
        Self { stream, unread: read, finished: false, patience: None }
    }

    /// The same, whose heads of requests must come within `limit`, each.
    #[must_use]
    pub fn with_patience(self, limit: Duration, heads: Heads) -> Self {
        Self { patience: Some(Patience { limit, heads, timer: None }), ..self }
    }
}

impl Patience {
    /// An error when the head under way has taken too long.
    fn check(&mut self, cx: &mut Context<'_>, came: bool) -> io::Result<()> {
        if !self.heads.are_awaited() {
            self.timer = None;
            return Ok(());
        }
        if came && self.timer.is_none() {
            self.timer = Some(Box::pin(tokio::time::sleep(self.limit)));
        }
        match self.timer.as_mut().map(|timer| timer.as_mut().poll(cx)) {
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
        if self.unread.is_empty() {
            let piece = self.stream.poll_data(cx);
            let came = piece.is_ready();
            if let Some(patience) = &mut self.patience {
                patience.check(cx, came)?;
            }
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
        ready!(self.stream.poll_room(cx))?;
        let taken = buf.get(..MOST).unwrap_or(buf);
        self.stream.send(Bytes::copy_from_slice(taken))?;
        Poll::Ready(Ok(taken.len()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.stream.poll_room(cx))?;
        let whole = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MOST);
        let mut piece = BytesMut::with_capacity(whole);
        for buf in bufs {
            let room = whole - piece.len();
            piece.extend_from_slice(buf.get(..room).unwrap_or(buf));
        }
        self.stream.send(piece.freeze())?;
        Poll::Ready(Ok(whole))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Done when all has left: a stream that is dropped sooner takes the rest with it.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            self.stream.finish()?;
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
