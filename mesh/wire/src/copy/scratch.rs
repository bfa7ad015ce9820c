//! Memory to read into, and pipes to splice through: of the thread, lent to whoever has bytes right now.

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};
use tokio::{io::AsyncRead, net::TcpStream};
use tokio_util::io::poll_read_buf;

/// The most read at once. One DATA frame and one flush of the socket below: large enough that neither
/// counts, small enough to stay in the second-level cache.
const CHUNK: usize = 128 * 1024;
/// Less room than this is not worth a system call.
const MIN_ROOM: usize = 32 * 1024;
/// Up to here a piece is copied out of the chunk instead of being a part of it: a part keeps the whole
/// chunk alive for as long as a slow peer does not take it.
const SMALL: usize = 2 * 1024;
/// Chunks kept for reuse by a thread, while their parts are on their way: a thread has this many bulk
/// streams at work before it must ask the allocator, and holds no more than this at rest.
const KEPT_CHUNKS: usize = 4;
/// Pipes kept for reuse by a thread.
const KEPT_PIPES: usize = 8;
/// What a pipe holds: as much as one turn.
pub(super) const PIPE_SIZE: usize = super::TURN;

thread_local! {
    // State of a thread, not of a decision: it is empty between uses, and nobody can see it.
    static CHUNKS: RefCell<Chunks> = const { RefCell::new(Chunks { current: None, lent: Vec::new() }) };
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// Reads what is there, up to [`CHUNK`]; empty at the end of the stream.
pub(super) fn poll_read(stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    CHUNKS.with_borrow_mut(|chunks| {
        let chunk = chunks.current();
        let read = ready!(poll_read_buf(Pin::new(stream), cx, chunk))?;
        let piece = if read <= SMALL {
            let piece = Bytes::copy_from_slice(chunk);
            chunk.clear();
            piece
        } else {
            chunk.split().freeze()
        };
        Poll::Ready(Ok(piece))
    })
}

/// Reads what is there, up to [`CHUNK`], and lets `take` see it in place; `None` at the end of the stream.
pub(super) fn poll_read_with<R>(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    take: impl FnOnce(&mut Context<'_>, &[u8]) -> R,
) -> Poll<io::Result<Option<R>>> {
    CHUNKS.with_borrow_mut(|chunks| {
        let chunk = chunks.current();
        let read = ready!(poll_read_buf(Pin::new(stream), cx, chunk))?;
        let result = (read > 0).then(|| take(cx, chunk));
        chunk.clear();
        Poll::Ready(Ok(result))
    })
}

struct Chunks {
    current: Option<BytesMut>,
    lent: Vec<BytesMut>,
}

impl Chunks {
    /// An empty buffer with enough room.
    fn current(&mut self) -> &mut BytesMut {
        if self.current.as_mut().is_none_or(|chunk| chunk.capacity() < MIN_ROOM) {
            let next = self.take_reclaimed();
            if let Some(used) = self.current.replace(next)
                && self.lent.len() < KEPT_CHUNKS
            {
                self.lent.push(used);
            }
        }
        self.current.get_or_insert_default()
    }

    /// A whole chunk: one whose parts have all been dropped, or a new one.
    fn take_reclaimed(&mut self) -> BytesMut {
        if let Some(mut used) = self.current.take() {
            if used.try_reclaim(CHUNK) {
                return used;
            }
            if self.lent.len() < KEPT_CHUNKS {
                self.lent.push(used);
            }
        }
        match self.lent.iter_mut().position(|chunk| chunk.try_reclaim(CHUNK)) {
            Some(free) => self.lent.swap_remove(free),
            None => BytesMut::with_capacity(CHUNK),
        }
    }
}

/// An empty pipe, or one that holds what one direction of a connection is moving.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) out: OwnedFd,
    pub(super) into: OwnedFd,
}

impl Pipe {
    /// A pipe of the thread's, or a new one.
    pub(super) fn take() -> io::Result<Self> {
        match PIPES.with_borrow_mut(Vec::pop) {
            Some(pipe) => Ok(pipe),
            None => Self::new(),
        }
    }

    fn new() -> io::Result<Self> {
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refused to unprivileged users who have many pipes: then it is smaller, and slower.
        let _ = i32::try_from(PIPE_SIZE).map(|size| fcntl(&into, FcntlArg::F_SETPIPE_SZ(size)));
        Ok(Self { out, into })
    }

    /// Gives back a pipe that is empty. One that is not must be dropped.
    pub(super) fn give_back(self) {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.len() < KEPT_PIPES {
                pipes.push(self);
            }
        });
    }
}
