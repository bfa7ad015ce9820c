//! The DNS proxy of one pod: its sockets, and whom it answers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ambit_runtime::{drain::Watch, task};
use tokio::{
    net::{TcpListener, TcpSocket, UdpSocket},
    runtime::Handle,
};

use super::Pod;
use crate::{
    config::DnsListen,
    dns::{self, Forwarder, ResolvConf, Resolver},
    socket::{self, Reach, Source},
};

/// How names are answered in every pod.
#[derive(Clone, Debug)]
pub struct Names {
    /// Where queries arrive.
    pub listen: DnsListen,
    /// What the mesh answers by itself.
    pub settings: dns::Settings,
    /// Whom it asks about the rest.
    pub nameservers: Arc<ResolvConf>,
    /// How many questions of a pod may be under way.
    pub limit: usize,
}

/// The sockets at which a pod's queries arrive.
#[derive(Debug)]
pub struct Arrivals {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Names {
    /// Opens the sockets; called inside the pod's namespace.
    pub fn listen(&self, pod: &Pod, ipv6: bool) -> io::Result<Vec<Arrivals>> {
        let options = &pod.tunnel.settings.sockets;
        let v6 = ipv6.then_some(IpAddr::from(Ipv6Addr::LOCALHOST));
        let at: Vec<SocketAddr> = match self.listen {
            DnsListen::At(address) => vec![address],
            DnsListen::Localhost(port) => [Some(Ipv4Addr::LOCALHOST.into()), v6]
                .into_iter()
                .flatten()
                .map(|ip| (ip, port).into())
                .collect(),
        };
        let open = |address| {
            let udp = socket::udp(address, options)?;
            Ok(Arrivals { udp, tcp: socket::listen(address, options, false, Reach::Pod)? })
        };
        at.into_iter().map(open).collect()
    }

    /// Answers the queries of `pod` on `worker` until the drain.
    pub fn serve(
        &self,
        pod: &Arc<Pod>,
        worker: &Handle,
        arrivals: Vec<Arrivals>,
        watch: &Watch,
    ) -> io::Result<()> {
        let sockets = PodSockets { pod: pod.clone(), nearby: worker.clone() };
        let client = {
            let pod = pod.clone();
            move |mesh: &_| pod.workload_in(mesh).cloned()
        };
        let resolver = Resolver::new(
            pod.tunnel.mesh.clone(),
            self.settings.clone(),
            client,
            Forwarder::new(sockets, self.nameservers.clone()),
            pod.tunnel.metrics.clone(),
            self.limit,
        );
        let _inside = worker.enter();
        for Arrivals { udp, tcp } in arrivals {
            let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
            task::spawn_on(worker, "dns udp", resolver.clone().serve_udp(udp, drained(watch.clone())));
            task::spawn_on(worker, "dns tcp", resolver.clone().serve_tcp(tcp, drained(watch.clone())));
        }
        Ok(())
    }
}

async fn drained(watch: Watch) {
    watch.signaled().await;
}

/// Sockets for questions to nameservers: in the pod's namespace, with the tunnel's mark.
struct PodSockets {
    pod: Arc<Pod>,
    nearby: Handle,
}

impl dns::Sockets for PodSockets {
    fn udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let options = &self.pod.tunnel.settings.sockets;
        let socket = self.pod.netns.enter(|| socket::udp(SocketAddr::new(any, 0), options))?;
        let _inside = self.nearby.enter();
        UdpSocket::from_std(socket)
    }

    fn tcp(&self, to: SocketAddr) -> io::Result<TcpSocket> {
        let options = &self.pod.tunnel.settings.sockets;
        self.pod.netns.enter(|| socket::outgoing(to, Source::Own, options, Reach::Network))
    }
}
