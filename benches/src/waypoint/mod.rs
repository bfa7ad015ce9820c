//! Waypoints compared: none, Ambit's, Envoy's, between the same tunnels, with the same routes and the same policy, each
//! with a line of log a request.

mod envoy;
mod stage;

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;

use self::stage::{HEADER, Protocol, ROUTES, Stage, below, entrance};
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
/// Requests at once on a connection of HTTP/2 that is one of few.
const STREAMS: usize = 10;
const KIB: usize = 1024;
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
    for traffic in FULL_SPEED {
        waypoints.speed(traffic)?;
    }
    waypoints.lookup()?;
    for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Grpc] {
        waypoints.rate(protocol)?;
    }
    waypoints.memory()
}

/// What a client does.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    protocol: Protocol,
    connections: usize,
    /// How many requests at once on each connection; HTTP/1.1 has one.
    streams: usize,
    /// The length of an answer.
    bytes: usize,
}

impl Traffic {
    const fn http1(connections: usize, bytes: usize) -> Self {
        Self { protocol: Protocol::Http1, connections, streams: 1, bytes }
    }

    const fn http2(connections: usize, streams: usize, bytes: usize) -> Self {
        Self { protocol: Protocol::Http2, connections, streams, bytes }
    }

    /// What is measured with it, as far as the protocol goes: HTTP/1.1 is not named.
    fn of(protocol: Protocol) -> &'static str {
        match protocol {
            Protocol::Http1 => "waypoint",
            Protocol::Http2 => "waypoint, HTTP/2",
            Protocol::Grpc => "waypoint, gRPC",
        }
    }

    /// The load that makes it, and its words.
    fn load(&self) -> (&'static str, Vec<String>) {
        let mut words = vec!["--connections".to_owned(), self.connections.to_string()];
        words.extend(["--bytes".to_owned(), self.bytes.to_string()]);
        if self.protocol == Protocol::Http1 {
            return ("http", words);
        }
        words.extend(["--streams".to_owned(), self.streams.to_string()]);
        if self.protocol == Protocol::Grpc {
            words.push("--grpc".to_owned());
        }
        ("http2", words)
    }
}

const FULL_SPEED: [Traffic; 9] = [
    Traffic::http1(10, KIB),
    Traffic::http1(CONNECTIONS, KIB),
    Traffic::http1(MANY, KIB),
    Traffic::http1(CONNECTIONS, 64 * KIB),
    Traffic::http2(10, STREAMS, KIB),
    Traffic::http2(MANY, 1, KIB),
    Traffic::http2(10, STREAMS, 64 * KIB),
    Traffic { protocol: Protocol::Grpc, ..Traffic::http2(10, STREAMS, KIB) },
    Traffic { protocol: Protocol::Grpc, ..Traffic::http2(MANY, 1, KIB) },
];

struct Waypoints<'b> {
    stage: Stage,
    with_envoy: bool,
    book: &'b mut Book,
}

impl Waypoints<'_> {
    fn speed(&mut self, traffic: Traffic) -> anyhow::Result<()> {
        let Traffic { protocol, connections, bytes, .. } = traffic;
        let name = format!("{}, {connections} connections, {} KiB", Traffic::of(protocol), bytes / KIB);
        let series = self.compare(&name, SOME, traffic, &[], 3.0)?;
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
            let series = self.compare(&name, routes, Traffic::http1(CONNECTIONS, KIB), &[], 3.0)?;
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

    fn rate(&mut self, protocol: Protocol) -> anyhow::Result<()> {
        let name = format!("{}, 3,200 requests/s", Traffic::of(protocol));
        let traffic = match protocol {
            Protocol::Http1 => Traffic::http1(CONNECTIONS, KIB),
            Protocol::Http2 | Protocol::Grpc => Traffic { protocol, ..Traffic::http2(10, STREAMS, KIB) },
        };
        let rate = ["--rate".to_owned(), RATE.to_string()];
        let series = self.compare(&name, SOME, traffic, &rate, 4.0)?;
        for percentile in ["p50", "p90", "p99", "p99.9"] {
            self.book.add(Figure::versus(format!("{name}: {percentile}"), "µs", &series, percentile));
        }
        let key = "tunnel s/1000";
        self.book.add(Figure::versus(format!("{name}: vCPU per 1,000/s"), "vCPU", &series, key));
        self.book.keep(name, series);
        Ok(())
    }

    fn memory(&mut self) -> anyhow::Result<()> {
        let mut found = [Vec::new(), Vec::new(), Vec::new()];
        for mesh in self.meshes() {
            let [idle, http1, http2] = &mut found;
            self.stage.start(mesh, SOME)?;
            self.book.settle();
            idle.push(self.pss()?);
            http1.push(self.held(mesh, Protocol::Http1)?);
            http2.push(self.held(mesh, Protocol::Http2)?);
        }
        let names =
            ["idle", "2,000 connections after 64 KiB each", "2,000 HTTP/2 connections after 64 KiB each"];
        for (name, found) in names.into_iter().zip(found) {
            if let [ambit, envoy @ ..] = &found[..] {
                let name = format!("waypoint, PSS, {name}");
                self.book.add(Figure::of_both(name, "MiB", *ambit, envoy.first().copied()));
            }
        }
        Ok(())
    }

    /// The memory of a waypoint that has just begun, and holds many connections.
    fn held(&mut self, mesh: Mesh, protocol: Protocol) -> anyhow::Result<f64> {
        self.stage.start(mesh, SOME)?;
        let mut args = [request(SOME), vec!["--bytes".to_owned(), (64 * KIB).to_string()]].concat();
        args.extend((protocol != Protocol::Http1).then(|| "--http2".to_owned()));
        let client = self.stage.client()?;
        let _held = self.stage.ground().hold(&client, entrance(mesh, protocol), MANY, &args)?;
        self.book.settle();
        self.pss()
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
        traffic: Traffic,
        args: &[String],
        seconds: f64,
    ) -> anyhow::Result<Series> {
        let seconds = self.book.seconds(seconds);
        let (kind, of_traffic) = traffic.load();
        let mut words = [request(routes), of_traffic, args.to_vec()].concat();
        words.extend(["--seconds".to_owned(), seconds.to_string()]);
        let stage = &mut self.stage;
        self.book.compare(name, self.with_envoy, |mesh| {
            // Each begins anew: it has nothing left from what was measured before.
            stage.start(mesh, routes)?;
            let to = entrance(mesh, traffic.protocol);
            measure(stage, kind, to, &words, Duration::from_secs_f64(seconds) + SLACK)
        })
    }
}

fn measure(
    stage: &Stage,
    kind: &str,
    to: SocketAddr,
    words: &[String],
    limit: Duration,
) -> anyhow::Result<Values> {
    let client = stage.client()?;
    let waypoint: Vec<_> = stage.waypoint().into_iter().collect();
    let load = || stage.ground().load(&client, kind, to, words, limit);
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
