//! The tunnel's process: its environment, its log, its pages, its end.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use ambit_model::identity::Identity;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{PodNet, until, until_true};

/// The program that is tested.
pub const TUNNEL: &str = env!("CARGO_BIN_EXE_ztunnel");

/// The environment of a process: nothing else is inherited.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    pub fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }
}

/// A page that was fetched.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    pub body: String,
}

impl Page {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// A running tunnel, killed when this is dropped.
pub struct Ztunnel {
    child: RefCell<Child>,
    log: PathBuf,
    admin: SocketAddr,
    metrics: SocketAddr,
    readiness: SocketAddr,
    /// Where its pages are, when not on the node.
    inside: Option<Arc<PodNet>>,
}

impl Ztunnel {
    /// Starts the binary in the namespace of this thread.
    pub fn start(dir: &Path, env: Env) -> Self {
        Self::launch(Path::new(TUNNEL), dir, env, None)
    }

    /// Starts another program of the mesh there, whose log and pages are like a tunnel's.
    pub fn start_other(program: &Path, dir: &Path, env: Env) -> Self {
        Self::launch(program, dir, env, None)
    }

    /// Starts the binary inside a pod.
    pub fn start_in(dir: &Path, env: Env, pod: &Arc<PodNet>) -> Self {
        pod.inside(|| Self::launch(Path::new(TUNNEL), dir, env, Some(pod.clone())))
    }

    fn launch(program: &Path, dir: &Path, mut env: Env, inside: Option<Arc<PodNet>>) -> Self {
        static NUMBER: AtomicU16 = AtomicU16::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = dir.join(format!("ztunnel-{number}.log"));
        let file = File::create(&log).unwrap();
        // The second tunnel on the node needs pages of its own.
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port + 100 * (number % 300)));
        let (admin, metrics, readiness) = (at(15000), at(15020), at(15021));
        env.set("AMBIT_ADMIN_ADDR", admin.to_string());
        env.set("AMBIT_METRICS_ADDR", metrics.to_string());
        env.set("AMBIT_READINESS_ADDR", readiness.to_string());
        let child = Command::new(program)
            .env_clear()
            .envs(&env.0)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child: RefCell::new(child), log, admin, metrics, readiness, inside }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.borrow().id().try_into().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn exited(&self) -> Option<ExitStatus> {
        self.child.borrow_mut().try_wait().unwrap()
    }

    pub async fn until_exited(&self) -> ExitStatus {
        until("the tunnel ends", async || self.exited()).await
    }

    /// Everything it has said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits for a line of its log that has all of these in it.
    pub async fn line(&self, parts: &[&str]) -> String {
        self.lines(parts, 1).await.remove(0)
    }

    /// Waits for so many such lines.
    pub async fn lines(&self, parts: &[&str], count: usize) -> Vec<String> {
        let found = async || {
            let said = self.said();
            let lines = said.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
            let lines: Vec<String> = lines.map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        };
        let what = format!("{count} lines of the log with {parts:?}");
        let looking = until(&what, found);
        let watched = std::panic::AssertUnwindSafe(looking);
        match futures_util::FutureExt::catch_unwind(watched).await {
            Ok(lines) => lines,
            Err(_) => panic!("no {what} in:\n{}", self.said()),
        }
    }

    pub async fn get(&self, path: &str) -> Page {
        self.fetch(self.admin, "GET", path).await.expect("the admin page answers")
    }

    pub async fn post(&self, path: &str) -> Page {
        self.fetch(self.admin, "POST", path).await.expect("the admin page answers")
    }

    pub async fn readiness(&self) -> Option<Page> {
        self.fetch(self.readiness, "GET", "/healthz/ready").await
    }

    pub async fn is_ready(&self) -> bool {
        self.readiness().await.is_some_and(|page| page.status == 200)
    }

    pub async fn until_ready(&self) {
        let ready = async || {
            assert!(self.exited().is_none(), "the tunnel ended:\n{}", self.said());
            self.is_ready().await
        };
        let waiting = std::panic::AssertUnwindSafe(until_true("the tunnel is ready", ready));
        if futures_util::FutureExt::catch_unwind(waiting).await.is_err() {
            let page = self.readiness().await;
            panic!("not ready: {page:?}; log:\n{}", self.said());
        }
    }

    pub async fn metrics(&self) -> String {
        self.metrics_at("/metrics").await
    }

    pub async fn metrics_at(&self, path: &str) -> String {
        self.fetch(self.metrics, "GET", path).await.expect("metrics").body
    }

    /// The sum of all series of this name that have all these labels.
    pub async fn counted(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.metrics().await;
        let of_name = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then_some(rest)
        });
        let matching = of_name.filter(|rest| labels.iter().all(|label| rest.contains(label)));
        let values = matching.filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok());
        values.sum()
    }

    /// Waits until that sum is at least so much.
    pub async fn until_counted(&self, name: &str, labels: &[&str], least: u64) {
        let what = format!("{name} {labels:?} is at least {least}");
        until_true(&what, async || self.counted(name, labels).await >= least).await;
    }

    async fn fetch(&self, at: SocketAddr, method: &str, path: &str) -> Option<Page> {
        let stream = match &self.inside {
            Some(pod) => pod.connect(at).await.ok()?,
            None => TcpStream::connect(at).await.ok()?,
        };
        fetch(stream, method, path).await
    }

    /// The identity's certificate as the config dump shows it: its serial number, once there is one.
    pub async fn serial_of(&self, identity: &Identity) -> Option<String> {
        let dump = self.get("/config_dump").await.json();
        let all = dump["certificates"].as_array()?;
        let held = all.iter().find(|one| one["identity"] == identity.to_string().as_str())?;
        Some(held["certChain"].as_array()?.first()?["serialNumber"].as_str()?.to_owned())
    }

    /// Waits until its config dump has this in it.
    pub async fn until_known(&self, text: &str) {
        until_true(&format!("{text} is known"), async || self.get("/config_dump").await.body.contains(text))
            .await;
    }

    /// Resident memory in KiB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            eprintln!("the tunnel said:\n{}", self.said());
        }
    }
}

async fn fetch(mut stream: TcpStream, method: &str, path: &str) -> Option<Page> {
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Some(Page { status, body: if chunked { unchunked(body) } else { body.to_owned() } })
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        whole.push_str(rest.get(..size).unwrap_or_default());
        body = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}
