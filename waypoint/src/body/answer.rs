//! The bodies of responses, and what is to be done when one is complete, or will never be.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{BodyError, Idle, Passed};
use crate::{
    access::Record,
    io::Heads,
    refusal::Refusal,
    upstream::{endpoints::Underway, pool::Lease},
};

/// The body of a response, on its way to the client.
#[derive(Debug)]
pub struct Answer {
    content: Content,
    ending: Option<Box<Ending>>,
}

#[derive(Debug)]
enum Content {
    /// All of it.
    Whole(Bytes),
    Upstream {
        body: Incoming,
        idle: Idle,
        deadline: Option<Pin<Box<Sleep>>>,
    },
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
        Self { content: Content::Whole(Bytes::new()), ending: None }
    }

    /// What is known here.
    pub fn whole(whole: impl Into<Bytes>, ending: Ending) -> Self {
        Self { content: Content::Whole(whole.into()), ending: Some(Box::new(ending)) }
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
            Content::Whole(whole) => {
                let whole = std::mem::take(whole);
                let piece = (!whole.is_empty()).then(|| Ok(Frame::data(whole)));
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
            Content::Whole(whole) => whole.is_empty(),
            Content::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(whole) => SizeHint::with_exact(u64::try_from(whole.len()).unwrap_or(u64::MAX)),
            Content::Upstream { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let outcome = match &self.content {
            // An empty one is never asked for.
            Content::Whole(_) => Ok(()),
            Content::Upstream { body, .. } if body.is_end_stream() => Ok(()),
            Content::Upstream { .. } => Err(&Refusal::ClientGone),
        };
        if let Some(ending) = self.ending.take() {
            ending.end(outcome);
        }
    }
}
