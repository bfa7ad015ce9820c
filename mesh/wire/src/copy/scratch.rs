//! Memory to read into: of the thread, lent to whoever has bytes right now.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// Memory in one piece: less makes more system calls, more leaves the cache.
const CHUNK: usize = 256 * 1024;
/// The most read at once for a tunnel. It becomes one DATA frame, which others on the same connection wait
/// for. Sealed, it leaves with one write, in two of the largest segments that the kernel makes, and on the
/// other side it is written in two: a few bytes more would be a third, at the price of a whole one.
const MAX_PIECE: usize = 120 * 1024;
/// The most read at once for another socket: four of the largest segments, for the same reason.
const MAX_PASSED: usize = 244 * 1024;
/// Less room than this is not worth a system call.
const MIN_ROOM: usize = 64 * 1024;
/// Up to here a piece is copied out of the chunk instead of being a part of it: a part keeps the whole
/// chunk alive for as long as a slow peer does not take it.
const SMALL: usize = 2 * 1024;
/// Chunks kept for reuse by a thread, while their parts are on their way: a thread has this many bulk
/// streams at work before it must ask the allocator, and holds no more than this at rest.
const KEPT: usize = 3;

thread_local! {
    // State of a thread, not of a decision: it is empty between uses, and nobody can see it.
    static CHUNKS: RefCell<Chunks> = const { RefCell::new(Chunks { current: None, lent: Vec::new() }) };
}

/// Reads what is there, up to [`MAX_PIECE`]; empty at the end of the stream.
pub(super) fn poll_read(stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    CHUNKS.with_borrow_mut(|chunks| {
        let chunk = chunks.current(MIN_ROOM);
        let read = ready!(poll_read_buf(Pin::new(stream), cx, &mut (&mut *chunk).limit(MAX_PIECE)))?;
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

/// Reads what is there, up to [`MAX_PASSED`], and lets `take` see it in place; `None` at the end of the stream.
pub(super) fn poll_read_with<R>(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    take: impl FnOnce(&mut Context<'_>, &[u8]) -> R,
) -> Poll<io::Result<Option<R>>> {
    CHUNKS.with_borrow_mut(|chunks| {
        let chunk = chunks.current(CHUNK);
        let read = ready!(poll_read_buf(Pin::new(stream), cx, &mut (&mut *chunk).limit(MAX_PASSED)))?;
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
    /// An empty buffer with `room` at least.
    fn current(&mut self, room: usize) -> &mut BytesMut {
        if self.current.as_ref().is_none_or(|chunk| chunk.capacity() < room) {
            self.current = Some(self.whole());
        }
        self.current.get_or_insert_default()
    }

    /// A whole chunk: one whose parts have all been dropped, or a new one.
    fn whole(&mut self) -> BytesMut {
        if let Some(mut used) = self.current.take() {
            if used.try_reclaim(CHUNK) {
                return used;
            }
            if self.lent.len() < KEPT {
                self.lent.push(used);
            }
        }
        match self.lent.iter_mut().position(|chunk| chunk.try_reclaim(CHUNK)) {
            Some(free) => self.lent.swap_remove(free),
            None => BytesMut::with_capacity(CHUNK),
        }
    }
}
