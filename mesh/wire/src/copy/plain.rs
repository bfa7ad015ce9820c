//! Between two sockets: small answers by read and write, bulk by splice through a pipe.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use nix::fcntl::{SpliceFFlags, splice};
use tokio::{
    io::{AsyncWrite as _, Interest},
    net::TcpStream,
};

use super::{
    End, Meter, Side, TURN,
    scratch::{self, PIPE_SIZE, Pipe},
};

/// Copies between two sockets. See [`super::both_ways`].
#[derive(Debug)]
pub struct PlainCopy<'a> {
    app: TcpStream,
    far: TcpStream,
    meter: &'a Meter,
    from_app: Direction,
    to_app: Direction,
}

/// One direction.
///
/// ```text
/// Small ──▶ a read filled SPLICE_FROM ──▶ Bulk ──▶ a splice moved less than SPLICE_BELOW ──▶ Small
/// ```
#[derive(Debug)]
struct Direction {
    held: Held,
    bulk: bool,
    ended: Option<End>,
}

/// What was read and not yet written.
#[derive(Debug)]
enum Held {
    Nothing,
    Bytes(Bytes),
    Pipe(Pipe, usize),
}

/// A read of this much makes a direction bulk: two system calls and page accounting cost what copying
/// this much costs.
const SPLICE_FROM: usize = 64 * 1024;
/// A splice of less than this makes a direction small again.
const SPLICE_BELOW: usize = 16 * 1024;

impl<'a> PlainCopy<'a> {
    pub(super) fn new(app: TcpStream, far: TcpStream, meter: &'a Meter) -> Self {
        Self { app, far, meter, from_app: Direction::new(), to_app: Direction::new() }
    }
}

impl Future for PlainCopy<'_> {
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
    fn new() -> Self {
        Self { held: Held::Nothing, bulk: false, ended: None }
    }

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
            let written = match self.poll_drain(cx, to, &mut count) {
                Poll::Pending => return,
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(error)) => return self.ended = Some(End::of(sink, error)),
            };
            moved += written;
            let read = match self.poll_fill(cx, from, to, &mut count) {
                Poll::Pending => return,
                Poll::Ready(read) => read,
            };
            let ended = match read {
                Ok(Some(written)) => {
                    moved += written;
                    continue;
                }
                Ok(None) => End::Complete,
                Err(Failed::Read(error)) => End::of(source, error),
                Err(Failed::Write(error)) => End::of(sink, error),
            };
            // Best effort: it may be gone.
            let _ = Pin::new(to).poll_shutdown(cx);
            return self.ended = Some(ended);
        }
        cx.waker().wake_by_ref();
    }

    /// Writes what is held; ready when nothing is.
    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut TcpStream,
        count: &mut impl FnMut(usize),
    ) -> Poll<io::Result<usize>> {
        let mut moved = 0;
        loop {
            let written = match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(moved)),
                Held::Bytes(bytes) => {
                    let written = ready!(Pin::new(&mut *to).poll_write(cx, bytes))?;
                    bytes.advance(written);
                    if bytes.is_empty() {
                        self.held = Held::Nothing;
                    }
                    written
                }
                Held::Pipe(pipe, left) => {
                    ready!(to.poll_write_ready(cx))?;
                    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
                    let out = || Ok(splice(&pipe.out, None, &*to, None, *left, flags)?);
                    let written = match to.try_io(Interest::WRITABLE, out) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        written => written?,
                    };
                    *left = left.saturating_sub(written);
                    if *left == 0
                        && let Held::Pipe(pipe, _) = std::mem::replace(&mut self.held, Held::Nothing)
                    {
                        pipe.give_back();
                    }
                    written
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            count(written);
            moved += written;
        }
    }

    /// Reads what is there, and writes as much of it as goes at once; `None` at the end.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: &mut impl FnMut(usize),
    ) -> Poll<Result<Option<usize>, Failed>> {
        if self.bulk {
            let filled = ready!(self.poll_splice(cx, from)).map_err(Failed::Read)?;
            return Poll::Ready(Ok(filled.then_some(0)));
        }
        let pass = |cx: &mut Context<'_>, bytes: &[u8]| {
            let written = match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            let rest = bytes.get(written..).unwrap_or_default();
            let held =
                if rest.is_empty() { Held::Nothing } else { Held::Bytes(Bytes::copy_from_slice(rest)) };
            Ok((bytes.len(), written, held))
        };
        let passed: Option<io::Result<_>> =
            ready!(scratch::poll_read_with(from, cx, pass)).map_err(Failed::Read)?;
        let Some((read, written, held)) = passed.transpose().map_err(Failed::Write)? else {
            return Poll::Ready(Ok(None));
        };
        self.bulk = read >= SPLICE_FROM;
        self.held = held;
        count(written);
        Poll::Ready(Ok(Some(written)))
    }

    /// Moves what is there into a pipe; false at the end of the stream.
    fn poll_splice(&mut self, cx: &mut Context<'_>, from: &mut TcpStream) -> Poll<io::Result<bool>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            // Taken only now that bytes are there: a connection at rest has none.
            let pipe = Pipe::take()?;
            let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
            let into = || Ok(splice(&*from, None, &pipe.into, None, PIPE_SIZE, flags)?);
            match from.try_io(Interest::READABLE, into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => pipe.give_back(),
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) => {
                    pipe.give_back();
                    return Poll::Ready(Ok(false));
                }
                Ok(moved) => {
                    self.bulk = moved >= SPLICE_BELOW;
                    self.held = Held::Pipe(pipe, moved);
                    return Poll::Ready(Ok(true));
                }
            }
        }
    }
}

enum Failed {
    Read(io::Error),
    Write(io::Error),
}
