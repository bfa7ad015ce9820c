//! Waypoints compared: none, Ambit's, Envoy's, between the same tunnels, with the same routes and the same policy, each
//! with a line of log a request.

mod envoy;
mod stage;

use std::time::Duration;

use anyhow::Context as _;

use self::stage::{HEADER, ROUTES, Stage, below, entrance};
use crate::{
    book::Book,
    cost,
    figures::Figure,
    goals::FLAT,
    rounds::{Mesh, Series, Values},
    run::Settings,
    usage,
};

/// Routes where their number is not what is measured.
const SOME: usize = 100;
/// The fixed rate.
const RATE: u32 = 3_200;
/// Connections where their number is not what is measured.
const CONNECTIONS: usize = 64;
/// As many as there are where memory counts.
const MANY: usize = 2_000;
/// Beyond its own time, a load may need this for connecting and for its last bytes.
const SLACK: Duration = Duration::from_secs(60);

/// Runs every workload that is wanted.
pub fn run(settings: &Settings, book: &mut Book) -> anyhow::Result<()> {
    if !book.wants("waypoint") {
        return Ok(());
    }
    let with_envoy = settings.envoy.is_some();
    let mut waypoints = Waypoints { stage: Stage::build(settings)?, with_envoy, book };
    for (connections, bytes) in [(10, 1024), (CONNECTIONS, 1024), (MANY, 1024), (CONNECTIONS, 65_536)] {
        waypoints.speed(SOME, connections, bytes)?;
    }
    waypoints.lookup()?;
    waypoints.rate()?;
    waypoints.memory()
}

struct Waypoints<'b> {
    stage: Stage,
    with_envoy: bool,
    book: &'b mut Book,
}

impl Waypoints<'_> {
    fn speed(&mut self, routes: usize, connections: usize, bytes: usize) -> anyhow::Result<()> {
        let size = bytes / 1024;
        let name = format!("waypoint, {connections} connections, {size} KiB");
        let args = [("--connections", connections.to_string()), ("--bytes", bytes.to_string())];
        let series = self.compare(&name, routes, &args, 3.0)?;
        self.book.add(Figure::versus(format!("{name}: requests/s"), "1/s", &series, "rate"));
        let figure =
            Figure::versus(format!("{name}: requests a CPU second"), "1/s", &series, "requests/cpu s");
        self.book.add(figure);
        self.book.keep(name, series);
        Ok(())
    }

    /// What a request costs by the number of routes, of which it takes the last.
    fn lookup(&mut self) -> anyhow::Result<()> {
        let mut costs = Vec::new();
        for routes in ROUTES {
            let name = format!("waypoint, {routes} route{}", if routes == 1 { "" } else { "s" });
            let args = [("--connections", CONNECTIONS.to_string())];
            let series = self.compare(&name, routes, &args, 3.0)?;
            let key = "tunnels µs/request";
            costs.extend(series.median(Mesh::Ambit, key));
            self.book.add(Figure::versus(format!("{name}: CPU a request"), "µs", &series, key));
            self.book.keep(name, series);
        }
        if let [one, .., most] = costs[..] {
            let name = "waypoint, CPU a request, 5,000 routes to one";
            self.book.add(Figure::times(name, most / one, FLAT));
        }
        Ok(())
    }

    fn rate(&mut self) -> anyhow::Result<()> {
        let name = "waypoint, 3,200 requests/s".to_owned();
        let args = [("--connections", CONNECTIONS.to_string()), ("--rate", RATE.to_string())];
        let series = self.compare(&name, SOME, &args, 4.0)?;
        for percentile in ["p50", "p90", "p99", "p99.9"] {
            self.book.add(Figure::versus(format!("{name}: {percentile}"), "µs", &series, percentile));
        }
        let key = "tunnel s/1000";
        self.book.add(Figure::versus(format!("{name}: vCPU per 1,000/s"), "vCPU", &series, key));
        self.book.keep(name, series);
        Ok(())
    }

    fn memory(&mut self) -> anyhow::Result<()> {
        let mut idle = Vec::new();
        let mut held = Vec::new();
        for mesh in self.meshes() {
            self.stage.start(mesh, SOME)?;
            self.book.settle();
            idle.push(self.pss()?);
            let args = [request(SOME), vec!["--bytes".to_owned(), "65536".to_owned()]].concat();
            let client = self.stage.client()?;
            let _held = self.stage.ground().hold(&client, entrance(mesh), MANY, &args)?;
            self.book.settle();
            held.push(self.pss()?);
        }
        let names = ["waypoint, PSS, idle", "waypoint, PSS, 2,000 connections after 64 KiB each"];
        for (name, found) in names.into_iter().zip([idle, held]) {
            if let [ambit, envoy @ ..] = &found[..] {
                self.book.add(Figure::of_both(name.to_owned(), "MiB", *ambit, envoy.first().copied()));
            }
        }
        Ok(())
    }

    fn meshes(&self) -> Vec<Mesh> {
        if self.with_envoy { vec![Mesh::Ambit, Mesh::Envoy] } else { vec![Mesh::Ambit] }
    }

    /// In MiB.
    fn pss(&self) -> anyhow::Result<f64> {
        let pid = self.stage.waypoint().context("no waypoint")?;
        Ok(usage::memory(pid)?.pss / 1024.0)
    }

    fn compare(
        &mut self,
        name: &str,
        routes: usize,
        args: &[(&str, String)],
        seconds: f64,
    ) -> anyhow::Result<Series> {
        let seconds = self.book.seconds(seconds);
        let mut words = request(routes);
        words.extend(args.iter().flat_map(|(name, value)| [(*name).to_owned(), value.clone()]));
        words.extend(["--seconds".to_owned(), seconds.to_string()]);
        let stage = &mut self.stage;
        self.book.compare(name, self.with_envoy, |mesh| {
            // Each begins anew: it has nothing left from what was measured before.
            stage.start(mesh, routes)?;
            measure(stage, mesh, &words, Duration::from_secs_f64(seconds) + SLACK)
        })
    }
}

fn measure(stage: &Stage, mesh: Mesh, words: &[String], limit: Duration) -> anyhow::Result<Values> {
    let client = stage.client()?;
    let waypoint: Vec<_> = stage.waypoint().into_iter().collect();
    let load = || stage.ground().load(&client, "http", entrance(mesh), words, limit);
    let mut values = cost::measure(&waypoint, Some(stage.server()), load)?;
    if let Some(each) = values.get("tunnels µs/request").copied() {
        values.insert("requests/cpu s".to_owned(), 1e6 / each);
    }
    Ok(values)
}

/// A request for the last of so many routes.
fn request(routes: usize) -> Vec<String> {
    let (name, value) = HEADER;
    let header = format!("{name}: {value}");
    vec!["--below".to_owned(), below(routes - 1), "--header".to_owned(), header]
}
