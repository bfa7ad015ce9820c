//! The story of one benchmark: build the stage, one workload after the other, tell what was found.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    figures::Figure,
    load::Outcome,
    report,
    rounds::{Mesh, Series, Values, alternate, median, rest},
    stage::{Place, Size, Stage},
    usage::{self, Cpu, float, float_of},
};

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The tunnel.
    pub ztunnel: PathBuf,
    /// Envoy.
    pub envoy: Option<PathBuf>,
    /// Fewer and shorter rounds.
    pub quick: bool,
    /// Only workloads whose name contains this.
    pub only: Option<String>,
    /// Where the results go.
    pub json: PathBuf,
    /// Further environment of the tunnels.
    pub env: Vec<(String, String)>,
    /// Where logs are kept.
    pub logs: Option<PathBuf>,
}

/// Keep-alive connections of the HTTP workloads.
const CONNECTIONS: usize = 64;
/// The fixed rate.
const RATE: u32 = 3_200;
/// Clients that connect at the same time.
const CLIENTS: usize = 16;
/// Beyond their own time, a load may need this for connecting and for its last bytes.
const SLACK: Duration = Duration::from_secs(60);
/// Seconds within which buffers are given back and pages returned.
const SETTLE: f64 = 3.0;
/// Other programs used more of the machine than this: the figures are not for the record.
const NOISE: f64 = 0.10;

/// Runs every workload and prints what it found.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut bench = Bench::new(settings)?;
    report::head();
    bench.bulk()?;
    bench.rate()?;
    bench.speed()?;
    bench.churn()?;
    bench.idle()?;
    bench.after()?;
    bench.start()?;
    bench.close(settings, started.elapsed())
}

/// Builds the stage and leaves it to whoever wants to look.
pub fn stage_only(settings: &Settings) -> anyhow::Result<()> {
    let stage = Stage::build(settings)?;
    let pids = [Mesh::Ambit, Mesh::Envoy].map(|mesh| stage.tunnels(mesh, Place::TwoNodes));
    report::line(&json!({ "tunnels": pids }));
    while !stage.is_interrupted() {
        rest(Duration::from_millis(100));
    }
    Ok(())
}

struct Bench {
    stage: Stage,
    quick: bool,
    only: Option<String>,
    figures: Vec<Figure>,
    series: Vec<(String, Series)>,
    noise: Vec<f64>,
    failures: u64,
}

impl Bench {
    fn new(settings: &Settings) -> anyhow::Result<Self> {
        Ok(Self {
            stage: Stage::build(settings)?,
            quick: settings.quick,
            only: settings.only.clone(),
            figures: Vec::new(),
            series: Vec::new(),
            noise: Vec::new(),
            failures: 0,
        })
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()) || only.contains(name))
    }

    fn rounds(&self) -> usize {
        if self.quick { 1 } else { 3 }
    }

    /// How long one measurement takes, of a workload that wants `full` seconds.
    fn seconds(&self, full: f64) -> f64 {
        if self.quick { full / 2.0 } else { full }
    }

    fn settle(&self) {
        rest(Duration::from_secs_f64(self.seconds(SETTLE)));
    }

    fn add(&mut self, figure: Figure) {
        report::figure(&figure);
        self.figures.push(figure);
    }

    fn bulk(&mut self) -> anyhow::Result<()> {
        for place in Place::ALL {
            for streams in if self.quick { &[1, 8][..] } else { &[1, 8, 64] } {
                let plural = if *streams == 1 { "" } else { "s" };
                let name = format!("{}, bulk, {streams} stream{plural}", place.words());
                if !self.wants(&name) {
                    continue;
                }
                let args = [("--streams", streams.to_string())];
                let series = self.compare(place, "bulk", &args, self.seconds(2.0))?;
                let figure =
                    |what: &str, unit, key, by| Figure::of(format!("{name}: {what}"), unit, &series, key, by);
                self.add(figure("throughput", "Gbit/s", "gbit/s", Some("gbit/s")));
                self.add(figure("CPU per GB", "s", "tunnels s/GB", Some("machine s/GB")));
                self.add(figure("CPU per GB, to the two ends' own", "s", "tunnels s/GB", Some("ends s/GB")));
                self.add(figure("kernel's share of it", "", "tunnels kernel share", None));
                self.series.push((name, series));
            }
        }
        Ok(())
    }

    /// Evenly spaced, which is the hardest: every request finds everybody asleep. And all clients on one beat, as
    /// common load generators do it.
    fn rate(&mut self) -> anyhow::Result<()> {
        for (place, burst) in Place::ALL.into_iter().flat_map(|place| [(place, 1), (place, CONNECTIONS)]) {
            if !self.wants("rate") {
                continue;
            }
            let bursts = if burst == 1 { "" } else { " in bursts of 64" };
            let name = format!("{}, 3,200 requests/s{bursts}", place.words());
            let args = [
                ("--connections", CONNECTIONS.to_string()),
                ("--rate", RATE.to_string()),
                ("--burst", burst.to_string()),
            ];
            let series = self.compare(place, "http", &args, self.seconds(4.0))?;
            let figure = |what: &str, unit, key: &str, by| {
                Figure::of(format!("{name}: {what}"), unit, &series, key, by)
            };
            for percentile in ["p50", "p90", "p99", "p99.9"] {
                self.add(figure(percentile, "µs", percentile, Some(percentile)));
            }
            self.add(figure("vCPU per 1,000/s, a tunnel", "vCPU", "tunnel s/1000", None));
            self.add(figure("wake-ups a request, a tunnel", "", "wake-ups/request", None));
            self.series.push((name, series));
        }
        Ok(())
    }

    fn speed(&mut self) -> anyhow::Result<()> {
        for place in Place::ALL {
            if !self.wants("speed") {
                continue;
            }
            let name = format!("{}, full speed", place.words());
            let args = [("--connections", CONNECTIONS.to_string())];
            let series = self.compare(place, "http", &args, self.seconds(2.0))?;
            self.add(Figure::of(format!("{name}: requests/s"), "1/s", &series, "rate", Some("rate")));
            self.series.push((name, series));
        }
        Ok(())
    }

    fn churn(&mut self) -> anyhow::Result<()> {
        for place in Place::ALL {
            if !self.wants("churn") {
                continue;
            }
            let name = format!("{}, churn", place.words());
            let args = [("--clients", CLIENTS.to_string())];
            let series = self.compare(place, "churn", &args, self.seconds(2.0))?;
            let figure =
                |what: &str, unit, key, by| Figure::of(format!("{name}: {what}"), unit, &series, key, by);
            self.add(figure("connections/s", "1/s", "rate", Some("rate")));
            self.add(figure("CPU per connection, both tunnels", "µs", "tunnels µs/request", None));
            self.series.push((name, series));
        }
        Ok(())
    }

    fn idle(&mut self) -> anyhow::Result<()> {
        if !self.wants("idle") {
            return Ok(());
        }
        for (connections, words) in [(1_000, "1,000"), (10_000, "10,000")] {
            let mut each = Found::default();
            let mut wakes = Found::default();
            for mesh in self.stage.meshes() {
                let (grown, wake) = self.idle_of(*mesh, connections)?;
                each.put(*mesh, grown / float_of(connections));
                wakes.put(*mesh, wake);
            }
            self.add(each.figure(&format!("memory per idle connection, of {words}"), "KiB"));
            self.add(wakes.figure(&format!("wake-ups/s with {words} idle connections"), "1/s"));
        }
        Ok(())
    }

    /// By how much the tunnel that grew more has grown, in KiB, and how often it is woken a second.
    fn idle_of(&mut self, mesh: Mesh, connections: usize) -> anyhow::Result<(f64, f64)> {
        let seconds = self.seconds(4.0);
        self.stage.restart(mesh)?;
        // The first connection makes certificates and the tunnel: they are not the connections' cost.
        drop(self.stage.hold(mesh, 1, 64)?);
        self.settle();
        let pids = self.stage.tunnels(mesh, Place::TwoNodes);
        let memory = |pids: &[i32]| pids.iter().map(|pid| usage::memory(*pid)).collect::<Result<Vec<_>, _>>();
        let before = memory(&pids)?;
        let _held = self.stage.hold(mesh, connections, 64)?;
        self.settle();
        let after = memory(&pids)?;
        let sleeps = |pids: &[i32]| pids.iter().map(|pid| usage::sleeps(*pid)).collect::<Result<Vec<_>, _>>();
        let slept = sleeps(&pids)?;
        rest(Duration::from_secs_f64(seconds));
        let woken = sleeps(&pids)?;
        let grown = before.iter().zip(&after).map(|(before, after)| after.pss - before.pss);
        let wakes = slept.iter().zip(&woken).map(|(before, after)| float(after - before) / seconds);
        Ok((grown.fold(0.0, f64::max), wakes.fold(0.0, f64::max)))
    }

    fn after(&mut self) -> anyhow::Result<()> {
        if !self.wants("after") {
            return Ok(());
        }
        let (mut rss, mut pss) = (Found::default(), Found::default());
        for mesh in self.stage.meshes() {
            self.stage.restart(*mesh)?;
            let _held = self.stage.hold(*mesh, 1_000, 256 * 1024)?;
            self.settle();
            let (mut most_rss, mut most_pss) = (0.0_f64, 0.0_f64);
            for pid in self.stage.tunnels(*mesh, Place::TwoNodes) {
                let memory = usage::memory(pid)?;
                most_rss = most_rss.max(memory.rss / 1024.0);
                most_pss = most_pss.max(memory.pss / 1024.0);
            }
            rss.put(*mesh, most_rss);
            pss.put(*mesh, most_pss);
        }
        self.add(rss.figure("resident memory, 1,000 connections after 256 KiB each", "MiB"));
        self.add(pss.figure("PSS, 1,000 connections after 256 KiB each", "MiB"));
        Ok(())
    }

    fn start(&mut self) -> anyhow::Result<()> {
        if !self.wants("start") {
            return Ok(());
        }
        let mut idle = Found::default();
        for mesh in self.stage.meshes() {
            self.stage.restart(*mesh)?;
            self.settle();
            let pids = self.stage.tunnels(*mesh, Place::TwoNodes);
            let memory: Vec<_> = pids.iter().map(|pid| usage::memory(*pid)).collect::<Result<_, _>>()?;
            idle.put(*mesh, memory.iter().map(|memory| memory.rss / 1024.0).fold(0.0, f64::max));
            let pss = memory.iter().map(|memory| memory.pss / 1024.0).fold(0.0, f64::max);
            if *mesh == Mesh::Ambit {
                self.add(Figure::alone("PSS, idle", "MiB", Some(pss), None));
            }
        }
        self.add(idle.figure("resident memory, idle", "MiB"));
        let (mut times, mut rss, mut anonymous) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..if self.quick { 3 } else { 7 } {
            let (time, memory) = self.stage.start_alone(Size::Large, |pid| {
                rest(Duration::from_secs(1));
                Ok(usage::memory(pid)?)
            })?;
            times.push(time.as_secs_f64() * 1e3);
            rss.push(memory.rss / 1024.0);
            anonymous.push(memory.anonymous / 1024.0);
        }
        self.add(Figure::alone(
            "resident memory, 10,000 workloads and 1,000 services",
            "MiB",
            median(rss),
            None,
        ));
        let name = "of it anonymous, 10,000 workloads and 1,000 services";
        self.add(Figure::alone(name, "MiB", median(anonymous), None));
        self.add(Figure::alone("start to ready with 10,000 workloads", "ms", median(times), None));
        self.stage.restart(Mesh::Ambit)
    }

    /// One workload with every mesh in turn.
    fn compare(
        &mut self,
        place: Place,
        kind: &str,
        args: &[(&str, String)],
        seconds: f64,
    ) -> anyhow::Result<Series> {
        let mut words: Vec<String> =
            args.iter().flat_map(|(name, value)| [(*name).to_owned(), value.clone()]).collect();
        words.extend(["--seconds".to_owned(), seconds.to_string()]);
        let with_envoy = self.stage.meshes().contains(&Mesh::Envoy);
        let rounds = self.rounds();
        let (stage, noise, failures) = (&self.stage, &mut self.noise, &mut self.failures);
        alternate(rounds, with_envoy, |mesh| {
            let measured = measure(stage, mesh, place, kind, &words, seconds)?;
            noise.extend(measured.get("foreign share"));
            if measured.get("failures").is_some_and(|failures| *failures > 0.0) {
                *failures += 1;
                report::say(&format!("! failures: {} {kind} {words:?}: {measured:?}", mesh.word()));
            }
            Ok(measured)
        })
    }

    fn close(self, settings: &Settings, took: Duration) -> anyhow::Result<()> {
        let noise = median(self.noise.clone()).unwrap_or_default();
        let about = json!({
            "seconds": took.as_secs_f64(),
            "quick": self.quick,
            "rounds": self.rounds(),
            "processors": std::thread::available_parallelism().map(usize::from).unwrap_or(0),
            "kernel": nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
            "foreign_share": noise,
            "runs_with_failures": self.failures,
        });
        let (met, all) = self
            .figures
            .iter()
            .filter_map(|figure| figure.met)
            .fold((0, 0), |(met, all), is| (met + u32::from(is), all + 1));
        report::say(&format!("{met} of {all} goals met, in {:.0} s", took.as_secs_f64()));
        if noise > NOISE {
            let percent = noise * 100.0;
            report::say(&format!(
                "Other programs used {percent:.0} % of this machine: measure again when it is quiet."
            ));
        }
        report::write(&settings.json, &about, &self.figures, &self.series)?;
        report::say(&format!("Written to {}", settings.json.display()));
        Ok(())
    }
}

/// One figure of each mesh.
#[derive(Default)]
struct Found {
    ambit: Option<f64>,
    envoy: Option<f64>,
}

impl Found {
    fn put(&mut self, mesh: Mesh, value: f64) {
        match mesh {
            Mesh::Direct => {}
            Mesh::Ambit => self.ambit = Some(value),
            Mesh::Envoy => self.envoy = Some(value),
        }
    }

    fn figure(&self, name: &str, unit: &'static str) -> Figure {
        Figure::alone(name, unit, self.ambit, self.envoy)
    }
}

/// One load, and what it cost whom.
fn measure(
    stage: &Stage,
    mesh: Mesh,
    place: Place,
    kind: &str,
    args: &[String],
    seconds: f64,
) -> anyhow::Result<Values> {
    let tunnels = stage.tunnels(mesh, place);
    let server = stage.server(mesh, place);
    let look = || -> anyhow::Result<Look> {
        Ok(Look {
            machine: usage::machine()?,
            own: usage::own_cpu()?,
            server: server.map(usage::cpu).transpose()?.unwrap_or_default(),
            tunnels: tunnels.iter().map(|pid| usage::cpu(*pid)).collect::<Result<_, _>>()?,
            sleeps: tunnels.iter().map(|pid| usage::sleeps(*pid)).collect::<Result<_, _>>()?,
        })
    };
    let before = look()?;
    let outcome = stage.load(mesh, place, kind, args, Duration::from_secs_f64(seconds) + SLACK)?;
    let after = look()?;
    Ok(values(&before, &after, &outcome))
}

struct Look {
    machine: Cpu,
    own: Cpu,
    server: Cpu,
    tunnels: Vec<Cpu>,
    sleeps: Vec<u64>,
}

fn values(before: &Look, after: &Look, outcome: &Outcome) -> Values {
    let tunnels: Vec<Cpu> = before.tunnels.iter().zip(&after.tunnels).map(|(b, a)| *a - *b).collect();
    let all: Cpu = tunnels.iter().copied().sum();
    let most = tunnels.iter().map(|cpu| cpu.total()).fold(0.0, f64::max);
    let woken = before.sleeps.iter().zip(&after.sleeps).map(|(b, a)| float(a - b)).fold(0.0, f64::max);
    let machine = after.machine - before.machine;
    let (user, system) = outcome.cpu;
    let ends = (after.server - before.server).total() + user + system;
    let known = ends + all.total() + (after.own - before.own).total();
    let gigabytes = float(outcome.bytes) / 1e9;
    let requests = float(outcome.requests);
    let mut values = Values::from([
        ("seconds".to_owned(), outcome.seconds),
        ("failures".to_owned(), float(outcome.failures)),
        ("rate".to_owned(), outcome.rate),
        ("foreign share".to_owned(), 1.0 - known / machine.total()),
        ("tunnels user s".to_owned(), all.user),
        ("tunnels system s".to_owned(), all.system),
        ("machine s".to_owned(), machine.total()),
        ("ends s".to_owned(), ends),
    ]);
    let mut put = |name: &str, value: f64| {
        if value.is_finite() {
            values.insert(name.to_owned(), value);
        }
    };
    put("gbit/s", gigabytes * 8.0 / outcome.seconds);
    put("machine s/GB", machine.total() / gigabytes);
    put("ends s/GB", ends / gigabytes);
    if !tunnels.is_empty() {
        put("tunnels s/GB", all.total() / gigabytes);
        put("tunnels kernel share", all.system / all.total());
        put("tunnel s/1000", most / requests * 1e3);
        put("wake-ups/request", woken / requests);
        put("tunnels µs/request", all.total() / requests * 1e6);
    }
    for (name, value) in &outcome.latency {
        put(name, *value);
    }
    values
}
