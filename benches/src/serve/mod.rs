//! The application's end: one thread that answers HTTP and takes bytes, cheaply.

pub(crate) mod http2;

use std::{io, net::Ipv4Addr, time::Duration};

use ambit_runtime::task;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Where HTTP is answered: `GET /N` with N bytes.
pub const HTTP: u16 = 8080;
/// Where bytes are taken; at their end their number is returned, as eight bytes.
pub const SINK: u16 = 8081;

/// Where HTTP/2 is answered without TLS: `GET /N` with N bytes, `POST /N` with a message of N bytes, as gRPC does it.
pub const HTTP2: u16 = 8082;

/// The largest answer: what a client may ask for by `GET /N`.
const LARGEST: usize = 16 * 1024 * 1024;
/// What is read at once from a bulk stream.
const GULP: usize = 256 * 1024;
/// Requests fit easily; their senders are ours.
const REQUEST: usize = 4096;

/// Serves until it is killed.
pub fn run() -> anyhow::Result<()> {
    ambit_runtime::rlimit::raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let http = TcpListener::bind((Ipv4Addr::UNSPECIFIED, HTTP)).await?;
        let sink = TcpListener::bind((Ipv4Addr::UNSPECIFIED, SINK)).await?;
        let http2 = TcpListener::bind((Ipv4Addr::UNSPECIFIED, HTTP2)).await?;
        crate::report::line(&serde_json::json!({ "serving": [HTTP, SINK, HTTP2] }));
        task::spawn("HTTP/2", async move { accept(http2, http2::answer).await });
        task::spawn("sinks", async move {
            accept(sink, |stream| async { drain(stream).await }).await;
        });
        accept(http, |stream| async { answer(stream).await }).await;
        Ok(())
    })
}

/// The answer of `size` bytes.
pub fn response(size: usize) -> Vec<u8> {
    let mut response =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\r\n").into_bytes();
    response.resize(response.len() + size, b'x');
    response
}

async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let serving = serve(stream);
                // A client that resets is no concern of ours: it counts its failures itself.
                task::spawn("connection", async move { drop(serving.await) });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer: Vec<u8> = Vec::new();
    let mut made = (0, response(0));
    loop {
        let mut chunk = [0; REQUEST];
        let count = stream.read(&mut chunk).await?;
        if count == 0 {
            return Ok(());
        }
        buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
        while let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default());
            let size = asked(head.split(' ').nth(1).unwrap_or_default());
            if made.0 != size {
                made = (size, response(size));
            }
            stream.write_all(&made.1).await?;
            buffer.drain(..end + 4);
        }
        if buffer.len() > REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if made.1.len() > GULP / 2 {
            made = (0, response(0));
        }
    }
}

/// The N of the path `/WHATEVER/N`.
fn asked(path: &str) -> usize {
    let size = path.rsplit('/').next().and_then(|size| size.parse().ok());
    size.unwrap_or(0).min(LARGEST)
}

async fn drain(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; GULP];
    let mut total = 0_u64;
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        total += u64::try_from(count).unwrap_or(0);
    }
    stream.write_all(&total.to_be_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read_from_the_path() {
        assert_eq!(asked("/1024"), 1024);
        assert_eq!(asked("/r7/1024"), 1024);
        assert_eq!(asked("/"), 0);
        assert_eq!(asked(""), 0);
        assert!(response(1024).ends_with(&[b'x'; 1024]));
    }
}
