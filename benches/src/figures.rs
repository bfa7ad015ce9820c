//! One line of the result: what was measured with each mesh, what counts, and whether that is enough.

use serde::Serialize;

use crate::{
    goals::{self, Goal},
    rounds::{Mesh, Series},
};

/// One line of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// In what the three are.
    pub unit: &'static str,
    /// The median without a mesh.
    pub direct: Option<f64>,
    /// The median with Ambit.
    pub ambit: Option<f64>,
    /// The median with Envoy.
    pub envoy: Option<f64>,
    /// Ambit's ÷ direct, of measurements next to each other.
    pub ambit_ratio: Option<f64>,
    /// Envoy's.
    pub envoy_ratio: Option<f64>,
    /// Ambit's ÷ Envoy's, of measurements next to each other.
    pub against_envoy: Option<f64>,
    /// What is hoped for: of the ratio where there is one, else of the figure itself.
    pub goal: Option<Goal>,
    /// What the reference had.
    pub reference: Option<f64>,
    /// Whether the goal is met.
    pub met: Option<bool>,
}

impl Figure {
    /// From `key` of a series, compared with direct's `by` where it has one.
    pub fn of(name: String, unit: &'static str, series: &Series, key: &str, by: Option<&str>) -> Self {
        let ratio = |mesh| by.and_then(|by| series.ratio(mesh, key, by));
        Self {
            direct: series.median(Mesh::Direct, by.unwrap_or(key)),
            ambit: series.median(Mesh::Ambit, key),
            envoy: series.median(Mesh::Envoy, key),
            ambit_ratio: ratio(Mesh::Ambit),
            envoy_ratio: ratio(Mesh::Envoy),
            ..Self::named(name, unit)
        }
        .judged()
    }

    /// From `key` of a series, of which Ambit's is compared with Envoy's.
    pub fn versus(name: String, unit: &'static str, series: &Series, key: &str) -> Self {
        Self {
            direct: series.median(Mesh::Direct, key),
            ambit: series.median(Mesh::Ambit, key),
            envoy: series.median(Mesh::Envoy, key),
            against_envoy: series.against_envoy(key),
            ..Self::named(name, unit)
        }
        .judged()
    }

    /// Measured by itself, and Ambit's compared with Envoy's.
    pub fn of_both(name: String, unit: &'static str, ambit: f64, envoy: Option<f64>) -> Self {
        let against_envoy = envoy.map(|envoy| ambit / envoy);
        Self { ambit: Some(ambit), envoy, against_envoy, ..Self::named(name, unit) }.judged()
    }

    /// Measured by itself.
    pub fn alone(name: &str, unit: &'static str, ambit: Option<f64>, envoy: Option<f64>) -> Self {
        Self { ambit, envoy, ..Self::named(name.to_owned(), unit) }.judged()
    }

    /// How many times more one thing cost than another.
    pub fn times(name: &str, times: f64, goal: Goal) -> Self {
        let (ambit, goal, met) = (Some(times), Some(goal), Some(goal.is_met(times)));
        Self { ambit, goal, met, ..Self::named(name.to_owned(), "times") }
    }

    /// What its goal is about.
    pub fn counts(&self) -> Option<f64> {
        self.against_envoy.or(self.ambit_ratio).or(self.ambit)
    }

    fn named(name: String, unit: &'static str) -> Self {
        Self {
            name,
            unit,
            direct: None,
            ambit: None,
            envoy: None,
            ambit_ratio: None,
            envoy_ratio: None,
            against_envoy: None,
            goal: None,
            reference: None,
            met: None,
        }
    }

    fn judged(mut self) -> Self {
        if let Some((goal, reference)) = goals::of(&self.name) {
            self.goal = Some(goal);
            self.reference = Some(reference);
            self.met = self.counts().map(|value| goal.is_met(value));
        }
        if let Some(goal) = goals::beside_envoy(&self.name) {
            self.goal = Some(goal);
            self.met = self.against_envoy.map(|value| goal.is_met(value));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_about_the_ratio_where_there_is_one() {
        let alone = Figure::alone("resident memory, idle", "MiB", Some(9.5), None);
        assert_eq!((alone.goal, alone.met), (Some(Goal::AtMost(9.0)), Some(false)));
        let run = |mesh, value| (mesh, [("rate".to_owned(), value)].into());
        let series =
            Series { runs: vec![run(Mesh::Direct, 10.0), run(Mesh::Ambit, 5.0), run(Mesh::Direct, 10.0)] };
        let name = "two nodes, bulk, 1 stream: throughput".to_owned();
        let figure = Figure::of(name, "Gbit/s", &series, "rate", Some("rate"));
        assert_eq!((figure.ambit, figure.ambit_ratio, figure.met), (Some(5.0), Some(0.5), Some(true)));
        let name = "waypoint, PSS, idle".to_owned();
        let both = Figure::of_both(name.clone(), "MiB", 10.0, Some(50.0));
        assert_eq!((both.counts(), both.met), (Some(0.2), Some(true)));
        assert_eq!(Figure::of_both(name, "MiB", 10.0, None).met, None, "nothing to compare with");
    }
}
