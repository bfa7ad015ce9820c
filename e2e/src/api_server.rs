//! A real API server with its etcd and nothing else, on loopback: for what needs Kubernetes' word and no pod that runs.
//!
//! Nobody schedules, no controller makes endpoints, no kubelet answers: objects are what a test writes.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_lab::process::{self, Output, Process, Program};
use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tempfile::TempDir;

use crate::wait::Stop;

/// Five seconds, unless the machine is busy.
const READY_LIMIT: Duration = Duration::from_secs(120);
const GRACE: Duration = Duration::from_secs(10);
const TOOL_LIMIT: Duration = Duration::from_secs(20);
/// A command that waits says so itself (`--timeout`); all others are done at once.
const KUBECTL_LIMIT: Duration = Duration::from_secs(150);
/// How often to ask `kubectl`, which takes a processor for a while.
const DEFINED_PAUSE: Duration = Duration::from_millis(250);
/// The only user; everything is hers to do.
const ADMIN_TOKEN: &str = "admin-of-an-api-server-that-is-thrown-away";

/// An API server that runs, and ends with this.
#[derive(Debug)]
pub struct ApiServer {
    dir: TempDir,
    program: PathBuf,
    etcd_port: u16,
    port: u16,
    server: Option<Process>,
    _etcd: Process,
}

impl ApiServer {
    /// Starts one; returns when it is ready. `programs` is the folder of the program `kubernetes`.
    pub fn start(programs: &Path, stop: &Stop) -> anyhow::Result<Self> {
        let program = programs.join("kubernetes");
        ensure!(program.exists(), "{} is missing; make it with .ci/setup cluster", program.display());
        let dir = tempfile::Builder::new().prefix("ambit-api-").tempdir().context("no directory")?;
        keys(dir.path())?;
        fs::write(dir.path().join("tokens.csv"), format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n"))?;
        // etcd takes the next port, too, for peers that it does not have.
        let etcd_port = free_pair()?;
        let etcd = Program::new(&program)
            .args(["etcd", "--data-dir"])
            .arg(dir.path().join("etcd"))
            .args(["--port", &etcd_port.to_string()]);
        let etcd = Process::start(None, &etcd, &dir.path().join("etcd.log"))?;
        let mut this = Self { program, etcd_port, port: free_port()?, server: None, _etcd: etcd, dir };
        this.resume(stop)?;
        fs::write(this.kubeconfig(), this.configuration())?;
        Ok(this)
    }

    /// Ends the API server, and keeps what it knows.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        if let Some(server) = self.server.take() {
            server.terminate(GRACE)?;
        }
        Ok(())
    }

    /// Starts it again, at the same address.
    pub fn resume(&mut self, stop: &Stop) -> anyhow::Result<()> {
        let server = Process::start(None, &self.command(), &self.log())?;
        let ready = stop.until(READY_LIMIT, "the start of the API server", || {
            if let Some(status) = server.ended() {
                bail!("the API server ended with {status}; it said {}", server.said());
            }
            let ask =
                Program::new("curl").args(["-ks", "--max-time", "5"]).arg(format!("{}/readyz", self.url()));
            let answer = process::run(None, &ask, TOOL_LIMIT)?;
            Ok((answer.stdout == "ok").then_some(()))
        });
        self.server = Some(server);
        ready
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The file by which clients become its administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// What it says.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("kube-apiserver.log")
    }

    /// Runs `kubectl` as its administrator.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<Output> {
        let kubectl = Program::new(&self.program).arg("kubectl").args(args);
        Ok(process::run(None, &kubectl.arg("--kubeconfig").arg(self.kubeconfig()), KUBECTL_LIMIT)?)
    }

    /// The same, which must succeed; returns what it printed.
    pub fn kubectl_ok(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.kubectl(args)?;
        ensure!(output.status.success(), "kubectl {args:?}: {}", output.stderr);
        Ok(output.stdout)
    }

    /// Defines the kinds that a file or folder describes; returns when they are served.
    pub fn define(&self, path: &Path, stop: &Stop) -> anyhow::Result<()> {
        self.kubectl_ok(&["apply", "--server-side", "--recursive", "-f", &path.display().to_string()])?;
        // It stumbles over one of which nothing is said yet.
        stop.until_every(DEFINED_PAUSE, KUBECTL_LIMIT, "the service of new kinds", || {
            let wait = ["wait", "--for=condition=Established", "--timeout=60s", "crds", "--all"];
            Ok(self.kubectl(&wait)?.status.success().then_some(()))
        })
    }

    /// A token of a service account, signed with the server's own key, that says whatever `claims` say.
    pub fn sign(&self, claims: &serde_json::Value) -> anyhow::Result<String> {
        signed(&self.dir.path().join("sa.key"), claims)
    }

    /// A client of its administrator.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        let file = kube::config::Kubeconfig::read_from(self.kubeconfig())?;
        let options = kube::config::KubeConfigOptions::default();
        Ok(kube::Client::try_from(kube::Config::from_custom_kubeconfig(file, &options).await?)?)
    }

    fn command(&self) -> Program {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        Program::new(&self.program).args([
            "kube-apiserver".to_owned(),
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={}", file("certs")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            // Tokens are reviewed for whatever audience a review names.
            "--api-audiences=https://kubernetes.default.svc.cluster.local,istio-ca".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            // Nobody makes default accounts here, and pods need none.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--profiling=false".to_owned(),
        ])
    }

    fn configuration(&self) -> String {
        let certificate = self.dir.path().join("certs/apiserver.crt");
        format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: alone, cluster: {{server: '{}', certificate-authority: '{}'}}}}]
users: [{{name: admin, user: {{token: {ADMIN_TOKEN}}}}}]
contexts: [{{name: alone, context: {{cluster: alone, user: admin}}}}]
current-context: alone
",
            self.url(),
            certificate.display()
        )
    }
}

/// The pair that service accounts' tokens are signed with.
fn keys(dir: &Path) -> anyhow::Result<()> {
    let openssl = |args: &[&str]| -> anyhow::Result<()> {
        let output = process::run(None, &Program::new("openssl").args(args).dir(dir), TOOL_LIMIT)?;
        ensure!(output.status.success(), "openssl: {}", output.stderr);
        Ok(())
    };
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key"])?;
    openssl(&["ec", "-in", "sa.key", "-pubout", "-out", "sa.pub"])
}

/// The first of two ports of loopback that nobody had a moment ago.
fn free_pair() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let port = free_port()?;
        if let Some(next) = port.checked_add(1)
            && TcpListener::bind(("127.0.0.1", next)).is_ok()
        {
            return Ok(port);
        }
    }
    bail!("no two ports of loopback are free beside each other")
}

/// A JSON Web Token (RFC 7519), signed with the EC key in a file.
pub fn signed(key: &Path, claims: &serde_json::Value) -> anyhow::Result<String> {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let head = serde_json::json!({"alg": "ES256", "typ": "JWT"});
    let text = format!("{}.{}", part(head.to_string().as_bytes()), part(claims.to_string().as_bytes()));
    let dir = tempfile::tempdir().context("no directory")?;
    let (input, output) = (dir.path().join("text"), dir.path().join("signature"));
    fs::write(&input, &text)?;
    let sign = Program::new("openssl").args(["dgst", "-sha256", "-sign"]).arg(key).arg("-out");
    let done = process::run(None, &sign.arg(&output).arg(&input), TOOL_LIMIT)?;
    ensure!(done.status.success(), "openssl: {}", done.stderr);
    let signature = plain(&fs::read(&output)?).context("openssl made no ECDSA signature")?;
    Ok(format!("{text}.{}", part(&signature)))
}

/// The two numbers of a DER signature, 32 bytes each (RFC 7518, 3.4).
fn plain(der: &[u8]) -> Option<Vec<u8>> {
    let rest = der.get(2..)?;
    let (&length, rest) = rest.get(1..)?.split_first()?;
    let (r, rest) = rest.split_at_checked(length.into())?;
    let (&length, rest) = rest.get(1..)?.split_first()?;
    let s = rest.get(..length.into())?;
    let number = |bytes: &[u8]| {
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        let bytes = bytes.get(start..).unwrap_or_default();
        let zeros = 32_usize.saturating_sub(bytes.len());
        [vec![0; zeros], bytes.to_vec()].concat()
    };
    Some([number(r), number(s)].concat())
}

/// A file that a build put into a folder above the running program: a test runs in one below the programs.
pub fn above(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    own.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists())
}

/// The folder of Kubernetes' programs. Where they are not, it says that whatever needs them is skipped.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub fn programs() -> Option<PathBuf> {
    let found = above("tools/kubernetes").filter(|dir| dir.join("kubernetes").exists());
    if found.is_none() {
        eprintln!("SKIPPED: Kubernetes is not built; make it with .ci/cluster-programs");
    }
    found
}

/// A port of loopback that nobody had a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no port of loopback is free")?.local_addr()?.port())
}
