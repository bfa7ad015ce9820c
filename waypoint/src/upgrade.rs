//! Connections that become those of another protocol (RFC 9110, 7.8): WebSocket and its like.
//!
//! A side is a connection of HTTP/1.1 or a stream of HTTP/2, which HTTP hides; so the mesh's own copier, which wants to know
//! what it moves, is not for them. Like that one it holds nothing for a connection at rest: bytes are read onto the stack,
//! and stay only while the other side cannot take them. Most such connections rest most of the time.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ambit_runtime::task;
use bytes::{Buf as _, Bytes};
use hyper::{
    rt::{Read, ReadBuf, Write},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;

use crate::{
    body::{Answer, Ending},
    refusal::Refusal,
};

/// What is read at once: a frame of HTTP/2, and no more than a stack has room for.
const PIECE: usize = 16 * 1024;
/// What one connection moves in one direction before others get their turn, in pieces: half a megabyte.
const TURN: usize = 32;

/// Ends the connection of a client whose wish is not granted. After a CONNECT there is no more HTTP on it, whatever it is
/// told; it hears that to its end.
pub fn decline(client: OnUpgrade) {
    task::spawn("declined upgrade", async move {
        if let Ok(client) = client.await {
            // Who has gone need not be told.
            let _ = TokioIo::new(client).shutdown().await;
        }
    });
}

/// The body of a 101, or of what stands for one: none. When both sides have switched, bytes move until each is done with
/// its direction; then the request is recorded as what it was.
pub fn answer(client: OnUpgrade, server: OnUpgrade, ending: Ending) -> Answer {
    task::spawn("upgraded connection", async move {
        match tokio::try_join!(client, server) {
            Ok((client, server)) => {
                let (outcome, sent) = carry(client, server).await;
                ending.end_after(outcome.as_ref().copied(), sent);
            }
            Err(error) => ending.end_after(Err(&Refusal::ResponseBroke(error.to_string())), 0),
        }
    });
    Answer::nothing()
}

/// Moves bytes both ways; how it ended, and how many bytes the client was sent.
async fn carry<S: Read + Write + Unpin>(mut client: S, mut server: S) -> (Result<(), Refusal>, u64) {
    let (mut up, mut down) = (Way::default(), Way::default());
    let outcome = poll_fn(|cx| {
        let went = up.poll(&mut client, &mut server, cx);
        let (gone, broken) =
            (|_| Refusal::ClientGone, |error: io::Error| Refusal::ResponseBroke(error.to_string()));
        let went = went.map_err(|failed| failed.by(gone, broken))?;
        let came = down.poll(&mut server, &mut client, cx);
        let came = came.map_err(|failed| failed.by(broken, gone))?;
        if went.is_ready() && came.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    });
    let outcome = outcome.await;
    (outcome, down.moved)
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    stage: Stage,
    /// In bytes.
    moved: u64,
}

#[derive(Debug, Default)]
enum Stage {
    /// Nothing is held.
    #[default]
    Open,
    /// This waits for room.
    Holds(Bytes),
    /// All was said, of which the other side is told.
    Ends,
    /// It was told.
    Ended,
}

/// Which side failed.
enum Failed {
    From(io::Error),
    To(io::Error),
}

impl Failed {
    fn by(self, from: impl Fn(io::Error) -> Refusal, to: impl Fn(io::Error) -> Refusal) -> Refusal {
        match self {
            Self::From(error) => from(error),
            Self::To(error) => to(error),
        }
    }
}

impl Way {
    /// Moves what there is; ready when all has been said, and the other side was told.
    fn poll(
        &mut self,
        from: &mut (impl Read + Unpin),
        to: &mut (impl Write + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failed>> {
        for _ in 0..TURN {
            match &mut self.stage {
                Stage::Open => {
                    let mut memory = [MaybeUninit::<u8>::uninit(); PIECE];
                    let mut piece = ReadBuf::uninit(&mut memory);
                    ready!(Pin::new(&mut *from).poll_read(cx, piece.unfilled())).map_err(Failed::From)?;
                    self.stage = self.pass(piece.filled(), to, cx).map_err(Failed::To)?;
                }
                Stage::Holds(rest) => {
                    let written = ready!(write(to, rest, cx)).map_err(Failed::To)?;
                    self.moved = moved(self.moved, written);
                    rest.advance(written.min(rest.len()));
                    if rest.is_empty() {
                        self.stage = Stage::Open;
                    }
                }
                Stage::Ends => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Failed::To)?;
                    self.stage = Stage::Ended;
                }
                Stage::Ended => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what was read, which is nothing at the end, and keeps what there is no room for.
    fn pass(
        &mut self,
        piece: &[u8],
        to: &mut (impl Write + Unpin),
        cx: &mut Context<'_>,
    ) -> io::Result<Stage> {
        if piece.is_empty() {
            return Ok(Stage::Ends);
        }
        let mut rest = piece;
        while !rest.is_empty() {
            match write(to, rest, cx)? {
                Poll::Ready(written) => {
                    self.moved = moved(self.moved, written);
                    rest = rest.get(written..).unwrap_or_default();
                }
                Poll::Pending => return Ok(Stage::Holds(Bytes::copy_from_slice(rest))),
            }
        }
        Ok(Stage::Open)
    }
}

/// Writes some of what is there, at least a byte. Neither side keeps back what was written, so nothing is flushed.
fn write(to: &mut (impl Write + Unpin), piece: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, piece))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

fn moved(before: u64, bytes: usize) -> u64 {
    before.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

    use super::*;

    /// A client and a server at the ends of what is carried; no more than `room` bytes are on their way at a time.
    fn ends(room: usize) -> (DuplexStream, DuplexStream, impl Future<Output = (Result<(), Refusal>, u64)>) {
        let ((client, near), (server, far)) = (duplex(room), duplex(room));
        (client, server, carry(TokioIo::new(near), TokioIo::new(far)))
    }

    #[tokio::test]
    async fn each_direction_ends_on_its_own_and_nothing_is_lost_where_there_is_little_room() {
        for room in [1, 100, 64 * 1024] {
            let (mut client, mut server, carried) = ends(room);
            let (asked, said) = (vec![b'a'; 50_000], vec![b'b'; 70_000]);
            let of_client = async {
                client.write_all(&asked).await.expect("it is taken");
                client.shutdown().await.expect("so is the end");
                let mut heard = Vec::new();
                client.read_to_end(&mut heard).await.expect("it comes");
                heard
            };
            let of_server = async {
                let mut heard = Vec::new();
                server.read_to_end(&mut heard).await.expect("it comes");
                // The client has said all, and still hears.
                server.write_all(&said).await.expect("it is taken");
                server.shutdown().await.expect("so is the end");
                heard
            };
            let (carried, at_client, at_server) = tokio::join!(carried, of_client, of_server);
            assert_eq!(carried, (Ok(()), 70_000), "{room}");
            assert!(at_client == said && at_server == asked, "{room}");
        }
    }

    #[tokio::test]
    async fn a_side_that_goes_away_is_the_one_that_is_named() {
        let (client, mut server, carried) = ends(8);
        drop(client);
        let (carried, _) = tokio::join!(carried, server.write_all(b"is anybody there?"));
        assert_eq!(carried.0, Err(Refusal::ClientGone));
        let (mut client, server, carried) = ends(8);
        drop(server);
        let (carried, _) = tokio::join!(carried, client.write_all(b"is anybody there?"));
        assert!(matches!(carried.0, Err(Refusal::ResponseBroke(_))), "{carried:?}");
    }
}
