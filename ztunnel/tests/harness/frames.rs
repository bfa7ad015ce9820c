//! HTTP/2 by hand, for peers that break its rules.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::SOON;

pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const CONTINUATION: u8 = 9;
pub const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// CONNECT as HPACK literals without indexing.
pub fn connect_frame(stream: u32, authority: &str) -> Vec<u8> {
    let length = u8::try_from(authority.len()).unwrap();
    let head = [b"\x02\x07CONNECT\x01", &[length][..], authority.as_bytes()].concat();
    frame(HEADERS, END_HEADERS, stream, &head)
}

/// A connection on which frames are written as they are.
pub struct RawHttp2<S> {
    io: S,
    greeted: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawHttp2<S> {
    pub fn over(io: S) -> Self {
        Self { io, greeted: false }
    }

    pub async fn send(&mut self, frames: &[Vec<u8>]) {
        self.try_send(frames).await.unwrap();
    }

    pub async fn try_send(&mut self, frames: &[Vec<u8>]) -> io::Result<()> {
        if !std::mem::replace(&mut self.greeted, true) {
            self.io.write_all(PREFACE).await?;
        }
        self.io.write_all(&frames.concat()).await?;
        self.io.flush().await
    }

    /// Kind, flags, stream and payload of the next frame.
    pub async fn next(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.io.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok((head[3], head[4], stream, payload))
    }

    /// The first frame of `stream`: its kind, then its payload.
    pub async fn answer_to(&mut self, stream: u32) -> Vec<u8> {
        let looking = async {
            loop {
                let (kind, _, of, payload) = self.next().await.expect("an answer");
                if of == stream && (kind == HEADERS || kind == RST_STREAM) {
                    return [&[kind], &payload[..]].concat();
                }
            }
        };
        timeout(SOON, looking).await.expect("an answer in time")
    }
}
