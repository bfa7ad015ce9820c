//! What was found so far, and how: figures, series, how noisy the machine was.

use std::time::Instant;

use serde_json::json;

use crate::{
    figures::Figure,
    report,
    rounds::{Mesh, Series, Values, alternate, median, rest},
    run::Settings,
};

/// Seconds within which buffers are given back and pages returned.
const SETTLE: f64 = 3.0;
/// Other programs used more of the machine than this: the figures are not for the record.
const NOISE: f64 = 0.10;

/// The book of one benchmark.
#[derive(Debug)]
pub struct Book {
    started: Instant,
    quick: bool,
    only: Option<String>,
    figures: Vec<Figure>,
    series: Vec<(String, Series)>,
    noise: Vec<f64>,
    failures: u64,
}

impl Book {
    /// An empty one.
    pub fn open(settings: &Settings) -> Self {
        Self {
            started: Instant::now(),
            quick: settings.quick,
            only: settings.only.clone(),
            figures: Vec::new(),
            series: Vec::new(),
            noise: Vec::new(),
            failures: 0,
        }
    }

    /// Whether the operator wants the workload of that name.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()) || only.contains(name))
    }

    /// Whether it is a look, and not for the record.
    pub fn is_quick(&self) -> bool {
        self.quick
    }

    /// How long one measurement takes, of a workload that wants `full` seconds.
    pub fn seconds(&self, full: f64) -> f64 {
        if self.quick { full / 2.0 } else { full }
    }

    /// Lets memory come to rest.
    pub fn settle(&self) {
        rest(std::time::Duration::from_secs_f64(self.seconds(SETTLE)));
    }

    /// Notes a figure, and shows it.
    pub fn add(&mut self, figure: Figure) {
        report::figure(&figure);
        self.figures.push(figure);
    }

    /// Notes what a figure was made from.
    pub fn keep(&mut self, name: String, series: Series) {
        self.series.push((name, series));
    }

    /// One workload with every mesh in turn.
    pub fn compare(
        &mut self,
        name: &str,
        with_envoy: bool,
        mut measure: impl FnMut(Mesh) -> anyhow::Result<Values>,
    ) -> anyhow::Result<Series> {
        let (noise, failures) = (&mut self.noise, &mut self.failures);
        alternate(if self.quick { 1 } else { 3 }, with_envoy, |mesh| {
            let measured = measure(mesh)?;
            noise.extend(measured.get("foreign share"));
            if measured.get("failures").is_some_and(|failures| *failures > 0.0) {
                *failures += 1;
                report::say(&format!("! failures: {}, {name}: {measured:?}", mesh.word()));
            }
            Ok(measured)
        })
    }

    /// Says how it went, and writes all of it.
    pub fn close(self, settings: &Settings) -> anyhow::Result<()> {
        let took = self.started.elapsed();
        let noise = median(self.noise.clone()).unwrap_or_default();
        let about = json!({
            "seconds": took.as_secs_f64(),
            "quick": self.quick,
            "rounds": if self.quick { 1 } else { 3 },
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
#[derive(Debug, Default)]
pub struct Found {
    ambit: Option<f64>,
    envoy: Option<f64>,
}

impl Found {
    /// Notes that of `mesh`.
    pub fn put(&mut self, mesh: Mesh, value: f64) {
        match mesh {
            Mesh::Direct => {}
            Mesh::Ambit => self.ambit = Some(value),
            Mesh::Envoy => self.envoy = Some(value),
        }
    }

    /// Both, by that name.
    pub fn figure(&self, name: &str, unit: &'static str) -> Figure {
        Figure::alone(name, unit, self.ambit, self.envoy)
    }
}
