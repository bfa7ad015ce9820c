//! The story of the mesh in seventeen steps, each with the evidence that was seen on real packets. `make demo` tells it, and
//! the test `story` is the same.

mod entering;
mod operating;
mod requests;
mod ruling;
mod surviving;

use std::time::Duration;

use ambit_lab::Pod;
use ambit_lab::mesh::Binaries;
use anyhow::{Context as _, ensure};

use crate::telling::{Evidence, Telling};
use crate::town::{Client, Town};
use crate::wait::Stop;

/// What the steps are about, in order.
const STEPS: [(&str, Tell); 17] = [
    ("Before: a request between nodes can be read on the wire", entering::in_the_clear),
    ("One label on the namespace: the same pods, now in mutual TLS", entering::one_label),
    ("A connection from before is not broken", entering::unbroken),
    ("STRICT: who is not in the mesh is refused, and is told why", ruling::strict),
    ("A policy lets one identity in; changed, it cuts the connection that lost its right", ruling::policy),
    ("Certificates with a short life are renewed under a running connection", surviving::renewal),
    ("Three endpoints on two nodes: load is spread, and one may die", surviving::endpoints),
    ("The controller is stopped: all goes on; it returns: all is in sync", surviving::controller),
    ("A tunnel is replaced under load: no new connection fails", surviving::replacement),
    ("`ambit status` and `ambit tunnel-config` show all this", operating::shown),
    ("A waypoint: from here on requests are seen, not connections", requests::waypoint),
    ("Canary: a header, and a tenth of the rest, go to another version", requests::canary),
    ("Retries: an endpoint fails, and no client notices", requests::retries),
    ("Mirror: another version sees everything, and nobody waits for it", requests::mirroring),
    ("Tokens: who calls, and what his token says, decides", requests::tokens),
    ("Limits: who calls too often is told when to come again", requests::limits),
    ("All of it was counted", requests::counted),
];

/// How long certificates live in the story: short enough to see one renewed, long enough to do without the controller
/// for a while.
const CERTIFICATE_LIFE: &str = "18s";
const NODE_A: &str = "node-a";
const NODE_B: &str = "node-b";
const CLIENT: &str = "shop/client";
const ENROLLED: [&str; 6] =
    ["shop/client", "shop/cart", "shop/intruder", "shop/web-1", "shop/web-2", "shop/web-3"];

type Tell = fn(&mut Stage, &mut Evidence<'_>) -> anyhow::Result<()>;

/// What a demo needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The lab's name.
    pub name: String,
    /// Where the programs are, `ambit` among them.
    pub binaries: std::path::PathBuf,
    /// Leave logs and configuration when it ends.
    pub keep: bool,
}

/// The town and what lasts from one step to another.
struct Stage {
    town: Town,
    ambit: std::path::PathBuf,
    /// A web pod on the other node than the client's.
    web: Pod,
    /// Opened before the namespace was enrolled.
    early: Option<Client>,
    /// Opened by the client in the mesh.
    steady: Option<Client>,
}

/// Tells the story. Whether every step held.
pub fn run(settings: &Settings, stop: &Stop) -> anyhow::Result<bool> {
    let mut telling = Telling::aloud(stop.clone());
    telling.say("Two nodes, some pods, real packets. Bringing them up…");
    let mut stage = Stage::set(settings, stop)?;
    for (title, tell) in STEPS {
        telling.step(title, |evidence| tell(&mut stage, evidence));
    }
    if settings.keep
        && let Some(home) = stage.town.keep_files()
    {
        telling.say(&format!("\nLogs and configuration: {}", home.display()));
    }
    drop(stage);
    Ok(telling.verdict(STEPS.len()))
}

impl Stage {
    fn set(settings: &Settings, stop: &Stop) -> anyhow::Result<Self> {
        let ambit = settings.binaries.join("ambit");
        ensure!(ambit.is_file(), "{} is not there; build it: cargo build --bins", ambit.display());
        let binaries = Binaries::in_dir(&settings.binaries)?;
        let town = Town::up(&settings.name, include_str!("shop.yaml"), binaries, stop, |mesh| {
            mesh.controller.push(format!("--debug-cert-ttl={CERTIFICATE_LIFE}"));
        })?;
        let there = |pod: &Pod| pod.node().name() == NODE_B;
        let web = town.pods_of("shop/web-").into_iter().find(there).context("no web pod on node-b")?;
        Ok(Self { town, ambit, web, early: None, steady: None })
    }

    /// The web pod's address and that port.
    fn web_at(&self, port: u16) -> anyhow::Result<String> {
        Ok(self.web.address(false, port).context("the web pod has no IPv4 address")?.to_string())
    }

    fn capture_file(&self, name: &str) -> std::path::PathBuf {
        self.town.logs().join(name)
    }
}

/// An account of the shop, as certificates name it.
fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

/// A whole run of a client of the demo is shorter.
const RUN_LIMIT: Duration = Duration::from_secs(60);
