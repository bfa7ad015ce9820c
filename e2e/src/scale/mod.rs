//! A large cluster that is not there: real objects in a real API server, the real controller, and tunnels that only
//! subscribe. What it measures stands in `docs/performance.md`.
//!
//! [`objects`] writes nodes, services and pods; [`tunnels`] subscribe as each node's tunnel would, with a token of its
//! own pod, and note when they hear of what; [`report`] says what came of it.

pub mod objects;
pub mod report;
pub mod tunnels;

use std::path::Path;
use std::time::{Duration, Instant};

use ambit_wire::xds::Mode;
use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use tokio::time::{interval, sleep, timeout};
use tokio_stream::wrappers::IntervalStream;

use self::objects::{Shape, Writer};
use self::report::{Heard, Report, Round};
use self::tunnels::{Tunnels, Way};
use crate::api_server::ApiServer;
use crate::controller::Controller;
use crate::wait::Stop;

/// A hundred tunnels are told ten thousand pods in some seconds; a busy machine and a debug build take longer.
const SYNC_LIMIT: Duration = Duration::from_secs(120);
/// How long the last changes may take to arrive. What has not come by then counts as lost.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(30);
/// Pods are replaced at the rate that is asked for, also where the API server takes longer for each.
const WRITES_AT_ONCE: usize = 16;
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
    let controller = Controller::start(controller, api, &[], stop)?;
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
    let tunnels = Tunnels::connect(client, controller.address(), &objects::root(client).await?, way).await?;
    timeout(SYNC_LIMIT, tunnels.synced()).await.context("tunnels were not told the mesh in time")?;
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
