//! Between two sockets: read into the thread's memory, write from there, keep only what was not taken.
//!
//! Moving pages through a pipe with splice(2) was tried: it costs this process a tenth less, but sender and
//! receiver more than that, and moves fewer bytes a second (`docs/decisions/0005-copying.md`).

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::{io::AsyncWrite as _, net::TcpStream};

use super::{End, Meter, Side, TURN, scratch};

/// Copies between two sockets. See [`super::both_ways`].
#[derive(Debug)]
pub struct PlainCopy {
    app: TcpStream,
    far: TcpStream,
    meter: Arc<Meter>,
    from_app: Direction,
    to_app: Direction,
}

/// One direction.
#[derive(Debug, Default)]
struct Direction {
    /// Read, and not yet taken by the other side.
    held: Bytes,
    ended: Option<End>,
}

impl PlainCopy {
    pub(super) fn new(app: TcpStream, far: TcpStream, meter: Arc<Meter>) -> Self {
        Self { app, far, meter, from_app: Direction::default(), to_app: Direction::default() }
    }
}

impl Future for PlainCopy {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = &mut *self;
        let app = &mut this.app;
        let far = &mut this.far;
        this.from_app.poll(cx, (Side::App, app), (Side::Far, far), |bytes| this.meter.add_from_app(bytes));
        this.to_app.poll(cx, (Side::Far, far), (Side::App, app), |bytes| this.meter.add_to_app(bytes));
        match (this.from_app.ended.take(), this.to_app.ended.take()) {
            (Some(one), Some(other)) => Poll::Ready(one.worse(other)),
            // A socket that cannot be read is dead in both directions.
            (Some(end), None) if end.is_of(Side::App) => Poll::Ready(end),
            (None, Some(end)) if end.is_of(Side::Far) => Poll::Ready(end),
            (from_app, to_app) => {
                this.from_app.ended = from_app;
                this.to_app.ended = to_app;
                Poll::Pending
            }
        }
    }
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (source, from): (Side, &mut TcpStream),
        (sink, to): (Side, &mut TcpStream),
        mut count: impl FnMut(usize),
    ) {
        if self.ended.is_some() {
            return;
        }
        let mut moved = 0;
        while moved < TURN {
            let passed = match self.poll_pass(cx, from, to) {
                Poll::Pending => return,
                Poll::Ready(passed) => passed,
            };
            let ended = match passed {
                Ok(0) => End::Complete,
                Ok(written) => {
                    count(written);
                    moved += written;
                    continue;
                }
                Err(Failed::Read(error)) => End::of(source, error),
                // What is held has nowhere to go.
                Err(Failed::Write(error)) => return self.ended = Some(End::of(sink, error)),
            };
            // Best effort: it may be gone.
            let _ = Pin::new(to).poll_shutdown(cx);
            return self.ended = Some(ended);
        }
        cx.waker().wake_by_ref();
    }

    /// Writes what is held, or else reads and writes at once; how much was written, and 0 at the end.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
    ) -> Poll<Result<usize, Failed>> {
        while self.held.is_empty() {
            let pass = |cx: &mut Context<'_>, bytes: &[u8]| {
                let written = match Pin::new(&mut *to).poll_write(cx, bytes) {
                    Poll::Ready(written) => written?,
                    Poll::Pending => 0,
                };
                let rest = bytes.get(written..).unwrap_or_default();
                Ok((written, if rest.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(rest) }))
            };
            let passed: Option<io::Result<_>> =
                ready!(scratch::poll_read_with(from, cx, pass)).map_err(Failed::Read)?;
            let Some((written, rest)) = passed.transpose().map_err(Failed::Write)? else {
                return Poll::Ready(Ok(0));
            };
            self.held = rest;
            if written > 0 {
                return Poll::Ready(Ok(written));
            }
        }
        let written = ready!(Pin::new(to).poll_write(cx, &self.held)).map_err(Failed::Write)?;
        if written == 0 {
            return Poll::Ready(Err(Failed::Write(io::ErrorKind::WriteZero.into())));
        }
        self.held.advance(written);
        if self.held.is_empty() {
            // Gives the memory back.
            self.held = Bytes::new();
        }
        Poll::Ready(Ok(written))
    }
}

enum Failed {
    Read(io::Error),
    Write(io::Error),
}
