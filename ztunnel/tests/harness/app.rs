//! Applications in pods, and what their clients do.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::{PodNet, SOON};

/// An application that lives until it is dropped.
pub struct App {
    task: JoinSet<()>,
}

impl App {
    /// Says on each connection who it sees, in one line, and then repeats what it hears.
    pub fn echo(pod: &PodNet, port: u16) -> Self {
        Self::serve(pod.listen(port), |stream, peer| async move {
            let _ = echo(stream, peer).await;
        })
    }

    pub fn serve<F>(
        listener: TcpListener,
        serve: impl Fn(TcpStream, SocketAddr) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                connections.spawn(serve(stream, peer));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { task }
    }

    /// Ends it; nobody listens any more when this returns.
    pub async fn stop(mut self) {
        self.task.shutdown().await;
    }
}

async fn echo(mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    stream.write_all(format!("{peer}\n").as_bytes()).await?;
    let (mut from, mut into) = stream.split();
    tokio::io::copy(&mut from, &mut into).await?;
    into.shutdown().await
}

/// The first line, which [`App::echo`] begins with.
pub async fn greeting(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let byte = timeout(SOON, stream.read_u8()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if byte == b'\n' {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.push(byte);
    }
}

/// Sends a word and hears it again.
pub async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), word: &[u8]) -> io::Result<()> {
    stream.write_all(word).await?;
    stream.flush().await?;
    let mut heard = vec![0; word.len()];
    timeout(SOON, stream.read_exact(&mut heard)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    assert_eq!(heard, word);
    Ok(())
}

/// Waits until nothing more comes, by an end or an error.
pub async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) {
    let mut rest = [0; 1024];
    let drained = async { while stream.read(&mut rest).await.is_ok_and(|length| length > 0) {} };
    timeout(SOON, drained).await.expect("the connection is closed");
}

/// Whether it is still open and carries bytes after so long.
pub async fn stays_open(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), watched: Duration) -> bool {
    let mut byte = [0; 1];
    match timeout(watched, stream.read(&mut byte)).await {
        Ok(_) => false,
        Err(_) => exchange(stream, b"still").await.is_ok(),
    }
}

/// An application's call: connects, is greeted, and exchanges a word.
pub async fn call(from: &PodNet, to: SocketAddr) -> io::Result<(TcpStream, String)> {
    let mut stream = from.connect(to).await?;
    let seen = greeting(&mut stream).await?;
    exchange(&mut stream, b"hello").await?;
    Ok((stream, seen))
}
