//! External authorizers. They do as the path says of the request that they are asked about:
//!
//! | path | an authorizer |
//! |---|---|
//! | `/deny` | denies with 401, the header `x-why` and a body |
//! | `/change` | allows; `x-user` becomes `ann`, `x-secret` is taken out, the client gets `x-checked` |
//! | `/role/NAME` | allows; `x-role` becomes NAME |
//! | `/hang` | says nothing |
//! | `/reset` | closes without an answer |
//! | `/lie/…` | says what is no answer |
//! | anything else | allows |
//!
//! Neither knows the codec of the waypoint: messages are read and written by their numbers in Envoy's definitions.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What an authorizer was asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    pub method: String,
    pub path: String,
    pub host: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// In gRPC alone.
    pub principal: String,
}

/// A running authorizer.
pub struct Authorizer {
    asked: Asked,
    _task: JoinSet<()>,
}

type Asked = Arc<Mutex<Vec<Question>>>;

impl Authorizer {
    /// One in gRPC.
    pub async fn grpc(address: &str) -> Self {
        Self::serve(address, |stream, asked| async move {
            let answer = service_fn(move |request| grpc(request, asked.clone()));
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
        })
        .await
    }

    /// One in HTTP, below the path `/check`.
    pub async fn http(address: &str) -> Self {
        Self::serve(address, http).await
    }

    async fn serve<F: Future<Output = ()> + Send + 'static>(
        address: &str,
        each: impl Fn(TcpStream, Asked) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let asked = Asked::default();
        let told = asked.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                serving.spawn(each(stream, told.clone()));
            }
        });
        Self { asked, _task: task }
    }

    /// All that it was asked.
    pub fn asked(&self) -> Vec<Question> {
        self.asked.lock().unwrap().clone()
    }

    /// What it was asked last.
    pub fn last(&self) -> Question {
        self.asked().pop().expect("it was asked something")
    }
}

async fn grpc(
    request: Request<Incoming>,
    asked: Asked,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, std::io::Error> {
    assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let question = read(&body[5..]);
    asked.lock().unwrap().push(question.clone());
    let header = |key: &str, value: &str| bytes(1, &[text(1, key), text(2, value)].concat());
    let status = |code| bytes(1, &int(1, code));
    let allows = |changes: &[Vec<u8>]| [status(0), bytes(3, &changes.concat())].concat();
    let parts: Vec<&str> = question.path.split('/').skip(1).collect();
    let (message, code) = match parts.as_slice() {
        ["deny"] => {
            let denied = [bytes(1, &int(1, 401)), bytes(2, &header("x-why", "no")), text(3, "go away")];
            ([status(16), bytes(2, &denied.concat())].concat(), "0")
        }
        ["change"] => (
            allows(&[
                bytes(2, &header("x-user", "ann")),
                text(5, "x-secret"),
                bytes(6, &header("x-checked", "yes")),
                // Nobody's to say.
                bytes(2, &header("content-length", "9")),
                bytes(6, &header("transfer-encoding", "gzip")),
            ]),
            "0",
        ),
        ["role", role] => (allows(&[bytes(2, &header("x-role", role))]), "0"),
        ["hang"] => std::future::pending().await,
        ["reset"] => return Err(std::io::ErrorKind::ConnectionReset.into()),
        ["lie", "header"] => (allows(&[bytes(2, &header("x-user", "a\r\nx-role: admin"))]), "0"),
        ["lie", "path"] => (allows(&[bytes(2, &header(":path", "/other"))]), "0"),
        ["lie", "status"] => ([status(7), bytes(2, &bytes(1, &int(1, 101)))].concat(), "0"),
        ["lie", "both"] => ([status(0), bytes(2, &text(3, "no"))].concat(), "0"),
        ["lie", "bytes"] => (vec![0xff; 9], "0"),
        ["lie", "nothing"] => (Vec::new(), "0"),
        ["lie", "call"] => (allows(&[]), "14"),
        ["lie", "long"] => ([status(7), bytes(2, &text(3, &"a".repeat(1 << 20)))].concat(), "0"),
        _ => (status(0), "0"),
    };
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = [&[0][..], &length, &message].concat();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    let frames = [Frame::data(Bytes::from(framed)), Frame::trailers(trailers)];
    let frames = futures_util::stream::iter(frames.map(Ok::<_, Infallible>));
    Ok(Response::builder().header("content-type", "application/grpc").body(StreamBody::new(frames)).unwrap())
}

/// One question, one answer, one connection.
async fn http(mut stream: TcpStream, asked: Asked) {
    let mut read = Vec::new();
    let (head, mut body) = loop {
        let Ok(1..) = stream.read_buf(&mut read).await else { return };
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).into_owned();
            break (head, read[end + 4..].to_vec());
        }
    };
    let mut lines = head.lines();
    let mut words = lines.next().unwrap().split(' ');
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while body.len() < length {
        let Ok(1..) = stream.read_buf(&mut body).await else { return };
    }
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let host = headers["host"].clone();
    asked.lock().unwrap().push(Question {
        method,
        path: path.clone(),
        host,
        headers,
        body,
        ..Question::default()
    });
    let path = path.strip_prefix("/check").expect("the prefix");
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n";
    let answer = match parts.as_slice() {
        ["deny"] => {
            "HTTP/1.1 401 No\r\nx-why: no\r\ncontent-length: 7\r\nx-inner: 1\r\n\r\ngo away".to_owned()
        }
        ["change"] => format!(
            "{ok}x-user: ann\r\nx-checked: yes\r\nx-inner: 1\r\nx-envoy-auth-headers-to-remove: x-secret\r\n\r\n"
        ),
        ["role", role] => format!("{ok}x-role: {role}\r\n\r\n"),
        ["hang"] => std::future::pending().await,
        ["reset"] => return,
        ["lie", "interim"] => {
            format!("HTTP/1.1 103 Early Hints\r\nx-user: eve\r\n\r\n{ok}x-user: ann\r\n\r\n")
        }
        ["lie", "switch"] => {
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n".to_owned()
        }
        ["lie", "error"] => "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned(),
        ["lie", "bytes"] => "no HTTP at all\r\n\r\n".to_owned(),
        ["lie", "header"] => "HTTP/1.1 200 OK\r\nx-user : ann\r\ncontent-length: 0\r\n\r\n".to_owned(),
        ["lie", "short"] => "HTTP/1.1 403 No\r\ncontent-length: 9\r\n\r\na".to_owned(),
        ["lie", "long"] => {
            format!("HTTP/1.1 403 No\r\ncontent-length: {}\r\n\r\n{}", 1 << 20, "a".repeat(1 << 20))
        }
        _ => format!("{ok}\r\n"),
    };
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// `CheckRequest`.
fn read(message: &[u8]) -> Question {
    let attributes = field(message, 1);
    let http = field(field(attributes, 4), 2);
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = fields(http).into_iter().filter(|(number, _)| *number == 3);
    let raw = field(http, 12);
    Question {
        principal: words(field(field(attributes, 1), 4)),
        method: words(field(http, 2)),
        path: words(field(http, 4)),
        host: words(field(http, 5)),
        headers: headers.map(|(_, entry)| (words(field(entry, 1)), words(field(entry, 2)))).collect(),
        body: if raw.is_empty() { field(http, 11).to_vec() } else { raw.to_vec() },
    }
}

/// The last field of this number that has a length; empty if there is none.
fn field(message: &[u8], number: u64) -> &[u8] {
    fields(message).into_iter().rev().find(|(of, _)| *of == number).map_or(&[], |(_, bytes)| bytes)
}

fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let length = match key & 7 {
            0 => {
                varint(&mut message);
                continue;
            }
            2 => usize::try_from(varint(&mut message)).unwrap(),
            other => panic!("wire type {other}"),
        };
        let (bytes, rest) = message.split_at(length);
        found.push((key >> 3, bytes));
        message = rest;
    }
    found
}

fn varint(from: &mut &[u8]) -> u64 {
    let mut value = 0;
    for place in 0.. {
        let byte = from[0];
        *from = &from[1..];
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn number(mut value: u64) -> Vec<u8> {
    let mut written = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        written.push(if value == 0 { low } else { low | 0x80 });
        if value == 0 {
            return written;
        }
    }
}

fn int(field: u64, value: u64) -> Vec<u8> {
    [number(field << 3), number(value)].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [number(field << 3 | 2), number(value.len().try_into().unwrap()), value.to_vec()].concat()
}

fn text(field: u64, value: &str) -> Vec<u8> {
    bytes(field, value.as_bytes())
}
