//! As much of a kubelet as it takes to reach the pages of pods that nobody runs: a port of such a pod is that port of
//! this machine's loopback.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_wire::cert::authority::{Authority, Serial, Validity};
use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;

/// The first byte of each message says what it belongs to. Of a single port these are the numbers.
const DATA: u8 = 0;
const ERRORS: u8 = 1;
const PROTOCOL: &str = "v4.channel.k8s.io";
const CHUNK: usize = 16 * 1024;
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// A kubelet that runs, and ends with this.
pub struct Kubelet {
    _running: JoinSet<()>,
}

impl Kubelet {
    /// Becomes the kubelet of a node.
    pub async fn start(client: &Client, node: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let acceptor = TlsAcceptor::from(Arc::new(identified()?));
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                // Whoever is forwarded sees what went wrong.
                connections.spawn(async move { forward(acceptor, stream).await.ok() });
            }
        });
        let status = json!({ "status": {
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } }
        } });
        let nodes: Api<Node> = Api::all(client.clone());
        nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(Self { _running: running })
    }
}

/// The API server does not ask who it is.
fn identified() -> anyhow::Result<ServerConfig> {
    let now = SystemTime::now();
    let life = Validity { not_before: now, not_after: now + LIFE };
    let authority = Authority::self_signed(&"kubelet".into(), life, Serial::random()?)?;
    let shown = authority.sign_server(&["127.0.0.1"], life, Serial::random()?)?;
    let chain = CertificateDer::pem_slice_iter(shown.chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(shown.key.to_pem()?.as_bytes())?;
    Ok(ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?)
}

async fn forward(acceptor: TlsAcceptor, stream: TcpStream) -> anyhow::Result<()> {
    let stream = acceptor.accept(stream).await?;
    let mut port = None;
    #[expect(clippy::result_large_err, reason = "the form that the handshake wants")]
    let note = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let mut asked = request.uri().query().unwrap_or_default().split('&');
        port = asked.find_map(|one| one.strip_prefix("port=")?.parse::<u16>().ok());
        response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(PROTOCOL));
        Ok(response)
    };
    let (mut to, mut from) = accept_hdr_async(stream, note).await?.split();
    let port = port.context("no port is asked for")?;
    let [low, high] = port.to_le_bytes();
    for channel in [DATA, ERRORS] {
        to.send(Message::binary(vec![channel, low, high])).await?;
    }
    let (mut reader, mut writer) = TcpStream::connect(("127.0.0.1", port)).await?.into_split();
    let there = async {
        while let Some(message) = from.next().await.transpose()? {
            if let Message::Binary(bytes) = message
                && let Some((&DATA, bytes)) = bytes.split_first()
            {
                writer.write_all(bytes).await?;
            }
        }
        Ok(())
    };
    let back = async {
        loop {
            let mut bytes = Vec::with_capacity(CHUNK);
            bytes.push(DATA);
            if reader.read_buf(&mut bytes).await? == 0 {
                return Ok(to.close().await?);
            }
            to.send(Message::binary(bytes)).await?;
        }
    };
    tokio::select! {
        done = there => done,
        done = back => done,
    }
}
