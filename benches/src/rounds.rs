//! Fair comparison on a machine that is never quiet: no mesh before and after each measurement, ratios
//! of the same minute, medians over rounds.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

/// What carries the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mesh {
    /// Nothing: pod to pod.
    Direct,
    /// Our tunnels.
    Ambit,
    /// Envoy as tunnels.
    Envoy,
}

impl Mesh {
    /// As it is called in namespaces and tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Ambit => "ambit",
            Self::Envoy => "envoy",
        }
    }
}

/// What one measurement found, by name.
pub type Values = BTreeMap<String, f64>;

/// All measurements of one workload, in the order in which they were made.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Series {
    /// What was measured, and what was found.
    pub runs: Vec<(Mesh, Values)>,
}

/// Measures by turns: no mesh, Ambit, no mesh, Envoy, …, no mesh.
pub fn alternate(
    rounds: usize,
    with_envoy: bool,
    mut measure: impl FnMut(Mesh) -> anyhow::Result<Values>,
) -> anyhow::Result<Series> {
    let meshes: &[Mesh] = if with_envoy { &[Mesh::Ambit, Mesh::Envoy] } else { &[Mesh::Ambit] };
    let mut runs = vec![(Mesh::Direct, measure(Mesh::Direct)?)];
    for _ in 0..rounds {
        for mesh in meshes {
            runs.push((*mesh, measure(*mesh)?));
            runs.push((Mesh::Direct, measure(Mesh::Direct)?));
        }
    }
    Ok(Series { runs })
}

impl Series {
    /// The median of `name` over all measurements of `mesh`.
    pub fn median(&self, mesh: Mesh, name: &str) -> Option<f64> {
        let of_mesh = self.runs.iter().filter(|(of, _)| *of == mesh);
        median(of_mesh.filter_map(|(_, values)| values.get(name).copied()).collect())
    }

    /// The median of `name` of `mesh` divided by `by` of the two measurements without mesh around it.
    pub fn ratio(&self, mesh: Mesh, name: &str, by: &str) -> Option<f64> {
        let ratios = self.runs.windows(3).filter_map(|runs| match runs {
            [(Mesh::Direct, before), (of, values), (Mesh::Direct, after)] if *of == mesh => {
                let direct = f64::midpoint(*before.get(by)?, *after.get(by)?);
                Some(values.get(name)? / direct)
            }
            _ => None,
        });
        median(ratios.filter(|ratio| ratio.is_finite()).collect())
    }

    /// The median of `name` of Ambit divided by Envoy's of the same round.
    pub fn against_envoy(&self, name: &str) -> Option<f64> {
        let ratios = self.runs.windows(3).filter_map(|runs| match runs {
            [(Mesh::Ambit, ambit), _, (Mesh::Envoy, envoy)] => Some(ambit.get(name)? / envoy.get(name)?),
            _ => None,
        });
        median(ratios.filter(|ratio| ratio.is_finite()).collect())
    }
}

/// The median; of none, none.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let high = *values.get(values.len() / 2)?;
    let low = *values.get((values.len() - 1) / 2)?;
    Some(f64::midpoint(low, high))
}

/// Lets time pass: what is measured over a time, or needs time to settle.
pub fn rest(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ratio_is_to_the_measurements_around_it() {
        let mut direct = [10.0, 10.0, 20.0].into_iter();
        let mut ambit = [5.0, 10.0].into_iter();
        let series = alternate(2, false, |mesh| {
            let value = if mesh == Mesh::Direct { direct.next() } else { ambit.next() };
            Ok(Values::from([("x".to_owned(), value.unwrap())]))
        })
        .unwrap();
        // 5/10 and 10/15.
        let ratio = series.ratio(Mesh::Ambit, "x", "x").unwrap();
        assert!((ratio - (0.5 + 2.0 / 3.0) / 2.0).abs() < 1e-9, "{ratio}");
        assert_eq!(series.median(Mesh::Direct, "x"), Some(10.0));
        assert_eq!(series.median(Mesh::Envoy, "x"), None);
    }

    #[test]
    fn ambit_is_compared_with_envoy_of_the_same_round() {
        let mut values = [1.0, 6.0, 1.0, 2.0, 1.0, 8.0, 1.0, 2.0, 1.0].into_iter();
        let series =
            alternate(2, true, |_| Ok(Values::from([("x".to_owned(), values.next().unwrap())]))).unwrap();
        // 6/2 and 8/2, and not 8 by the 2 before it.
        assert_eq!(series.against_envoy("x"), Some(3.5));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
