//! What is printed and written.

use std::{
    io::{self, Write as _},
    path::Path,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{figures::Figure, rounds::Series};

/// One line on standard output. Whoever closed it wants no more.
pub fn line(value: &Value) {
    say(&value.to_string());
}

/// One line on standard output.
pub fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// The head of the table.
pub fn head() {
    say(&format!(
        "{:<58} {:>10} {:>10} {:>10}  {:<9} {:>7} {:>7} {:>7}  {:>9} {:>6}",
        "figure", "direct", "ambit", "envoy", "unit", "ambit÷", "envoy÷", "a÷e", "goal", "ref."
    ));
}

/// One line of the table.
pub fn figure(figure: &Figure) {
    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), shown);
    let goal = figure.goal.map_or_else(String::new, crate::goals::Goal::words);
    let verdict = match figure.met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    };
    say(&format!(
        "{:<58} {:>10} {:>10} {:>10}  {:<9} {:>7} {:>7} {:>7}  {:>9} {:>6} {verdict}",
        figure.name,
        number(figure.direct),
        number(figure.ambit),
        number(figure.envoy),
        figure.unit,
        number(figure.ambit_ratio),
        number(figure.envoy_ratio),
        number(figure.against_envoy),
        goal,
        figure.reference.map_or_else(String::new, shown),
    ));
}

fn shown(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Writes everything that was found.
pub fn write(
    path: &Path,
    about: &Value,
    figures: &[Figure],
    series: &[(String, Series)],
) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(context)?;
    }
    let series: serde_json::Map<_, _> =
        series.iter().map(|(name, series)| (name.clone(), json!(series.runs))).collect();
    let text = serde_json::to_string_pretty(&json!({ "about": about, "figures": figures, "runs": series }))?;
    std::fs::write(path, text + "\n").with_context(context)
}
