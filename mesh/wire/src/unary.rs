//! One unary gRPC call of a generated client, over a connection that is the caller's business.

use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Collected};
use tower::Service;

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SendError(pub String);

/// A response, or none, in a while.
pub type Sent<'s> = BoxFuture<'s, Result<Response<Collected<Bytes>>, SendError>>;

/// Sends one request of HTTP/2, and reads all of its response. How long it may be and may take is its business, too.
pub type SendRequest<'s> = dyn Fn(Request<Bytes>) -> Sent<'s> + Send + Sync + 's;

/// Why a call has no answer: the status of gRPC, or what was sent in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the call ended with {code}: {message}")]
pub struct CallError {
    /// The code of gRPC.
    pub code: tonic::Code,
    /// What was said about it, by whoever said it.
    pub message: String,
}

impl From<tonic::Status> for CallError {
    fn from(status: tonic::Status) -> Self {
        Self { code: status.code(), message: status.message().to_owned() }
    }
}

/// What a generated client sends with.
pub(crate) struct Sender<'s>(pub(crate) &'s SendRequest<'s>);

impl<'s> Service<Request<tonic::body::Body>> for Sender<'s> {
    type Response = Response<Collected<Bytes>>;
    type Error = SendError;
    type Future = Sent<'s>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Sent<'s> {
        let send = self.0;
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let message = body.collect().await.map_err(|status| SendError(status.to_string()))?;
            let response = send(Request::from_parts(head, message.to_bytes())).await?;
            // Without a status nobody knows whether the call is over (gRPC over HTTP/2, "Responses"); a generated client takes
            // it for a success.
            let trailers = response.body().trailers();
            let has_status = [Some(response.headers()), trailers].into_iter().flatten().any(says_status);
            if response.status() == StatusCode::OK && !has_status {
                return Err(SendError("answered without a gRPC status".to_owned()));
            }
            Ok(response)
        })
    }
}

fn says_status(headers: &HeaderMap) -> bool {
    headers.contains_key("grpc-status")
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn an_answer_without_a_status_is_none() {
        for (status, in_head, is_heard) in
            [(200, true, true), (200, false, false), (503, false, true), (503, true, true)]
        {
            let send = |_| -> Sent<'_> {
                Box::pin(async move {
                    let body = Full::new(Bytes::from_static(b"\0\0\0\0\0")).collect().await;
                    let mut response = Response::new(body.expect("a body"));
                    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                    if in_head {
                        response.headers_mut().insert("grpc-status", http::HeaderValue::from_static("0"));
                    }
                    Ok(response)
                })
            };
            let answer = Sender(&send).call(Request::new(tonic::body::Body::empty())).await;
            assert_eq!(answer.is_ok(), is_heard, "{status} {in_head}");
        }
    }
}
