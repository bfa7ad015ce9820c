//! What HTTP reads and writes: the client's side, and that of endpoints.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep},
};

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
/// connection is idle, and after a while it rests.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    heads: Heads,
    /// Of the head with this number.
    timer: Option<(u64, Pin<Box<Sleep>>)>,
    /// The last four bytes that were read: with an empty line at their end, whoever reads HTTP has kept nothing back that
    /// is worth anything. It is either the end of a head, of a body in chunks, or of a body that ends like them, or else
    /// there are empty lines before the next head, which mean nothing (RFC 9112, 2.2).
    tail: u32,
    /// Whether something was written and may not have left.
    is_unflushed: bool,
    /// Since when the head with this number is awaited.
    idle: Option<(u64, Pin<Box<Sleep>>)>,
    is_resting: bool,
}

/// An idle connection rests after so long: by then a client that asks often has asked again.
const REST: Duration = Duration::from_secs(1);
/// An empty line.
const EMPTY_LINE: u32 = u32::from_be_bytes(*b"\r\n\r\n");

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
pub struct Heads(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    heads: AtomicU64,
    /// Bodies of requests that are not read to their end.
    bodies: AtomicU32,
}

/// A body of a request that is still read.
#[derive(Debug)]
pub struct BodyUnderWay(Arc<Counts>);

impl Drop for BodyUnderWay {
    fn drop(&mut self) {
        self.0.bodies.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Heads {
    /// A head has come.
    pub fn came(&self) {
        self.0.heads.fetch_or(1, Ordering::Relaxed);
    }

    /// What comes next is a head.
    pub fn awaited(&self) {
        // From odd to the next even number, and from even to itself.
        let next = |count| Some(count + (count & 1));
        let _ = self.0.heads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// A body is read, until what is returned is dropped.
    pub fn body(&self) -> BodyUnderWay {
        self.0.bodies.fetch_add(1, Ordering::Relaxed);
        BodyUnderWay(self.0.clone())
    }

    /// The number of the head that is awaited.
    fn under_way(&self) -> Option<u64> {
        let count = self.0.heads.load(Ordering::Relaxed);
        (count & 1 == 0).then_some(count)
    }

    /// The same, if nothing else is under way.
    fn idle(&self) -> Option<u64> {
        self.under_way().filter(|_| self.0.bodies.load(Ordering::Relaxed) == 0)
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
        Self { patience: Some(Patience::new(limit, heads)), ..self }
    }

    /// Whether it has told whoever reads HTTP that the client has left, though it is only idle.
    pub fn is_resting(&self) -> bool {
        self.patience.as_ref().is_some_and(|patience| patience.is_resting)
    }

    /// Waits until the client of a connection that rests says something; `false`: it has said all. Whoever drops the
    /// future loses nothing.
    ///
    /// # Errors
    ///
    /// The connection broke.
    pub async fn woken(&mut self) -> io::Result<bool> {
        if let Some(patience) = &mut self.patience {
            patience.is_resting = false;
            patience.idle = None;
            // It was about an empty line, if about anything.
            patience.timer = None;
        }
        if self.unread.is_empty() {
            match self.stream.data().await {
                None => return Ok(false),
                Some(piece) => self.unread = piece?,
            }
        }
        Ok(true)
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
    fn new(limit: Duration, heads: Heads) -> Self {
        Self {
            limit,
            heads,
            timer: None,
            tail: EMPTY_LINE,
            is_unflushed: false,
            idle: None,
            is_resting: false,
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let last = bytes.get(bytes.len().saturating_sub(4)..).unwrap_or(bytes);
        self.tail = last.iter().fold(self.tail, |tail, byte| tail << 8 | u32::from(*byte));
    }

    /// Whether nothing has been on the connection for [`REST`], and nobody holds a part of a message.
    fn rests(&mut self, cx: &mut Context<'_>) -> bool {
        let is_between = !self.is_unflushed && self.tail == EMPTY_LINE;
        let Some(number) = self.heads.idle().filter(|_| is_between) else { return false };
        let (since, timer) = self.idle.get_or_insert_with(|| (number, Box::pin(tokio::time::sleep(REST))));
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        if *since == number {
            self.is_resting = true;
            return true;
        }
        // There were requests meanwhile: one timer for many of them.
        *since = number;
        timer.as_mut().reset(Instant::now() + REST);
        timer.as_mut().poll(cx).is_ready()
    }

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
            match piece {
                Poll::Pending => {
                    let rests = self.patience.as_mut().is_some_and(|patience| patience.rests(cx));
                    return if rests { Poll::Ready(Ok(())) } else { Poll::Pending };
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(piece)) => self.unread = piece?,
            }
        }
        let taken = self.unread.len().min(buf.remaining());
        let Self { unread, patience, .. } = &mut *self;
        let bytes = unread.get(..taken).unwrap_or_default();
        buf.put_slice(bytes);
        patience.iter_mut().for_each(|patience| patience.read(bytes));
        unread.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl Write for TunnelIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.patience.iter_mut().for_each(|patience| patience.is_unflushed = true);
        ready!(self.poll_before(cx, Moment::Writes))?;
        self.stream.poll_write(cx, bufs)
    }

    /// Whoever calls it has nothing left to write.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_before(cx, Moment::Flushed))?;
        self.patience.iter_mut().for_each(|patience| patience.is_unflushed = false);
        Poll::Ready(Ok(()))
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
