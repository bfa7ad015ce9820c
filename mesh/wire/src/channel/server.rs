//! The serving side of the control plane: TLS without client certificates, many handshakes at once.

use std::{fmt, io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt as _, future};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::{
    entrance::Entrance,
    stream::{ControlStream, keep_alive},
};
use crate::{
    cert::authority::ServerCredentials,
    tls::{ALPN, Profile},
};

/// The serving side's certificate, which may be replaced while it serves.
pub struct ServerTls {
    profile: Profile,
    config: ArcSwap<ServerConfig>,
}

impl ServerTls {
    /// Shows `credentials` to whoever connects; no client certificate is asked for.
    pub fn new(profile: &Profile, credentials: &ServerCredentials) -> Result<Self, ServerTlsError> {
        let config = ArcSwap::from_pointee(serving(profile, credentials)?);
        Ok(Self { profile: profile.clone(), config })
    }

    /// What is served with now, for servers that are none of gRPC.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Shows `credentials` from now on.
    pub fn replace(&self, credentials: &ServerCredentials) -> Result<(), ServerTlsError> {
        self.config.store(Arc::new(serving(&self.profile, credentials)?));
        Ok(())
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

/// Why credentials cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerTlsError {
    /// No certificate.
    #[error("the server's certificate chain is not PEM")]
    Chain,
    /// No key.
    #[error("the server's key cannot be used: {0}")]
    Key(#[from] boring::error::ErrorStack),
    /// The TLS library does not take it.
    #[error("the server's certificate cannot be used for TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// How many handshakes should be under way on one listener. More callers wait in the accept queue.
pub const HANDSHAKES: usize = 256;

/// How long a client of the control plane may take for its handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// What comes in at `entrance`, ready for `tonic::transport::Server::serve_with_incoming`. Handshakes
/// run beside each other; one that fails or dawdles is dropped and never ends the stream. Without
/// `tls`: plain text, for tests.
pub fn incoming(
    entrance: Entrance,
    tls: Option<Arc<ServerTls>>,
) -> impl Stream<Item = io::Result<ControlStream>> + Send {
    /// Out of descriptors, most likely: give others time to return theirs.
    const PAUSE: Duration = Duration::from_millis(100);
    let accepted = futures_util::stream::unfold(entrance, |entrance| async {
        loop {
            match entrance.accept().await {
                Ok(accepted) => return Some((accepted, entrance)),
                Err(error) => {
                    warn!(%error, "Connection not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    accepted
        .map(move |(tcp, client, place)| {
            let tls = tls.clone();
            async move {
                let _until_its_handshake_is_over = place;
                match tokio::time::timeout(HANDSHAKE_LIMIT, serve_tls(tls, tcp)).await {
                    Ok(Ok(stream)) => Some(Ok(stream)),
                    Ok(Err(error)) => {
                        debug!(client.addr = %client, %error, "TLS handshake failed");
                        None
                    }
                    Err(_) => {
                        debug!(client.addr = %client, "TLS handshake took too long");
                        None
                    }
                }
            }
        })
        .buffer_unordered(HANDSHAKES)
        .filter_map(future::ready)
}

async fn serve_tls(tls: Option<Arc<ServerTls>>, tcp: TcpStream) -> io::Result<ControlStream> {
    keep_alive(&tcp)?;
    match tls {
        None => Ok(ControlStream::Plain(tcp)),
        Some(tls) => {
            let acceptor = TlsAcceptor::from(tls.config.load_full());
            Ok(ControlStream::Tls(Box::new(acceptor.accept(tcp).await?.into())))
        }
    }
}

fn serving(profile: &Profile, credentials: &ServerCredentials) -> Result<ServerConfig, ServerTlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(credentials.chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| ServerTlsError::Chain)?;
    if chain.is_empty() {
        return Err(ServerTlsError::Chain);
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(credentials.key.to_pkcs8()?));
    let key = profile.provider().key_provider.load_private_key(key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(profile.provider()))
        .with_protocol_versions(profile.versions())?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
