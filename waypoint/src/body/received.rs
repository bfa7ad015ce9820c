//! What a client sends, also when nobody reads it any more.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use ambit_runtime::task;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{runtime::Handle, time::timeout};

/// So much of a body that nobody reads may come: what is under way when a client hears that it was refused.
const REST: usize = 64 * 1024;
/// For so long.
const LINGER: Duration = Duration::from_secs(1);

/// The body of a request.
///
/// That of HTTP/2 is read for a while when it is dropped before its end. Else its stream would be reset, and h2 takes what
/// was under way on streams that it has forgotten for mistakes of the client; too many of them end the connection.
#[derive(Debug)]
pub(super) struct Received {
    /// `None`: it is dropped.
    body: Option<Incoming>,
    lingers: bool,
}

impl Received {
    /// `lingers` for that of HTTP/2.
    pub(super) fn new(body: Incoming, lingers: bool) -> Self {
        Self { body: Some(body), lingers }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| self.lingers && !body.is_end_stream());
        // The process ends where there is no runtime.
        if let (Some(rest), Ok(_)) = (rest, Handle::try_current()) {
            // As many as a client has streams open, whose number is bounded.
            task::spawn("rest of a body", async move {
                // Whoever says more, or takes longer, hears that nobody listens.
                let _ = timeout(LINGER, ignore(rest)).await;
            });
        }
    }
}

async fn ignore(mut rest: Incoming) {
    let mut came = 0;
    while came <= REST {
        let next = std::future::poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await;
        let Some(Ok(frame)) = next else { return };
        came += frame.data_ref().map_or(0, Bytes::len);
    }
}
