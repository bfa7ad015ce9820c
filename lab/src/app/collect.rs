//! A collector of OpenTelemetry that keeps spans and tells them: OTLP over gRPC, and whoever asks by HTTP gets the last
//! ones as JSON, at the same ports.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::report::{self, Verdict};
use crate::{grpc, serve};

/// The call of gRPC.
const PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// A story has some hundreds.
const MOST: usize = 4096;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ports that speak both.
    #[arg(long, value_delimiter = ',', default_value = "4317,8080")]
    port: Vec<u16>,
}

/// The last spans, the newest at the end.
#[derive(Debug, Default)]
struct Kept(Mutex<VecDeque<Value>>);

pub(crate) async fn run(args: Args) -> io::Result<Verdict> {
    let kept = Arc::new(Kept::default());
    let mut servers = JoinSet::new();
    for port in &args.port {
        let (listener, kept) = (serve::listen(*port).await?, Arc::clone(&kept));
        servers.spawn(serve::serve_with(listener, move |stream| serve(stream, Arc::clone(&kept))));
    }
    report::line(&json!({ "collecting": args.port }));
    report::stopped().await?;
    Ok(Verdict::Good)
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    kept: Arc<Kept>,
) -> io::Result<()> {
    let service = service_fn(move |request| {
        let kept = Arc::clone(&kept);
        async move { Ok::<_, Infallible>(kept.answer(request).await) }
    });
    let connection = auto::Builder::new(TokioExecutor::new());
    connection.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

impl Kept {
    async fn answer(&self, request: Request<Incoming>) -> Response<grpc::Body> {
        let (head, body) = request.into_parts();
        if !grpc::is_call(&head.headers) {
            let told = format!("{}\n", self.told());
            return grpc::response("application/json", vec![Frame::data(Bytes::from(told))]);
        }
        let batch = grpc::message(body).await.filter(|_| head.uri.path() == PATH);
        let taken = batch.map(|batch| {
            self.take(batch);
            ExportTraceServiceResponse::default()
        });
        grpc::answer(taken.as_ref())
    }

    fn take(&self, batch: ExportTraceServiceRequest) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in batch.resource_spans {
            let who = resource.resource.map(|resource| attributes(&resource.attributes)).unwrap_or_default();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.extend(spans.map(|span| told(&span, &who)));
        }
        let excess = kept.len().saturating_sub(MOST);
        kept.drain(..excess);
    }

    fn told(&self) -> Value {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Identifiers as `traceparent` has them; no parent is an empty text.
fn told(span: &Span, resource: &Value) -> Value {
    json!({
        "trace": hex(&span.trace_id),
        "span": hex(&span.span_id),
        "parent": hex(&span.parent_span_id),
        "kind": span.kind().as_str_name().trim_start_matches("SPAN_KIND_").to_lowercase(),
        "name": span.name,
        "attributes": attributes(&span.attributes),
        "resource": resource,
    })
}

fn attributes(all: &[KeyValue]) -> Value {
    let value = |pair: &KeyValue| match pair.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(json!(text)),
        any_value::Value::IntValue(number) => Some(json!(number)),
        any_value::Value::DoubleValue(number) => Some(json!(number)),
        any_value::Value::BoolValue(flag) => Some(json!(flag)),
        // No span of the mesh has others.
        any_value::Value::ArrayValue(_)
        | any_value::Value::KvlistValue(_)
        | any_value::Value::BytesValue(_)
        | any_value::Value::StringValueStrindex(_) => None,
    };
    let pairs = all.iter().map(|pair| (pair.key.clone(), value(pair).unwrap_or_default()));
    Value::Object(pairs.collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};

    use super::*;

    #[test]
    fn the_last_spans_are_told() {
        let kept = Kept::default();
        let batch = |name: &str, spans: usize| {
            let span = Span {
                trace_id: vec![0xab; 16],
                span_id: vec![1; 8],
                name: name.to_owned(),
                kind: 3,
                ..Span::default()
            };
            let scope = ScopeSpans { spans: vec![span; spans], ..ScopeSpans::default() };
            let of_one = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
            ExportTraceServiceRequest { resource_spans: vec![of_one] }
        };
        kept.take(batch("old", MOST));
        kept.take(batch("new", 1));
        let told = kept.told();
        assert_eq!(told.as_array().map(Vec::len), Some(MOST));
        let last = &told[MOST - 1];
        assert_eq!((&last["name"], &last["kind"]), (&json!("new"), &json!("client")));
        assert_eq!((&last["trace"], &last["parent"]), (&json!("ab".repeat(16)), &json!("")));
    }
}
