//! An external authorizer, in Envoy's protocol `ext_authz`: gRPC and HTTP at the same ports. It allows requests that show
//! one header, as the one among Istio's samples does, and says who it is to all others.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::report::{self, Verdict};
use crate::{grpc, serve};

/// The call of gRPC.
const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The header by which the application and the client hear what was decided.
const RESULT: HeaderName = HeaderName::from_static("x-ext-authz-check-result");
/// `google.rpc.Code`.
const PERMISSION_DENIED: i32 = 7;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ports that speak both.
    #[arg(long, value_delimiter = ',', default_value = "9000,8000")]
    port: Vec<u16>,
    #[command(flatten)]
    rule: Rule,
}

/// Whom it lets through.
#[derive(Debug, clap::Args)]
struct Rule {
    /// The header, `name: value`, that a request must show.
    #[arg(long, value_parser = crate::call::header, default_value = "x-ext-authz: allow")]
    allow: (HeaderName, HeaderValue),
    /// The status of all others.
    #[arg(long, default_value = "403")]
    status: StatusCode,
    /// Who denies.
    #[arg(long, env = "POD_NAME", default_value = "nobody")]
    pod: String,
}

pub(crate) async fn run(args: Args) -> io::Result<Verdict> {
    let rule = Arc::new(args.rule);
    let mut servers = JoinSet::new();
    for port in args.port {
        let (listener, rule) = (serve::listen(port).await?, Arc::clone(&rule));
        servers.spawn(serve::serve_with(listener, move |stream| serve(stream, Arc::clone(&rule))));
    }
    report::line(&json!({ "authorizing": rule.pod }));
    report::stopped().await?;
    Ok(Verdict::Good)
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    rule: Arc<Rule>,
) -> io::Result<()> {
    let service = service_fn(move |request| {
        let rule = Arc::clone(&rule);
        async move { Ok::<_, Infallible>(rule.answer(request).await) }
    });
    let connection = auto::Builder::new(TokioExecutor::new());
    connection.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

impl Rule {
    async fn answer(&self, request: Request<Incoming>) -> Response<grpc::Body> {
        let (head, body) = request.into_parts();
        let (name, _) = &self.allow;
        if !grpc::is_call(&head.headers) {
            return self.in_http(head.headers.get(name).map(HeaderValue::as_bytes));
        }
        let check = grpc::message::<CheckRequest>(body).await.filter(|_| head.uri.path() == PATH);
        let answer = check.map(|check| {
            let headers = check.attributes.and_then(|all| all.request?.http).unwrap_or_default().headers;
            self.in_grpc(headers.get(name.as_str()).map(String::as_bytes))
        });
        grpc::answer(answer.as_ref())
    }

    fn allows(&self, shown: Option<&[u8]>) -> bool {
        shown == Some(self.allow.1.as_bytes())
    }

    fn denial(&self, protocol: &str) -> String {
        format!("denied by {}, asked in {protocol}\n", self.pod)
    }

    fn in_http(&self, shown: Option<&[u8]>) -> Response<grpc::Body> {
        let (status, result, body) = if self.allows(shown) {
            (StatusCode::OK, "allowed", String::new())
        } else {
            (self.status, "denied", self.denial("HTTP"))
        };
        let mut response = grpc::response("text/plain", vec![Frame::data(Bytes::from(body))]);
        *response.status_mut() = status;
        response.headers_mut().insert(RESULT, HeaderValue::from_static(result));
        response
    }

    fn in_grpc(&self, shown: Option<&[u8]>) -> CheckResponse {
        let result = |value: &str| {
            let header = HeaderPair { key: RESULT.to_string(), value: value.to_owned() };
            vec![HeaderChange { header: Some(header) }]
        };
        if self.allows(shown) {
            let allowed = Allowed { headers: result("allowed") };
            return CheckResponse { status: Some(Code { code: 0 }), denied: None, allowed: Some(allowed) };
        }
        let denied = Denied {
            status: Some(Code { code: self.status.as_u16().into() }),
            headers: result("denied"),
            body: self.denial("gRPC"),
        };
        CheckResponse { status: Some(Code { code: PERMISSION_DENIED }), denied: Some(denied), allowed: None }
    }
}

// Of `envoy.service.auth.v3` what is needed here: fields that are not named are passed over.

#[derive(Clone, PartialEq, prost::Message)]
struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    attributes: Option<Attributes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Attributes {
    #[prost(message, optional, tag = "4")]
    request: Option<Asked>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Asked {
    #[prost(message, optional, tag = "2")]
    http: Option<HttpRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HttpRequest {
    #[prost(map = "string, string", tag = "3")]
    headers: HashMap<String, String>,
}

/// `denied` and `allowed` are alternatives.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Code>,
    #[prost(message, optional, tag = "2")]
    denied: Option<Denied>,
    #[prost(message, optional, tag = "3")]
    allowed: Option<Allowed>,
}

/// `google.rpc.Status`, and `envoy.type.v3.HttpStatus`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Code {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Denied {
    #[prost(message, optional, tag = "1")]
    status: Option<Code>,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderChange>,
    #[prost(string, tag = "3")]
    body: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Allowed {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderChange>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeaderChange {
    #[prost(message, optional, tag = "1")]
    header: Option<HeaderPair>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeaderPair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};
    use hyper::client::conn::{http1, http2};
    use hyper::header::CONTENT_TYPE;

    use super::*;

    fn rule() -> Arc<Rule> {
        let allow = crate::call::header("x-ext-authz: allow").unwrap();
        Arc::new(Rule { allow, status: StatusCode::UNAUTHORIZED, pod: "judge".to_owned() })
    }

    #[tokio::test]
    async fn in_http_the_header_decides() {
        let (near, far) = tokio::io::duplex(4096);
        let mut tasks = JoinSet::new();
        tasks.spawn(async { drop(serve(far, rule()).await) });
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        tasks.spawn(async { drop(connection.await) });
        for (value, status, result) in [("allow", 200, "allowed"), ("deny", 401, "denied")] {
            let request = Request::get("/check/items").header("host", "web").header("x-ext-authz", value);
            let request = request.body(Full::<Bytes>::default()).unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers()[RESULT], result);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.is_empty(), status == 200);
        }
    }

    #[tokio::test]
    async fn in_grpc_the_header_decides() {
        let (near, far) = tokio::io::duplex(4096);
        let mut tasks = JoinSet::new();
        tasks.spawn(async { drop(serve(far, rule()).await) });
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(near));
        let (mut sender, connection) = handshake.await.unwrap();
        tasks.spawn(async { drop(connection.await) });
        for (value, code) in [("allow", 0), ("deny", PERMISSION_DENIED)] {
            let headers = HashMap::from([("x-ext-authz".to_owned(), value.to_owned())]);
            let asked = Asked { http: Some(HttpRequest { headers }) };
            let check = CheckRequest { attributes: Some(Attributes { request: Some(asked) }) };
            let request = Request::post(format!("http://judge{PATH}")).header(CONTENT_TYPE, grpc::TYPE);
            let request = request.body(Full::new(grpc::encode(&check))).unwrap();
            let response = sender.send_request(request).await.unwrap();
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
            let answer: CheckResponse = grpc::decode(&body.to_bytes()).unwrap();
            assert_eq!(answer.status, Some(Code { code }));
            assert_eq!(answer.allowed.is_some(), code == 0);
            let denied = answer.denied.map(|denied| (denied.status, denied.body));
            let wanted = (Some(Code { code: 401 }), "denied by judge, asked in gRPC\n".to_owned());
            assert_eq!(denied, (code != 0).then_some(wanted));
        }
    }
}
