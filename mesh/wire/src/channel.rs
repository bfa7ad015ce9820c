//! gRPC to and from the control plane, and to collectors: address, roots, token, extra headers; and the serving side.
//!
//! [`ControlPlane`] hands out channels; a channel connects when it is first used and again when it
//! was lost. TLS proves the server only, by name; the client proves itself with a token
//! (protocols 1.1). [`Entrance`], [`ServerTls`] and [`incoming`] are the other end.

mod entrance;
mod server;
mod stream;

use std::{
    error::Error as _,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig,
    client::Resumption,
    pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataKey, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel as Transport, Endpoint},
};
use tracing::{info, warn};

use self::stream::keep_alive;
pub use self::{
    entrance::{Entrance, Place, TurnedAway},
    server::{HANDSHAKES, ServerTls, ServerTlsError, incoming},
    stream::{ClientAddress, ControlStream},
};
use crate::tls::{
    ALPN, Profile,
    file::WatchedFile,
    rejected::Rejected,
    verify::{ControlPlaneServer, Trust},
};

/// How long connecting may take, TLS included (protocols 1.1).
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A ping this often, and the answer within that time, or the connection is dead.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(10);
/// Where Debian, Ubuntu and Alpine keep the system's roots, as one file.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How the control plane is reached.
#[derive(Clone, Debug)]
pub struct ChannelSettings {
    /// `https://host:port`, or `http://host:port` for plain text in tests.
    pub address: String,
    /// Whom the server must chain to.
    pub roots: RootSource,
    /// A name that the server may carry instead of the address's host.
    pub alt_hostname: Option<String>,
    /// What we prove ourselves with.
    pub token: TokenSource,
    /// Sent as `clusterid`, unless it is empty.
    pub cluster_id: String,
    /// Sent with each request: names and values.
    pub headers: Vec<(String, String)>,
}

/// Where roots come from: `XDS_ROOT_CA`, `CA_ROOT_CA`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// A file, read again when it changes.
    File(PathBuf),
    /// The system's.
    System,
    /// The roots themselves.
    Pem(String),
}

impl RootSource {
    /// A path if something is there, `SYSTEM`, or the roots themselves (protocols 1.1).
    pub fn from_setting(value: &str) -> Self {
        if value == "SYSTEM" {
            Self::System
        } else if value.contains("-----BEGIN") && !Path::new(value).exists() {
            Self::Pem(value.to_owned())
        } else {
            // Also when nothing is there: then the error names the path.
            Self::File(value.into())
        }
    }
}

/// Where the token comes from: `AUTH_TOKEN`.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file, read for each request: tokens are replaced before they expire.
    File(PathBuf),
    /// The token itself.
    Literal(String),
    /// We do not prove ourselves.
    None,
}

impl TokenSource {
    /// A path if something is there, or else the token itself (protocols 1.1).
    pub fn from_setting(value: &str) -> Self {
        if Path::new(value).exists() { Self::File(value.into()) } else { Self::Literal(value.to_owned()) }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(secret)"),
            Self::None => f.write_str("None"),
        }
    }
}

/// A gRPC service for generated clients, with credentials added to each request.
pub type Channel = InterceptedService<Transport, Credentials>;

/// The control plane, as a client sees it. Cheap to clone.
#[derive(Clone)]
pub struct ControlPlane(Arc<Plane>);

struct Plane {
    endpoint: Endpoint,
    credentials: Credentials,
    connector: Connector,
    roots: Option<Mutex<RootFile>>,
    channel: ArcSwap<Transport>,
}

struct RootFile {
    file: WatchedFile,
    profile: Profile,
    alternative: Option<ServerName<'static>>,
}

impl ControlPlane {
    /// Checks the settings and reads the roots. Does not connect.
    pub fn new(settings: ChannelSettings, profile: &Profile) -> Result<Self, ChannelError> {
        let uri: Uri = settings.address.parse().map_err(|_| settings.invalid_address())?;
        let scheme = Scheme::of(&uri).ok_or_else(|| settings.invalid_address())?;
        let host = uri.host().ok_or_else(|| settings.invalid_address())?.to_owned();
        let port = uri.port_u16().unwrap_or(scheme.default_port());
        let (tls, roots) = match scheme {
            Scheme::Plain => (None, None),
            Scheme::Tls => {
                let (tls, roots) = settings.tls(profile, &host)?;
                (Some(tls), roots)
            }
        };
        let connector = Connector { host: unbracketed(&host).into(), port, tls };
        let endpoint = Endpoint::from(uri)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_LIMIT)
            .keep_alive_while_idle(true);
        let credentials = Credentials::new(&settings)?;
        let channel = ArcSwap::from_pointee(connector.channel(&endpoint));
        let roots = roots.map(Mutex::new);
        Ok(Self(Arc::new(Plane { endpoint, credentials, connector, roots, channel })))
    }

    /// A channel: the one there is, or a new one if the roots have changed since.
    pub fn channel(&self) -> Channel {
        let plane = &*self.0;
        if plane.roots_changed(SystemTime::now()) {
            plane.channel.store(Arc::new(plane.connector.channel(&plane.endpoint)));
        }
        let transport = Transport::clone(&plane.channel.load());
        InterceptedService::new(transport, plane.credentials.clone())
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane").field("address", self.0.endpoint.uri()).finish_non_exhaustive()
    }
}

impl Plane {
    /// Takes over new roots. Those that cannot be used are reported and left alone.
    fn roots_changed(&self, now: SystemTime) -> bool {
        let (Some(roots), Some(tls)) = (&self.roots, &self.connector.tls) else { return false };
        let mut roots = roots.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(content) = roots.file.changed(now) else { return false };
        let path = roots.file.path();
        let renewed = content
            .map_err(|error| ChannelError::Roots(format!("{}: {error}", path.display())))
            .and_then(|pem| client_config(&roots.profile, &pem, roots.alternative.clone()));
        match renewed {
            Ok(config) => {
                info!(roots.path = %path.display(), "Control plane roots replaced");
                tls.config.store(Arc::new(config));
                true
            }
            Err(error) => {
                warn!(roots.path = %path.display(), %error, "New roots not usable, keeping the old");
                false
            }
        }
    }
}

impl ChannelSettings {
    fn invalid_address(&self) -> ChannelError {
        ChannelError::Address(self.address.clone())
    }

    fn tls(&self, profile: &Profile, host: &str) -> Result<(ConnectorTls, Option<RootFile>), ChannelError> {
        let name = server_name(host)?;
        let alternative = self.alt_hostname.as_deref().map(server_name).transpose()?;
        let unreadable =
            |path: &Path, error: io::Error| ChannelError::Roots(format!("{}: {error}", path.display()));
        let (pem, roots) = match &self.roots {
            RootSource::Pem(pem) => (pem.clone().into_bytes(), None),
            RootSource::System => {
                let path = Path::new(SYSTEM_ROOTS);
                (std::fs::read(path).map_err(|error| unreadable(path, error))?, None)
            }
            RootSource::File(path) => {
                let (file, pem) = WatchedFile::open(path).map_err(|error| unreadable(path, error))?;
                let (profile, alternative) = (profile.clone(), alternative.clone());
                (pem, Some(RootFile { file, profile, alternative }))
            }
        };
        let config = client_config(profile, &pem, alternative)?;
        Ok((ConnectorTls { name, config: Arc::new(ArcSwap::from_pointee(config)) }, roots))
    }
}

/// Why the control plane cannot be called. The daemon must not start.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Not an address.
    #[error("{0:?} is not an address of a control plane; write https://host:port")]
    Address(String),
    /// Not a host.
    #[error("{0:?} is neither a host name nor an IP address")]
    Host(String, #[source] InvalidDnsNameError),
    /// Roots that are not there, or are none.
    #[error("the control plane's roots cannot be used: {0}")]
    Roots(String),
    /// Not a header.
    #[error("{0:?} cannot be sent as a header; use lower case letters, digits and dashes")]
    Header(String),
    /// The TLS library does not take it.
    #[error("TLS to the control plane cannot be configured: {0}")]
    Tls(#[from] rustls::Error),
}

/// Adds to each request who we are. The token file is read for each.
#[derive(Clone, Debug)]
pub struct Credentials {
    token: Arc<TokenSource>,
    fixed: Arc<[(MetadataKey<Ascii>, MetadataValue<Ascii>)]>,
}

impl Credentials {
    fn new(settings: &ChannelSettings) -> Result<Self, ChannelError> {
        let header = |name: &str, value: &str| {
            let invalid = || ChannelError::Header(name.to_owned());
            let key = MetadataKey::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
            Ok((key, value.parse().map_err(|_| invalid())?))
        };
        let cluster = std::iter::once(("clusterid", settings.cluster_id.as_str()));
        let cluster = cluster.filter(|(_, value)| !value.is_empty());
        let extra = settings.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let fixed = cluster
            .chain(extra)
            .map(|(name, value)| header(name, value))
            .collect::<Result<_, ChannelError>>()?;
        Ok(Self { token: Arc::new(settings.token.clone()), fixed })
    }

    fn bearer(&self) -> Result<Option<MetadataValue<Ascii>>, Status> {
        let token = match &*self.token {
            TokenSource::None => return Ok(None),
            TokenSource::Literal(token) => token.clone(),
            TokenSource::File(path) => std::fs::read_to_string(path).map_err(|error| {
                Status::unauthenticated(format!("token file {}: {error}", path.display()))
            })?,
        };
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| Status::unauthenticated("the token holds characters no token has"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = self.bearer()? {
            request.metadata_mut().insert("authorization", bearer);
        }
        for (name, value) in self.fixed.iter() {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        Ok(request)
    }
}

/// Opens the connections that a channel needs.
#[derive(Clone)]
struct Connector {
    host: Arc<str>,
    port: u16,
    tls: Option<ConnectorTls>,
}

#[derive(Clone)]
struct ConnectorTls {
    name: ServerName<'static>,
    config: Arc<ArcSwap<ClientConfig>>,
}

impl Connector {
    fn channel(&self, endpoint: &Endpoint) -> Transport {
        let connector = self.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                match tokio::time::timeout(CONNECT_LIMIT, connector.connect()).await {
                    Ok(outcome) => outcome.map(TokioIo::new),
                    Err(_) => Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no connection within {CONNECT_LIMIT:?}"),
                    )),
                }
            }
        }))
    }

    async fn connect(&self) -> io::Result<ControlStream> {
        let tcp = TcpStream::connect((&*self.host, self.port)).await?;
        keep_alive(&tcp)?;
        match &self.tls {
            None => Ok(ControlStream::Plain(tcp)),
            Some(tls) => {
                let connector = TlsConnector::from(tls.config.load_full());
                let stream = connector.connect(tls.name.clone(), tcp).await.map_err(refine)?;
                Ok(ControlStream::Tls(Box::new(stream.into())))
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Scheme {
    Plain,
    Tls,
}

impl Scheme {
    fn of(uri: &Uri) -> Option<Self> {
        match uri.scheme_str()? {
            "http" => Some(Self::Plain),
            "https" => Some(Self::Tls),
            _ => None,
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Plain => 80,
            Self::Tls => 443,
        }
    }
}

/// What a failed call means, cause by cause: a [`Status`] alone says "transport error".
pub fn explain(status: &Status) -> String {
    let mut words = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.contains(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        cause = error.source();
    }
    words
}

fn client_config(
    profile: &Profile,
    pem: &[u8],
    alternative: Option<ServerName<'static>>,
) -> Result<ClientConfig, ChannelError> {
    let roots: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| ChannelError::Roots(format!("not PEM: {error:?}")))?;
    if roots.is_empty() {
        return Err(ChannelError::Roots("no PEM certificate".to_owned()));
    }
    let trust = Trust::new(profile, &roots).map_err(|error| ChannelError::Roots(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(Arc::clone(profile.provider()))
        .with_protocol_versions(profile.versions())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ControlPlaneServer { trust, alternative }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server_name(host: &str) -> Result<ServerName<'static>, ChannelError> {
    ServerName::try_from(unbracketed(host).to_owned())
        .map_err(|error| ChannelError::Host(host.to_owned(), error))
}

/// A URI writes an IPv6 address in brackets; nobody else does.
fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Says in our words why the server is not accepted.
fn refine(error: io::Error) -> io::Error {
    match Rejected::from_io(&error) {
        Some(rejected) => io::Error::new(error.kind(), rejected),
        None => error,
    }
}
