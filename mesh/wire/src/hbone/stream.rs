//! One tunnelled connection: the two halves of a CONNECT stream.
//!
//! [`TunnelStream`] moves `Bytes` without copying them. [`TunnelIo`] wraps it for those that want
//! `AsyncRead + AsyncWrite`, such as TLS inside a tunnel (double HBONE, protocols 4.9).

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

/// An open CONNECT stream.
///
/// Dropping it before both sides have finished resets it with CANCEL, and what was sent but has not left
/// is lost; who cares waits for [`TunnelStream::poll_flushed`].
pub struct TunnelStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Closes when the end of what we said has left; `None` before the end.
    flushed: Option<oneshot::Receiver<()>>,
    /// Given back when both halves are gone, which is when this is.
    _counted: Option<Counted>,
}

impl TunnelStream {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, counted: Option<Counted>) -> Self {
        Self { send, recv, flushed: None, _counted: counted }
    }

    /// The next piece from the peer; `None` once it has said all. Taking it lets the peer send as much
    /// again: a caller with nowhere to put it must not take it.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            let piece = match ready!(self.recv.poll_data(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(read_error(error).map(Err)),
                Some(Ok(piece)) => piece,
            };
            // Fails only on a stream that has ended meanwhile, when nobody waits for the window.
            let _ = self.recv.flow_control().release_capacity(piece.len());
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(piece)));
            }
        }
    }

    /// Waits for [`TunnelStream::poll_data`].
    pub async fn data(&mut self) -> Option<io::Result<Bytes>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Ready when the stream takes another piece, of any size.
    ///
    /// One byte of window is claimed ahead and no more: streams at rest must not hold the connection's
    /// window while others need it.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send.reserve_capacity(1);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(write_error(error))),
                None => return Poll::Ready(Err(self.why_unwritable())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Hands over one piece. It is accepted whole; call [`TunnelStream::poll_room`] before the next one.
    pub fn send(&mut self, piece: Bytes) -> io::Result<()> {
        self.send.send_data(piece, false).map_err(|_| self.why_unwritable())
    }

    /// Waits for room, then sends.
    pub async fn send_when_ready(&mut self, piece: Bytes) -> io::Result<()> {
        poll_fn(|cx| self.poll_room(cx)).await?;
        self.send(piece)
    }

    /// Says that all has been said; the peer may go on.
    pub fn finish(&mut self) -> io::Result<()> {
        let (last, flushed) = oneshot::channel();
        self.send.send_data(Bytes::from_owner(Last(last)), true).map_err(|_| self.why_unwritable())?;
        self.flushed = Some(flushed);
        Ok(())
    }

    /// After [`TunnelStream::finish`]: ready when all that was sent has left, or will never leave. Ready at
    /// once before.
    pub fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(flushed) = &mut self.flushed {
            let _ = ready!(Pin::new(flushed).poll(cx));
            self.flushed = None;
        }
        Poll::Ready(())
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, reason: Reason) {
        self.send.send_reset(reason);
    }

    /// Ready when the peer has reset the stream or the connection is gone: nothing sent will arrive.
    /// Only needed by who no longer reads; readers learn it from [`TunnelStream::poll_data`].
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(write_reset(reason)),
            Err(error) => Poll::Ready(write_error(error)),
        }
    }

    fn why_unwritable(&mut self) -> io::Error {
        match self.poll_gone(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(error) => error,
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

impl std::fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelStream").field("id", &self.send.stream_id()).finish_non_exhaustive()
    }
}

/// The payload of the last frame, which is empty. Its owner is dropped when the frame has left, or has been
/// discarded: HTTP/2 tells it in no other way.
struct Last(#[expect(dead_code, reason = "dropped, never used")] oneshot::Sender<()>);

impl AsRef<[u8]> for Last {
    fn as_ref(&self) -> &[u8] {
        &[]
    }
}

/// What a reader sees when the peer or the connection fails (protocols 4.7); `None` is an ordinary end.
fn read_error(error: h2::Error) -> Option<io::Error> {
    match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL) => None,
        Some(Reason::STREAM_CLOSED) => Some(io::ErrorKind::BrokenPipe.into()),
        _ => Some(into_io(error)),
    }
}

fn write_error(error: h2::Error) -> io::Error {
    match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED) => io::ErrorKind::BrokenPipe.into(),
        _ => into_io(error),
    }
}

fn write_reset(reason: Reason) -> io::Error {
    write_error(reason.into())
}

fn into_io(error: h2::Error) -> io::Error {
    if !error.is_io() {
        return io::Error::other(error);
    }
    error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
}

/// How many streams a connection carries, and whether it takes more. One word, so that the last stream's
/// end, a new stream's start and the retirement of an idle connection cannot cross each other.
#[derive(Debug, Default)]
pub(super) struct Load(AtomicUsize);

/// Set in [`Load`] when no further stream may start.
const RETIRED: usize = 1 << (usize::BITS - 1);

impl Load {
    /// Streams counted now.
    pub(super) fn active(&self) -> usize {
        self.0.load(Ordering::Relaxed) & !RETIRED
    }

    /// Whether no stream may start any more.
    pub(super) fn is_retired(&self) -> bool {
        self.0.load(Ordering::Relaxed) & RETIRED != 0
    }

    /// Counts one more stream if fewer than `limit` are counted.
    pub(super) fn start(self: &Arc<Self>, limit: usize) -> Option<Counted> {
        let more = |now: usize| (now & RETIRED == 0 && now < limit).then_some(now + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Counted(Arc::clone(self)))
    }

    /// Lets no further stream start.
    pub(super) fn retire(&self) {
        self.0.fetch_or(RETIRED, Ordering::AcqRel);
    }

    /// Lets no further stream start, if none is counted.
    pub(super) fn retire_if_idle(&self) -> bool {
        self.0.compare_exchange(0, RETIRED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// One stream's place in a [`Load`].
#[derive(Debug)]
pub(super) struct Counted(Arc<Load>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A [`TunnelStream`] as a byte stream, at the price of one copy each way.
#[derive(Debug)]
pub struct TunnelIo {
    stream: TunnelStream,
    unread: Bytes,
}

impl From<TunnelStream> for TunnelIo {
    fn from(stream: TunnelStream) -> Self {
        Self { stream, unread: Bytes::new() }
    }
}

/// The most taken by one write: what the copier reads at once, too.
const MAX_WRITE: usize = 64 * 1024;

impl AsyncRead for TunnelIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            match ready!(self.stream.poll_data(cx)) {
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

impl AsyncWrite for TunnelIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.stream.poll_room(cx))?;
        let taken = buf.get(..MAX_WRITE).unwrap_or(buf);
        self.stream.send(Bytes::copy_from_slice(taken))?;
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_an_end_or_an_error_by_its_reason() {
        let read = |reason: Reason| read_error(reason.into()).map(|error| error.kind());
        let write = |reason: Reason| write_reset(reason).kind();
        use io::ErrorKind::{BrokenPipe, Other};
        for (reason, reading, writing) in [
            (Reason::NO_ERROR, None, BrokenPipe),
            (Reason::CANCEL, None, BrokenPipe),
            (Reason::STREAM_CLOSED, Some(BrokenPipe), BrokenPipe),
            (Reason::INTERNAL_ERROR, Some(Other), Other),
            (Reason::ENHANCE_YOUR_CALM, Some(Other), Other),
            (Reason::REFUSED_STREAM, Some(Other), Other),
        ] {
            assert_eq!((read(reason), write(reason)), (reading, writing), "{reason}");
        }
    }

    #[test]
    fn a_load_counts_each_stream_once_and_retires_only_when_idle() {
        let load = Arc::new(Load::default());
        let first = load.start(2).unwrap();
        let second = load.start(2).unwrap();
        assert!(load.start(2).is_none());
        drop(first);
        assert_eq!(load.active(), 1);
        assert!(!load.retire_if_idle());
        drop(second);
        assert!(load.retire_if_idle());
        assert!(load.start(2).is_none() && load.is_retired());
        assert_eq!(load.active(), 0);
    }
}
