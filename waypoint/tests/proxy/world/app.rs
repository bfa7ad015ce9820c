//! Applications behind services: they tell what they were asked, and do as the request's path says.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

/// What an application was asked.
#[derive(Clone, Debug)]
pub struct Heard {
    pub method: String,
    pub uri: String,
    pub version: http::Version,
    pub headers: HeaderMap,
    pub body: String,
}

impl Heard {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A running application.
///
/// | path | it |
/// |---|---|
/// | `/status/503` | answers with that status |
/// | `/status/503/2` | the first two times; then with 200 |
/// | `/retry-after/S` | answers with 503, and asks to be left alone for so long |
/// | `/at/IP/503` | answers with that status if it is the one at IP; else says its own address |
/// | `/at/IP/503/S` | the same, and asks to be left alone for so long |
/// | `/slow/MS` | waits before it answers |
/// | `/reset` | closes without an answer |
/// | `/trailers` | has trailers |
/// | `/upgrade` | switches to a protocol that echoes |
/// | anything else | says its own address |
pub struct App {
    heard: Arc<Mutex<Vec<Heard>>>,
    connections: Arc<Mutex<usize>>,
    _task: JoinSet<()>,
}

impl App {
    /// Serves HTTP/1 and HTTP/2 at `address`.
    pub async fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let connections: Arc<Mutex<usize>> = Arc::default();
        let (told, counted) = (heard.clone(), connections.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let served: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                *counted.lock().unwrap() += 1;
                let (told, served) = (told.clone(), served.clone());
                serving.spawn(async move {
                    let answer =
                        service_fn(move |request| answer(request, address, told.clone(), served.clone()));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { heard, connections, _task: task }
    }

    /// All that it was asked.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// What it was asked last.
    pub fn last(&self) -> Heard {
        self.heard().pop().expect("it was asked something")
    }

    /// How many connections it accepted.
    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

type Answer = Result<Response<BoxBody<Bytes, Infallible>>, std::io::Error>;

async fn answer(
    mut request: Request<Incoming>,
    own: SocketAddr,
    told: Arc<Mutex<Vec<Heard>>>,
    served: Arc<Mutex<HashMap<String, u32>>>,
) -> Answer {
    let path = request.uri().path().to_owned();
    let upgrade = (path == "/upgrade").then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    told.lock().unwrap().push(Heard {
        method: head.method.to_string(),
        uri: head.uri.to_string(),
        version: head.version,
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    let times = {
        let mut served = served.lock().unwrap();
        let times = served.entry(path.clone()).or_default();
        *times += 1;
        *times
    };
    let text = |status: StatusCode, text: String| {
        let body = Full::new(Bytes::from(text)).boxed();
        Response::builder().status(status).header("x-app", own.to_string()).body(body).unwrap()
    };
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    Ok(match parts.as_slice() {
        ["status", code] => text(code.parse().unwrap(), String::new()),
        ["status", code, often] if times <= often.parse().unwrap() => {
            text(code.parse().unwrap(), String::new())
        }
        ["retry-after", seconds] => {
            let mut asked = text(StatusCode::SERVICE_UNAVAILABLE, String::new());
            asked.headers_mut().insert("retry-after", seconds.parse().unwrap());
            asked
        }
        ["at", ip, code, rest @ ..] if own.ip().to_string() == *ip => {
            let mut asked = text(code.parse().unwrap(), String::new());
            for seconds in rest {
                asked.headers_mut().insert("retry-after", seconds.parse().unwrap());
            }
            asked
        }
        ["slow", ms] => {
            tokio::time::sleep(Duration::from_millis(ms.parse().unwrap())).await;
            text(StatusCode::OK, own.to_string())
        }
        ["reset"] => return Err(std::io::ErrorKind::ConnectionReset.into()),
        ["trailers"] => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", "17".parse().unwrap());
            let frames = [Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers)];
            let frames = futures_util::stream::iter(frames.map(Ok::<_, Infallible>));
            Response::builder()
                .header("trailer", "x-checksum")
                .body(BodyExt::boxed(StreamBody::new(frames)))
                .unwrap()
        }
        ["upgrade"] => {
            let upgrade = upgrade.expect("asked for before");
            tokio::spawn(
                async move {
                    let mut io = TokioIo::new(upgrade.await.unwrap());
                    let mut buffer = [0; 1024];
                    while let Ok(count @ 1..) = io.read(&mut buffer).await {
                        io.write_all(&buffer[..count]).await.unwrap();
                    }
                    let _ = io.shutdown().await;
                }
                .boxed(),
            );
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "echo")
                .body(Full::default().boxed())
                .unwrap()
        }
        _ => text(StatusCode::OK, own.to_string()),
    })
}

/// Serves one text over HTTP, until what is returned is dropped.
pub async fn serve_text(address: &str, text: String) -> JoinSet<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let length = text.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    task
}
