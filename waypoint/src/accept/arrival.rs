//! What a tunnel's stream is for. Pure: all it knows is in the [`Snapshot`].

use std::{net::SocketAddr, sync::Arc};

use ambit_model::{
    address::{NetworkAddress, Target},
    identity::Identity,
    name::{Namespace, Network, ServiceKey, Uid},
    service::{AppProtocol, Service},
    service_config::ServiceConfig,
    snapshot::{Addressed, Snapshot},
    workload::Workload,
};

use crate::{refusal::Refusal, served::Served};

/// Who opened a stream.
#[derive(Clone, Debug)]
pub struct Client {
    /// The TCP peer of the tunnel, which bears the client's address.
    pub address: SocketAddr,
    /// The identity that it proved.
    pub identity: Option<Identity>,
    /// The workload there, if the mesh knows it and it is who it proved to be.
    pub workload: Option<Arc<Workload>>,
}

impl Client {
    /// The workload at `address`, unless that proved to be somebody else.
    pub fn find(mesh: &Snapshot, network: &Network, address: SocketAddr, identity: Option<Identity>) -> Self {
        let there = mesh.workload_at(&NetworkAddress::new(network.clone(), address.ip()));
        let is_it = |there: &&Arc<Workload>| identity.as_ref().is_none_or(|id| *id == there.identity());
        Self { address, workload: there.filter(is_it).cloned(), identity }
    }

    /// Its namespace: by its identity, which is proven.
    pub fn namespace(&self) -> Namespace {
        self.identity.as_ref().map(|identity| identity.namespace.clone()).unwrap_or_default()
    }
}

/// What a stream is for. Names, not things: each of its requests looks anew at what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// For whom.
    pub to: To,
    /// Which port: of the service, or of the workload.
    pub port: u16,
    /// What was asked for.
    pub asked: Target,
    /// What the port carries, if that is said.
    pub protocol: Option<AppProtocol>,
}

/// For whom a stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// A service that is bound to this waypoint.
    Service(ServiceKey),
    /// A workload that is.
    Workload(Uid),
}

/// Finds what `target` is, and whether this waypoint, which is `own`, serves it.
///
/// A waypoint forwards for what is bound to it and for nothing else: it is no way around anybody's policies.
pub fn arrival(
    mesh: &Snapshot,
    served: &Served,
    network: &Network,
    own: Option<&Workload>,
    client: &Client,
    target: &Target,
) -> Result<Arrival, Refusal> {
    let refused = || Refusal::NotServed(target.clone());
    let from = client.namespace();
    let found = match target {
        Target::Ip(address) => {
            let key = NetworkAddress::new(network.clone(), address.ip());
            mesh.upstream(&key, &from)
        }
        Target::Host(host, _) => mesh.service_named(host, &from).map(Addressed::Service),
    };
    let port = match target {
        Target::Ip(address) => address.port(),
        Target::Host(_, port) => *port,
    };
    match found.ok_or_else(refused)? {
        Addressed::Service(service) => {
            served.find(mesh, &service.key()).ok_or_else(refused)?;
            service.ports.get(port).ok_or_else(refused)?;
            let protocol = protocol(service, port);
            Ok(Arrival { to: To::Service(service.key()), port, asked: target.clone(), protocol })
        }
        Addressed::Workload(workload) => {
            let waypoint = workload.waypoint.as_ref().ok_or_else(refused)?;
            let own = own.ok_or_else(refused)?;
            if !mesh.stands_behind(own, waypoint, &workload.namespace) {
                return Err(refused());
            }
            let key = ServiceConfig::key_of_workloads(&own.namespace);
            served.find(mesh, &key).ok_or_else(refused)?;
            let to = To::Workload(workload.uid.clone());
            Ok(Arrival { to, port, asked: target.clone(), protocol: None })
        }
    }
}

fn protocol(service: &Service, port: u16) -> Option<AppProtocol> {
    service.app_protocols.iter().find(|(of, _)| *of == port).map(|(_, protocol)| *protocol)
}

#[cfg(test)]
mod tests {
    use ambit_fixtures::mesh::{pod, service, snapshot};
    use ambit_model::{service_config::Parts, snapshot::Update};

    use super::*;

    fn mesh() -> Snapshot {
        let mesh = snapshot(
            [
                pod("shop/client").at("10.0.0.1"),
                pod("shop/web").at("10.0.0.2").behind("shop/web", &[(80, 8080)]),
                pod("shop/direct").at("10.0.0.3").waypoint("shop/gate"),
                pod("shop/gate").at("10.0.0.9").behind("shop/gate", &[(15008, 15008)]),
            ],
            [
                service("shop/web").vip("10.1.0.1").ports(&[(80, 8080)]).waypoint("shop/gate"),
                service("shop/other").vip("10.1.0.2").ports(&[(80, 8080)]),
                service("shop/gate").vip("10.1.0.9").ports(&[(15008, 15008)]),
            ],
        );
        let web = mesh.services().find(|service| service.name.as_str() == "web").expect("web").key();
        let workloads = ServiceConfig::key_of_workloads(&"shop".into());
        let config = |key| Update::Config(Arc::new(ServiceConfig::new(key, Parts::default())));
        mesh.apply(&[], [config(web), config(workloads)])
    }

    fn asked(target: &str) -> Result<(To, u16), String> {
        let mesh = mesh();
        let network = Network::default();
        let own = mesh.workloads().find(|one| one.name.as_str() == "gate").cloned();
        let client = Client::find(&mesh, &network, "10.0.0.1:4000".parse().expect("an address"), None);
        let target = ambit_wire::hbone::headers::parse_authority(target).expect("a target");
        arrival(&mesh, &Served::default(), &network, own.as_deref(), &client, &target)
            .map(|arrival| (arrival.to, arrival.port))
            .map_err(|refusal| refusal.word().to_owned())
    }

    #[test]
    fn a_waypoint_serves_what_is_bound_to_it() {
        let service = |answer: Result<(To, u16), String>| match answer {
            Ok((To::Service(key), 80)) => key.hostname.as_str().starts_with("web"),
            Ok(_) | Err(_) => false,
        };
        assert!(service(asked("10.1.0.1:80")), "{:?}", asked("10.1.0.1:80"));
        assert!(
            matches!(asked("10.0.0.3:5000"), Ok((To::Workload(_), 5000))),
            "{:?}",
            asked("10.0.0.3:5000")
        );
    }

    #[test]
    fn a_waypoint_serves_nothing_else() {
        for target in
            ["10.1.0.2:80", "10.1.0.1:81", "10.0.0.2:8080", "10.0.0.1:80", "8.8.8.8:53", "10.1.0.9:15008"]
        {
            assert_eq!(asked(target), Err("not_served".to_owned()), "{target}");
        }
    }

    #[test]
    fn who_proved_to_be_somebody_else_is_not_the_workload_at_his_address() {
        let mesh = mesh();
        let at = "10.0.0.1:4000".parse().expect("an address");
        let client = |account: &str| {
            let identity = Identity::new("cluster.local", "shop", account);
            Client::find(&mesh, &Network::default(), at, Some(identity))
        };
        let honest =
            mesh.workloads().find(|one| one.name.as_str() == "client").expect("the client").identity();
        assert!(client(honest.service_account.as_str()).workload.is_some());
        assert!(client("other").workload.is_none());
    }
}
