//! Fetches what is published at an address: keys of identity providers.

use std::{sync::Arc, time::Duration};

use ambit_runtime::task;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{client::conn::http1, rt};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::jwt::InvalidKeys;

/// How long one fetch may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How large what is fetched may be.
const LARGEST: usize = 1024 * 1024;
/// Where Debian, Ubuntu and Alpine keep the system's roots, as one file.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Fetches over HTTP, and over TLS with the roots of the system.
#[derive(Debug)]
pub struct Fetch {
    tls: Option<Arc<ClientConfig>>,
}

impl Fetch {
    /// With the roots of the system; without them nothing is fetched over TLS.
    pub fn with_system_roots() -> Self {
        let tls = std::fs::read(SYSTEM_ROOTS).ok().and_then(|pem| client_config(&pem));
        if tls.is_none() {
            tracing::debug!(
                path = SYSTEM_ROOTS,
                "No roots of the system; keys at https addresses cannot be fetched"
            );
        }
        Self { tls }
    }

    /// The text at `url`.
    pub async fn get(&self, url: &str) -> Result<String, InvalidKeys> {
        let failed = |reason: String| InvalidKeys(format!("{url}: {reason}"));
        match timeout(LIMIT, self.fetch(url)).await {
            Ok(fetched) => fetched.map_err(failed),
            Err(_) => Err(failed(format!("no answer within {LIMIT:?}"))),
        }
    }

    async fn fetch(&self, url: &str) -> Result<String, String> {
        let uri: Uri = url.parse().map_err(|_| "is no address".to_owned())?;
        let host = uri.host().ok_or("has no host")?.to_owned();
        let port = |usual| uri.port_u16().unwrap_or(usual);
        match uri.scheme_str() {
            Some("http") => {
                let tcp =
                    TcpStream::connect((host.as_str(), port(80))).await.map_err(|error| error.to_string())?;
                ask(TokioIo::new(tcp), &uri).await
            }
            Some("https") => {
                let tls = self.tls.clone().ok_or_else(|| format!("{SYSTEM_ROOTS} has no roots to trust"))?;
                let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
                let tcp = TcpStream::connect((host.as_str(), port(443)))
                    .await
                    .map_err(|error| error.to_string())?;
                let stream =
                    TlsConnector::from(tls).connect(name, tcp).await.map_err(|error| error.to_string())?;
                ask(TokioIo::new(stream), &uri).await
            }
            Some(_) | None => Err("is neither http nor https".to_owned()),
        }
    }
}

async fn ask<T>(io: T, uri: &Uri) -> Result<String, String>
where
    T: rt::Read + rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(io).await.map_err(|error| error.to_string())?;
    task::spawn("keys connection", async move {
        // Its end is the end of the answer, too.
        let _ = connection.await;
    });
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let request = Request::get(target).header(header::HOST, host).header(header::ACCEPT, "application/json");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    if response.status() != StatusCode::OK {
        return Err(format!("answered {}", response.status()));
    }
    let body =
        Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
    String::from_utf8(body.to_bytes().into()).map_err(|_| "is no text".to_owned())
}

fn client_config(pem: &[u8]) -> Option<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    let provider =
        ambit_wire::tls::provider(ambit_wire::tls::Compliance::None, ambit_wire::tls::Versions::Tls12And13)
            .ok()?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    (!roots.is_empty()).then(|| Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
