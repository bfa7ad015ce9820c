//! The application over HTTP/2, known in advance: plain answers, and those of gRPC.

use std::io;

use ambit_runtime::task;
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Response, header};
use tokio::net::TcpStream;

use super::asked;

/// What clients may send before they are told to go on: more than any request of ours.
const WINDOW: u32 = 1 << 20;

/// Serves one connection to its end.
pub(super) async fn answer(stream: TcpStream) -> io::Result<()> {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).max_concurrent_streams(4096);
    let mut connection = builder.handshake::<_, Bytes>(stream).await.map_err(io::Error::other)?;
    let mut made = (0, Bytes::new());
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.map_err(io::Error::other)?;
        let size = asked(request.uri().path());
        if made.0 != size {
            made = (size, vec![b'x'; size].into());
        }
        let body = made.1.clone();
        // A client that resets a stream is no concern of ours: it counts its failures itself.
        if request.method() == Method::POST {
            task::spawn("call", async move { drop(call(request.into_body(), respond, body).await) });
        } else {
            drop(give(respond, body));
        }
    }
    Ok(())
}

fn head(kind: &'static str) -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn give(mut respond: SendResponse<Bytes>, body: Bytes) -> Result<(), h2::Error> {
    respond.send_response(head("text/plain"), false)?.send_data(body, true)
}

/// As gRPC does it: a message is read, one is sent, and a status behind it.
async fn call(mut asked: RecvStream, mut respond: SendResponse<Bytes>, body: Bytes) -> Result<(), h2::Error> {
    while let Some(piece) = asked.data().await {
        asked.flow_control().release_capacity(piece?.len())?;
    }
    let mut stream = respond.send_response(head("application/grpc"), false)?;
    stream.send_data(message_head(body.len()), false)?;
    stream.send_data(body, false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}

/// What precedes a message of so many bytes: that it is not compressed, and its length (gRPC over HTTP/2).
pub(crate) fn message_head(bytes: usize) -> Bytes {
    let length = u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..]].concat().into()
}
