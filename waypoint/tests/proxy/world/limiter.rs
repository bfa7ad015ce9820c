//! A limit service: it tells what it was asked, and does as its temper says.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use ambit_wire::limiter::{Answer, PATH, decode_question, encode_answer};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpListener, task::JoinSet};

/// What a limit service does when it is asked.
#[derive(Clone, Debug)]
pub enum Temper {
    /// It answers.
    Says(Answer),
    /// It answers with these bytes, and gRPC status 0.
    Noise(Vec<u8>),
    /// It answers with another gRPC status.
    Fails(&'static str),
    /// It never answers.
    Hangs,
    /// It resets the stream.
    Resets,
}

/// A domain, and the descriptors.
pub type Question = (String, Vec<Vec<(String, String)>>);

/// A running limit service.
pub struct Limiter {
    temper: Arc<Mutex<Temper>>,
    asked: Arc<Mutex<Vec<Question>>>,
    _task: JoinSet<()>,
}

impl Limiter {
    pub async fn start(address: &str, temper: Temper) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let temper = Arc::new(Mutex::new(temper));
        let asked: Arc<Mutex<Vec<Question>>> = Arc::default();
        let mut task = JoinSet::new();
        let (its_temper, told) = (temper.clone(), asked.clone());
        task.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (temper, told) = (its_temper.clone(), told.clone());
                serving.spawn(async move {
                    let answer = service_fn(move |request| answer(request, temper.clone(), told.clone()));
                    let builder = http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { temper, asked, _task: task }
    }

    pub fn set(&self, temper: Temper) {
        *self.temper.lock().unwrap() = temper;
    }

    /// All that it was asked.
    pub fn asked(&self) -> Vec<Question> {
        self.asked.lock().unwrap().clone()
    }
}

type Frames = futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>;

async fn answer(
    request: Request<Incoming>,
    temper: Arc<Mutex<Temper>>,
    told: Arc<Mutex<Vec<Question>>>,
) -> Result<Response<StreamBody<Frames>>, std::io::Error> {
    assert_eq!(request.uri().path(), PATH);
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["te"], "trailers");
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    told.lock().unwrap().push(decode_question(&body).unwrap());
    let temper = temper.lock().unwrap().clone();
    let (body, status) = match temper {
        Temper::Says(answer) => (encode_answer(&answer), "0"),
        Temper::Noise(bytes) => (bytes.into(), "0"),
        Temper::Fails(status) => (Bytes::new(), status),
        Temper::Hangs => std::future::pending().await,
        Temper::Resets => return Err(std::io::ErrorKind::ConnectionReset.into()),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    let frames = vec![Ok(Frame::data(body)), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}
