//! What proxies are told: the pods that are really there, and as many others as asked for.

use std::net::{IpAddr, Ipv4Addr};

use ambit_fixtures::mesh::{pod, service};
use ambit_model::{service::Service, service_config::ServiceConfig, workload::Workload};

/// Services have this many endpoints.
const ENDPOINTS: u32 = 10;

/// Workloads and services.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// The services.
    pub services: Vec<Service>,
    /// What applies to services at waypoints.
    pub configs: Vec<Configured>,
}

/// What applies to a service at a waypoint.
#[derive(Clone, Debug)]
pub struct Configured {
    /// The waypoint's namespace.
    pub namespace: String,
    /// The waypoint's name, which is its service account's.
    pub name: String,
    /// What applies.
    pub config: ServiceConfig,
}

/// A pod that is really there.
#[derive(Clone, Debug)]
pub struct Real {
    /// Its namespace.
    pub namespace: String,
    /// Its name, and its service account's.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its address.
    pub ip: IpAddr,
}

impl World {
    /// `workloads` pods on a hundred nodes, behind `services` services of ten endpoints or fewer.
    pub fn of(workloads: u32, services: u32) -> Self {
        let workload = |number: u32| {
            let host = host(number / ENDPOINTS);
            let name = format!("app-{number}");
            let behind = number / ENDPOINTS < services;
            let built = pod(&format!("filler-{}/{name}", number % 20))
                .at(&Ipv4Addr::from(0x0ac8_0000 + number).to_string())
                .on(&format!("node-{}", number % 100))
                .account(&format!("account-{}", number % 50))
                .locality("region/zone/rack");
            if behind { built.behind(&host, &[(80, 8080)]).build() } else { built.build() }
        };
        let one_service = |number: u32| {
            let vip = Ipv4Addr::from(0x0ae0_0000 + number).to_string();
            service(&host(number)).vip(&vip).ports(&[(80, 8080), (443, 8443)]).build()
        };
        Self {
            workloads: (0..workloads).map(workload).collect(),
            services: (0..services).map(one_service).collect(),
            configs: Vec::new(),
        }
    }

    /// With these pods too.
    #[must_use]
    pub fn with(mut self, pods: &[Real]) -> Self {
        self.workloads.extend(pods.iter().map(|real| {
            pod(&format!("{}/{}", real.namespace, real.name))
                .at(&real.ip.to_string())
                .on(&real.node)
                .account(&real.name)
                .build()
        }));
        self
    }
}

/// The address of workload `number`.
pub fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0ac8_0000 + number)
}

/// The virtual address of service `number`.
pub fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0ae0_0000 + number)
}

fn host(number: u32) -> String {
    format!("filler-{0}/service-{number}.filler-{0}.svc.cluster.local", number % 20)
}
