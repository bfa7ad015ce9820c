//! Moves bytes both ways between an application and what is behind it, until both have said all.
//!
//! A connection at rest holds no buffer: bytes are read into memory that belongs to the thread
//! ([`scratch`]), only when there are some, and stay on the connection only while the other side cannot
//! take them. The measurements behind the choices are in `docs/decisions/0005-copying.md`.

mod plain;
mod scratch;
mod splice;
mod tunnel;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::net::TcpStream;

use crate::hbone::TunnelStream;

pub use plain::PlainCopy;
pub use splice::{Begun, Splice};
pub use tunnel::TunnelCopy;

/// Moves bytes both ways between `app` and `far` and counts them in `meter`.
///
/// When one side ends its direction, the other is told so and goes on; the future is ready when both have
/// ended, or when one has failed in a way that ends both. Dropping it ends both at once.
pub fn both_ways<F: Far>(app: TcpStream, far: F, meter: Arc<Meter>) -> F::Copy {
    far.copy(app, meter)
}

/// What can be behind an application's connection: another connection, or a tunnel.
pub trait Far {
    /// The future that does the copying.
    type Copy: Future<Output = End> + Send + Unpin + 'static;

    /// Starts copying between `app` and this.
    fn copy(self, app: TcpStream, meter: Arc<Meter>) -> Self::Copy;
}

impl Far for TunnelStream {
    type Copy = TunnelCopy;

    fn copy(self, app: TcpStream, meter: Arc<Meter>) -> TunnelCopy {
        TunnelCopy::new(app, self, meter)
    }
}

impl Far for TcpStream {
    type Copy = PlainCopy;

    fn copy(self, app: TcpStream, meter: Arc<Meter>) -> PlainCopy {
        PlainCopy::new(app, self, meter)
    }
}

/// Bytes handed over so far, kept up to date while copying. One writer, any number of readers.
#[derive(Debug, Default)]
pub struct Meter {
    from_app: AtomicU64,
    to_app: AtomicU64,
}

impl Meter {
    /// Bytes that the application sent and the other side took.
    pub fn from_app(&self) -> u64 {
        self.from_app.load(Ordering::Relaxed)
    }

    /// Bytes that the other side sent and the application's socket took.
    pub fn to_app(&self) -> u64 {
        self.to_app.load(Ordering::Relaxed)
    }

    fn add_from_app(&self, bytes: usize) {
        add(&self.from_app, bytes);
    }

    fn add_to_app(&self, bytes: usize) {
        add(&self.to_app, bytes);
    }
}

/// Without a locked instruction: only the future that owns the connection writes.
fn add(counter: &AtomicU64, bytes: usize) {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
}

/// One end of what is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The application's socket.
    App,
    /// The tunnel or connection behind it.
    Far,
}

/// How copying ended.
#[derive(Debug)]
pub enum End {
    /// Both sides said all they had to say.
    Complete,
    /// A side went away without saying goodbye: daily life, no failure (protocols 4.7).
    Left(Side),
    /// A side failed.
    Failed(Side, io::Error),
}

impl End {
    fn of(side: Side, error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        let left = [BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof];
        if left.contains(&error.kind()) { Self::Left(side) } else { Self::Failed(side, error) }
    }

    /// Whether `side` is the reason.
    fn is_of(&self, side: Side) -> bool {
        match self {
            Self::Complete => false,
            Self::Left(who) | Self::Failed(who, _) => *who == side,
        }
    }

    /// What two directions amount to: the worse of both.
    fn worse(self, other: Self) -> Self {
        match (&self, &other) {
            (Self::Failed(..), _) | (Self::Left(_), Self::Complete | Self::Left(_)) => self,
            (Self::Complete, _) | (Self::Left(_), Self::Failed(..)) => other,
        }
    }
}

/// What one connection moves in one direction before others get their turn on this thread. At 2 GB/s a
/// quarter of a millisecond.
const TURN: usize = 512 * 1024;

#[cfg(test)]
mod tests;
