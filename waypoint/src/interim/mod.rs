//! Interim responses: what an application says before its response (1xx; RFC 9110, 15.2), on its way to a client of
//! HTTP/1.1.
//!
//! hyper hands them over when it reads them, and cannot write them. So they are written below it, by the connection's own
//! I/O, at a [boundary](mod@line) between messages (`docs/decisions/0029-interim-responses.md`).
//!
//! | who | does |
//! |---|---|
//! | the connection to the endpoint | [hears](Hearing::hear) them, in a task of its own |
//! | whoever answers the request | [passes them on](during), after what filters do to them |
//! | the client's connection | [writes](Interim::poll_written) them before whatever HTTP writes next |

mod line;

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, header, response::Parts};

use self::line::Line;
pub use self::line::Moment;
use crate::metrics::{InterimFigures, InterimOutcome};

/// How many are passed on of one request. Who says every 20 seconds that he is still at it has more than 20 minutes.
const MOST: usize = 64;
/// What all of one request may have in their heads, in bytes: as much as its response.
const BYTES: usize = 64 * 1024;

/// The interim responses of a client's connection, of one request after the other.
#[derive(Clone, Debug, Default)]
pub struct Interim {
    state: Arc<Mutex<State>>,
    figures: InterimFigures,
}

#[derive(Debug, Default)]
struct State {
    line: Line,
    /// The request that is being answered has this number; what is said of another comes too late.
    turn: u64,
    heard: VecDeque<(StatusCode, HeaderMap)>,
    /// How many were heard, and how many bytes.
    count: usize,
    bytes: usize,
    /// Whoever answers the request.
    waker: Option<Waker>,
}

/// Hears what is said before the response to one request.
#[derive(Clone, Debug)]
pub struct Hearing {
    of: Interim,
    turn: u64,
}

impl Interim {
    /// None yet. What becomes of them is counted in `figures`.
    pub fn new(figures: InterimFigures) -> Self {
        Self { state: Arc::default(), figures }
    }

    /// A request is about to be sent, whose client takes them.
    pub fn open(&self) -> Hearing {
        let mut state = self.hold();
        state.turn += 1;
        (state.count, state.bytes) = (0, 0);
        state.heard.clear();
        state.line.open();
        Hearing { of: self.clone(), turn: state.turn }
    }

    /// The response itself comes next.
    pub fn close(&self) {
        let mut state = self.hold();
        state.turn += 1;
        state.heard.clear();
        state.waker = None;
        state.line.close();
    }

    /// Writes, by `write`, those whose turn it is at this moment of the connection. Nothing else may be written before this is
    /// ready.
    pub fn poll_written(
        &self,
        moment: Moment,
        mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.hold();
        let late = state.line.at(moment);
        self.figures.ended(InterimOutcome::Late, late);
        while let Some(piece) = state.line.due() {
            let written = ready!(write(piece))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.line.wrote(written);
        }
        state.line.passed(moment);
        Poll::Ready(Ok(()))
    }

    fn hold(&self) -> MutexGuard<'_, State> {
        // Whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hearing {
    /// An endpoint says this. 100 is no news: a body that is asked for is asked for by ourselves.
    pub fn hear(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE {
            return;
        }
        let mut state = self.of.hold();
        let outcome = state.admit(self.turn, size(headers));
        match outcome {
            Ok(()) => {
                state.heard.push_back((status, headers.clone()));
                state.waker.take().into_iter().for_each(Waker::wake);
            }
            Err(outcome) => self.of.figures.ended(outcome, 1),
        }
    }

    /// Passes on what was heard, after `edit`; `cx` is woken when there is more.
    fn pass_on(&self, cx: &mut Context<'_>, edit: &mut impl FnMut(&mut Parts)) {
        let mut state = self.of.hold();
        if state.turn != self.turn {
            return;
        }
        while let Some((status, headers)) = state.heard.pop_front() {
            let (mut head, ()) = Response::new(()).into_parts();
            (head.status, head.headers) = (status, headers);
            edit(&mut head);
            // There is no content, whatever is said of it (RFC 9110, 8.6).
            for of_content in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::TRAILER] {
                head.headers.remove(of_content);
            }
            state.line.add(encode(&head));
            self.of.figures.ended(InterimOutcome::Forwarded, 1);
        }
        state.waker = Some(cx.waker().clone());
    }
}

impl State {
    /// Whether there is room for another of so many bytes in the request of this number.
    fn admit(&mut self, turn: u64, bytes: usize) -> Result<(), InterimOutcome> {
        if turn != self.turn {
            return Err(InterimOutcome::Late);
        }
        let all = self.bytes.saturating_add(bytes);
        if self.count >= MOST || all > BYTES {
            return Err(InterimOutcome::TooMany);
        }
        (self.count, self.bytes) = (self.count + 1, all);
        Ok(())
    }
}

/// Waits for `answered`, and passes on what is heard until then, after `edit`; `None`: nobody listens.
pub async fn during<T>(
    hearing: Option<&Hearing>,
    answered: impl Future<Output = T>,
    mut edit: impl FnMut(&mut Parts),
) -> T {
    let mut answered = pin!(answered);
    poll_fn(|cx| {
        let answered = answered.as_mut().poll(cx);
        // What came before the response was heard before it.
        hearing.into_iter().for_each(|hearing| hearing.pass_on(cx, &mut edit));
        answered
    })
    .await
}

/// What these have in a head, in bytes.
fn size(headers: &HeaderMap) -> usize {
    // A colon, a space and the end of the line.
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// A head as it is written in HTTP/1.1 (RFC 9112, 4). Neither names nor values have ends of lines in them: their types see
/// to that.
fn encode(head: &Parts) -> Bytes {
    let mut line = BytesMut::with_capacity(64 + size(&head.headers));
    line.extend_from_slice(b"HTTP/1.1 ");
    line.extend_from_slice(head.status.as_str().as_bytes());
    line.extend_from_slice(b" ");
    line.extend_from_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
    line.extend_from_slice(b"\r\n");
    for (name, value) in &head.headers {
        line.extend_from_slice(name.as_str().as_bytes());
        line.extend_from_slice(b": ");
        line.extend_from_slice(value.as_bytes());
        line.extend_from_slice(b"\r\n");
    }
    line.extend_from_slice(b"\r\n");
    line.freeze()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn link() -> HeaderMap {
        [(header::LINK, HeaderValue::from_static("</a.css>; rel=preload"))].into_iter().collect()
    }

    /// What the connection writes at a moment.
    fn written(interim: &Interim, moment: Moment) -> String {
        let mut all = Vec::new();
        let done = interim.poll_written(moment, |piece| {
            all.extend_from_slice(piece);
            Poll::Ready(Ok(piece.len()))
        });
        assert!(matches!(done, Poll::Ready(Ok(()))));
        String::from_utf8(all).expect("text")
    }

    fn pass_on(hearing: &Hearing) {
        let mut cx = Context::from_waker(Waker::noop());
        hearing.pass_on(&mut cx, &mut |_| {});
    }

    #[test]
    fn what_is_heard_is_written_once_the_connection_is_between_messages() {
        let interim = Interim::default();
        let hearing = interim.open();
        hearing.hear(StatusCode::EARLY_HINTS, &link());
        hearing.hear(StatusCode::CONTINUE, &HeaderMap::new());
        hearing.hear(StatusCode::from_u16(199).expect("a status"), &HeaderMap::new());
        pass_on(&hearing);
        assert_eq!(
            written(&interim, Moment::Flushed),
            "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 199 \r\n\r\n"
        );
        assert_eq!(written(&interim, Moment::Flushed), "");
    }

    #[test]
    fn what_an_endpoint_says_of_an_earlier_request_is_nobodys() {
        let interim = Interim::default();
        let earlier = interim.open();
        interim.close();
        assert_eq!(written(&interim, Moment::Writes), "");
        let hearing = interim.open();
        earlier.hear(StatusCode::EARLY_HINTS, &link());
        pass_on(&hearing);
        pass_on(&earlier);
        assert_eq!(written(&interim, Moment::Flushed), "");
    }

    #[test]
    fn a_request_has_so_many_of_so_many_bytes_and_the_next_as_many() {
        let table = [(10, MOST), (BYTES / 4, 3), (BYTES, 0)];
        let interim = Interim::default();
        for (length, expected) in table {
            let value = HeaderValue::try_from("x".repeat(length)).expect("a value");
            let headers: HeaderMap = [(header::LINK, value)].into_iter().collect();
            let hearing = interim.open();
            (0..MOST + 8).for_each(|_| hearing.hear(StatusCode::EARLY_HINTS, &headers));
            pass_on(&hearing);
            let all = written(&interim, Moment::Flushed);
            assert_eq!(all.matches("HTTP/1.1 103 Early Hints\r\n").count(), expected, "{length}");
            interim.close();
            assert_eq!(written(&interim, Moment::Writes), "");
        }
    }

    #[test]
    fn whoever_answers_is_woken_by_what_is_heard() {
        struct Counts(std::sync::atomic::AtomicUsize);
        impl std::task::Wake for Counts {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let counts = Arc::new(Counts(0.into()));
        let waker = Waker::from(counts.clone());
        let hearing = Interim::default().open();
        hearing.pass_on(&mut Context::from_waker(&waker), &mut |_| {});
        hearing.hear(StatusCode::EARLY_HINTS, &link());
        hearing.hear(StatusCode::EARLY_HINTS, &link());
        assert_eq!(counts.0.load(std::sync::atomic::Ordering::Relaxed), 1, "it will look for all");
    }
}
