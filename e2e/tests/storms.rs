//! Many namespaces, labels that flip, and addresses that pass from one pod to the next: nothing is lost, nothing is said
//! twice, and the controller stays small.
#![expect(clippy::print_stderr, reason = "how much a storm cost is told")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use ambit_e2e::api_server::{ApiServer, above, programs};
use ambit_e2e::controller::{Controller, Listener};
use ambit_e2e::scale::objects::{Shape, Writer};
use ambit_e2e::wait::Stop;
use ambit_model::address::NetworkAddress;
use ambit_model::snapshot::Snapshot;
use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

const NAMESPACES: usize = 10_000;
/// Those in which something is, that changes with their labels.
const SHOPS: usize = 200;
/// How often the labels of each flip.
const FLIPS: usize = 20;
/// How often an address passes to another pod.
const HEIRS: usize = 30;
/// Requests under way; more only wait in the API server.
const AT_ONCE: usize = 32;
/// Eight writes at once, in a minute or two beside whatever else a small machine does.
const TOLD_LIMIT: Duration = Duration::from_secs(120);
/// From the last change of a storm until its last word is heard.
const CAUGHT_UP: Duration = Duration::from_secs(10);
/// Of the controller, without optimization; ten thousand namespaces take a third of it.
const MEMORY: u64 = 160 << 20;

#[test]
fn ten_thousand_namespaces_and_labels_that_flip() -> anyhow::Result<()> {
    let Some(programs) = programs() else { return Ok(()) };
    ambit_wire::tls::install_provider()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(tell(&ApiServer::start(&programs, &Stop::default())?))
}

async fn tell(api: &ApiServer) -> anyhow::Result<()> {
    let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/crds/gateway-api");
    api.define(&definitions, &Stop::default())?;
    let client = api.client().await?;
    Writer::new(client.clone(), Shape { nodes: 1, pods: 0, services: 1 }).everything().await?;
    let program = above("controller").context("run `cargo build --workspace --bins`")?;
    let controller = Controller::start(&program, api, &[], &Stop::default())?;
    controller.ready().await?;
    let listener = Listener::connect(&client, &controller).await?;
    let scene = Scene { client, controller, listener };

    scene.namespaces().await?;
    scene.labels().await?;
    scene.addresses().await?;
    let memory = scene.controller.memory()?;
    ensure!(memory < MEMORY, "the controller took {} MB", memory >> 20);
    report("memory", format!("{} MB", memory >> 20));
    scene.again(&program, api).await
}

struct Scene {
    client: Client,
    controller: Controller,
    listener: Listener,
}

impl Scene {
    /// Each is told whom to trust, once.
    async fn namespaces(&self) -> anyhow::Result<()> {
        let all: Api<Namespace> = Api::all(self.client.clone());
        let begun = Instant::now();
        let created = stream::iter(0..NAMESPACES).map(|number| {
            let all = all.clone();
            async move {
                let object = json!({ "metadata": { "name": namespace(number) } });
                all.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
                anyhow::Ok(())
            }
        });
        created.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        let (created, begun) = (begun.elapsed(), Instant::now());
        let wanted = all.list_metadata(&ListParams::default()).await?.items.len();
        self.controller
            .until(TOLD_LIMIT, "the word to all namespaces", async || {
                let told = self.controller.figure(WRITES).await?;
                Ok((told >= u64::try_from(wanted)?).then_some(()))
            })
            .await?;
        report("namespaces", format!("created in {created:?}, all told {:?} later", begun.elapsed()));
        ensure!(self.told().await?.len() == wanted, "some were told twice, and others not");
        ensure!(self.controller.figure(FAILURES).await? == 0, "writes failed");
        Ok(())
    }

    /// Whatever happens in between, the last label counts. One that changes nothing is nothing to be sent.
    async fn labels(&self) -> anyhow::Result<()> {
        self.gateway().await?;
        let shops = stream::iter(0..SHOPS).map(|number| async move {
            let services: Api<Service> = Api::namespaced(self.client.clone(), &namespace(number));
            let web = json!({ "metadata": { "name": "web" }, "spec": { "clusterIP": "None" } });
            services.create(&PostParams::default(), &serde_json::from_value(web)?).await?;
            anyhow::Ok(())
        });
        shops.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        self.listener.until(CAUGHT_UP, "the last shop", |mesh| bound(mesh).count() == SHOPS).await?;

        let begun = Instant::now();
        let flips = stream::iter(0..SHOPS).map(|number| async move {
            for flip in 0..FLIPS {
                self.label(number, labels((flip + number).is_multiple_of(2))).await?;
            }
            anyhow::Ok(())
        });
        flips.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        let (flipped, begun) = (begun.elapsed(), Instant::now());
        // The last flip of each was an odd one.
        let right = |mesh: &Snapshot| {
            bound(mesh).count() == SHOPS
                && bound(mesh).all(|(number, bound)| bound != number.is_multiple_of(2))
        };
        self.listener.until(CAUGHT_UP, "the last label", right).await?;
        report(
            "labels",
            format!("{} flips in {flipped:?}, caught up {:?} later", SHOPS * FLIPS, begun.elapsed()),
        );

        // Whether a pod is in the mesh is what the node agent says; a label alone moves nobody.
        self.shop_becomes(true).await?;
        let before = self.controller.figure(PUSHES).await?;
        let flips = stream::iter(0..SHOPS * FLIPS).map(|flip| {
            let mode = flip.is_multiple_of(3).then_some("ambient");
            self.label(SHOPS + flip / FLIPS, json!({ "istio.io/dataplane-mode": mode }))
        });
        flips.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        self.shop_becomes(false).await?;
        let pushed = self.controller.figure(PUSHES).await? - before;
        ensure!(pushed == 1, "labels that change nothing were sent: {pushed} pushes");
        Ok(())
    }

    /// Labels the first shop, and waits until that is heard: what came before it has gone the same way.
    async fn shop_becomes(&self, is_in: bool) -> anyhow::Result<()> {
        self.label(0, labels(is_in)).await?;
        let heard = |mesh: &Snapshot| bound(mesh).any(|shop| shop == (0, is_in));
        self.listener.until(CAUGHT_UP, "the last label of a shop", heard).await
    }

    /// A waypoint for all namespaces.
    async fn gateway(&self) -> anyhow::Result<()> {
        let kind = kube::api::ApiResource::from_gvk(&kube::api::GroupVersionKind::gvk(
            "gateway.networking.k8s.io",
            "v1",
            "Gateway",
        ));
        let gateways: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), "shop-0", &kind);
        let all = json!({ "namespaces": { "from": "All" } });
        let gate = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": { "name": "gate" },
            "spec": { "gatewayClassName": "istio-waypoint", "listeners": [
                { "name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": all }
            ] }
        });
        gateways.create(&PostParams::default(), &serde_json::from_value(gate)?).await?;
        let status = json!({ "status": { "addresses": [{ "type": "IPAddress", "value": "10.96.200.1" }] } });
        gateways.patch_status("gate", &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    async fn label(&self, number: usize, labels: Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
        let all: Api<Namespace> = Api::all(self.client.clone());
        all.patch_metadata(&namespace(number), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// A pod appears, dies, and another has its address: under another name, under the same, and while the first one's
    /// object is still there.
    async fn addresses(&self) -> anyhow::Result<()> {
        for (round, way) in [Way::Renamed, Way::Replaced, Way::Finished].into_iter().enumerate() {
            let address = IpAddr::V4(Ipv4Addr::new(10, 7, 0, u8::try_from(round)?));
            for heir in 0..HEIRS {
                let place = namespace(heir % 3);
                let pods: Api<Pod> = Api::namespaced(
                    self.client.clone(),
                    if way == Way::Replaced { "shop-0" } else { &place },
                );
                let name =
                    if way == Way::Replaced { "same".to_owned() } else { format!("heir-{round}-{heir}") };
                appear(&pods, &name, &format!("account-{heir}"), address).await?;
                if heir + 1 == HEIRS {
                    break;
                }
                match way {
                    Way::Renamed | Way::Replaced => {
                        pods.delete(&name, &DeleteParams::default().grace_period(0)).await?;
                    }
                    Way::Finished => {
                        let over = json!({ "status": { "phase": "Succeeded" } });
                        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(over)).await?;
                    }
                }
            }
            let last = format!("account-{}", HEIRS - 1);
            let at = NetworkAddress::new("", address);
            let right = |mesh: &Snapshot| {
                let there = mesh.workloads().filter(|one| one.addresses.contains(&address)).count();
                there == 1 && mesh.workload_at(&at).is_some_and(|one| one.service_account.as_str() == last)
            };
            self.listener.until(CAUGHT_UP, &format!("the last heir ({way:?})"), right).await?;
        }
        Ok(())
    }

    /// The next controller finds everything in order, and writes nothing but what is new.
    async fn again(self, program: &Path, api: &ApiServer) -> anyhow::Result<()> {
        let before = self.told().await?;
        let Self { client, controller, listener } = self;
        drop((controller, listener));
        let controller = Controller::start(program, api, &[], &Stop::default())?;
        let ready = controller.ready().await?;
        let late = json!({ "metadata": { "name": "late" } });
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &serde_json::from_value(late)?)
            .await?;
        let told = Api::<ConfigMap>::namespaced(client.clone(), "late");
        controller
            .until(TOLD_LIMIT, "the word to a new namespace", async || {
                Ok(told.get_opt("istio-ca-root-cert").await?.map(drop))
            })
            .await?;
        let writes = controller.figure(WRITES).await?;
        ensure!(writes <= 1, "{writes} were written where one was new");
        let listener = Listener::connect(&client, &controller).await?;
        ensure!(bound(&listener.mesh()).count() == SHOPS, "shops are gone");
        let scene = Self { client, controller, listener };
        let mut after = scene.told().await?;
        after.retain(|(namespace, _)| namespace != "late");
        ensure!(before == after, "what was right was written again");
        report("again", format!("ready in {ready:?}, {} MB", scene.controller.memory()? >> 20));
        Ok(())
    }

    /// Which namespaces are told, and at which version of the word.
    async fn told(&self) -> anyhow::Result<Vec<(String, String)>> {
        let maps: Api<ConfigMap> = Api::all(self.client.clone());
        let found =
            maps.list_metadata(&ListParams::default().fields("metadata.name=istio-ca-root-cert")).await?;
        let mut told: Vec<_> = found
            .items
            .into_iter()
            .map(|one| {
                (
                    one.metadata.namespace.unwrap_or_default(),
                    one.metadata.resource_version.unwrap_or_default(),
                )
            })
            .collect();
        told.sort();
        Ok(told)
    }
}

/// How an address comes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The pod is deleted, and the next has another name.
    Renamed,
    /// The next has the same name, as in a StatefulSet.
    Replaced,
    /// The pod has ended, and its object stays, with the address.
    Finished,
}

const WRITES: &str = "ambit_ca_distribution_writes_total";
const FAILURES: &str = "ambit_ca_distribution_failures_total";
const PUSHES: &str = "pilot_xds_pushes";

fn namespace(number: usize) -> String {
    format!("storm-{number}")
}

/// Of a namespace that is in the mesh and goes through the waypoint, or is and does not.
fn labels(is_in: bool) -> Value {
    let is = |word: &'static str| is_in.then_some(word);
    json!({
        "istio.io/dataplane-mode": is("ambient"),
        "istio.io/use-waypoint": is("gate"),
        "istio.io/use-waypoint-namespace": is("shop-0"),
    })
}

/// The shops, and whether each goes through the waypoint.
fn bound(mesh: &Snapshot) -> impl Iterator<Item = (usize, bool)> {
    mesh.services().filter_map(|service| {
        let number = service.namespace.as_str().strip_prefix("storm-")?.parse().ok()?;
        Some((number, service.waypoint.is_some()))
    })
}

/// What kubelet and the node agent would write.
async fn appear(pods: &Api<Pod>, name: &str, account: &str, address: IpAddr) -> anyhow::Result<()> {
    let pod = json!({
        "metadata": { "name": name, "annotations": { "ambient.istio.io/redirection": "enabled" } },
        "spec": {
            "nodeName": "node-0", "serviceAccountName": account, "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "app", "image": "none" }]
        }
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let status = json!({ "status": {
        "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
        "conditions": [{ "type": "Ready", "status": "True" }]
    } });
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// For whoever reads the log of the test.
fn report(what: &str, figures: String) {
    eprintln!("{what}: {figures}");
}
