//! Whoever ends tunnels that the waypoint opens: tunnels of pods, gateways of networks.

use std::{future::pending, net::SocketAddr, sync::Arc};

use ambit_fixtures::ca::TestCa;
use ambit_model::identity::Identity;
use ambit_wire::{
    cert::Certificate,
    hbone::{self, server::Incoming, stream::TunnelIo},
    tls::verify::peer_identity,
};
use http::HeaderMap;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::SOON;

/// One CONNECT.
#[derive(Debug)]
pub struct Connected {
    pub authority: String,
    pub headers: HeaderMap,
    pub caller: Option<Identity>,
}

/// Ends tunnels at one address, and carries each stream to another.
pub struct TunnelEnd {
    pub certificate: Arc<Certificate>,
    connected: Mutex<mpsc::UnboundedReceiver<Connected>>,
    _task: JoinSet<()>,
}

impl TunnelEnd {
    /// Listens at `at` as `identity`, and carries all to `to`.
    pub async fn start(ca: &TestCa, identity: &Identity, at: &str, to: &str) -> Self {
        let certificate = ca.certificate(identity);
        let acceptor = TlsAcceptor::from(certificate.server_config());
        let listener = TcpListener::bind(at).await.unwrap();
        let to: SocketAddr = to.parse().unwrap();
        let (tell, connected) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut tunnels = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                tunnels.spawn(serve(tcp, acceptor.clone(), to, tell.clone()));
            }
        });
        Self { certificate, connected: Mutex::new(connected), _task: task }
    }

    /// The next CONNECT.
    pub async fn connected(&self) -> Connected {
        let mut connected = self.connected.lock().await;
        timeout(SOON, connected.recv()).await.expect("a CONNECT").expect("the end lives")
    }
}

async fn serve(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    to: SocketAddr,
    tell: mpsc::UnboundedSender<Connected>,
) {
    let Ok(tls) = acceptor.accept(tcp).await else { return };
    let caller = peer_identity(tls.get_ref().1.peer_certificates().unwrap_or_default());
    let mut streams = JoinSet::new();
    let on_connect = |incoming: Incoming| {
        let authority = incoming.authority.as_ref().map(ToString::to_string).unwrap_or_default();
        let headers = incoming.headers.clone();
        let _ = tell.send(Connected { authority, headers, caller: caller.clone() });
        streams.spawn(async move {
            let Ok(mut onward) = TcpStream::connect(to).await else { return };
            let Ok(stream) = incoming.accept(None) else { return };
            let _ = copy_bidirectional(&mut TunnelIo::from(stream), &mut onward).await;
        });
    };
    let settings = hbone::Settings::default();
    let _ = hbone::server::serve(tls, &settings, on_connect, pending(), pending()).await;
}
