//! The bodies of requests that may be sent again, or copied: what came of them is kept, as long as it is not much.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::{BodyError, Source, Streamed};

/// How much of a body is kept so that the request can be repeated. What is longer is streamed, and sent once.
pub const KEPT: usize = 64 * 1024;

/// A body of which a beginning is kept.
#[derive(Clone, Debug)]
pub struct Kept(Arc<Mutex<Keeping>>);

#[derive(Debug)]
struct Keeping {
    rest: Streamed,
    pieces: Vec<Bytes>,
    size: usize,
    trailers: Option<HeaderMap>,
    /// All of it has come.
    complete: bool,
    /// It became too long, or broke: what was given away is gone.
    lost: bool,
    /// The attempt that may read.
    turn: u64,
}

/// One attempt's view of a kept body.
#[derive(Debug)]
pub struct Reader {
    kept: Kept,
    turn: u64,
    at: usize,
    told_trailers: bool,
}

impl Kept {
    pub(super) fn new(rest: Streamed) -> Self {
        let (pieces, size, trailers) = (Vec::new(), 0, None);
        Self(Arc::new(Mutex::new(Keeping {
            rest,
            pieces,
            size,
            trailers,
            complete: false,
            lost: false,
            turn: 0,
        })))
    }

    fn hold(&self) -> MutexGuard<'_, Keeping> {
        // Whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn can_be_sent(&self) -> bool {
        !self.hold().lost
    }

    /// A view from the beginning. Views of earlier attempts see nothing more.
    pub(super) fn reader(&self) -> Reader {
        let mut keeping = self.hold();
        keeping.turn += 1;
        Reader { kept: self.clone(), turn: keeping.turn, at: 0, told_trailers: false }
    }
}

impl Keeping {
    fn take_in(&mut self, frame: Result<Frame<Bytes>, BodyError>) -> Result<Frame<Bytes>, BodyError> {
        let frame = frame.inspect_err(|_| self.lost = true)?;
        if let Some(data) = frame.data_ref() {
            self.size += data.len();
            self.pieces.push(data.clone());
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        if self.size > KEPT {
            self.lost = true;
            self.pieces = Vec::new();
        }
        // Whoever knows a body's length asks no further than that.
        self.complete |= self.rest.is_at_end();
        Ok(frame)
    }
}

impl Reader {
    pub(super) fn is_at_end(&self) -> bool {
        let keeping = self.kept.hold();
        keeping.complete && keeping.trailers.is_none() && self.at >= keeping.pieces.len()
    }

    /// Exact at its beginning, if all of the body's length is known: what is kept, and the rest.
    pub(super) fn size_hint(&self) -> SizeHint {
        if self.at > 0 {
            return SizeHint::default();
        }
        let keeping = self.kept.hold();
        let kept = u64::try_from(keeping.size).unwrap_or(u64::MAX);
        match keeping.rest.size_hint().exact() {
            Some(rest) if !keeping.lost => SizeHint::with_exact(kept.saturating_add(rest)),
            Some(_) | None => SizeHint::default(),
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let kept = self.kept.clone();
        let mut keeping = kept.hold();
        if keeping.turn != self.turn {
            return Poll::Ready(Some(Err(BodyError::GivenUp)));
        }
        if let Some(piece) = keeping.pieces.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if keeping.complete {
            let trailers = keeping.trailers.clone().filter(|_| !self.told_trailers);
            self.told_trailers = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if keeping.lost {
            return keeping.rest.poll(cx);
        }
        match ready!(keeping.rest.poll(cx)) {
            None => {
                keeping.complete = true;
                Poll::Ready(None)
            }
            Some(frame) => {
                let frame = keeping.take_in(frame);
                if frame.as_ref().is_ok_and(Frame::is_trailers) {
                    (keeping.complete, self.told_trailers) = (true, true);
                }
                self.at = keeping.pieces.len();
                Poll::Ready(Some(frame))
            }
        }
    }
}

/// The body of a copy of a request.
#[derive(Debug)]
pub struct Copied(Option<Kept>);

impl Copied {
    /// There is no body to copy.
    pub(super) fn nothing() -> Self {
        Self(None)
    }

    /// What is kept of this.
    pub(super) fn of(kept: &Kept) -> Self {
        Self(Some(kept.clone()))
    }

    /// All of it; `None` if not all is kept.
    pub fn whole(&self) -> Option<Source> {
        let Some(kept) = &self.0 else { return Some(Source::Empty) };
        let keeping = kept.hold();
        (keeping.complete && !keeping.lost).then(|| Source::Whole(keeping.pieces.concat().into()))
    }
}
