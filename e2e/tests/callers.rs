//! Who is believed, and for whom: real tokens of a real API server, good ones and those that are made up, expired, meant
//! for somebody else, or of a node that asks for an identity it does not host.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_e2e::api_server::{ApiServer, above, free_port, programs, signed};
use ambit_e2e::controller::channel;
use ambit_e2e::scale::objects::{self, Shape, Writer};
use ambit_e2e::wait::Stop;
use ambit_lab::process::{self, Process, Program};
use ambit_wire::ca::{Asking, CaClient};
use ambit_wire::cert::{IssueError, Issued, Issuer as _, SigningRequest, request::Request};
use anyhow::{Context as _, bail, ensure};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
const SHOP: &str = "spiffe://cluster.local/ns/shop-0/sa/default";
/// It runs on the second node only.
const ELSEWHERE: &str = "spiffe://cluster.local/ns/shop-0/sa/elsewhere";
const TUNNEL: &str = "spiffe://cluster.local/ns/istio-system/sa/ztunnel";

const POD: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: elsewhere, namespace: shop-0}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shop-0}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: shop-0}
spec:
  nodeName: node-1
  serviceAccountName: elsewhere
  containers: [{name: app, image: none}]
";

#[test]
fn only_who_is_what_it_says_gets_what_it_may_have() -> anyhow::Result<()> {
    let Some(programs) = programs() else { return Ok(()) };
    ambit_wire::tls::install_provider()?;
    let stop = Stop::default();
    let server = ApiServer::start(&programs, &stop)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut scene = Scene::set(server, &runtime, stop)?;
    scene.tell(&runtime)
}

struct Scene {
    server: ApiServer,
    stop: Stop,
    port: u16,
    roots: String,
    _controller: Process,
}

/// What a caller gets.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Certificate,
    /// Refused, and told so with these words.
    Refused(&'static str),
    /// To come back later.
    Unavailable,
}

impl Scene {
    fn set(server: ApiServer, runtime: &tokio::runtime::Runtime, stop: Stop) -> anyhow::Result<Self> {
        let shape = Shape { nodes: 2, pods: 4, services: 2 };
        let client = runtime.block_on(server.client())?;
        runtime.block_on(Writer::new(client.clone(), shape).everything())?;
        apply(&server, POD)?;
        let program = above("controller").context("run `cargo build --workspace --bins`")?;
        let (port, pages) = (free_port()?, free_port()?);
        let program = Program::new(program)
            .env("KUBECONFIG", server.kubeconfig())
            .args(["--source", "kubernetes", "--admin", &format!("127.0.0.1:{pages}")])
            .args(["--listen", &format!("127.0.0.1:{port}")]);
        let log = server.log().with_file_name("controller.log");
        let controller = Process::start(None, &program, &log)?;
        let ready = Program::new("curl").args(["-fs", &format!("http://127.0.0.1:{pages}/readyz")]);
        stop.until(LIMIT, "the start of the controller", || {
            ensure!(controller.ended().is_none(), "the controller ended: {}", controller.said());
            Ok(process::run(None, &ready, LIMIT)?.status.success().then_some(()))
        })?;
        let roots = runtime.block_on(objects::root(&client))?;
        Ok(Self { server, stop, port, roots, _controller: controller })
    }

    fn tell(&mut self, runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
        let tunnel = |node: u8| {
            self.token("istio-system", "ztunnel", &["--bound-object-name", &format!("ztunnel-{node}")])
        };
        let (first, second) = (tunnel(0)?, tunnel(1)?);
        let shop = self.token("shop-0", "default", &[])?;
        let other = {
            let args = [
                "create",
                "token",
                "ztunnel",
                "-n",
                "istio-system",
                "--audience",
                "https://kubernetes.default.svc.cluster.local",
            ];
            self.server.kubectl_ok(&args)?.trim().to_owned()
        };
        let uid = self.uid()?;
        let claims = |expires: u64| {
            json!({
                "iss": "https://kubernetes.default.svc.cluster.local", "aud": ["istio-ca"],
                "sub": "system:serviceaccount:istio-system:ztunnel", "iat": 1_700_000_000, "nbf": 1_700_000_000,
                "exp": expires,
                "kubernetes.io": {"namespace": "istio-system", "serviceaccount": {"name": "ztunnel", "uid": uid}}
            })
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let expired = self.server.sign(&claims(now - 60))?;
        let podless = self.server.sign(&claims(now + 3600))?;
        let forged = signed(&stranger(&self.server)?, &claims(now + 3600))?;

        let cases: [(&str, &str, Asking, &str, Got); 13] = [
            ("the tunnel of a node, for a pod there", &first, Asking::ForOthers, SHOP, Got::Certificate),
            (
                "for one that is elsewhere",
                &first,
                Asking::ForOthers,
                ELSEWHERE,
                Got::Refused("is on node node-0"),
            ),
            ("where that one is", &second, Asking::ForOthers, ELSEWHERE, Got::Certificate),
            ("for itself", &first, Asking::ForMyself, TUNNEL, Got::Certificate),
            ("a pod, for itself", &shop, Asking::ForMyself, SHOP, Got::Certificate),
            ("for another", &shop, Asking::ForOthers, ELSEWHERE, Got::Refused("not a trusted node account")),
            (
                "a foreign trust domain",
                &first,
                Asking::ForOthers,
                "spiffe://other/ns/shop-0/sa/default",
                Got::Refused("trust domain"),
            ),
            (
                "a token for others",
                &other,
                Asking::ForMyself,
                TUNNEL,
                Got::Refused("not valid for the audience"),
            ),
            (
                "one that expired",
                &expired,
                Asking::ForMyself,
                TUNNEL,
                Got::Refused("not valid for the audience"),
            ),
            (
                "one that somebody else signed",
                &forged,
                Asking::ForMyself,
                TUNNEL,
                Got::Refused("not valid for the audience"),
            ),
            ("one that names no pod, for itself", &podless, Asking::ForMyself, TUNNEL, Got::Certificate),
            (
                "one that names no pod, for others",
                &podless,
                Asking::ForOthers,
                SHOP,
                Got::Refused("do not say on which node"),
            ),
            (
                "words",
                "no-token-at-all",
                Asking::ForMyself,
                TUNNEL,
                Got::Refused("not valid for the audience"),
            ),
        ];
        for (who, token, asking, identity, wanted) in cases {
            let got = runtime.block_on(self.ask(token, asking, identity))?;
            check(who, got, &wanted)?;
        }

        // A pod that is gone takes its token with it, when it is believed no longer.
        self.server.kubectl_ok(&[
            "delete",
            "pod",
            "ztunnel-1",
            "-n",
            "istio-system",
            "--grace-period=0",
            "--force",
        ])?;
        self.stop.until_every(Duration::from_millis(500), LIMIT, "the end of the token", || {
            let got = runtime.block_on(self.ask(&second, Asking::ForMyself, TUNNEL))?;
            Ok(check("of a pod that is gone", got, &Got::Refused("not valid for the audience")).ok())
        })?;

        // Nobody is refused because the API server is silent; it is only not known who it is.
        let fresh = self.token("shop-0", "elsewhere", &[])?;
        self.server.pause()?;
        let got = runtime.block_on(self.ask(&fresh, Asking::ForMyself, ELSEWHERE))?;
        check("while the API server is down", got, &Got::Unavailable)?;
        self.server.resume(&self.stop.clone())?;
        let got = runtime.block_on(self.ask(&fresh, Asking::ForMyself, ELSEWHERE))?;
        check("when it is back", got, &Got::Certificate)
    }

    fn token(&self, namespace: &str, account: &str, more: &[&str]) -> anyhow::Result<String> {
        let kind: &[&str] = if more.is_empty() { &[] } else { &["--bound-object-kind", "Pod"] };
        let args =
            [&["create", "token", account, "-n", namespace, "--audience", "istio-ca"], kind, more].concat();
        Ok(self.server.kubectl_ok(&args)?.trim().to_owned())
    }

    fn uid(&self) -> anyhow::Result<String> {
        let args =
            ["get", "serviceaccount", "ztunnel", "-n", "istio-system", "-o", "jsonpath={.metadata.uid}"];
        self.server.kubectl_ok(&args)
    }

    async fn ask(
        &self,
        token: &str,
        asking: Asking,
        identity: &str,
    ) -> anyhow::Result<Result<Issued, IssueError>> {
        let address = format!("https://localhost:{}", self.port);
        let channel = channel(address, &self.roots, token.to_owned())?;
        let client = CaClient::new(channel, asking, Duration::from_secs(3600));
        let identity = identity.parse().context("no identity")?;
        let csr = Request::new(&identity)?.csr;
        Ok(client.issue(SigningRequest { identity, csr }).await)
    }
}

fn check(who: &str, got: Result<Issued, IssueError>, wanted: &Got) -> anyhow::Result<()> {
    match (got, wanted) {
        (Ok(issued), Got::Certificate) => {
            ensure!(issued.chain.len() >= 2, "{who}: a chain of {}", issued.chain.len());
            Ok(())
        }
        (Err(IssueError::Refused { code, message }), Got::Refused(words)) => {
            ensure!(code == "Unauthenticated" && message.contains(words), "{who}: {code}: {message}");
            Ok(())
        }
        (Err(IssueError::Unreachable(_)), Got::Unavailable) => Ok(()),
        (got, wanted) => bail!("{who}: {:?}, not {wanted:?}", got.map(|issued| issued.chain.len())),
    }
}

/// A key that the API server does not know.
fn stranger(server: &ApiServer) -> anyhow::Result<PathBuf> {
    let key = server.log().with_file_name("stranger.key");
    let make = Program::new("openssl").args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]);
    let made = process::run(None, &make.arg(&key), LIMIT)?;
    ensure!(made.status.success(), "openssl: {}", made.stderr);
    Ok(key)
}

fn apply(server: &ApiServer, yaml: &str) -> anyhow::Result<()> {
    let file = server.log().with_file_name("objects.yaml");
    std::fs::write(&file, yaml)?;
    server.kubectl_ok(&["apply", "-f", &file.display().to_string()]).map(drop)
}
