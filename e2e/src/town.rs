//! A mesh in a lab with a directory of YAML to edit and pods to call from: the stage of every story.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_api::directory::Directory;
use ambit_lab::link::Link;
use ambit_lab::mesh::{Binaries, MeshLab, Settings};
use ambit_lab::{Output, Pod, Process, Program};
use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::observe::{self, Held, LogLine, Sample, text};
use crate::wait::Stop;

/// Enrolling takes some tenths of a second; a loaded machine takes seconds.
pub const SOON: Duration = Duration::from_secs(20);
/// The label that puts a namespace or pod in the mesh.
pub const ENROLLED: &str = "istio.io/dataplane-mode: ambient";

/// Whether network namespaces can be made; a test that skips itself says so.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A mesh to tell stories in. Dropping it leaves nothing behind, unless it was told to keep its files.
pub struct Town {
    mesh: MeshLab,
    directory: PathBuf,
    stop: Stop,
    runs: u32,
    home: Option<TempDir>,
}

/// What came of a run of the lab's HTTP client.
#[derive(Debug, Clone)]
pub struct Called {
    lines: Vec<Value>,
}

/// A client that runs beside the story: `hold` or `call`.
#[derive(Debug)]
pub struct Client {
    process: Process,
}

/// Where a log ends now: what is said later is new.
#[derive(Debug, Clone)]
pub struct Mark {
    node: String,
    lines: usize,
}

impl Town {
    /// Brings up a mesh of these documents. `adjust` sees the settings before.
    pub fn up(
        name: &str,
        documents: &str,
        binaries: Binaries,
        stop: &Stop,
        adjust: impl FnOnce(&mut Settings),
    ) -> anyhow::Result<Self> {
        // A short path: the tunnel's socket lies in it.
        let home =
            tempfile::Builder::new().prefix("amb").tempdir().context("cannot make a folder for the mesh")?;
        let directory = home.path().join("config");
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("town.yaml"), documents)?;
        let mut settings = Settings::new(name, &directory, home.path().join("state"), binaries);
        settings.tunnels.push(("LOG_FORMAT".to_owned(), "json".to_owned()));
        adjust(&mut settings);
        let watch = |_| if stop.asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let mesh = MeshLab::up(settings, watch)?;
        Ok(Self { mesh, directory, stop: stop.clone(), runs: 0, home: Some(home) })
    }

    /// The mesh.
    pub fn mesh(&mut self) -> &mut MeshLab {
        &mut self.mesh
    }

    /// Who may ask for the end.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Leaves logs and configuration where they are when the mesh goes; says where.
    pub fn keep_files(&mut self) -> Option<PathBuf> {
        self.home.take().map(TempDir::keep)
    }

    /// Writes a file of the directory, at once as readers see it.
    pub fn write(&self, file: &str, documents: &str) -> anyhow::Result<()> {
        let next = self.directory.join(format!(".{file}.next"));
        fs::write(&next, documents)?;
        fs::rename(&next, self.directory.join(file))?;
        Ok(())
    }

    /// Removes a file of the directory.
    pub fn remove(&self, file: &str) -> anyhow::Result<()> {
        fs::remove_file(self.directory.join(file)).with_context(|| format!("cannot remove {file}"))
    }

    /// Replaces `from`, which must be there, in a file of the directory.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let path = self.directory.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
        ensure!(text.contains(from), "{file} has no {from:?}");
        self.write(file, &text.replace(from, to))
    }

    /// Puts a label on a pod that was made from a template, or takes it off; nothing is started again.
    pub fn label_pod(
        &self,
        namespace: &str,
        name: &str,
        label: &str,
        value: Option<&str>,
    ) -> anyhow::Result<()> {
        let directory = Directory::open(&self.directory)?;
        let file = Path::new("pods").join(format!("{namespace}.{name}.yaml"));
        let text = fs::read_to_string(self.directory.join(&file))?;
        let pod = ambit_api::directory::read_text(&file, &text).objects.pop();
        let mut pod = pod.with_context(|| format!("{} is empty", file.display()))?.value;
        let labels = pod.pointer_mut("/metadata/labels").and_then(Value::as_object_mut);
        let labels = labels.with_context(|| format!("{namespace}/{name} has no labels"))?;
        match value {
            Some(value) => drop(labels.insert(label.to_owned(), value.into())),
            None => drop(labels.remove(label)),
        }
        Ok(directory.put(&file, &pod)?)
    }

    /// Waits until these pods (`namespace/name`) are in the mesh, or out of it.
    pub fn until_enrolled(&self, pods: &[&str], enrolled: bool) -> anyhow::Result<()> {
        let wanted: BTreeSet<_> = pods.iter().map(|pod| (*pod).to_owned()).collect();
        let what = if enrolled { "enrolment" } else { "leaving the mesh" };
        self.stop.until(SOON, &format!("{what} of {}", pods.join(", ")), || {
            let states = self.states()?;
            let there = wanted.iter().all(|pod| {
                let state = states.get(pod).map_or("outside", String::as_str);
                if enrolled { state == "enabled" } else { state == "outside" }
            });
            Ok(there.then_some(()))
        })
    }

    /// Waits until the tunnels of these nodes know that these pods (`namespace/name`) are reached through the mesh, or
    /// that they are not.
    pub fn until_reached_by(&mut self, nodes: &[&str], pods: &[&str], protocol: &str) -> anyhow::Result<()> {
        for node in nodes {
            let admin = self.mesh.tunnel(node)?.admin().clone();
            self.stop.until(
                SOON,
                &format!("on {node}, protocol {protocol} for {}", pods.join(", ")),
                || {
                    let dump: Value = serde_json::from_str(&admin.get("/config_dump")?.body)?;
                    let all = dump.get("workloads").and_then(Value::as_array).into_iter().flatten();
                    let known: BTreeSet<_> = all
                        .filter(|entry| text(entry, "protocol") == protocol)
                        .map(|entry| format!("{}/{}", text(entry, "namespace"), text(entry, "name")))
                        .collect();
                    Ok(pods.iter().all(|pod| known.contains(*pod)).then_some(()))
                },
            )?;
        }
        Ok(())
    }

    /// The state of each pod, as the agents have it.
    pub fn states(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut states = BTreeMap::new();
        let agents = self.mesh.daemons().filter(|daemon| daemon.kind() == ambit_lab::mesh::Kind::Agent);
        for agent in agents {
            let entries: Vec<Value> = serde_json::from_str(&agent.admin().get("/debug/pods")?.body)?;
            states.extend(entries.iter().map(|entry| {
                let name = format!("{}/{}", text(entry, "namespace"), text(entry, "name"));
                (name, text(entry, "state").to_owned())
            }));
        }
        Ok(states)
    }

    /// The end of what each daemon has said, for whoever looks for the fault.
    pub fn last_words(&self) -> String {
        const LINES: usize = 20;
        let of_each = self.mesh.daemons().map(|daemon| {
            let said = daemon.said();
            let quiet = |line: &&str| line.contains("\"level\":\"info\"") || line.contains("\tinfo\t");
            let warned = said.lines().filter(|line| !quiet(line));
            let lines: Vec<_> = warned.collect();
            let last = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
            format!("{daemon}:\n{}\n", last.join("\n"))
        });
        of_each.collect()
    }

    /// Where its logs are.
    pub fn logs(&self) -> &Path {
        self.mesh.lab().logs()
    }

    /// A node's end of the wire.
    pub fn link(&self, node: &str) -> anyhow::Result<Link> {
        Ok(self.mesh.lab().node(node)?.link().clone())
    }

    /// A pod, `namespace/name`.
    pub fn pod(&self, pod: &str) -> anyhow::Result<Pod> {
        let (namespace, name) = pod.split_once('/').context("a pod is `namespace/name`")?;
        Ok(self.mesh.lab().pod(namespace, name)?)
    }

    /// The pods of a workload, by the beginning of their names.
    pub fn pods_of(&self, prefix: &str) -> Vec<Pod> {
        let mut pods = self.mesh.lab().pods();
        pods.retain(|pod| pod.name().to_string().starts_with(prefix));
        pods
    }

    /// Runs the lab's application in a pod, to its end.
    pub fn app(&self, pod: &str, args: &[&str], limit: Duration) -> anyhow::Result<Output> {
        self.stop.check()?;
        let program = Program::new(&self.mesh.settings().binaries.app).args(args);
        Ok(self.pod(pod)?.run(&program, limit)?)
    }

    /// Calls from a pod; whatever comes of it.
    pub fn call(&self, pod: &str, args: &[&str]) -> anyhow::Result<Called> {
        let output = self.app(pod, &[&["call"], args].concat(), Duration::from_secs(60))?;
        Called::read(&output.stdout).with_context(|| output.stderr)
    }

    /// Starts the lab's application in a pod, and leaves it running.
    pub fn client(&mut self, pod: &str, args: &[&str]) -> anyhow::Result<Client> {
        self.runs += 1;
        let program = Program::new(&self.mesh.settings().binaries.app).args(args);
        let name = format!("{}-{}", args.first().unwrap_or(&"run"), self.runs);
        let process = self.pod(pod)?.spawn(&name, &program)?;
        Ok(Client { process })
    }

    /// Holds a connection to an echo, and returns when it is open and answers.
    pub fn hold(&mut self, pod: &str, to: &str) -> anyhow::Result<Client> {
        let client = self.client(pod, &["hold", to, "--interval", "20"])?;
        self.stop.until(SOON, &format!("a connection from {pod} to {to}"), || {
            if let Some(why) = client.broken() {
                bail!("the connection from {pod} to {to} broke: {why}");
            }
            Ok((client.exchanges() >= 2).then_some(()))
        })?;
        Ok(client)
    }

    /// Where the log of a node's tunnel ends now.
    pub fn mark(&mut self, node: &str) -> anyhow::Result<Mark> {
        let lines = LogLine::all(&self.mesh.tunnel(node)?.said()).len();
        Ok(Mark { node: node.to_owned(), lines })
    }

    /// Waits for a line of the tunnel's log that is new since `mark`.
    pub fn heard(
        &mut self,
        mark: &Mark,
        what: &str,
        mut wanted: impl FnMut(&LogLine) -> bool,
    ) -> anyhow::Result<LogLine> {
        let what = format!("on {}, a log line of {what}", mark.node);
        let tunnel = self.mesh.tunnel(&mark.node)?;
        self.stop.until(Duration::from_secs(10), &what, || {
            Ok(LogLine::all(&tunnel.said()).into_iter().skip(mark.lines).find(&mut wanted))
        })
    }

    /// The new lines of the access log of a tunnel.
    pub fn access(&mut self, mark: &Mark) -> anyhow::Result<Vec<LogLine>> {
        let all = LogLine::all(&self.mesh.tunnel(&mark.node)?.said());
        Ok(all.into_iter().skip(mark.lines).filter(LogLine::is_access).collect())
    }

    /// The metrics of a node's tunnel.
    pub fn metrics(&mut self, node: &str) -> anyhow::Result<Vec<Sample>> {
        Ok(observe::samples(&self.mesh.tunnel(node)?.metrics().get("/metrics")?.body))
    }

    /// The configuration dump of a node's tunnel.
    pub fn dump(&mut self, node: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.mesh.tunnel(node)?.admin().get("/config_dump")?.body)?)
    }

    /// The certificate that a node's tunnel holds for an identity.
    pub fn certificate(&mut self, node: &str, identity: &str) -> anyhow::Result<Option<Held>> {
        let held = observe::certificates(&self.dump(node)?);
        Ok(held.into_iter().find(|held| held.identity == identity))
    }

    /// Waits until a node's tunnel knows (or no longer knows) a policy, `namespace/name`.
    pub fn until_policy(&mut self, node: &str, policy: &str, known: bool) -> anyhow::Result<()> {
        let admin = self.mesh.tunnel(node)?.admin().clone();
        let word = if known { "arrival" } else { "removal" };
        self.stop.until(SOON, &format!("the {word} of policy {policy} on {node}"), || {
            let dump: Value = serde_json::from_str(&admin.get("/config_dump")?.body)?;
            let policies = dump.get("policies").and_then(Value::as_array).into_iter().flatten();
            let mut names =
                policies.map(|entry| format!("{}/{}", text(entry, "namespace"), text(entry, "name")));
            Ok((names.any(|name| name == policy) == known).then_some(()))
        })
    }
}

impl Called {
    fn read(printed: &str) -> anyhow::Result<Self> {
        let lines: Result<Vec<_>, _> = printed.lines().map(serde_json::from_str).collect();
        let called = Self { lines: lines.context("the client printed something else than JSON")? };
        ensure!(
            called.lines.last().is_some_and(|last| last.get("summary").is_some()),
            "the client was cut off: {printed}"
        );
        Ok(called)
    }

    fn summary(&self, field: &str) -> &Value {
        self.lines.last().and_then(|last| last.get("summary")?.get(field)).unwrap_or(&Value::Null)
    }

    /// How many requests were made.
    pub fn requests(&self) -> u64 {
        self.summary("requests").as_u64().unwrap_or_default()
    }

    /// How many failed.
    pub fn failures(&self) -> u64 {
        self.summary("failures").as_u64().unwrap_or(u64::MAX)
    }

    /// How many each pod answered.
    pub fn pods(&self) -> BTreeMap<String, u64> {
        let pods = self.summary("pods").as_object().into_iter().flatten();
        pods.map(|(pod, count)| (pod.clone(), count.as_u64().unwrap_or_default())).collect()
    }

    /// How many were answered with each status.
    pub fn statuses(&self) -> BTreeMap<u16, u64> {
        let statuses = self.summary("statuses").as_object().into_iter().flatten();
        let read = |(status, count): (&String, &Value)| Some((status.parse().ok()?, count.as_u64()?));
        statuses.filter_map(read).collect()
    }

    /// What went wrong, in the client's words.
    pub fn errors(&self) -> Vec<String> {
        self.summary("errors").as_object().into_iter().flatten().map(|(error, _)| error.clone()).collect()
    }

    /// What the server said in its first answer.
    pub fn body(&self) -> anyhow::Result<Value> {
        let body = self.lines.first().and_then(|first| first.get("body")?.as_str());
        Ok(serde_json::from_str(body.with_context(|| format!("no answer: {:?}", self.errors()))?)?)
    }

    /// Fails unless every request was answered, and well.
    pub fn all_well(&self) -> anyhow::Result<&Self> {
        ensure!(
            self.failures() == 0 && self.requests() > 0,
            "{} of {} requests failed: {:?}",
            self.failures(),
            self.requests(),
            self.errors()
        );
        Ok(self)
    }

    /// Fails unless no request was answered; gives the client's words.
    pub fn all_refused(&self) -> anyhow::Result<String> {
        ensure!(
            self.failures() == self.requests() && self.requests() > 0,
            "{} of {} requests were answered",
            self.requests() - self.failures(),
            self.requests()
        );
        Ok(self.errors().join("; "))
    }
}

impl Client {
    fn lines(&self) -> Vec<Value> {
        let said = self.process.said();
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// How many lines a `hold` has sent and got back, or requests a `call` has made.
    pub fn exchanges(&self) -> usize {
        self.lines().iter().filter(|line| line.get("line").is_some() || line.get("request").is_some()).count()
    }

    /// Why a `hold` broke; `None` while it holds.
    pub fn broken(&self) -> Option<String> {
        let lines = self.lines();
        let word = |name: &str| {
            lines.iter().find_map(|line| line.get(name)).map(|why| why.as_str().unwrap_or("?").to_owned())
        };
        word("broken").or_else(|| word("fatal")).or_else(|| {
            self.process.ended().filter(|status| !status.success()).map(|status| status.to_string())
        })
    }

    /// Fails unless a `hold` still exchanges lines; says how many it has.
    pub fn goes_on(&self, stop: &Stop) -> anyhow::Result<usize> {
        let before = self.exchanges();
        stop.until(Duration::from_secs(5), "another exchange on the held connection", || {
            if let Some(why) = self.broken() {
                bail!("the held connection broke: {why}");
            }
            let now = self.exchanges();
            Ok((now > before).then_some(now))
        })
    }

    /// Waits for the end of a `call`.
    pub fn finish(self, limit: Duration) -> anyhow::Result<Called> {
        self.process.wait(limit)?;
        Called::read(&self.process.said())
    }

    /// Ends a `hold` well.
    pub fn end(self) -> anyhow::Result<()> {
        let status = self.process.terminate(Duration::from_secs(5))?;
        ensure!(status.success(), "the client ended with {status}: {:?}", self.broken());
        Ok(())
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}
