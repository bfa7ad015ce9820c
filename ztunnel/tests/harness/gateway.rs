//! Whatever terminates CONNECTs that a tunnel opens: a workload's own HBONE server, a gateway, a waypoint.

use std::{net::SocketAddr, sync::Arc};

use ambit_fixtures::ca::TestCa;
use ambit_model::identity::Identity;
use ambit_wire::cert::Certificate;
use http::{HeaderMap, Response, StatusCode};
use tokio::{
    io::copy_bidirectional,
    net::TcpStream,
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{HBONE, PodNet, SOON, Stream};

/// A CONNECT that came.
#[derive(Debug)]
pub struct Asked {
    pub authority: String,
    pub headers: HeaderMap,
    /// The identity behind it.
    pub caller: Option<Identity>,
}

/// Takes every CONNECT on port 15008 of its pod and carries the bytes to one place.
pub struct Gateway {
    pub certificate: Arc<Certificate>,
    asked: Mutex<mpsc::UnboundedReceiver<Asked>>,
    _task: JoinSet<()>,
}

impl Gateway {
    /// Carries to `to`, seen from the gateway's own pod.
    pub fn start(ca: &TestCa, identity: &Identity, pod: Arc<PodNet>, to: SocketAddr) -> Self {
        let certificate = ca.certificate(identity);
        let acceptor = TlsAcceptor::from(certificate.server_config());
        let listener = pod.listen(HBONE);
        let (tell, asked) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut tunnels = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                tunnels.spawn(serve(tcp, acceptor.clone(), pod.clone(), to, tell.clone()));
            }
        });
        Self { certificate, asked: Mutex::new(asked), _task: task }
    }

    /// The next CONNECT.
    pub async fn asked(&self) -> Asked {
        let mut asked = self.asked.lock().await;
        tokio::time::timeout(SOON, asked.recv()).await.expect("a CONNECT").expect("the gateway lives")
    }
}

async fn serve(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    pod: Arc<PodNet>,
    to: SocketAddr,
    tell: mpsc::UnboundedSender<Asked>,
) {
    let Ok(tls) = acceptor.accept(tcp).await else { return };
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let caller = ambit_wire::tls::verify::peer_identity(chain);
    let Ok(mut connection) = h2::server::handshake(tls).await else { return };
    let mut streams = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, recv) = request.into_parts();
        let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
        let _ = tell.send(Asked { authority, headers: head.headers, caller: caller.clone() });
        let pod = pod.clone();
        streams.spawn(async move {
            let Ok(mut onward) = pod.connect(to).await else {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                let _ = respond.send_response(response, true);
                return;
            };
            let Ok(send) = respond.send_response(Response::new(()), false) else { return };
            let mut stream = Stream::new(send, recv);
            let _ = copy_bidirectional(&mut stream, &mut onward).await;
        });
    }
}
