//! Moves bytes between two tunnels, until both sides have said all. No byte is copied: what one tunnel hands over, the
//! other sends.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::{End, Meter, Side, TURN};
use crate::hbone::TunnelStream;

/// Two streams, each of which gets what the other says. The near one is what a [`Meter`] calls the application.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Splice {
    near: TunnelStream,
    far: TunnelStream,
    to_far: Way,
    to_near: Way,
    meter: Arc<Meter>,
}

/// What was read already of two streams.
#[derive(Debug, Default)]
pub struct Begun {
    /// Of the near one.
    pub near: Bytes,
    /// Of the far one.
    pub far: Bytes,
}

#[derive(Debug)]
enum Way {
    /// Nothing is held.
    Open,
    /// This waits for room.
    Holds(Bytes),
    /// All is said, and is on its way out.
    Said,
    /// All has left.
    Done,
}

impl Way {
    fn new(begun: Bytes) -> Self {
        if begun.is_empty() { Self::Open } else { Self::Holds(begun) }
    }
}

impl Splice {
    /// Moves bytes between `near` and `far`, of which `begun` was read.
    pub fn new(near: TunnelStream, far: TunnelStream, begun: Begun, meter: Arc<Meter>) -> Self {
        let (to_far, to_near) = (Way::new(begun.near), Way::new(begun.far));
        Self { near, far, to_far, to_near, meter }
    }
}

/// Why a way ended early, and whose fault it is: of whoever is read, or of whoever is written to.
enum Broken {
    From(io::Error),
    To(io::Error),
}

/// Moves what there is. Ready when all has been said and has left, or something broke; `turn` bounds what is moved
/// before others get theirs.
fn poll_way(
    way: &mut Way,
    from: &mut TunnelStream,
    to: &mut TunnelStream,
    turn: &mut usize,
    moved: impl Fn(usize),
    cx: &mut Context<'_>,
) -> Poll<Result<(), Broken>> {
    loop {
        match way {
            Way::Open => match ready!(from.poll_data(cx)) {
                Some(Ok(piece)) => *way = Way::Holds(piece),
                Some(Err(error)) => return Poll::Ready(Err(Broken::From(error))),
                None => {
                    to.finish().map_err(Broken::To)?;
                    *way = Way::Said;
                }
            },
            Way::Holds(piece) => {
                ready!(to.poll_room(cx)).map_err(Broken::To)?;
                let piece = std::mem::take(piece);
                moved(piece.len());
                let rest = turn.checked_sub(piece.len());
                to.send(piece).map_err(Broken::To)?;
                *way = Way::Open;
                match rest {
                    Some(rest) => *turn = rest,
                    None => {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
            }
            Way::Said => {
                ready!(to.poll_flushed(cx));
                *way = Way::Done;
            }
            Way::Done => return Poll::Ready(Ok(())),
        }
    }
}

impl Future for Splice {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let Self { near, far, to_far, to_near, meter } = &mut *self;
        let mut turn = TURN;
        let there = poll_way(to_far, near, far, &mut turn, |bytes| meter.add_from_app(bytes), cx);
        let mut turn = TURN;
        let back = poll_way(to_near, far, near, &mut turn, |bytes| meter.add_to_app(bytes), cx);
        let end = |side, error| Poll::Ready(End::of(side, error));
        match (there, back) {
            (Poll::Ready(Err(Broken::From(error))), _) | (_, Poll::Ready(Err(Broken::To(error)))) => {
                end(Side::App, error)
            }
            (Poll::Ready(Err(Broken::To(error))), _) | (_, Poll::Ready(Err(Broken::From(error)))) => {
                end(Side::Far, error)
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Complete),
            (Poll::Ready(Ok(())) | Poll::Pending, Poll::Ready(Ok(())) | Poll::Pending) => Poll::Pending,
        }
    }
}
