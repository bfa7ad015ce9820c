//! Bodies on their way: streamed, counted, given up when they stand still; kept where a request may be repeated.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::{
    access::Record,
    io::Heads,
    refusal::Refusal,
    upstream::{endpoints::Underway, pool::Lease},
};

/// How much of a body is kept so that the request can be repeated. What is longer is streamed, and sent once.
pub const KEPT: usize = 64 * 1024;

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
    pub fn new(body: Incoming, keep: bool, idle: Duration, passed: Passed) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        let streamed = Streamed { body, idle: Idle::new(idle), passed };
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
            Self::Empty | Self::Once(_) | Self::Whole(_) => Copied(None),
            Self::Again(kept) => Copied(Some(kept.clone())),
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

/// The body of a copy of a request.
#[derive(Debug)]
pub struct Copied(Option<Kept>);

impl Copied {
    /// All of it; `None` if not all is kept.
    pub fn whole(&self) -> Option<Source> {
        let Some(kept) = &self.0 else { return Some(Source::Empty) };
        let keeping = kept.hold();
        (keeping.complete && !keeping.lost).then(|| Source::Whole(keeping.pieces.concat().into()))
    }
}

/// A body as it comes.
#[derive(Debug)]
pub struct Streamed {
    body: Incoming,
    idle: Idle,
    passed: Passed,
}

impl Streamed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
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
    fn new(rest: Streamed) -> Self {
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

    fn can_be_sent(&self) -> bool {
        !self.hold().lost
    }

    /// A view from the beginning. Views of earlier attempts see nothing more.
    fn reader(&self) -> Reader {
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
        self.complete |= self.rest.body.is_end_stream();
        Ok(frame)
    }
}

impl Reader {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
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
            Self::Once(streamed) => streamed.body.is_end_stream(),
            Self::Again(reader) => {
                let keeping = reader.kept.hold();
                keeping.complete && keeping.trailers.is_none() && reader.at >= keeping.pieces.len()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(whole) => SizeHint::with_exact(u64::try_from(whole.len()).unwrap_or(u64::MAX)),
            Self::Once(streamed) => streamed.body.size_hint(),
            // From its beginning: what is kept, and the rest.
            Self::Again(reader) if reader.at == 0 => {
                let keeping = reader.kept.hold();
                let kept = u64::try_from(keeping.size).unwrap_or(u64::MAX);
                match keeping.rest.body.size_hint().exact() {
                    Some(rest) if !keeping.lost => SizeHint::with_exact(kept.saturating_add(rest)),
                    Some(_) | None => SizeHint::default(),
                }
            }
            Self::Again(_) => SizeHint::default(),
        }
    }
}

/// The body of a response, on its way to the client.
#[derive(Debug)]
pub struct Answer {
    content: Content,
    ending: Option<Box<Ending>>,
}

#[derive(Debug)]
enum Content {
    Text(&'static str),
    Upstream { body: Incoming, idle: Idle, deadline: Option<Pin<Box<Sleep>>> },
}

/// What is to be done when a response is complete, or will never be.
#[derive(Debug)]
pub struct Ending {
    /// The record of the request.
    pub record: Record,
    /// The connection that the response comes from.
    pub lease: Option<Lease>,
    /// Counts at the endpoint.
    pub underway: Option<Underway>,
    /// Who waits for the next head.
    pub heads: Option<Heads>,
    /// What has passed.
    pub passed: Passed,
}

impl Ending {
    fn end(self, outcome: Result<(), &Refusal>) {
        let Self { record, lease, underway, heads, passed } = self;
        drop(underway);
        if outcome.is_ok() {
            lease.into_iter().for_each(Lease::give_back);
        }
        heads.iter().for_each(Heads::awaited);
        record.close(outcome, passed.bytes());
    }

    /// Ends what became a connection of another protocol, on which `sent` bytes went to the client.
    pub fn end_after(self, outcome: Result<(), &Refusal>, sent: u64) {
        self.record.close(outcome, sent);
    }
}

impl Answer {
    /// None, and nothing to be done after it.
    pub fn nothing() -> Self {
        Self { content: Content::Text(""), ending: None }
    }

    /// A text of our own.
    pub fn text(text: &'static str, ending: Ending) -> Self {
        Self { content: Content::Text(text), ending: Some(Box::new(ending)) }
    }

    /// What an endpoint answers, to be complete before `deadline`.
    pub fn upstream(body: Incoming, idle: Duration, deadline: Option<Instant>, ending: Ending) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        let mut answer = Self {
            content: Content::Upstream { body, idle: Idle::new(idle), deadline },
            ending: Some(Box::new(ending)),
        };
        answer.end_if_complete();
        answer
    }

    fn end(&mut self, outcome: Result<(), &Refusal>) {
        if let Some(ending) = self.ending.take() {
            ending.end(outcome);
        }
    }

    /// HTTP reads no further once it knows that all has come.
    fn end_if_complete(&mut self) {
        if let Content::Upstream { body, .. } = &self.content
            && body.is_end_stream()
        {
            self.end(Ok(()));
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.content {
            Content::Text(text) => {
                let text = std::mem::take(text);
                let piece = (!text.is_empty()).then(|| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
                this.end(Ok(()));
                return Poll::Ready(piece);
            }
            Content::Upstream { body, idle, deadline } => {
                if deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
                    Some(Err(BodyError::TimedOut))
                } else {
                    match Pin::new(body).poll_frame(cx) {
                        Poll::Ready(frame) => {
                            idle.moved();
                            frame.map(|frame| frame.map_err(BodyError::from))
                        }
                        Poll::Pending => {
                            ready!(idle.poll_still(cx));
                            Some(Err(BodyError::Still(idle.limit)))
                        }
                    }
                }
            }
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(ending) = &mut this.ending {
                    ending.passed.add(frame);
                    frame.trailers_ref().into_iter().for_each(|trailers| ending.record.trailers(trailers));
                }
                this.end_if_complete();
            }
            Some(Err(error)) => {
                let refusal = match error {
                    BodyError::TimedOut => Refusal::TimedOut(Duration::ZERO),
                    BodyError::Broken(_) | BodyError::Still(_) | BodyError::GivenUp => {
                        Refusal::ResponseBroke(error.to_string())
                    }
                };
                this.end(Err(&refusal));
            }
            None => this.end(Ok(())),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Text(text) => text.is_empty(),
            Content::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Text(text) => SizeHint::with_exact(u64::try_from(text.len()).unwrap_or(u64::MAX)),
            Content::Upstream { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let outcome = match &self.content {
            // An empty text is never asked for.
            Content::Text(_) => Ok(()),
            Content::Upstream { body, .. } if body.is_end_stream() => Ok(()),
            Content::Upstream { .. } => Err(&Refusal::ClientGone),
        };
        if let Some(ending) = self.ending.take() {
            ending.end(outcome);
        }
    }
}

impl From<BodyError> for io::Error {
    fn from(error: BodyError) -> Self {
        Self::other(error)
    }
}
