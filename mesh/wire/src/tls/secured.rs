//! A connection after its handshake: records of ours where the peer speaks TLS 1.3, rustls' otherwise.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use rustls::{CipherSuite, CommonState, HandshakeKind, NamedGroup, ProtocolVersion};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::TlsStream;

/// A byte stream in TLS.
pub enum Secured<S> {
    /// TLS 1.3.
    Ours(TlsStream<S>),
    /// TLS 1.2 was allowed, so that rustls keeps the records.
    Rustls(Box<tokio_rustls::TlsStream<S>>, Box<Session>),
}

/// What a handshake agreed on.
#[derive(Debug)]
pub struct Session {
    /// The certificates that the peer showed, leaf first.
    pub peer: Vec<CertificateDer<'static>>,
    /// The application protocol, by ALPN.
    pub protocol: Option<Vec<u8>>,
    /// The version of TLS.
    pub version: Option<ProtocolVersion>,
    /// The cipher suite.
    pub suite: Option<CipherSuite>,
    /// The key exchange.
    pub group: Option<NamedGroup>,
    /// Whether it was a full handshake.
    pub kind: Option<HandshakeKind>,
}

impl From<&CommonState> for Session {
    fn from(state: &CommonState) -> Self {
        let peer = state.peer_certificates().unwrap_or_default();
        Self {
            peer: peer.iter().map(|one| one.clone().into_owned()).collect(),
            protocol: state.alpn_protocol().map(<[u8]>::to_vec),
            version: state.protocol_version(),
            suite: state.negotiated_cipher_suite().map(|suite| suite.suite()),
            group: state.negotiated_key_exchange_group().map(|group| group.name()),
            kind: state.handshake_kind(),
        }
    }
}

impl<S> Secured<S> {
    /// What the handshake agreed on.
    pub fn session(&self) -> &Session {
        match self {
            Self::Ours(stream) => stream.session(),
            Self::Rustls(_, session) => session,
        }
    }
}

impl<S> From<tokio_rustls::TlsStream<S>> for Secured<S> {
    fn from(stream: tokio_rustls::TlsStream<S>) -> Self {
        let session = Session::from(stream.get_ref().1);
        Self::Rustls(Box::new(stream), Box::new(session))
    }
}

impl<S> fmt::Debug for Secured<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured").field("session", self.session()).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Ours(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Rustls(stream, _) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Ours(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Rustls(stream, _) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Ours(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Rustls(stream, _) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Ours(stream) => stream.is_write_vectored(),
            Self::Rustls(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Ours(stream) => Pin::new(stream).poll_flush(cx),
            Self::Rustls(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Ours(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Rustls(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
