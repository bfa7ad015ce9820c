//! The calling side: one connection, many streams (protocols 4.5).

use std::{
    fmt,
    future::{Future as _, poll_fn},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use ambit_model::address::Target;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
};
use tracing::debug;

use super::{
    Settings,
    keepalive::{Beat, Keepalive},
    stream::{Counted, Load, TunnelStream},
    transport::{self, Transport},
};
use crate::{
    spawn::Spawner,
    tls::{
        handshake::{self, HandshakeError},
        stream::Corked,
    },
};

/// The largest response head we read: a response carries one line of baggage.
const MAX_HEADER_LIST: u32 = 16 * 1024;

/// What is asked of the peer.
#[derive(Clone, Debug)]
pub struct Connect {
    /// Where to go.
    pub authority: Target,
    /// What else the peer is told (see [`super::headers`]).
    pub headers: HeaderMap,
}

/// Why a connection could not be made usable. The bytes below it were already flowing.
#[derive(Debug, thiserror::Error)]
#[error("the peer does not speak HTTP/2 as HBONE does")]
pub struct ConnectError(#[from] h2::Error);

/// Why a tunnel could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    /// TLS did not come about.
    #[error(transparent)]
    Tls(#[from] HandshakeError),
    /// It did, and HTTP/2 in it did not.
    #[error(transparent)]
    Http2(#[from] ConnectError),
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The peer understood and refused; the connection is fine.
    #[error("http status: {}", .0.as_u16())]
    Status(StatusCode),
    /// The peer did nothing with the request: another connection may be tried without harm.
    #[error("the connection closed before the request was looked at")]
    Unprocessed(#[source] Option<h2::Error>),
    /// The stream or connection broke; whether the peer acted on the request is unknown.
    #[error("the connection failed while the request was under way")]
    Broken(#[source] h2::Error),
    /// The authority or a header cannot be put on the wire.
    #[error("{0} cannot be written as the authority of a CONNECT")]
    Unwritable(Target),
}

/// Starts HTTP/2 on `io`, which TLS has already secured; `peer` are the certificates it showed.
///
/// The connection is driven by a task of `spawner` that ends when all handles and streams are gone, when
/// the peer goes silent, after [`Settings::idle_release`] without streams, or by [`Connection::close`].
pub async fn connect<T>(
    io: T,
    peer: Vec<CertificateDer<'static>>,
    settings: &Settings,
    spawner: &Spawner,
) -> Result<Connection, ConnectError>
where
    T: Transport + Send + 'static,
{
    let corked = io.cork();
    let (requests, mut connection) = h2::client::Builder::new()
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.roomy_connection_window())
        .max_frame_size(settings.legal_frame_size())
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_max_send_streams(settings.max_streams.into())
        .max_send_buffer_size(settings.send_buffer)
        .enable_push(false)
        .handshake(io)
        .await?;
    corked.iter().for_each(Corked::engage);
    let shared = Arc::new(Shared { load: Arc::default(), stop: Notify::new(), peer });
    let keepalive = connection
        .ping_pong()
        .map(|pings| Keepalive::new(pings, settings.ping_interval, settings.ping_timeout));
    let idle = Idle { after: settings.idle_release, interval: settings.ping_interval, quiet: Duration::ZERO };
    spawner.spawn("hbone client", drive(connection, corked, keepalive, idle, Arc::clone(&shared)));
    Ok(Connection { requests, shared, limit: settings.max_streams.into() })
}

/// Begins a tunnel in `stream`: TLS as `config` says, in at most `limit`, and HTTP/2 as [`connect`] does.
pub async fn secure<S>(
    stream: S,
    config: Arc<rustls::ClientConfig>,
    limit: Duration,
    settings: &Settings,
    spawner: &Spawner,
) -> Result<Connection, SecureError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (tls, _) = handshake::connect(config, stream, limit).await?;
    let chain = tls.session().peer.clone();
    Ok(connect(tls, chain, settings, spawner).await?)
}

/// A handle on an open connection. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    requests: SendRequest<Bytes>,
    shared: Arc<Shared>,
    limit: usize,
}

/// What the handles and the driver both see.
pub(super) struct Shared {
    load: Arc<Load>,
    stop: Notify,
    peer: Vec<CertificateDer<'static>>,
}

impl Shared {
    pub(super) fn peer(&self) -> &[CertificateDer<'static>] {
        &self.peer
    }

    /// Ends the connection now, with all streams.
    pub(super) fn close(&self) {
        self.load.retire();
        self.stop.notify_one();
    }
}

/// The right to open one stream, which already counts.
#[derive(Debug)]
pub struct Reservation(Counted);

impl Connection {
    /// Opens a stream to `connect.authority`, and gives what the peer said in its 200.
    pub async fn open(&self, connect: Connect) -> Result<(TunnelStream, HeaderMap), OpenError> {
        let counted = self.shared.load.start(usize::MAX >> 1).ok_or(OpenError::Unprocessed(None))?;
        self.open_reserved(Reservation(counted), connect).await
    }

    /// As [`Connection::open`], with a place taken before.
    pub async fn open_reserved(
        &self,
        reservation: Reservation,
        connect: Connect,
    ) -> Result<(TunnelStream, HeaderMap), OpenError> {
        let request = request(connect)?;
        let mut requests = self.requests.clone();
        poll_fn(|cx| requests.poll_ready(cx)).await.map_err(|error| OpenError::Unprocessed(Some(error)))?;
        let (response, send) =
            requests.send_request(request, false).map_err(|error| OpenError::Unprocessed(Some(error)))?;
        // The stream no longer needs a handle; holding one would keep a drained connection open.
        drop(requests);
        let (head, recv) = response.await.map_err(broken)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(OpenError::Status(head.status));
        }
        Ok((TunnelStream::new(send, recv, Some(reservation.0)), head.headers))
    }

    /// Takes a place for one stream; `None` when the connection is full, or takes no more.
    pub fn reserve(&self) -> Option<Reservation> {
        self.shared.load.start(self.limit()).map(Reservation)
    }

    /// How many streams may be open: ours to choose, within what the peer allows.
    pub fn limit(&self) -> usize {
        self.limit.min(self.requests.current_max_send_streams()).min(usize::from(u16::MAX))
    }

    /// How many streams are open.
    pub fn active(&self) -> usize {
        self.shared.load.active()
    }

    /// Whether streams can still be opened. Asks the connection, so that a GOAWAY that came in a quiet
    /// moment is noticed before a request is risked on it.
    pub fn is_open(&mut self) -> bool {
        let ready = self.requests.poll_ready(&mut Context::from_waker(Waker::noop()));
        !self.shared.load.is_retired() && !matches!(ready, Poll::Ready(Err(_)))
    }

    /// The certificates that the peer showed.
    pub fn peer(&self) -> &[CertificateDer<'static>] {
        &self.shared.peer
    }

    /// Ends the connection now, with all streams.
    pub fn close(&self) {
        self.shared.close();
    }

    /// To find it again, as long as it is open.
    pub(super) fn found_by(&self) -> std::sync::Weak<Shared> {
        Arc::downgrade(&self.shared)
    }

    /// Opens no further streams; those that are open go on, and the connection ends with the last.
    pub(super) fn retire(self) -> std::sync::Weak<Shared> {
        self.shared.load.retire();
        Arc::downgrade(&self.shared)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("active", &self.active())
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

fn request(connect: Connect) -> Result<Request<()>, OpenError> {
    let unwritable = || OpenError::Unwritable(connect.authority.clone());
    let authority = Bytes::from(connect.authority.to_string());
    let authority = http::uri::Authority::from_maybe_shared(authority).map_err(|_| unwritable())?;
    let uri = Uri::builder().authority(authority).build().map_err(|_| unwritable())?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    *request.headers_mut() = connect.headers;
    Ok(request)
}

/// A request that failed before any response. REFUSED_STREAM and a graceful GOAWAY promise that the peer
/// has done nothing with it.
fn broken(error: h2::Error) -> OpenError {
    let untouched = error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR));
    if untouched { OpenError::Unprocessed(Some(error)) } else { OpenError::Broken(error) }
}

/// How long a connection has carried nothing, in whole beats: no timer of its own.
struct Idle {
    after: Duration,
    interval: Duration,
    quiet: Duration,
}

impl Idle {
    /// Whether the connection, found carrying nothing or not, has been idle for long enough.
    fn beat(&mut self, active: usize) -> bool {
        self.quiet = if active == 0 { self.quiet + self.interval } else { Duration::ZERO };
        self.quiet >= self.after
    }
}

async fn drive<T>(
    mut connection: h2::client::Connection<T, Bytes>,
    corked: Option<Corked>,
    mut keepalive: Option<Keepalive>,
    mut idle: Idle,
    shared: Arc<Shared>,
) where
    T: Transport + Send + 'static,
{
    let stop = shared.stop.notified();
    tokio::pin!(stop);
    let end = poll_fn(|cx| {
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Stopped);
        }
        // Before the connection, which then writes the PING in the same turn.
        while let Some(Poll::Ready(beat)) = keepalive.as_mut().map(|keepalive| keepalive.poll(cx)) {
            match beat {
                Beat::Lost => return Poll::Ready(End::Silent),
                Beat::Sent if idle.beat(shared.load.active()) && shared.load.retire_if_idle() => {
                    return Poll::Ready(End::Idle);
                }
                Beat::Sent => {}
            }
        }
        let polled = std::pin::Pin::new(&mut connection).poll(cx);
        if let (Poll::Pending, Err(error)) = (&polled, transport::flush(corked.as_ref(), cx)) {
            return Poll::Ready(End::Broken(error));
        }
        polled.map(End::Closed)
    })
    .await;
    shared.load.retire();
    match end {
        End::Closed(Ok(())) => debug!("HBONE connection closed"),
        End::Closed(Err(error)) => debug!(%error, "HBONE connection closed"),
        End::Broken(error) => debug!(%error, "HBONE connection broke"),
        End::Silent => debug!("HBONE peer no longer answers; connection dropped"),
        End::Idle => debug!("Idle HBONE connection released"),
        End::Stopped => debug!("HBONE connection stopped"),
    }
}

enum End {
    Closed(Result<(), h2::Error>),
    Broken(std::io::Error),
    Silent,
    Idle,
    Stopped,
}
