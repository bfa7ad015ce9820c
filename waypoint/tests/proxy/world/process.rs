//! The waypoint's process: its environment, its log, its pages, its end.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::until;

/// A running waypoint, killed when this is dropped.
pub struct Waypoint {
    child: Child,
    log: PathBuf,
}

impl Waypoint {
    pub fn start(dir: &Path, env: Vec<(String, String)>) -> Self {
        let log = dir.join("waypoint.log");
        let file = File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_waypoint"))
            .env_clear()
            .envs(env)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    pub async fn until_ready(&self) {
        let ready = async || {
            let page = get(SocketAddr::from(([127, 0, 0, 1], 15021)), "/healthz/ready").await?;
            (page.0 == 200).then_some(())
        };
        until("the waypoint is ready", ready).await;
    }

    /// Everything it has said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits for a line of its log that has all of these in it.
    pub async fn line(&self, parts: &[&str]) -> String {
        let what = format!("a line of the log with {parts:?}");
        until(&what, async || {
            let said = self.said();
            said.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
        })
        .await
    }

    /// Waits until its configuration has this in it.
    pub async fn until_known(&self, text: &str) {
        until(&format!("{text} is known"), async || self.dump().await.contains(text).then_some(())).await;
    }

    pub async fn dump(&self) -> String {
        get(SocketAddr::from(([127, 0, 0, 1], 15000)), "/config_dump").await.expect("the page answers").1
    }

    /// The sum of all series of this name that have all these labels.
    pub async fn counted(&self, name: &str, labels: &[&str]) -> u64 {
        let page = get(SocketAddr::from(([127, 0, 0, 1], 15020)), "/metrics").await.expect("metrics");
        let of_name = page.1.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| rest.to_owned())
        });
        let matching = of_name.filter(|rest| labels.iter().all(|label| rest.contains(label)));
        matching.filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Waits until that sum is so much.
    pub async fn until_counted(&self, name: &str, labels: &[&str], count: u64) {
        let what = format!("{name} {labels:?} is {count}");
        until(&what, async || (self.counted(name, labels).await == count).then_some(())).await;
    }

    pub fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }

    pub async fn until_exited(&mut self) -> std::process::ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Waypoint {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the waypoint said:\n{}", self.said());
        }
    }
}

/// Status and body of a page.
async fn get(at: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
