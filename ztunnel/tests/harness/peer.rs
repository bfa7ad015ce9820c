//! The other end of an HBONE tunnel, in plain h2 over plain rustls: nothing of our own HBONE is trusted here.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ambit_fixtures::ca::TestCa;
use ambit_model::identity::Identity;
use ambit_wire::tls::{Compliance, Versions, provider};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::SOON;

/// An open tunnel.
pub struct Peer {
    requests: SendRequest<Bytes>,
    driver: JoinSet<Result<(), h2::Error>>,
}

/// An answer that is not 200.
#[derive(Debug)]
pub struct Refused {
    pub status: StatusCode,
    pub headers: HeaderMap,
}

/// Why there is no stream.
#[derive(Debug)]
pub enum NoStream {
    Refused(Refused),
    Broken(h2::Error),
}

impl NoStream {
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refused) => Some(refused.status.as_u16()),
            Self::Broken(_) => None,
        }
    }
}

/// TLS with `config` on a connection to port 15008.
pub async fn secure<S>(stream: S, config: Arc<ClientConfig>) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    let connecting = TlsConnector::from(config).connect(name, stream);
    timeout(SOON, connecting).await.map_err(|_| io::ErrorKind::TimedOut)?
}

impl Peer {
    pub async fn over<S>(stream: S, config: Arc<ClientConfig>) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tls = secure(stream, config).await?;
        let handshake = h2::client::Builder::new().handshake(tls);
        let (requests, connection) = handshake.await.map_err(io::Error::other)?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self { requests, driver })
    }

    /// CONNECT to `authority`.
    pub async fn connect(&self, authority: impl ToString) -> Result<Stream, NoStream> {
        self.connect_with(authority, HeaderMap::new()).await
    }

    pub async fn connect_with(
        &self,
        authority: impl ToString,
        headers: HeaderMap,
    ) -> Result<Stream, NoStream> {
        let uri = Uri::builder().authority(authority.to_string()).build().unwrap();
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        self.ask(request).await
    }

    /// Any request at all.
    pub async fn ask(&self, mut request: Request<()>) -> Result<Stream, NoStream> {
        *request.version_mut() = Version::HTTP_2;
        let asking = async {
            let mut requests = self.requests.clone().ready().await.map_err(NoStream::Broken)?;
            let (response, send) = requests.send_request(request, false).map_err(NoStream::Broken)?;
            let (head, recv) = response.await.map_err(NoStream::Broken)?.into_parts();
            if head.status != StatusCode::OK {
                return Err(NoStream::Refused(Refused { status: head.status, headers: head.headers }));
            }
            Ok(Stream { send, recv, pieces: VecDeque::new(), headers: head.headers })
        };
        timeout(SOON, asking).await.expect("an answer")
    }

    /// How the connection ended.
    pub async fn ended(&mut self) -> Result<(), h2::Error> {
        let ended = timeout(SOON, self.driver.join_next()).await.expect("the tunnel ends");
        ended.unwrap().unwrap()
    }

    pub fn has_ended(&mut self) -> bool {
        self.driver.try_join_next().is_some()
    }
}

/// One stream of a tunnel.
pub struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    pieces: VecDeque<Bytes>,
    /// What came with the 200.
    pub headers: HeaderMap,
}

impl Stream {
    /// The other side of a request that was accepted.
    pub fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv, pieces: VecDeque::new(), headers: HeaderMap::new() }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.pieces.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Some(Ok(piece)) => {
                    let _ = self.recv.flow_control().release_capacity(piece.len());
                    self.pieces.push_back(piece);
                }
            }
        }
        if let Some(piece) = self.pieces.front_mut() {
            let part = piece.split_to(piece.len().min(buffer.remaining()));
            buffer.put_slice(&part);
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(data.len());
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let length = self.send.capacity().min(data.len());
        let piece = Bytes::copy_from_slice(&data[..length]);
        self.send.send_data(piece, false).map_err(io::Error::other)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}

/// A client that takes any server for granted, with a certificate or without.
pub fn lax(
    versions: &[&'static SupportedProtocolVersion],
    shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> ClientConfig {
    lax_by(provider(Compliance::None, Versions::Tls12And13).unwrap(), versions, shown)
}

/// The same, with these algorithms.
pub fn lax_by(
    provider: Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    let mut config = match shown {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A chain and its key, as a client shows them.
pub fn credentials(
    ca: &TestCa,
    identity: &Identity,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let (chain, key) = ca.issue(identity, ambit_fixtures::ca::Life::Hour);
    let key = PrivateKeyDer::from_pem_slice(key.to_pem().unwrap().as_bytes()).unwrap();
    let leaf = chain.split_last().unwrap().1.iter();
    (leaf.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect(), key)
}

/// The credentials of a server that is no workload.
pub fn without_identity_in_it(ca: &TestCa) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let server = ca.server(&["web.example"]);
    let key = PrivateKeyDer::from_pem_slice(server.key.to_pem().unwrap().as_bytes()).unwrap();
    let chain = CertificateDer::pem_slice_iter(server.chain.as_bytes());
    (chain.collect::<Result<_, _>>().unwrap(), key)
}

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
