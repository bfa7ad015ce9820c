//! A client's connection that hyper is lent, and gives back when it rests (decision 0030).

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::sync::oneshot;

use crate::io::TunnelIo;

/// A connection in use.
#[derive(Debug)]
pub struct Lent {
    /// `None`: it is dropped.
    io: Option<TunnelIo>,
    to: Option<oneshot::Sender<TunnelIo>>,
}

/// Whoever lent it.
#[derive(Debug)]
pub struct Lender(oneshot::Receiver<TunnelIo>);

impl Lent {
    /// Lends `io`.
    pub fn new(io: TunnelIo) -> (Self, Lender) {
        let (to, from) = oneshot::channel();
        (Self { io: Some(io), to: Some(to) }, Lender(from))
    }
}

/// It is given back whatever becomes of it: after a wish to upgrade that was not granted, hyper lets go of it without closing
/// it, and what was written would be lost.
impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(io), Some(to)) = (self.io.take(), self.to.take()) {
            // Who does not wait for it any more lets it end.
            drop(to.send(io));
        }
    }
}

impl Lender {
    /// What came back; `None`: it became a connection of another protocol.
    pub fn returned(mut self) -> Option<TunnelIo> {
        self.0.try_recv().ok()
    }
}

/// Nobody reads or writes what was dropped.
fn given_back() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Read for Lent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_read(cx, buf),
            None => Poll::Ready(Err(given_back())),
        }
    }
}

impl Write for Lent {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_write(cx, buf),
            None => Poll::Ready(Err(given_back())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            None => Poll::Ready(Err(given_back())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().map_or(Poll::Ready(Ok(())), |io| Pin::new(io).poll_flush(cx))
    }

    /// A connection that only rests is not closed.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_awaited = self.to.as_ref().is_some_and(|to| !to.is_closed());
        if is_awaited && self.io.as_ref().is_some_and(TunnelIo::is_resting) {
            return Poll::Ready(Ok(()));
        }
        self.io.as_mut().map_or(Poll::Ready(Ok(())), |io| Pin::new(io).poll_shutdown(cx))
    }
}
