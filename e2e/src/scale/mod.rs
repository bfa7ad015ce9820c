//! A large cluster that is not there: real objects in a real API server, the real controller, and tunnels that only
//! subscribe. What it measures stands in `docs/performance.md`.
//!
//! [`objects`] writes nodes, services and pods; [`tunnels`] subscribe as each node's tunnel would, with a token of its
//! own pod, and note when they hear of what; [`report`] says what came of it.

pub mod objects;
pub mod report;
pub mod tunnels;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ambit_lab::process::{Process, Program};
use ambit_wire::xds::Mode;
use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use tokio::time::{interval, sleep, timeout};
use tokio_stream::wrappers::IntervalStream;

use self::objects::{Shape, Writer};
use self::report::{Heard, Report, Round};
use self::tunnels::{Tunnels, Way};
use crate::api_server::{ApiServer, free_port};
use crate::wait::Stop;

/// Ten thousand pods are listed in two seconds; a busy machine and a debug build take longer.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long the last changes may take to arrive. What has not come by then counts as lost.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(30);
/// Pods are replaced at the rate that is asked for, also where the API server takes longer for each.
const WRITES_AT_ONCE: usize = 16;
const GRACE: Duration = Duration::from_secs(10);
/// Services that the pods of one node call: what its tunnel asks for, where tunnels ask.
const CALLED: usize = 20;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cluster.
    pub shape: Shape,
    /// Pods a second that go and come.
    pub churn: u32,
    /// For how long, in each way of subscribing.
    pub duration: Duration,
}

/// Measures.
pub async fn run(plan: &Plan, controller: &Path, api: &ApiServer, stop: &Stop) -> anyhow::Result<Report> {
    let client = api.client().await?;
    let writer = Writer::new(client.clone(), plan.shape.clone());
    let begun = Instant::now();
    writer.everything().await?;
    let written = begun.elapsed();
    let controller = Controller::start(controller, api, stop)?;
    let start_to_ready = controller.ready().await?;
    let listed = controller.memory()?;

    let mut rounds = Vec::new();
    for (name, mode) in [("everything", Mode::Wildcard), ("on demand", Mode::OnDemand)] {
        rounds.push(round(plan, name, mode, &controller, &client, &writer, stop).await?);
    }
    Ok(Report { plan: plan.clone(), written, start_to_ready, listed, rounds })
}

/// One way of subscribing: all tunnels connect, pods go and come, everybody hears what concerns it.
async fn round(
    plan: &Plan,
    name: &str,
    mode: Mode,
    controller: &Controller,
    client: &Client,
    writer: &Writer,
    stop: &Stop,
) -> anyhow::Result<Round> {
    let way = Way { mode, called: CALLED, shape: plan.shape.clone() };
    controller.forget_memory()?;
    let begun = Instant::now();
    let tunnels =
        Tunnels::connect(client, controller.address(), &controller.roots(client).await?, way).await?;
    timeout(READY_LIMIT, tunnels.synced()).await.context("tunnels were not told the mesh in time")?;
    let connected = begun.elapsed();
    let connecting = controller.memory()?;
    tunnels.forget();
    controller.forget_memory()?;

    let cpu = controller.cpu()?;
    let begun = Instant::now();
    let ticks = IntervalStream::new(interval(Duration::from_secs(1) / plan.churn.max(1)));
    let changes = ticks.take_until(sleep(plan.duration)).map(|_| async {
        stop.check()?;
        writer.replace_one().await
    });
    let changes: Vec<_> = changes.buffer_unordered(WRITES_AT_ONCE).try_collect().await?;
    let lasted = begun.elapsed();
    let deadline = Instant::now() + ARRIVAL_LIMIT;
    while Instant::now() < deadline && !tunnels.heard_all(&changes) {
        sleep(Duration::from_millis(20)).await;
    }
    let cpu = controller.cpu()?.saturating_sub(cpu);
    let changing = controller.memory()?;
    let heard = Heard::of(&tunnels, &changes);
    tunnels.disconnect().await;
    let changes = changes.len();
    Ok(Round { name: name.to_owned(), connected, connecting, lasted, changes, changing, heard, cpu })
}

/// The controller under test.
struct Controller {
    process: Process,
    dir: tempfile::TempDir,
    port: u16,
    pages: u16,
    begun: Instant,
}

impl Controller {
    fn start(program: &Path, api: &ApiServer, stop: &Stop) -> anyhow::Result<Self> {
        stop.check()?;
        let dir = tempfile::tempdir().context("no directory")?;
        let (port, pages) = (free_port()?, free_port()?);
        let program = Program::new(program)
            .env("KUBECONFIG", api.kubeconfig())
            .args(["--source", "kubernetes"])
            .args(["--listen", &format!("127.0.0.1:{port}"), "--admin", &format!("127.0.0.1:{pages}")]);
        let log = dir.path().join("controller.log");
        let process = Process::start(None, &program, &log)?;
        Ok(Self { process, dir, port, pages, begun: Instant::now() })
    }

    fn address(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// From its start until it serves the whole mesh.
    async fn ready(&self) -> anyhow::Result<Duration> {
        let deadline = Instant::now() + READY_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.process.ended() {
                bail!("the controller ended with {status}; it said {}", self.process.said());
            }
            if tunnels::page(self.pages, "/readyz").await.is_ok_and(|(status, _)| status == 200) {
                return Ok(self.begun.elapsed());
            }
            sleep(Duration::from_millis(10)).await;
        }
        bail!("the controller was not ready within {READY_LIMIT:?}; it said {}", self.process.said())
    }

    /// Whom tunnels trust.
    async fn roots(&self, client: &Client) -> anyhow::Result<String> {
        objects::root(client).await.with_context(|| format!("see {}", self.dir.path().display()))
    }

    /// From now on the highest is looked for anew.
    fn forget_memory(&self) -> anyhow::Result<()> {
        let path = format!("/proc/{}/clear_refs", self.process.pid());
        fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
    }

    /// The highest resident memory since [`Self::forget_memory`], in bytes.
    fn memory(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().context("VmHWM is no number")?;
        Ok(kilobytes * 1024)
    }

    /// The processor time that it took so far.
    fn cpu(&self) -> anyhow::Result<Duration> {
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
