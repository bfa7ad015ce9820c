//! The bodies of requests.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{BodyError, Copied, Idle, Kept, Passed, Reader, received::Received};
use crate::io::{BodyUnderWay, Heads};

/// The body of a request, before it is known how often it is sent.
#[derive(Debug)]
pub enum Source {
    /// There is none.
    Empty,
    /// It can be sent once; nothing is left afterwards.
    Once(Option<Streamed>),
    /// It can be sent until it has become too long.
    Again(Kept),
    /// It is here.
    Whole(Bytes),
}

impl Source {
    /// The body of a request; `keep` if it may be repeated.
    pub fn new(streamed: Streamed, keep: bool) -> Self {
        if streamed.is_at_end() {
            return Self::Empty;
        }
        if keep { Self::Again(Kept::new(streamed)) } else { Self::Once(Some(streamed)) }
    }

    /// For one attempt; `None`: it is given away already.
    pub fn outgoing(&mut self) -> Option<Outgoing> {
        match self {
            Self::Empty => Some(Outgoing::Empty),
            Self::Once(body) => body.take().map(Outgoing::Once),
            Self::Again(kept) => kept.can_be_sent().then(|| Outgoing::Again(kept.reader())),
            Self::Whole(whole) => Some(Outgoing::Whole(whole.clone())),
        }
    }

    /// Takes back what was not sent after all.
    pub fn take_back(&mut self, outgoing: Outgoing) {
        if let (Self::Once(body), Outgoing::Once(unsent)) = (self, outgoing) {
            *body = Some(unsent);
        }
    }

    /// What is kept of it, for copies.
    pub fn copy(&self) -> Copied {
        match self {
            Self::Empty | Self::Once(_) | Self::Whole(_) => Copied::nothing(),
            Self::Again(kept) => Copied::of(kept),
        }
    }

    /// Whether there could be another attempt.
    pub fn can_be_sent(&self) -> bool {
        match self {
            Self::Empty | Self::Whole(_) => true,
            Self::Once(body) => body.is_some(),
            Self::Again(kept) => kept.can_be_sent(),
        }
    }
}

/// The body of a request, on its way upstream.
#[derive(Debug)]
pub enum Outgoing {
    /// There is none.
    Empty,
    /// Sent as it comes, once.
    Once(Streamed),
    /// Sent as it comes, and again.
    Again(Reader),
    /// Sent at once.
    Whole(Bytes),
}

/// A body as it comes.
#[derive(Debug)]
pub struct Streamed {
    body: Received,
    idle: Idle,
    passed: Passed,
    _under_way: Option<BodyUnderWay>,
    /// What was read before it was asked for.
    ahead: VecDeque<Frame<Bytes>>,
}

/// The beginning of a body.
#[derive(Clone, Debug, Default)]
pub struct Beginning {
    /// So much of it.
    pub bytes: Bytes,
    /// Whether this is all of it.
    pub is_whole: bool,
}

impl Streamed {
    /// Counts in `passed` what has come, and gives up when nothing comes for `idle`. `heads` hears how long it is read,
    /// where a client speaks HTTP/1.
    pub fn new(body: Incoming, idle: Duration, passed: Passed, heads: Option<&Heads>) -> Self {
        let _under_way = heads.filter(|_| !body.is_end_stream()).map(Heads::body);
        let body = Received::new(body, heads.is_none());
        Self { body, idle: Idle::new(idle), passed, _under_way, ahead: VecDeque::new() }
    }

    /// Reads `most` bytes, or all of it if it is shorter. They are there all the same for whoever reads it.
    pub async fn beginning(&mut self, most: usize) -> Result<Beginning, BodyError> {
        let mut ended = false;
        while !ended && self.bytes_ahead() <= most {
            match poll_fn(|cx| self.poll_come(cx)).await {
                Some(frame) => {
                    let frame = frame?;
                    ended = frame.is_trailers();
                    self.ahead.push_back(frame);
                }
                None => ended = true,
            }
            ended |= self.body.is_end_stream();
        }
        let mut bytes = Vec::with_capacity(most.min(self.bytes_ahead()));
        for piece in self.ahead.iter().filter_map(Frame::data_ref) {
            let room = most.saturating_sub(bytes.len());
            bytes.extend_from_slice(piece.get(..room).unwrap_or(piece));
        }
        Ok(Beginning { bytes: bytes.into(), is_whole: ended && self.bytes_ahead() <= most })
    }

    /// At least so many bytes are to come.
    pub fn least(&self) -> u64 {
        self.size_hint().lower()
    }

    fn bytes_ahead(&self) -> usize {
        self.ahead.iter().filter_map(Frame::data_ref).map(Bytes::len).sum()
    }

    /// Whether there is nothing to come.
    pub fn is_at_end(&self) -> bool {
        self.ahead.is_empty() && self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let ahead = u64::try_from(self.bytes_ahead()).unwrap_or(u64::MAX);
        let rest = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(ahead));
        }
        hint
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.poll_come(cx),
        }
    }

    fn poll_come(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.body.poll_frame(cx) {
            Poll::Ready(frame) => {
                self.idle.moved();
                if let Some(Ok(frame)) = &frame {
                    self.passed.add(frame);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Poll::Pending => self.idle.poll_still(cx).map(|()| Some(Err(BodyError::Still(self.idle.limit)))),
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Once(streamed) => streamed.poll(cx),
            Self::Again(reader) => reader.poll(cx),
            Self::Whole(whole) => {
                let whole = std::mem::take(whole);
                Poll::Ready((!whole.is_empty()).then(|| Ok(Frame::data(whole))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(whole) => whole.is_empty(),
            Self::Once(streamed) => streamed.is_at_end(),
            Self::Again(reader) => reader.is_at_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(whole) => SizeHint::with_exact(u64::try_from(whole.len()).unwrap_or(u64::MAX)),
            Self::Once(streamed) => streamed.size_hint(),
            Self::Again(reader) => reader.size_hint(),
        }
    }
}
