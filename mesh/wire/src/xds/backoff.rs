//! When a client that lost its stream tries again. Pure: the end of a stream in, a pause out.

use std::time::Duration;

/// The first pause, and the pause after a routine end.
const START: Duration = Duration::from_millis(10);
/// The longest pause: a control plane that returns is found within it.
const CAP: Duration = Duration::from_secs(15);

/// How an attempt to hold a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server ended the stream with OK, or without any status.
    Complete {
        /// Whether it said anything before.
        served: bool,
    },
    /// The server, or the transport, ended it with a gRPC status.
    Status {
        /// The status.
        code: tonic::Code,
        /// Its message; some of them mean "routine".
        message: String,
    },
    /// The stream could not be opened.
    NotOpened(String),
    /// Something on our side: trust material, a token, a closed channel.
    Local(String),
}

/// Label of `istio_xds_connection_terminations_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The stream could not be opened.
    ConnectionError,
    /// An unexpected status, or a fault of our own.
    Error,
    /// A routine end: the server restarts or sheds load.
    Reconnect,
    /// The server said OK.
    Complete,
}

impl Reason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 4] = [Self::ConnectionError, Self::Error, Self::Reconnect, Self::Complete];

    /// The label's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }
}

/// How patient the client has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(START)
    }
}

/// The pause before the next attempt.
pub fn next_attempt(outcome: &Outcome, backoff: &mut Backoff) -> Duration {
    match reason(outcome) {
        Reason::Complete => {
            *backoff = Backoff::default();
            match outcome {
                // Something that only accepts and hangs up must not keep two processes busy.
                Outcome::Complete { served: false } => START,
                Outcome::Complete { served: true }
                | Outcome::Status { .. }
                | Outcome::NotOpened(_)
                | Outcome::Local(_) => Duration::ZERO,
            }
        }
        Reason::Reconnect => {
            *backoff = Backoff::default();
            START
        }
        Reason::ConnectionError => backoff.double(),
        Reason::Error => match outcome {
            // Nothing was sent, so nobody but us sees this pause. Without it a missing file would
            // keep a core busy.
            Outcome::Local(_) => {
                *backoff = Backoff::default();
                START
            }
            Outcome::Status { .. } | Outcome::Complete { .. } | Outcome::NotOpened(_) => backoff.double(),
        },
    }
}

/// What the metric calls this outcome.
pub fn reason(outcome: &Outcome) -> Reason {
    match outcome {
        Outcome::Complete { .. } => Reason::Complete,
        Outcome::Status { code: tonic::Code::Ok, .. } => Reason::Complete,
        Outcome::Status { code, message } if is_routine(*code, message) => Reason::Reconnect,
        Outcome::Status { .. } | Outcome::Local(_) => Reason::Error,
        Outcome::NotOpened(_) => Reason::ConnectionError,
    }
}

/// Ends that a healthy control plane causes: it restarts, moves its load, or a proxy in between does.
fn is_routine(code: tonic::Code, message: &str) -> bool {
    use tonic::Code::{Cancelled, DeadlineExceeded, Unavailable, Unknown};
    let shutting = || message.contains("transport is closing") || message.contains("received prior goaway");
    matches!(code, Unknown | Cancelled | DeadlineExceeded) || (code == Unavailable && shutting())
}

impl Backoff {
    fn double(&mut self) -> Duration {
        self.0 = (self.0 * 2).min(CAP);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn status(code: Code, message: &str) -> Outcome {
        Outcome::Status { code, message: message.into() }
    }

    #[test]
    fn each_end_has_its_pause_and_its_reason() {
        let ms = Duration::from_millis;
        let table = [
            (Outcome::Complete { served: true }, ms(0), Reason::Complete),
            (Outcome::Complete { served: false }, ms(10), Reason::Complete),
            (status(Code::Unknown, ""), ms(10), Reason::Reconnect),
            (status(Code::Cancelled, ""), ms(10), Reason::Reconnect),
            (status(Code::DeadlineExceeded, ""), ms(10), Reason::Reconnect),
            (status(Code::Unavailable, "the transport is closing"), ms(10), Reason::Reconnect),
            (status(Code::Unavailable, "received prior goaway: x"), ms(10), Reason::Reconnect),
            (status(Code::Unavailable, "no"), ms(160), Reason::Error),
            (status(Code::Internal, ""), ms(160), Reason::Error),
            (status(Code::Unauthenticated, ""), ms(160), Reason::Error),
            (Outcome::NotOpened("refused".into()), ms(160), Reason::ConnectionError),
            (Outcome::Local("no root".into()), ms(10), Reason::Error),
        ];
        for (outcome, pause, why) in table {
            let mut backoff = Backoff(ms(80));
            assert_eq!(next_attempt(&outcome, &mut backoff), pause, "{outcome:?}");
            assert_eq!(reason(&outcome), why, "{outcome:?}");
            let patient = matches!(pause.as_millis(), 160);
            assert_eq!(backoff, if patient { Backoff(ms(160)) } else { Backoff::default() }, "{outcome:?}");
        }
    }

    #[test]
    fn failures_double_the_pause_up_to_fifteen_seconds() {
        let mut backoff = Backoff::default();
        let refused = Outcome::NotOpened("refused".into());
        let pauses: Vec<_> = (0..13).map(|_| next_attempt(&refused, &mut backoff).as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 15_000, 15_000, 15_000]);
    }
}
