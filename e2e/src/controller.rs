//! The real controller beside an [API server](crate::api_server) without nodes, and a tunnel that only listens.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_lab::process::{Process, Program};
use ambit_model::identity::Identity;
use ambit_model::snapshot::Snapshot;
use ambit_wire::ca::{Asking, CaClient};
use ambit_wire::cert::{
    IssueError, Issued, Issuer as _, SigningRequest,
    request::{PrivateKey, Request},
};
use ambit_wire::channel::{ChannelSettings, ControlPlane, RootSource, TokenSource};
use ambit_wire::codec::{ADDRESS, AUTHORIZATION};
use ambit_wire::discovery::Mesh;
use ambit_wire::tls::{Compliance, Profile, Versions, revoked::Revocation};
use ambit_wire::xds::{self, Mode, NodeInfo};
use anyhow::{Context as _, bail, ensure};
use kube::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::api_server::{ApiServer, free_port};
use crate::scale::objects::{self, SYSTEM};
use crate::wait::Stop;

/// Ten thousand pods are listed in two seconds; a busy machine and a debug build take longer.
const READY_LIMIT: Duration = Duration::from_secs(120);
const GRACE: Duration = Duration::from_secs(10);
const ASK_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// A controller that runs, and ends with this.
pub struct Controller {
    process: Process,
    port: u16,
    pages: u16,
    begun: Instant,
    _dir: tempfile::TempDir,
}

impl Controller {
    /// Starts one on what the API server has.
    pub fn start(program: &Path, api: &ApiServer, flags: &[&str], stop: &Stop) -> anyhow::Result<Self> {
        let program = Program::new(program)
            .env("KUBECONFIG", api.kubeconfig())
            .args(["--source", "kubernetes"])
            .args(flags);
        Self::start_on(program, stop)
    }

    /// Starts one that is told where its objects are.
    pub fn start_on(program: Program, stop: &Stop) -> anyhow::Result<Self> {
        stop.check()?;
        let dir = tempfile::tempdir().context("no directory")?;
        let (port, pages) = (free_port()?, free_port()?);
        let program = program.args([
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--admin",
            &format!("127.0.0.1:{pages}"),
        ]);
        let process = Process::start(None, &program, &dir.path().join("controller.log"))?;
        Ok(Self { process, port, pages, begun: Instant::now(), _dir: dir })
    }

    /// Where tunnels connect.
    pub fn address(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The port of its pages.
    pub fn pages(&self) -> u16 {
        self.pages
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// From its start until it serves the whole mesh.
    pub async fn ready(&self) -> anyhow::Result<Duration> {
        self.until(READY_LIMIT, "readiness", async || {
            Ok(page(self.pages, "/readyz").await.is_ok_and(|(status, _)| status == 200).then_some(()))
        })
        .await?;
        Ok(self.begun.elapsed())
    }

    /// Waits until `probe` finds something while it runs; `what` completes "… did not happen".
    pub async fn until<T>(
        &self,
        limit: Duration,
        what: &str,
        mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.process.ended() {
                bail!("the controller ended with {status}; it said {}", self.process.said());
            }
            if let Some(found) = probe().await? {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                bail!("within {limit:?}: {what} did not happen; the controller said {}", self.process.said());
            }
            sleep(PAUSE).await;
        }
    }

    /// One of its pages, which must be there.
    pub async fn page(&self, path: &str) -> anyhow::Result<String> {
        let (status, text) = page(self.pages, path).await?;
        if status != 200 {
            bail!("{path} answered {status}: {text}");
        }
        Ok(text)
    }

    /// One of its figures, all of its labels together.
    pub async fn figure(&self, name: &str) -> anyhow::Result<u64> {
        let text = self.page("/metrics").await?;
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let values =
            lines.filter(|rest| rest.starts_with([' ', '{'])).filter_map(|rest| rest.rsplit(' ').next());
        let values: Vec<u64> =
            values.map(str::parse).collect::<Result<_, _>>().with_context(|| name.to_owned())?;
        ensure!(!values.is_empty(), "there is no {name}");
        Ok(values.iter().sum())
    }

    /// A certificate for a workload, asked for with the token of a node's tunnel, and the key that it is about.
    pub async fn certificate(
        &self,
        client: &Client,
        roots: &str,
        identity: &Identity,
        life: Duration,
    ) -> anyhow::Result<(Result<Issued, IssueError>, PrivateKey)> {
        let channel = channel(self.address(), roots, objects::token(client, 0).await?)?;
        let request = Request::new(identity)?;
        let asked = SigningRequest { identity: identity.clone(), csr: request.csr };
        Ok((CaClient::new(channel, Asking::ForOthers, life).issue(asked).await, request.key))
    }

    /// From now on the highest is looked for anew.
    pub fn forget_memory(&self) -> anyhow::Result<()> {
        let path = format!("/proc/{}/clear_refs", self.process.pid());
        fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
    }

    /// The highest resident memory since [`Self::forget_memory`], in bytes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().context("VmHWM is no number")?;
        Ok(kilobytes * 1024)
    }

    /// The processor time that it took so far.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.pid()))?;
        let fields = stat.rsplit_once(')').context("stat has no name")?.1;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks: u64 = ticks.sum::<Result<u64, _>>().context("stat has no times")?;
        // The kernel counts in hundredths here, whatever it ticks at.
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended by itself, which was told.
        let _ = self.process.terminate(GRACE);
    }
}

/// What a tunnel knows that asks for everything.
pub struct Listener {
    mesh: Mesh,
    _running: JoinSet<()>,
}

impl Listener {
    /// Connects as the tunnel of the first node that [`objects::Writer`] wrote; returns when it knows the mesh.
    pub async fn connect(client: &Client, controller: &Controller) -> anyhow::Result<Self> {
        let roots = objects::root(client).await?;
        let channel = channel(controller.address(), &roots, objects::token(client, 0).await?)?;
        let (mesh, discovery) = Mesh::new(None);
        let types = [(ADDRESS, Mode::Wildcard), (AUTHORIZATION, Mode::Wildcard)];
        let (subscription, handle) =
            xds::Client::new(&tunnel_of(0), types, channel, discovery, Arc::default());
        let mut running = JoinSet::new();
        running.spawn(subscription.run(std::future::pending()));
        timeout(READY_LIMIT, handle.synced()).await.context("the tunnel was not told the mesh in time")?;
        Ok(Self { mesh, _running: running })
    }

    /// What it knows now.
    pub fn mesh(&self) -> Arc<Snapshot> {
        self.mesh.current()
    }

    /// Waits until what it knows is as `probe` wants it.
    pub async fn until(
        &self,
        limit: Duration,
        what: &str,
        mut probe: impl FnMut(&Snapshot) -> bool,
    ) -> anyhow::Result<()> {
        let mut changes = self.mesh.changes();
        let heard = timeout(limit, changes.wait_for(|_| probe(&self.mesh.current()))).await;
        heard
            .with_context(|| format!("within {limit:?}: {what} was not heard"))?
            .context("the tunnel ended")?;
        Ok(())
    }
}

/// A connection to a controller, for whoever has a token.
pub fn channel(address: String, roots: &str, token: String) -> anyhow::Result<ControlPlane> {
    let settings = ChannelSettings {
        address,
        roots: RootSource::Pem(roots.to_owned()),
        alt_hostname: None,
        token: TokenSource::Literal(token),
        cluster_id: "Kubernetes".to_owned(),
        headers: Vec::new(),
    };
    let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured)?;
    Ok(ControlPlane::new(settings, &profile)?)
}

/// How the tunnel of a node calls itself.
pub fn tunnel_of(node: usize) -> NodeInfo {
    NodeInfo {
        instance_ip: "10.0.0.1".to_owned(),
        pod_name: format!("ztunnel-{node}"),
        pod_namespace: SYSTEM.to_owned(),
        node_name: objects::node_name(node),
        ..NodeInfo::default()
    }
}

/// A page of the controller: its status and text.
async fn page(port: u16, path: &str) -> anyhow::Result<(u16, String)> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status")?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Ok((status, body))
    };
    timeout(ASK_LIMIT, ask).await.context("the page took too long")?
}
