//! What HTTP/2 can run over, and how its writes are gathered.

use std::{
    io,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpStream,
};

use super::stream::TunnelIo;
use crate::tls::{
    secured::Secured,
    stream::{Corked, TlsStream},
};

/// A byte stream under HTTP/2.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// The means to make flushing the driver's affair, once a turn, if the stream has them.
    fn cork(&self) -> Option<Corked>;
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for TlsStream<S> {
    fn cork(&self) -> Option<Corked> {
        Some(TlsStream::cork(self))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for Secured<S> {
    fn cork(&self) -> Option<Corked> {
        match self {
            Self::Ours(stream) => Some(stream.cork()),
            Self::Rustls(..) => None,
        }
    }
}

macro_rules! never_corked {
    ($([$($generics:tt)*] $stream:ty),+ $(,)?) => {$(
        impl<$($generics)*> Transport for $stream {
            fn cork(&self) -> Option<Corked> {
                None
            }
        }
    )+};
}

never_corked! {
    [] TcpStream,
    [] DuplexStream,
    [] TunnelIo,
    [S: AsyncRead + AsyncWrite + Unpin] tokio_rustls::client::TlsStream<S>,
    [S: AsyncRead + AsyncWrite + Unpin] tokio_rustls::server::TlsStream<S>,
}

/// Writes what HTTP/2 has gathered in this turn. Pending is no reason to wait: the task is woken when the
/// socket takes more.
pub(super) fn flush(corked: Option<&Corked>, cx: &mut Context<'_>) -> io::Result<()> {
    match corked.map(|corked| corked.poll_flush(cx)) {
        Some(Poll::Ready(flushed)) => flushed,
        Some(Poll::Pending) | None => Ok(()),
    }
}
