//! cert-manager as the one that signs: its own definitions in a real API server, and a stand-in for its signer.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]
#![expect(
    clippy::indexing_slicing,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ambit_e2e::api_server::{ApiServer, above, programs};
use ambit_e2e::controller::Controller;
use ambit_e2e::scale::objects::{self, Shape, Writer};
use ambit_e2e::wait::Stop;
use ambit_model::identity::Identity;
use ambit_wire::cert::authority::{Authority, Serial, Validity};
use ambit_wire::cert::{Certificate, IssueError};
use ambit_wire::tls::{Compliance, Profile, Versions, revoked::Revocation};
use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

const HOUR: Duration = Duration::from_secs(3600);
/// How often the stand-in looks for requests.
const PAUSE: Duration = Duration::from_millis(50);
/// Who has a pod on the node of the tunnel that asks.
const SHOP: &str = "spiffe://cluster.local/ns/shop-0/sa/default";

/// What the signer does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// Approves it, lets it wait, and signs it.
    Signs,
    /// Whoever approves requests says no.
    Denies,
    /// The issuer fails.
    Fails,
    /// Nobody looks at it.
    Sleeps,
}

#[test]
fn cert_manager_signs_what_its_own_definitions_let_through() -> anyhow::Result<()> {
    let Some(programs) = programs() else { return Ok(()) };
    let definitions = programs.join("definitions/cert-manager");
    if !definitions.exists() {
        eprintln!("SKIPPED: cert-manager's definitions are not here; fetch them with .ci/cluster-programs");
        return Ok(());
    }
    ambit_wire::tls::install_provider()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(tell(&ApiServer::start(&programs, &Stop::default())?, &definitions))
}

async fn tell(api: &ApiServer, definitions: &Path) -> anyhow::Result<()> {
    api.define(definitions, &Stop::default())?;
    let client = api.client().await?;
    Writer::new(client.clone(), Shape { nodes: 1, pods: 1, services: 1 }).everything().await?;
    let program = above("controller").context("run `cargo build --workspace --bins`")?;
    let controller = Controller::start(&program, api, &["--ca-issuer", "mesh"], &Stop::default())?;
    controller.ready().await?;

    let signer = Signer::start(&client)?;
    let shop: Identity = SHOP.parse().context("no identity")?;
    let ours = objects::root(&client).await?;
    let (issued, key) = controller.certificate(&client, &ours, &shop, HOUR).await?;
    let issued = issued?;
    // It leads to the issuer's root, by an intermediate of the issuer's, and whoever has it trusts our root as well.
    let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured)?;
    Certificate::from_response(&profile, Some(&shop), &issued.chain, &key)?;
    ensure!(issued.chain.len() == 3, "leaf, intermediate and roots: {}", issued.chain.len());
    let wanted = format!("{}{ours}", signer.root.roots());
    ensure!(issued.chain.last() == Some(&wanted), "the roots are {:?}", issued.chain.last());

    // What it was asked is what the definition kept of it: what it does not know would have been cut away.
    let asked = signer.asked().context("nothing was asked")?;
    let spec = &asked["spec"];
    let issuer = json!({"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "mesh"});
    ensure!(spec["issuerRef"] == issuer && spec["duration"] == "3600s", "{spec:#}");
    let usages = json!(["digital signature", "key encipherment", "server auth", "client auth"]);
    ensure!(spec["usages"] == usages && spec["isCA"] == false, "{spec:#}");
    ensure!(asked["metadata"]["annotations"]["ambit.io/identity"] == SHOP, "{asked:#}");

    for (mood, code, says) in [
        (Mood::Denies, "PermissionDenied", "did not sign: policy.cert-manager.io: not this one"),
        (Mood::Fails, "PermissionDenied", "did not sign: Failed: the vault is sealed"),
    ] {
        signer.becomes(mood);
        let (refused, _) = controller.certificate(&client, &ours, &shop, HOUR).await?;
        let Err(IssueError::Refused { code: got, message }) = refused else { bail!("{mood:?}: {refused:?}") };
        ensure!(got == code && message.contains(says), "{mood:?}: {got}: {message}");
    }
    signer.becomes(Mood::Sleeps);
    let (late, _) = controller.certificate(&client, &ours, &shop, HOUR).await?;
    let Err(late @ IssueError::Unreachable(_)) = late else {
        bail!("nobody signed, and it was answered: {late:?}")
    };
    ensure!(late.to_string().contains("did not sign within 30s"), "{late}");

    // None of them is left behind, and each is counted.
    let left = signer.requests.list(&ListParams::default()).await?.items;
    ensure!(left.is_empty(), "{left:?}");
    let page = controller.page("/metrics").await?;
    for (outcome, count) in [("signed", 1), ("refused", 2), ("unanswered", 1), ("unusable", 0)] {
        let line = format!("ambit_ca_cert_manager_requests_total{{outcome=\"{outcome}\"}} {count}");
        ensure!(page.contains(&line), "no {line} in {page}");
    }
    Ok(())
}

/// Does what cert-manager's controllers do, with an authority of its own.
struct Signer {
    requests: Api<DynamicObject>,
    root: Authority,
    state: Arc<Mutex<State>>,
    _running: JoinSet<anyhow::Result<()>>,
}

struct State {
    mood: Mood,
    asked: Option<Value>,
}

impl Signer {
    fn start(client: &kube::Client) -> anyhow::Result<Self> {
        let kind =
            ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "CertificateRequest"));
        let requests: Api<DynamicObject> = Api::namespaced_with(client.clone(), objects::SYSTEM, &kind);
        let now = SystemTime::now();
        let life = Validity { not_before: now - HOUR, not_after: now + 100 * HOUR };
        let root = Authority::self_signed(&"theirs".into(), life, Serial::random()?)?;
        let between = root.intermediate("Between", life, Serial::random()?)?;
        let state = Arc::new(Mutex::new(State { mood: Mood::Signs, asked: None }));
        let mut running = JoinSet::new();
        let (all, shared) = (requests.clone(), Arc::clone(&state));
        running.spawn(async move {
            loop {
                for request in all.list(&ListParams::default()).await?.items {
                    let name = request.metadata.name.clone().unwrap_or_default();
                    let request = serde_json::to_value(request)?;
                    if request["status"].is_null() {
                        let mood = {
                            let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                            state.asked = Some(request.clone());
                            state.mood
                        };
                        answer(&all, &name, &request, mood, &between).await?;
                    }
                }
                sleep(PAUSE).await;
            }
        });
        Ok(Self { requests, root, state, _running: running })
    }

    fn becomes(&self, mood: Mood) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).mood = mood;
    }

    fn asked(&self) -> Option<Value> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).asked.clone()
    }
}

/// Each step is a write of its own, as it is with cert-manager.
async fn answer(
    all: &Api<DynamicObject>,
    name: &str,
    request: &Value,
    mood: Mood,
    by: &Authority,
) -> anyhow::Result<()> {
    let approved = condition("Approved", "True", "cert-manager.io", "approved");
    let waits = condition("Ready", "False", "Pending", "waiting for the issuer");
    let denied = condition("Denied", "True", "policy.cert-manager.io", "not this one");
    let failed = condition("Ready", "False", "Failed", "the vault is sealed");
    let steps = match mood {
        Mood::Sleeps => Vec::new(),
        Mood::Denies => vec![json!({ "conditions": [denied] })],
        Mood::Fails => vec![
            json!({ "conditions": [approved] }),
            json!({ "conditions": [approved, failed], "failureTime": "2026-01-01T00:00:00Z" }),
        ],
        Mood::Signs => {
            let csr = STANDARD.decode(request["spec"]["request"].as_str().unwrap_or_default())?;
            let now = SystemTime::now();
            let life = Validity { not_before: now, not_after: now + HOUR };
            let identity: Identity = SHOP.parse().context("no identity")?;
            let mut chain = by.sign(&String::from_utf8(csr)?, &identity, life, Serial::random()?)?;
            let roots = chain.pop().unwrap_or_default();
            let signed = condition("Ready", "True", "Issued", "certificate fetched");
            vec![
                json!({ "conditions": [approved] }),
                json!({ "conditions": [approved, waits] }),
                json!({
                    "conditions": [approved, signed],
                    "certificate": STANDARD.encode(chain.concat()), "ca": STANDARD.encode(roots)
                }),
            ]
        }
    };
    for status in steps {
        let status = json!({ "status": status });
        match all.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await {
            Ok(_) => {}
            // Whoever asked may have left.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z"
    })
}
