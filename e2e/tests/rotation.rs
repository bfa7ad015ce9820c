//! From one root to the next and back with `ambit ca`, against a real API server: what two replicas sign, what
//! namespaces are told, and which steps are refused because somebody could still be hurt.
//!
//! No pod runs here: a stand-in for the kubelet leads to the pages of the replicas, and to one on which the test says
//! what a tunnel holds. Steps wait three minutes at least: the test moves the times that they wait for.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]
#![expect(
    clippy::indexing_slicing,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambit_api::labels;
use ambit_e2e::api_server::{ApiServer, above, programs};
use ambit_e2e::controller::{Controller, Listener};
use ambit_e2e::kubelet::Kubelet;
use ambit_e2e::scale::objects::{SYSTEM, Shape, Writer};
use ambit_e2e::wait::Stop;
use ambit_lab::process::{self, Program};
use ambit_model::identity::Identity;
use ambit_wire::cert::Certificate;
use ambit_wire::cert::request::PrivateKey;
use ambit_wire::tls::{Compliance, Profile, Versions, revoked::Revocation};
use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A leader hears of a wish at once; it is elected within some seconds.
const LIMIT: Duration = Duration::from_secs(60);
const MINUTES: Duration = Duration::from_secs(600);
/// Who has a pod on the node of the tunnel that asks.
const SHOP: &str = "spiffe://cluster.local/ns/shop-0/sa/default";
const LONG_AGO: &str = "2026-01-01T00:00:00Z";

#[test]
fn one_root_follows_another_and_nobody_is_hurt() -> anyhow::Result<()> {
    let Some(programs) = programs() else { return Ok(()) };
    ambit_wire::tls::install_provider()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(tell(&ApiServer::start(&programs, &Stop::default())?))
}

async fn tell(api: &ApiServer) -> anyhow::Result<()> {
    let client = api.client().await?;
    let system = json!({ "metadata": { "name": SYSTEM } });
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &serde_json::from_value(system)?)
        .await?;
    let tunnel = Tunnel::start().await?;
    pod(&client, "ztunnel-0", "ztunnel", tunnel.port).await?;
    Writer::new(client.clone(), Shape { nodes: 1, pods: 1, services: 1 }).everything().await?;
    let _kubelet = Kubelet::start(&client, "node-0").await?;
    let mut scene = Scene {
        api,
        secrets: Api::namespaced(client.clone(), SYSTEM),
        replicas: [replica(api, &client, "one").await?, replica(api, &client, "two").await?],
        tunnel,
        shop: SHOP.parse().context("no identity")?,
        client,
    };
    scene.tell().await
}

/// A replica that `ambit` finds, as one of its own.
async fn replica(api: &ApiServer, client: &Client, name: &str) -> anyhow::Result<Controller> {
    let program = above("controller").context("run `cargo build --workspace --bins`")?;
    // The longest life that is granted decides how long steps wait.
    let flags = ["--pod-name", name, "--default-workload-ttl", "10m", "--max-workload-ttl", "2h"];
    let controller = Controller::start(&program, api, &flags, &Stop::default())?;
    controller.ready().await?;
    pod(client, name, "ambit-controller", controller.pages()).await?;
    Ok(controller)
}

/// A pod that nobody runs, and whose pages are there.
async fn pod(client: &Client, name: &str, app: &str, pages: u16) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM);
    let pod = json!({
        "metadata": { "name": name, "labels": { "app": app } },
        "spec": { "nodeName": "node-0", "serviceAccountName": app, "terminationGracePeriodSeconds": 0, "containers": [
            { "name": "app", "image": "none", "args": [format!("--admin=127.0.0.1:{pages}")] }
        ] }
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await
        .map(drop)
        .with_context(|| name.to_owned())
}

struct Scene<'a> {
    api: &'a ApiServer,
    client: Client,
    secrets: Api<Secret>,
    replicas: [Controller; 2],
    tunnel: Tunnel,
    shop: Identity,
}

/// A certificate with its key, and the roots that came with it.
struct Held {
    chain: Vec<String>,
    key: PrivateKey,
}

impl Scene<'_> {
    async fn tell(&mut self) -> anyhow::Result<()> {
        let steady = self.agreed("steady").await?;
        let old = signer(&steady)?;
        self.told(&[&old]).await?;
        let before = self.certificate(MINUTES).await?;
        self.tunnel.holds(&before);
        ensure!(self.annotation(labels::CA_LONGEST_LIFE).await?.as_deref() == Some("600"), "10m are granted");

        // A second root is trusted, and does not sign.
        self.step("prepare").await?;
        let prepared = self.agreed("prepared").await?;
        ensure!(signer(&prepared)? == old, "the new root signs already");
        let new = trusted(&prepared).into_iter().find(|root| *root != old).context("no second root")?;
        self.told(&[&old, &new]).await?;
        self.is_trusted(&before).await?;
        let refusal = self.refused("activate").await?;
        ensure!(refusal.contains("came without the new root"), "{refusal}");
        self.not_taken(&["--stage", "activate"], "some may not know the new root")?;
        let refusal = self.refused("retire").await?;
        ensure!(refusal.contains("from here: activate or rollback"), "{refusal}");

        // It never signed, so it can be forgotten at once; the next is another.
        self.step("rollback").await?;
        self.agreed("steady").await?;
        self.told(&[&old]).await?;
        self.step("prepare").await?;
        let prepared = self.agreed("prepared").await?;
        let next = trusted(&prepared).into_iter().find(|root| *root != old).context("no second root")?;
        ensure!(next != new, "a root that was forgotten is back");
        let new = next;
        self.told(&[&old, &new]).await?;

        // A longer life than was ever granted is written down before it is signed for.
        let long = self.certificate(Duration::from_secs(5400)).await?;
        ensure!(
            self.annotation(labels::CA_LONGEST_LIFE).await?.as_deref() == Some("7200"),
            "not written down"
        );

        self.move_time(labels::CA_ACTIVATE_FROM, "activateFrom").await?;
        self.step("activate").await?;
        let active = self.agreed("active").await?;
        ensure!(signer(&active)? == new && trusted(&active).len() == 2, "{active:#}");
        self.told(&[&old, &new]).await?;
        let after = self.certificate(MINUTES).await?;
        for held in [&before, &long, &after] {
            self.is_trusted(held).await?;
        }

        // Two certificates of the old root were signed, and a tunnel holds one: it may not go.
        let refusal = self.refused("retire").await?;
        ensure!(refusal.contains("may be in use until"), "{refusal}");
        let status: Value = serde_json::from_str(&self.ambit(&["status", "-o", "json"])?)?;
        let users = json!({ "issued": 2, "held": [format!("node-0: {SHOP}")] });
        ensure!(status["usersOfIdleRoots"] == users && status["silent"] == json!([]), "{status:#}");
        self.not_taken(&["--stage", "retire"], "may be in use")?;
        self.told(&[&old, &new]).await?;

        // Back, and forth again: everybody knows the new root by now.
        self.step("rollback").await?;
        let back = self.agreed("prepared").await?;
        ensure!(signer(&back)? == old, "{back:#}");
        self.is_trusted(&after).await?;
        let refusal = self.refused("rollback").await?;
        ensure!(refusal.contains("may be in use until"), "the new root has signed: {refusal}");
        self.not_taken(&["--stage", "rollback"], "may be in use")?;
        self.step("activate").await?;
        self.agreed("active").await?;

        // Not even when its time is over, while somebody holds a certificate of it.
        self.move_time(labels::CA_RETIRE_FROM, "retireFrom").await?;
        self.not_taken(&["--stage", "retire"], &format!("node-0: {SHOP}"))?;
        self.tunnel.holds(&after);
        self.not_taken(&["--stage", "retire"], "2 certificates")?;
        self.start_again().await?;
        self.step("retire").await?;
        let retired = self.agreed("steady").await?;
        ensure!(signer(&retired)? == new && trusted(&retired) == [new.clone()], "{retired:#}");
        self.told(&[&new]).await?;
        self.is_trusted(&after).await?;
        for held in [&before, &long] {
            ensure!(self.is_trusted(held).await.is_err(), "the root that was forgotten is believed");
        }
        let kept = self.secrets.get("istio-ca-secret").await?.data.unwrap_or_default();
        let keys: Vec<_> = kept.keys().map(String::as_str).collect();
        ensure!(keys == ["ca-cert.pem", "ca-key.pem"], "{keys:?}");
        // What is kept is enough to go on with.
        self.start_again().await?;
        let page = self.agreed("steady").await?;
        ensure!(signer(&page)? == new && trusted(&page) == [new], "{page:#}");
        Listener::connect(&self.client, &self.replicas[0]).await.map(drop)
    }

    /// Others take the place of both replicas: they have signed nothing yet.
    async fn start_again(&mut self) -> anyhow::Result<()> {
        for (number, replica_of) in self.replicas.iter_mut().enumerate() {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
            let name = if number == 0 { "one" } else { "two" };
            pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
            *replica_of = replica(self.api, &self.client, name).await?;
        }
        Ok(())
    }

    /// Both replicas say that the rotation stands there, with the same roots.
    async fn agreed(&self, stage: &str) -> anyhow::Result<Value> {
        let [one, two] = &self.replicas;
        one.until(LIMIT, stage, async || {
            let (first, second) = (ca(one).await?, ca(two).await?);
            let same =
                ["stage", "active", "trusted", "problem"].iter().all(|field| first[field] == second[field]);
            Ok((same && first["stage"] == stage).then_some(first))
        })
        .await
    }

    /// Every namespace is told to trust these roots, and no other.
    async fn told(&self, wanted: &[&str]) -> anyhow::Result<()> {
        self.replicas[0]
            .until(LIMIT, "the word to the namespaces", async || {
                let (text, roots) = (self.bundle().await?, trusted(&ca(&self.replicas[0]).await?));
                let same = roots.len() == wanted.len()
                    && wanted.iter().all(|one| roots.iter().any(|root| root == one));
                Ok((same && text.matches("BEGIN CERTIFICATE").count() == wanted.len()).then_some(()))
            })
            .await
    }

    /// What a namespace is told; nothing yet, perhaps.
    async fn bundle(&self) -> anyhow::Result<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), "shop-0");
        let map = maps.get_opt("istio-ca-root-cert").await?.unwrap_or_default();
        Ok(map.data.unwrap_or_default().remove("root-cert.pem").unwrap_or_default())
    }

    async fn step(&self, word: &str) -> anyhow::Result<()> {
        self.ambit(&["rotate", "--yes", "--stage", word]).map(drop)
    }

    /// `ambit` looks at all replicas and tunnels first, and does not ask for what would hurt.
    fn not_taken(&self, what: &[&str], says: &str) -> anyhow::Result<()> {
        let refused = self.ambit(&[&["rotate", "--yes"], what].concat());
        let Err(refused) = refused else { bail!("{what:?} was taken") };
        ensure!(refused.to_string().contains(says), "{what:?}: {refused}");
        Ok(())
    }

    fn ambit(&self, args: &[&str]) -> anyhow::Result<String> {
        let ambit = above("ambit").context("run `cargo build --workspace --bins`")?;
        let program = Program::new(ambit).arg("ca").args(args).arg("--kubeconfig").arg(self.api.kubeconfig());
        let output = process::run(None, &program, LIMIT)?;
        ensure!(output.status.success(), "ambit ca {args:?}: {}{}", output.stdout, output.stderr);
        Ok(output.stdout)
    }

    /// Past `ambit`, to the leader.
    async fn refused(&self, word: &str) -> anyhow::Result<String> {
        self.wish(word).await?.with_context(|| format!("{word} was granted"))
    }

    /// As `ambit ca rotate` does it: the annotation goes when the leader has granted the wish or refused it.
    async fn wish(&self, word: &str) -> anyhow::Result<Option<String>> {
        self.annotate(json!({ labels::CA_ROTATION: word, labels::CA_REFUSAL: null })).await?;
        self.replicas[0]
            .until(LIMIT, word, async || {
                Ok(self.annotation(labels::CA_ROTATION).await?.is_none().then_some(()))
            })
            .await?;
        self.annotation(labels::CA_REFUSAL).await
    }

    /// What was to be waited for is over, and both replicas know it.
    async fn move_time(&self, name: &str, on_the_page: &str) -> anyhow::Result<()> {
        ensure!(self.annotation(name).await?.is_some(), "nothing waits for {name}");
        self.annotate(json!({ name: LONG_AGO })).await?;
        for replica in &self.replicas {
            let heard = async || Ok((ca(replica).await?[on_the_page] == LONG_AGO).then_some(()));
            replica.until(LIMIT, "the new time", heard).await?;
        }
        Ok(())
    }

    async fn annotate(&self, annotations: Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
        self.secrets.patch_metadata("istio-ca-secret", &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn annotation(&self, name: &str) -> anyhow::Result<Option<String>> {
        let found = self.secrets.get_metadata("istio-ca-secret").await?;
        Ok(found.metadata.annotations.unwrap_or_default().remove(name))
    }

    async fn certificate(&self, life: Duration) -> anyhow::Result<Held> {
        let roots = self.bundle().await?;
        let (issued, key) = self.replicas[1].certificate(&self.client, &roots, &self.shop, life).await?;
        Ok(Held { chain: issued?.chain, key })
    }

    /// Whether whoever trusts what its namespace is told believes this certificate.
    async fn is_trusted(&self, held: &Held) -> anyhow::Result<()> {
        let shown = held.chain.split_last().map(|(_, shown)| shown.to_vec()).unwrap_or_default();
        let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured)?;
        let judged = [shown, vec![self.bundle().await?]].concat();
        Certificate::from_response(&profile, Some(&self.shop), &judged, &held.key)?;
        Ok(())
    }
}

/// What a tunnel would say that it holds.
struct Tunnel {
    port: u16,
    dump: Arc<Mutex<String>>,
    _running: JoinSet<()>,
}

impl Tunnel {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let dump = Arc::new(Mutex::new("{}".to_owned()));
        let said = Arc::clone(&dump);
        let mut running = JoinSet::new();
        running.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let mut stream = BufStream::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
                    line.clear();
                }
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", said.len());
                // Whoever asked may have left.
                let _ = stream.write_all(format!("{head}{said}").as_bytes()).await;
                let _ = stream.flush().await;
            }
        });
        Ok(Self { port, dump, _running: running })
    }

    fn holds(&self, held: &Held) {
        let shown = held.chain.split_last().map(|(_, shown)| shown).unwrap_or_default();
        let chain: Vec<_> = shown.iter().map(|pem| json!({ "pem": STANDARD.encode(pem) })).collect();
        let dump = json!({ "certificates": [{ "identity": SHOP, "certChain": chain }] }).to_string();
        *self.dump.lock().unwrap_or_else(PoisonError::into_inner) = dump;
    }
}

async fn ca(controller: &Controller) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&controller.page("/debug/ca").await?)?)
}

/// The fingerprint of what signs.
fn signer(page: &Value) -> anyhow::Result<String> {
    page["active"]["fingerprint"].as_str().map(str::to_owned).context("nothing signs")
}

/// The fingerprints of all trusted roots.
fn trusted(page: &Value) -> Vec<String> {
    let roots = page["trusted"].as_array().into_iter().flatten();
    roots.filter_map(|root| root["fingerprint"].as_str()).map(str::to_owned).collect()
}
