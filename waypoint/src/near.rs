//! The client's side of what is carried: a stream of a tunnel that ends here, or a connection of the pod's ztunnel, which
//! ends the tunnel for us.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use ambit_wire::hbone::TunnelStream;
use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::{io::AsyncWrite as _, net::TcpStream};

/// The most that one write to a tunnel takes: a few frames of it.
const MOST: usize = 64 * 1024;
/// What is read at once of a connection. Whoever moves many bytes reads with the copier, into memory of its own.
const PIECE: usize = 16 * 1024;

/// The client's side.
#[derive(Debug)]
pub enum Near {
    /// A stream of a tunnel.
    Tunnel(TunnelStream),
    /// A connection that was handed over.
    Handed(TcpStream),
}

impl Near {
    /// The next piece; `None` once the client has said all. Whoever drops the future loses nothing.
    pub async fn data(&mut self) -> Option<io::Result<Bytes>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// The same, as a poll.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let tcp = match self {
            Self::Tunnel(stream) => return stream.poll_data(cx),
            Self::Handed(tcp) => tcp,
        };
        loop {
            // Before there is something, no memory is held.
            if let Err(error) = ready!(tcp.poll_read_ready(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
            let mut piece = BytesMut::with_capacity(PIECE);
            match tcp.try_read_buf(&mut piece) {
                Ok(0) => return Poll::Ready(None),
                Ok(_) => return Poll::Ready(Some(Ok(piece.freeze()))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Writes some of `bufs`, at least one byte if there is one.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let stream = match self {
            Self::Tunnel(stream) => stream,
            Self::Handed(tcp) => return Pin::new(tcp).poll_write_vectored(cx, bufs),
        };
        ready!(stream.poll_room(cx))?;
        let whole = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MOST);
        let mut piece = BytesMut::with_capacity(whole);
        for buf in bufs {
            let room = whole - piece.len();
            piece.extend_from_slice(buf.get(..room).unwrap_or(buf));
        }
        stream.send(piece.freeze())?;
        Poll::Ready(Ok(whole))
    }

    /// Says that all has been said.
    pub fn finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tunnel(stream) => Poll::Ready(stream.finish()),
            Self::Handed(tcp) => Pin::new(tcp).poll_shutdown(cx),
        }
    }

    /// Done when all has left: a stream that is dropped sooner takes the rest with it. What the kernel has of a connection
    /// leaves by itself.
    pub fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tunnel(stream) => stream.poll_flushed(cx),
            Self::Handed(_) => Poll::Ready(()),
        }
    }

    /// Ends it so that the client cannot take it for an end of what was to be said.
    pub fn refuse(self) {
        match self {
            Self::Tunnel(mut stream) => stream.reset(h2::Reason::CONNECT_ERROR),
            Self::Handed(tcp) => abort(tcp),
        }
    }
}

impl From<TunnelStream> for Near {
    fn from(stream: TunnelStream) -> Self {
        Self::Tunnel(stream)
    }
}

/// Resets a connection.
pub fn abort(tcp: TcpStream) {
    if let Err(error) = SockRef::from(&tcp).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "A connection is closed instead of reset");
    }
}
