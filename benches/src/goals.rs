//! What is hoped for: of tunnels, beside the best one known when the table was written (Istio's, August 2026, release
//! build, two workers, a machine of two cores); of waypoints, beside Envoy in the same run.

use serde::Serialize;

/// A bound that a figure should keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Not less.
    AtLeast(f64),
    /// Not more.
    AtMost(f64),
}

impl Goal {
    /// Whether `value` keeps it.
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    /// As one writes it.
    pub fn words(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
        }
    }
}

/// The goal of a figure, and the reference that it is to beat.
pub fn of(figure: &str) -> Option<(Goal, f64)> {
    use Goal::{AtLeast, AtMost};
    Some(match figure {
        "two nodes, bulk, 1 stream: throughput" => (AtLeast(0.40), 0.30),
        "two nodes, bulk, 8 streams: throughput" => (AtLeast(0.38), 0.25),
        "two nodes, bulk, 1 stream: CPU per GB" => (AtMost(2.1), 2.9),
        "one node, bulk, 1 stream: throughput" => (AtLeast(0.60), 0.25),
        "one node, bulk, 1 stream: CPU per GB" => (AtMost(1.3), 3.4),
        "two nodes, 3,200 requests/s: p50" => (AtMost(1.8), 2.9),
        "two nodes, 3,200 requests/s: p99" => (AtMost(4.0), 20.0),
        "one node, 3,200 requests/s: p50" => (AtMost(1.4), 2.4),
        "two nodes, 3,200 requests/s: vCPU per 1,000/s, a tunnel" => (AtMost(0.045), 0.095),
        "two nodes, 3,200 requests/s: wake-ups a request, a tunnel" => (AtMost(1.1), 1.8),
        "two nodes, full speed: requests/s" => (AtLeast(0.45), 0.24),
        "two nodes, churn: connections/s" => (AtLeast(0.55), 0.31),
        "two nodes, churn: CPU per connection, both tunnels" => (AtMost(170.0), 371.0),
        "resident memory, idle" => (AtMost(9.0), 17.0),
        "resident memory, 10,000 workloads and 1,000 services" => (AtMost(22.0), 42.0),
        "memory per idle connection, of 1,000" => (AtMost(2.5), 6.1),
        "resident memory, 1,000 connections after 256 KiB each" => (AtMost(18.0), 43.0),
        "start to ready with 10,000 workloads" => (AtMost(100.0), 185.0),
        "wake-ups/s with 1,000 idle connections" => (AtMost(20.0), 104.0),
        _ => return None,
    })
}

/// The goal of a waypoint's figure: of what it is beside Envoy's.
pub fn beside_envoy(figure: &str) -> Option<Goal> {
    let figure = figure.strip_prefix("waypoint, ")?;
    let goals = [
        (figure.ends_with("3,200 requests/s: p99"), Goal::AtMost(0.8)),
        (figure.ends_with(": requests a CPU second"), Goal::AtLeast(1.3)),
        (figure.starts_with("PSS, "), Goal::AtMost(0.33)),
    ];
    goals.into_iter().find_map(|(is_of, goal)| is_of.then_some(goal))
}

/// How much more a request may cost with 5,000 routes than with one: nothing, but for what timings are worth.
pub const FLAT: Goal = Goal::AtMost(1.1);
