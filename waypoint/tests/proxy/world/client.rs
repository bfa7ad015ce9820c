//! Clients: a tunnel to the waypoint, and what is spoken in it.

use std::{net::SocketAddr, sync::Arc};

use ambit_model::{address::Target, identity::Identity};
use ambit_wire::{
    cert::Certificate,
    hbone::{self, Connect, Connection, OpenError, stream::TunnelIo},
    spawn::Spawner,
    tls::handshake,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    runtime::Handle,
    time::timeout,
};

use super::{SOON, WAYPOINT};

/// A tunnel to the waypoint.
pub struct Tunnel {
    connection: Connection,
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Told {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: HeaderMap,
}

impl Told {
    pub async fn read<B>(response: Response<B>) -> Self
    where
        B: hyper::body::Body<Data = Bytes>,
        B::Error: std::fmt::Debug,
    {
        let (head, body) = response.into_parts();
        let body = timeout(SOON, body.collect()).await.expect("the body ends").expect("a whole body");
        let trailers = body.trailers().cloned().unwrap_or_default();
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Self { status: head.status.as_u16(), headers: head.headers, body, trailers }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Tunnel {
    pub async fn open(certificate: Arc<Certificate>, expected: Arc<[Identity]>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let tcp: TcpStream = socket.connect(WAYPOINT.parse().unwrap()).await.unwrap();
        let (tls, _) = handshake::connect(certificate.client_config(expected), tcp, SOON).await.unwrap();
        let runtime = Handle::current();
        let spawner = Spawner::new(move |_, task| drop(runtime.spawn(task)));
        let connection =
            hbone::connect(tls, Vec::new(), &hbone::Settings::default(), &spawner).await.unwrap();
        Self { connection }
    }

    /// CONNECT to an address.
    pub async fn connect(&self, to: &str) -> Result<TunnelIo, OpenError> {
        let authority = Target::Ip(to.parse::<SocketAddr>().unwrap());
        let opened = timeout(SOON, self.connection.open(Connect { authority, headers: HeaderMap::new() }));
        opened.await.expect("an answer").map(|(stream, _)| TunnelIo::from(stream))
    }

    /// HTTP/1.1 with what is at an address.
    pub async fn http1(&self, to: &str) -> http1::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.connect(to).await.unwrap());
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// HTTP/2 with what is at an address.
    pub async fn http2(&self, to: &str) -> http2::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.connect(to).await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// One request over HTTP/1.1, on a connection of its own.
    pub async fn ask(&self, to: &str, request: Request<Full<Bytes>>) -> Told {
        let mut sender = self.http1(to).await;
        let response = timeout(SOON, sender.send_request(request)).await.expect("a response").unwrap();
        Told::read(response).await
    }

    /// `GET path` of a host.
    pub async fn get(&self, to: &str, path: &str) -> Told {
        self.ask(to, get(path)).await
    }

    /// Says these bytes, and hears all until the other side closes.
    pub async fn say(&self, to: &str, bytes: &[u8]) -> String {
        let mut io = self.connect(to).await.unwrap();
        io.write_all(bytes).await.unwrap();
        let mut heard = Vec::new();
        // A reset is an end, too.
        let _ = timeout(SOON, io.read_to_end(&mut heard)).await.expect("the other side closes");
        String::from_utf8_lossy(&heard).into_owned()
    }
}

/// `GET path` of the host `web`.
pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "web").body(Full::default()).unwrap()
}

/// `POST path` of the host `web` with a body.
pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path).header("host", "web").body(Full::new(body.into())).unwrap()
}
