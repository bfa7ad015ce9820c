//! Tunnels compared: no mesh, Ambit's, Envoy's; one workload after the other.

pub mod stage;

use std::time::Duration;

use self::stage::{Place, Size, Stage};
use crate::{
    book::{Book, Found},
    cost,
    figures::Figure,
    rounds::{Mesh, Series, median, rest},
    run::Settings,
    usage::{self, float, float_of},
};

/// Keep-alive connections of the HTTP workloads.
const CONNECTIONS: usize = 64;
/// The fixed rate.
const RATE: u32 = 3_200;
/// Clients that connect at the same time.
const CLIENTS: usize = 16;
/// Beyond their own time, a load may need this for connecting and for its last bytes.
const SLACK: Duration = Duration::from_secs(60);

/// The workloads, by the word that each is wanted by.
const WORKLOADS: [&str; 7] = ["bulk", "rate", "speed", "churn", "idle", "after", "start"];

/// Runs every workload that is wanted.
pub fn run(settings: &Settings, book: &mut Book) -> anyhow::Result<()> {
    if !WORKLOADS.iter().any(|name| book.wants(name)) {
        return Ok(());
    }
    let mut tunnels = Tunnels { stage: Stage::build(settings)?, book };
    tunnels.bulk()?;
    tunnels.rate()?;
    tunnels.speed()?;
    tunnels.churn()?;
    tunnels.idle()?;
    tunnels.after()?;
    tunnels.start()
}

struct Tunnels<'b> {
    stage: Stage,
    book: &'b mut Book,
}

impl Tunnels<'_> {
    fn bulk(&mut self) -> anyhow::Result<()> {
        for place in Place::ALL {
            for streams in if self.book.is_quick() { &[1, 8][..] } else { &[1, 8, 64] } {
                let plural = if *streams == 1 { "" } else { "s" };
                let name = format!("{}, bulk, {streams} stream{plural}", place.words());
                if !self.book.wants(&name) {
                    continue;
                }
                let args = [("--streams", streams.to_string())];
                let series = self.compare(place, "bulk", &args, self.book.seconds(2.0))?;
                let figure =
                    |what: &str, unit, key, by| Figure::of(format!("{name}: {what}"), unit, &series, key, by);
                self.book.add(figure("throughput", "Gbit/s", "gbit/s", Some("gbit/s")));
                self.book.add(figure("CPU per GB", "s", "tunnels s/GB", Some("machine s/GB")));
                self.book.add(figure(
                    "CPU per GB, to the two ends' own",
                    "s",
                    "tunnels s/GB",
                    Some("ends s/GB"),
                ));
                self.book.add(figure("kernel's share of it", "", "tunnels kernel share", None));
                self.book.keep(name, series);
            }
        }
        Ok(())
    }

    /// Evenly spaced, which is the hardest: every request finds everybody asleep. And all clients on one beat, as
    /// common load generators do it.
    fn rate(&mut self) -> anyhow::Result<()> {
        for (place, burst) in Place::ALL.into_iter().flat_map(|place| [(place, 1), (place, CONNECTIONS)]) {
            if !self.book.wants("rate") {
                continue;
            }
            let bursts = if burst == 1 { "" } else { " in bursts of 64" };
            let name = format!("{}, 3,200 requests/s{bursts}", place.words());
            let args = [
                ("--connections", CONNECTIONS.to_string()),
                ("--rate", RATE.to_string()),
                ("--burst", burst.to_string()),
            ];
            let series = self.compare(place, "http", &args, self.book.seconds(4.0))?;
            let figure = |what: &str, unit, key: &str, by| {
                Figure::of(format!("{name}: {what}"), unit, &series, key, by)
            };
            for percentile in ["p50", "p90", "p99", "p99.9"] {
                self.book.add(figure(percentile, "µs", percentile, Some(percentile)));
            }
            self.book.add(figure("vCPU per 1,000/s, a tunnel", "vCPU", "tunnel s/1000", None));
            self.book.add(figure("wake-ups a request, a tunnel", "", "wake-ups/request", None));
            self.book.keep(name, series);
        }
        Ok(())
    }

    fn speed(&mut self) -> anyhow::Result<()> {
        for place in Place::ALL {
            if !self.book.wants("speed") {
                continue;
            }
            let name = format!("{}, full speed", place.words());
            let args = [("--connections", CONNECTIONS.to_string())];
            let series = self.compare(place, "http", &args, self.book.seconds(2.0))?;
            self.book.add(Figure::of(format!("{name}: requests/s"), "1/s", &series, "rate", Some("rate")));
            self.book.keep(name, series);
        }
        Ok(())
    }

    fn churn(&mut self) -> anyhow::Result<()> {
        for place in Place::ALL {
            if !self.book.wants("churn") {
                continue;
            }
            let name = format!("{}, churn", place.words());
            let args = [("--clients", CLIENTS.to_string())];
            let series = self.compare(place, "churn", &args, self.book.seconds(2.0))?;
            let figure =
                |what: &str, unit, key, by| Figure::of(format!("{name}: {what}"), unit, &series, key, by);
            self.book.add(figure("connections/s", "1/s", "rate", Some("rate")));
            self.book.add(figure("CPU per connection, both tunnels", "µs", "tunnels µs/request", None));
            self.book.keep(name, series);
        }
        Ok(())
    }

    fn idle(&mut self) -> anyhow::Result<()> {
        if !self.book.wants("idle") {
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
            self.book.add(each.figure(&format!("memory per idle connection, of {words}"), "KiB"));
            self.book.add(wakes.figure(&format!("wake-ups/s with {words} idle connections"), "1/s"));
        }
        Ok(())
    }

    /// By how much the tunnel that grew more has grown, in KiB, and how often it is woken a second.
    fn idle_of(&mut self, mesh: Mesh, connections: usize) -> anyhow::Result<(f64, f64)> {
        let seconds = self.book.seconds(4.0);
        self.stage.restart(mesh)?;
        // The first connection makes certificates and the tunnel: they are not the connections' cost.
        drop(self.stage.hold(mesh, 1, 64)?);
        self.book.settle();
        let pids = self.stage.tunnels(mesh, Place::TwoNodes);
        let memory = |pids: &[i32]| pids.iter().map(|pid| usage::memory(*pid)).collect::<Result<Vec<_>, _>>();
        let before = memory(&pids)?;
        let _held = self.stage.hold(mesh, connections, 64)?;
        self.book.settle();
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
        if !self.book.wants("after") {
            return Ok(());
        }
        let (mut rss, mut pss) = (Found::default(), Found::default());
        for mesh in self.stage.meshes() {
            self.stage.restart(*mesh)?;
            let _held = self.stage.hold(*mesh, 1_000, 256 * 1024)?;
            self.book.settle();
            let (mut most_rss, mut most_pss) = (0.0_f64, 0.0_f64);
            for pid in self.stage.tunnels(*mesh, Place::TwoNodes) {
                let memory = usage::memory(pid)?;
                most_rss = most_rss.max(memory.rss / 1024.0);
                most_pss = most_pss.max(memory.pss / 1024.0);
            }
            rss.put(*mesh, most_rss);
            pss.put(*mesh, most_pss);
        }
        self.book.add(rss.figure("resident memory, 1,000 connections after 256 KiB each", "MiB"));
        self.book.add(pss.figure("PSS, 1,000 connections after 256 KiB each", "MiB"));
        Ok(())
    }

    fn start(&mut self) -> anyhow::Result<()> {
        if !self.book.wants("start") {
            return Ok(());
        }
        let mut idle = Found::default();
        for mesh in self.stage.meshes() {
            self.stage.restart(*mesh)?;
            self.book.settle();
            let pids = self.stage.tunnels(*mesh, Place::TwoNodes);
            let memory: Vec<_> = pids.iter().map(|pid| usage::memory(*pid)).collect::<Result<_, _>>()?;
            idle.put(*mesh, memory.iter().map(|memory| memory.rss / 1024.0).fold(0.0, f64::max));
            let pss = memory.iter().map(|memory| memory.pss / 1024.0).fold(0.0, f64::max);
            if *mesh == Mesh::Ambit {
                self.book.add(Figure::alone("PSS, idle", "MiB", Some(pss), None));
            }
        }
        self.book.add(idle.figure("resident memory, idle", "MiB"));
        let (mut times, mut rss, mut anonymous) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..if self.book.is_quick() { 3 } else { 7 } {
            let (time, memory) = self.stage.start_alone(Size::Large, |pid| {
                rest(Duration::from_secs(1));
                Ok(usage::memory(pid)?)
            })?;
            times.push(time.as_secs_f64() * 1e3);
            rss.push(memory.rss / 1024.0);
            anonymous.push(memory.anonymous / 1024.0);
        }
        self.book.add(Figure::alone(
            "resident memory, 10,000 workloads and 1,000 services",
            "MiB",
            median(rss),
            None,
        ));
        let name = "of it anonymous, 10,000 workloads and 1,000 services";
        self.book.add(Figure::alone(name, "MiB", median(anonymous), None));
        self.book.add(Figure::alone("start to ready with 10,000 workloads", "ms", median(times), None));
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
        let stage = &self.stage;
        let with_envoy = stage.meshes().contains(&Mesh::Envoy);
        self.book.compare(&format!("{kind} {words:?}"), with_envoy, |mesh| {
            let limit = Duration::from_secs_f64(seconds) + SLACK;
            let load = || stage.load(mesh, place, kind, &words, limit);
            cost::measure(&stage.tunnels(mesh, place), stage.server(mesh, place), load)
        })
    }
}
