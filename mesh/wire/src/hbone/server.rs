//! The accepting side: one connection, many CONNECTs (protocols 4.4, 4.5).

use std::{
    fmt,
    future::{Future, poll_fn},
    task::{Context, Poll},
    time::Duration,
};

use ambit_model::address::Target;
use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use tokio::time::timeout;

use super::{
    Settings,
    headers::{self, InvalidAuthority},
    keepalive::{Beat, Keepalive},
    stream::TunnelStream,
    transport::{self, Transport},
};
use crate::tls::stream::Corked;

/// Advertised as SETTINGS_MAX_CONCURRENT_STREAMS.
const MAX_STREAMS: u32 = 200;
/// The largest request head: baggage, and what a gateway in between may add.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// Streams that we reset and still remember, so that their late frames are no protocol errors.
const MAX_REMEMBERED_RESETS: usize = 50;
/// Streams that a peer may open and reset before we have taken them; more is an attack (rapid reset).
const MAX_RESETS_BEFORE_ACCEPT: usize = 20;
/// Streams that we had to reset for a peer's errors, before the connection ends. A peer that does not wait for our
/// SETTINGS makes them without fault: Envoy opens up to 1,024 streams at once, and those beyond [`MAX_STREAMS`] are refused.
const MAX_LOCAL_ERRORS: usize = 1024;
/// For the preface and the first SETTINGS, which a peer sends at once.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the last GOAWAY to leave, when the socket is full or the peer is gone.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// How a connection ended.
#[derive(Debug)]
pub enum Served {
    /// The peer left, or all streams ended after a drain.
    Closed,
    /// The connection was cut by `cut`.
    Cut,
    /// The peer answers no PING.
    Silent,
}

/// Why a connection ended that should not have.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No HTTP/2 preface came in time.
    #[error("the peer sent no HTTP/2 preface within {PREFACE_TIMEOUT:?}")]
    Dawdled,
    /// The peer broke the rules of HTTP/2, or the socket failed.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// The socket failed while something was being written.
    #[error(transparent)]
    Socket(std::io::Error),
}

/// Serves CONNECTs on `io`, which TLS has already secured, until the connection ends.
///
/// Each request is given to `on_connect`, which must not block: it hands the [`Incoming`] to a task. When
/// `drain` completes, the peer is told to open no more streams (GOAWAY) and those that are open finish;
/// when `cut` completes, everything ends at once. Dropping the future ends everything without a word.
pub async fn serve<T>(
    io: T,
    settings: &Settings,
    mut on_connect: impl FnMut(Incoming),
    drain: impl Future<Output = ()>,
    cut: impl Future<Output = ()>,
) -> Result<Served, ServeError>
where
    T: Transport,
{
    let corked = io.cork();
    let handshake = h2::server::Builder::new()
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.roomy_connection_window())
        .max_frame_size(settings.legal_frame_size())
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS)
        .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(MAX_RESETS_BEFORE_ACCEPT)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERRORS))
        .max_send_buffer_size(settings.send_buffer)
        .handshake::<T, Bytes>(io);
    let mut connection = timeout(PREFACE_TIMEOUT, handshake).await.map_err(|_| ServeError::Dawdled)??;
    corked.iter().for_each(Corked::engage);
    let mut keepalive = connection
        .ping_pong()
        .map(|pings| Keepalive::new(pings, settings.ping_interval, settings.ping_timeout));
    tokio::pin!(drain, cut);
    let mut draining = false;
    let end = poll_fn(|cx| {
        if cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(Served::Cut));
        }
        if !draining && drain.as_mut().poll(cx).is_ready() {
            draining = true;
            connection.graceful_shutdown();
        }
        // Before the connection, which then writes the PING in the same turn.
        while let Some(Poll::Ready(beat)) = keepalive.as_mut().map(|keepalive| keepalive.poll(cx)) {
            match beat {
                Beat::Lost => return Poll::Ready(Ok(Served::Silent)),
                Beat::Sent => {}
            }
        }
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => on_connect(Incoming::new(request, respond)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(None) => return Poll::Ready(Ok(Served::Closed)),
                Poll::Pending => break,
            }
        }
        match transport::flush(corked.as_ref(), cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(ServeError::Socket(error))),
        }
    })
    .await?;
    match end {
        Served::Closed => {}
        Served::Cut | Served::Silent => {
            connection.abrupt_shutdown(Reason::NO_ERROR);
            // Best effort: the socket may be full, the peer gone, its network namespace too.
            let _ = timeout(FAREWELL_TIMEOUT, poll_fn(|cx| connection.poll_closed(cx))).await;
        }
    }
    Ok(end)
}

/// One request. Dropping it without an answer resets the stream.
pub struct Incoming {
    /// CONNECT, if the peer is sane.
    pub method: Method,
    /// Where the peer wants to go.
    pub authority: Result<Target, InvalidAuthority>,
    /// What else the peer says (see [`super::headers`]).
    pub headers: HeaderMap,
    recv: RecvStream,
    respond: SendResponse<Bytes>,
}

impl Incoming {
    fn new(request: http::Request<RecvStream>, respond: SendResponse<Bytes>) -> Self {
        let (head, recv) = request.into_parts();
        let authority = match head.uri.authority() {
            Some(authority) => headers::parse_authority(authority.as_str()),
            None => Err(InvalidAuthority),
        };
        Self { method: head.method, authority, headers: head.headers, recv, respond }
    }

    /// Answers 200, with the destination's baggage if there is any, and gives the stream.
    pub fn accept(mut self, baggage: Option<HeaderValue>) -> Result<TunnelStream, h2::Error> {
        let mut response = Response::new(());
        response.headers_mut().extend(baggage.map(|value| (headers::BAGGAGE, value)));
        let send = self.respond.send_response(response, false)?;
        Ok(TunnelStream::new(send, self.recv, None))
    }

    /// Answers with `status` and nothing else.
    pub fn refuse(mut self, status: StatusCode) -> Result<(), h2::Error> {
        let mut response = Response::new(());
        *response.status_mut() = status;
        self.respond.send_response(response, true).map(drop)
    }

    /// Ready when the peer no longer waits for an answer.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.respond.poll_reset(cx).map(drop)
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("method", &self.method)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}
