//! Notices a peer that is gone: one PING at a time, one timer a connection (protocols 4.5).

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// Sends PINGs and waits for their answers.
pub(super) struct Keepalive {
    pings: PingPong,
    /// Counts down to the next PING, or to the end of patience with the last one.
    timer: Pin<Box<Sleep>>,
    sent: Option<Instant>,
    interval: Duration,
    timeout: Duration,
}

/// What happened to a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Another interval has passed and a PING is on its way.
    Sent,
    /// The peer answers no more.
    Lost,
}

impl Keepalive {
    pub(super) fn new(pings: PingPong, interval: Duration, timeout: Duration) -> Self {
        Self { pings, timer: Box::pin(sleep(interval)), sent: None, interval, timeout }
    }

    /// Ready at each beat; pending between them.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        if let Some(sent) = self.sent {
            match self.pings.poll_pong(cx) {
                Poll::Ready(Ok(_)) => {
                    self.sent = None;
                    self.timer.as_mut().reset(sent + self.interval);
                }
                // The connection has ended and says so itself.
                Poll::Ready(Err(_)) => return Poll::Pending,
                Poll::Pending => {
                    ready!(self.timer.as_mut().poll(cx));
                    return Poll::Ready(Beat::Lost);
                }
            }
        }
        ready!(self.timer.as_mut().poll(cx));
        let now = Instant::now();
        if self.pings.send_ping(Ping::opaque()).is_ok() {
            self.sent = Some(now);
            self.timer.as_mut().reset(now + self.timeout);
        } else {
            self.timer.as_mut().reset(now + self.interval);
        }
        Poll::Ready(Beat::Sent)
    }
}
