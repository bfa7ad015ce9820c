//! The HTTP server's answers.
//!
//! | path | answer |
//! |---|---|
//! | `/bytes/N` | N bytes with a length |
//! | `/chunked/N` | N chunks without a length |
//! | `/drip`, `/drip/N` | a line every 100 ms, N times or for ever |
//! | `/status/CODE` | that status |
//! | `/delay/MS` | who answers, so much later |
//! | `/headers` | the request's headers, as JSON |
//! | POST, PUT | the request's body |
//! | anything else | who answers whom, as JSON, and how many requests were answered before |

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpStream;

use crate::serve::Identity;

/// One frame of a large body.
const CHUNK: usize = 64 * 1024;
static FILL: [u8; CHUNK] = [b'x'; CHUNK];
/// Often enough to notice a cut within a second, seldom enough to read.
const DRIP: Duration = Duration::from_millis(100);

type Body = BoxBody<Bytes, hyper::Error>;

/// Serves one connection, kept alive.
pub(crate) async fn serve(stream: TcpStream, identity: Arc<Identity>) -> io::Result<()> {
    let client = stream.peer_addr()?;
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let service = service_fn(move |request| {
        let identity = Arc::clone(&identity);
        async move { Ok::<_, Infallible>(answer(request, &identity, client).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

async fn answer(request: Request<Incoming>, identity: &Identity, client: SocketAddr) -> Response<Body> {
    let who = json!({
        "pod": identity.pod,
        "namespace": identity.namespace,
        "client": client,
        "method": request.method().as_str(),
        "path": request.uri().path(),
        "answered": identity.answered.fetch_add(1, Ordering::Relaxed),
    });
    let path = request.uri().path().to_owned();
    let mut words = path.split('/').skip(1);
    let (what, number) =
        (words.next().unwrap_or_default(), words.next().and_then(|word| word.parse::<u64>().ok()));
    let mut response = match (what, number) {
        _ if [Method::POST, Method::PUT].contains(request.method()) => {
            Response::new(request.into_body().boxed())
        }
        ("bytes", Some(length)) => bytes(length),
        ("chunked", Some(count)) => Response::new(chunks(count, Duration::ZERO)),
        ("drip", count) => Response::new(chunks(count.unwrap_or(u64::MAX), DRIP)),
        ("status", Some(code)) => {
            let mut response = text(who.to_string());
            let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
            *response.status_mut() = code.unwrap_or(StatusCode::BAD_REQUEST);
            response
        }
        ("delay", Some(millis)) => {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            text(who.to_string())
        }
        ("headers", None) => text(headers(&request).to_string()),
        _ => {
            let mut response = text(who.to_string());
            *response.status_mut() = identity.status;
            response
        }
    };
    if let Ok(pod) = HeaderValue::from_str(&identity.pod) {
        response.headers_mut().insert("x-pod", pod);
    }
    response
}

fn headers(request: &Request<Incoming>) -> serde_json::Value {
    let all = request.headers().iter();
    all.map(|(name, value)| (name.as_str().to_owned(), json!(String::from_utf8_lossy(value.as_bytes()))))
        .collect()
}

fn text(text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text + "\n")).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn bytes(length: u64) -> Response<Body> {
    let parts = stream::unfold(length, |left| async move {
        let part = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let rest = left - u64::try_from(part).unwrap_or(left);
        (part > 0).then(|| (Ok(Frame::data(Bytes::from_static(FILL.get(..part).unwrap_or(&FILL)))), rest))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(parts)));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

fn chunks(count: u64, pause: Duration) -> Body {
    let lines = stream::iter(0..count).then(move |number| async move {
        if number > 0 && !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Ok(Frame::data(Bytes::from(format!("{number}\n"))))
    });
    BodyExt::boxed(StreamBody::new(lines))
}
