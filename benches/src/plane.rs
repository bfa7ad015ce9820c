//! A control plane and certificate authority for the proxies, in this process: the real servers of
//! `ambit-wire`, fed once, trusting whoever calls.

use std::{
    future::ready,
    net::TcpListener as StdListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use ambit_fixtures::ca::{Life, TestCa};
use ambit_model::identity::Identity;
use ambit_runtime::task;
use ambit_wire::{
    ca::{Application, Approver},
    channel::{Entrance, HANDSHAKES, ServerTls, incoming},
    codec,
    spawn::Spawner,
    xds::{
        self, Resource,
        ledger::Limits,
        server::{Authenticator, Caller},
    },
};
use anyhow::Context as _;
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{net::TcpListener, runtime::Handle};
use tonic::{Status, metadata::MetadataMap};

use crate::world::{Configured, World};

/// Where it listens, on the loopback of every node.
pub const PORT: u16 = 15012;

/// An authority, and where its root is written.
#[derive(Debug)]
pub struct Plane {
    ca: TestCa,
    root: PathBuf,
    runtime: Handle,
}

impl Plane {
    /// An authority whose root is written into `directory`.
    pub fn new(directory: &Path, runtime: Handle) -> anyhow::Result<Self> {
        let ca = TestCa::new();
        let root = directory.join("root.pem");
        std::fs::write(&root, ca.root_pem())?;
        Ok(Self { ca, root, runtime })
    }

    /// The file of its root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Serves `world` on each listener until the process ends.
    pub fn serve(&self, world: &World, listeners: Vec<StdListener>) -> anyhow::Result<()> {
        let _inside = self.runtime.enter();
        let spawner = Spawner::new(|name, future| drop(task::spawn(name, future)));
        let types = [codec::ADDRESS, codec::AUTHORIZATION, codec::SERVICE_CONFIG];
        let (server, publisher) = xds::Server::new(types, Limits::default(), Believer, spawner);
        publisher.update(codec::ADDRESS, addresses(world), &[])?;
        publisher.update(codec::SERVICE_CONFIG, configs(world), &[])?;
        publisher.open();
        let credentials = self.ca.server(&["localhost", "127.0.0.1"]);
        let tls = Arc::new(ServerTls::new(self.ca.profile(), &credentials)?);
        for listener in listeners {
            listener.set_nonblocking(true)?;
            let incoming =
                incoming(Entrance::new(TcpListener::from_std(listener)?, HANDSHAKES), Some(tls.clone()));
            let routes = xds::server::builder()
                .add_service(server.clone())
                .add_service(ambit_wire::ca::service(Arc::new(Signer(self.ca.clone()))));
            // It ends with the process.
            task::spawn("control plane", async move { drop(routes.serve_with_incoming(incoming).await) });
        }
        Ok(())
    }

    /// Certificate chain and key of `identity` in PEM, for a proxy that reads files.
    pub fn issue(&self, identity: &Identity) -> anyhow::Result<(String, String)> {
        let (chain, key) = self.ca.issue(identity, Life::Long);
        let leaf = chain.first().context("an empty chain")?.clone();
        Ok((leaf, key.to_pem()?))
    }
}

/// The resources that say what `world` is.
pub fn addresses(world: &World) -> Vec<Resource> {
    let workloads = world.workloads.iter().map(|workload| Resource {
        name: workload.uid.to_string(),
        version: "1".to_owned(),
        body: codec::encode_workload(workload),
        ..Resource::default()
    });
    let services = world.services.iter().map(|service| Resource {
        name: format!("{}/{}", service.namespace, service.hostname),
        version: "1".to_owned(),
        body: codec::encode_service(service),
        ..Resource::default()
    });
    workloads.chain(services).collect()
}

fn configs(world: &World) -> Vec<Resource> {
    let resource = |one: &Configured| Resource {
        name: codec::service_config_name(&one.namespace, &one.name, one.config.key()),
        version: "1".to_owned(),
        body: codec::encode_service_config(&one.config),
        owner: format!("{}/{}", one.namespace, one.name),
        ..Resource::default()
    };
    world.configs.iter().map(resource).collect()
}

/// Whoever calls is on our own loopback: a waypoint if its token says so, `NAMESPACE/ACCOUNT`, else a tunnel.
fn account(token: Option<&str>) -> (String, String) {
    let (namespace, account) =
        token.and_then(|token| token.split_once('/')).unwrap_or(("istio-system", "ztunnel"));
    (namespace.to_owned(), account.to_owned())
}

#[derive(Debug)]
struct Believer;

impl Authenticator for Believer {
    fn authenticate(&self, metadata: &MetadataMap) -> impl Future<Output = Result<Caller, Status>> + Send {
        let shown = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let (namespace, service_account) = account(shown.and_then(|text| text.strip_prefix("Bearer ")));
        ready(Ok(Caller { name: "bench".to_owned(), namespace, service_account, node: None }))
    }
}

struct Signer(TestCa);

impl Approver for Signer {
    fn decide(&self, application: Application) -> BoxFuture<'_, Result<Vec<String>, Status>> {
        let (namespace, account) = account(application.token.as_deref());
        let own = || Identity::new("cluster.local", &*namespace, &*account);
        let identity = application.impersonated.map_or_else(|| Ok(own()), |text| text.parse());
        let chain = identity.map_err(|_| Status::invalid_argument("not an identity")).and_then(|identity| {
            let authority = self.0.authority();
            let serial = ambit_wire::cert::authority::Serial::random();
            let serial = serial.map_err(|error| Status::internal(error.to_string()))?;
            authority
                .sign(&application.csr, &identity, Life::Hour.validity(), serial)
                .map_err(|error| Status::invalid_argument(error.to_string()))
        });
        ready(chain).boxed()
    }
}
