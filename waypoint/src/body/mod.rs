//! Bodies on their way: streamed, counted, given up when they stand still.
//!
//! | of | is | in |
//! |---|---|---|
//! | a request, as it comes; its beginning can be looked at | [`Streamed`] | `outgoing.rs` |
//! | a request, when nobody reads it any more | read for a while | `received.rs` |
//! | a request, before it is known how often it is sent | [`Source`] | |
//! | a request, for one attempt | [`Outgoing`] | |
//! | a request that may be repeated | kept, up to [`KEPT`] | `kept.rs` |
//! | a response | [`Answer`] | `answer.rs` |

mod answer;
mod kept;
mod outgoing;
mod received;

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{Instant, Sleep};

pub use self::{
    answer::{Answer, Ending},
    kept::{Copied, KEPT, Kept, Reader},
    outgoing::{Beginning, Outgoing, Source, Streamed},
};

/// Bytes that have passed.
#[derive(Clone, Debug, Default)]
pub struct Passed(Arc<AtomicU64>);

impl Passed {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.0.fetch_add(u64::try_from(data.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}

/// Something that must not stand still.
#[derive(Debug)]
struct Idle {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    running: bool,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: None, running: false }
    }

    fn moved(&mut self) {
        self.running = false;
    }

    /// Ready when it has stood still for too long.
    fn poll_still(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = Instant::now() + self.limit;
        if !self.running {
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(until),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(until))),
            }
            self.running = true;
        }
        self.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }
}

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Whoever sent it broke off.
    #[error("broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// It stood still for too long.
    #[error("nothing came for {0:?}")]
    Still(Duration),
    /// The time for the whole request is over.
    #[error("not complete in time")]
    TimedOut,
    /// The attempt that it was for was given up.
    #[error("given up")]
    GivenUp,
}

impl From<BodyError> for io::Error {
    fn from(error: BodyError) -> Self {
        Self::other(error)
    }
}
