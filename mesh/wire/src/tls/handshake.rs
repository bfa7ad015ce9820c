//! One handshake, within a time limit, with the protocol that everybody here speaks.

use std::{io, sync::Arc, time::Duration};

use ambit_model::identity::Identity;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{ALPN, rejected::Rejected, secured::Secured, stream, unnamed, verify::peer_identity};

/// How long a handshake between workloads may take. Even a slow one is over in a second; this is
/// what a peer that dawdles can hold.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Serves one handshake. The identity is absent only if no trust domain was demanded.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    stream: S,
    limit: Duration,
) -> Result<(Secured<S>, Option<Identity>), HandshakeError> {
    let handshake = async {
        if config.enable_secret_extraction {
            return stream::accept(config, stream).await.map(Secured::Ours);
        }
        TlsAcceptor::from(config).accept(stream).await.map(TlsStream::from).map(Secured::from)
    };
    identify(within(limit, handshake).await?)
}

/// Makes one handshake.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    stream: S,
    limit: Duration,
) -> Result<(Secured<S>, Option<Identity>), HandshakeError> {
    let handshake = async {
        if config.enable_secret_extraction {
            return stream::connect(config, unnamed(), stream).await.map(Secured::Ours);
        }
        let connector = TlsConnector::from(config);
        connector.connect(unnamed(), stream).await.map(TlsStream::from).map(Secured::from)
    };
    identify(within(limit, handshake).await?)
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer took too long.
    #[error("the TLS handshake was not over within {0:?}")]
    TooSlow(Duration),
    /// We do not accept the peer.
    #[error(transparent)]
    Rejected(Rejected),
    /// The peer speaks TLS, but not HTTP/2 over it.
    #[error("the peer did not agree to speak HTTP/2 (ALPN `h2`)")]
    NotHttp2,
    /// Anything else: the peer does not accept us, does not speak TLS, or went away.
    #[error("the TLS handshake failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Rejected::from_io(&error).map_or(Self::Io(error), Self::Rejected)
    }
}

async fn within<T>(
    limit: Duration,
    handshake: impl Future<Output = io::Result<T>>,
) -> Result<T, HandshakeError> {
    match tokio::time::timeout(limit, handshake).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(HandshakeError::TooSlow(limit)),
    }
}

fn identify<S>(stream: Secured<S>) -> Result<(Secured<S>, Option<Identity>), HandshakeError> {
    let session = stream.session();
    if session.protocol.as_deref() != Some(ALPN) {
        return Err(HandshakeError::NotHttp2);
    }
    let identity = peer_identity(&session.peer);
    Ok((stream, identity))
}
