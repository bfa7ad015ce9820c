//! Between an application's socket and a tunnel: pieces are handed over, not copied.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::{io::AsyncWrite as _, net::TcpStream};

use super::{End, Meter, Side, TURN, scratch};
use crate::hbone::TunnelStream;

/// Copies between a socket and a tunnel. See [`super::both_ways`].
#[derive(Debug)]
pub struct TunnelCopy {
    app: TcpStream,
    tunnel: TunnelStream,
    meter: Arc<Meter>,
    from_app: Option<End>,
    to_app: Option<End>,
    waiting: Waiting,
}

/// Pieces that the application's socket has not taken yet.
#[derive(Debug, Default)]
struct Waiting {
    first: Bytes,
    /// Allocated while several pieces wait, and not otherwise.
    rest: VecDeque<Bytes>,
    bytes: usize,
}

/// Pieces gathered into one write.
const MAX_PIECES: usize = 16;
/// Bytes gathered before they are written: what a socket takes at once.
const ENOUGH: usize = 256 * 1024;

impl TunnelCopy {
    pub(super) fn new(app: TcpStream, tunnel: TunnelStream, meter: Arc<Meter>) -> Self {
        Self { app, tunnel, meter, from_app: None, to_app: None, waiting: Waiting::default() }
    }

    fn poll_from_app(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let mut moved = 0;
        while moved < TURN {
            if let Err(error) = ready!(self.tunnel.poll_room(cx)) {
                return Poll::Ready(End::of(Side::Far, error));
            }
            let piece = match scratch::poll_read(&mut self.app, cx) {
                // A peer that has said all, and then leaves, is noticed here alone.
                Poll::Pending if self.to_app.is_some() => {
                    return self.tunnel.poll_gone(cx).map(|error| End::of(Side::Far, error));
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(piece) => piece,
            };
            let ended = match piece {
                Ok(piece) if !piece.is_empty() => {
                    let bytes = piece.len();
                    if let Err(error) = self.tunnel.send(piece) {
                        return Poll::Ready(End::of(Side::Far, error));
                    }
                    self.meter.add_from_app(bytes);
                    moved += bytes;
                    continue;
                }
                Ok(_) => End::Complete,
                Err(error) => End::of(Side::App, error),
            };
            // Fails only when the stream is gone, which the other direction reports.
            let _ = self.tunnel.finish();
            return Poll::Ready(ended);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_to_app(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let mut moved = 0;
        while moved < TURN {
            let gathered = self.gather(cx);
            while !self.waiting.is_empty() {
                match ready!(self.waiting.poll_write(Pin::new(&mut self.app), cx)) {
                    Ok(written) => {
                        self.meter.add_to_app(written);
                        moved += written;
                    }
                    Err(error) => return Poll::Ready(End::of(Side::App, error)),
                }
            }
            let ended = match gathered {
                Gathered::Some => continue,
                Gathered::All => return Poll::Pending,
                Gathered::End => End::Complete,
                Gathered::Failed(error) => End::of(Side::Far, error),
            };
            // Best effort: the application may be gone.
            let _ = Pin::new(&mut self.app).poll_shutdown(cx);
            return Poll::Ready(ended);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes what the tunnel has, as far as one write goes.
    fn gather(&mut self, cx: &mut Context<'_>) -> Gathered {
        while self.waiting.bytes < ENOUGH && self.waiting.rest.len() + 1 < MAX_PIECES {
            match self.tunnel.poll_data(cx) {
                Poll::Ready(Some(Ok(piece))) => self.waiting.push(piece),
                Poll::Ready(Some(Err(error))) => return Gathered::Failed(error),
                Poll::Ready(None) => return Gathered::End,
                Poll::Pending => return Gathered::All,
            }
        }
        Gathered::Some
    }
}

enum Gathered {
    /// There may be more.
    Some,
    /// There is no more now; the task will be woken.
    All,
    /// There will never be more.
    End,
    /// There will never be more, and it ended badly.
    Failed(io::Error),
}

impl Future for TunnelCopy {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = &mut *self;
        if this.to_app.is_none()
            && let Poll::Ready(end) = this.poll_to_app(cx)
        {
            this.to_app = Some(end);
        }
        if this.from_app.is_none()
            && let Poll::Ready(end) = this.poll_from_app(cx)
        {
            this.from_app = Some(end);
        }
        let over = match (&this.from_app, &this.to_app) {
            (Some(_), Some(_)) => true,
            // A socket that cannot be read is dead in both directions. (One that cannot be written may still
            // hold bytes that the application sent before it left.)
            (Some(end), None) => end.is_of(Side::App),
            (None, _) => false,
        };
        if !over {
            return Poll::Pending;
        }
        // What the application said before it left must not be lost with the stream.
        ready!(this.tunnel.poll_flushed(cx));
        let ends = [this.from_app.take(), this.to_app.take()];
        Poll::Ready(ends.into_iter().flatten().fold(End::Complete, End::worse))
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if self.first.is_empty() { self.first = piece } else { self.rest.push_back(piece) }
    }

    /// Writes all pieces with one system call, and keeps what was not taken.
    fn poll_write(&mut self, app: Pin<&mut TcpStream>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let written = if self.rest.is_empty() {
            ready!(app.poll_write(cx, &self.first))?
        } else {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let pieces = std::iter::once(&self.first).chain(&self.rest);
            let count =
                slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
            ready!(app.poll_write_vectored(cx, slices.get(..count).unwrap_or_default()))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes = self.bytes.saturating_sub(written);
        while written >= self.first.len() {
            written -= self.first.len();
            match self.rest.pop_front() {
                Some(next) => self.first = next,
                None => {
                    // Also gives the memory of both back.
                    *self = Self::default();
                    return;
                }
            }
        }
        self.first.advance(written);
    }
}
