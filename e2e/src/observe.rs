//! What tunnels say, read: lines of the access log, samples of metrics, certificates of the dump.

use std::collections::BTreeMap;

use serde_json::Value;

/// One line of a tunnel's log, written in JSON.
#[derive(Debug, Clone)]
pub struct LogLine(Value);

/// One sample of a metrics page.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// A certificate that a tunnel holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whose.
    pub identity: String,
    /// Its serial number.
    pub serial: String,
    /// Until when it is valid.
    pub until: String,
}

impl LogLine {
    /// All lines of a log that are JSON; a program may say something else before its log is set up.
    pub fn all(log: &str) -> Vec<Self> {
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).map(Self).collect()
    }

    /// A field's text; empty when it is absent.
    pub fn field(&self, name: &str) -> &str {
        text(&self.0, name)
    }

    /// A field's number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name).and_then(Value::as_u64)
    }

    /// Whether these fields have these values.
    pub fn has(&self, fields: &[(&str, &str)]) -> bool {
        fields.iter().all(|(name, value)| self.field(name) == *value)
    }

    /// Whether it is of the access log.
    pub fn is_access(&self) -> bool {
        self.field("scope") == "access"
    }

    /// These fields in one line, for people.
    pub fn shown(&self, fields: &[&str]) -> String {
        let present = fields.iter().filter_map(|name| Some(format!("{name}={}", self.0.get(*name)?)));
        present.collect::<Vec<_>>().join(" ")
    }
}

impl std::fmt::Display for LogLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The text of a field of a JSON object; empty when it is absent.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The samples of a page in the Prometheus text format.
pub fn samples(page: &str) -> Vec<Sample> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

/// The sum of the samples of that name which have these labels.
pub fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |sample: &&Sample| {
        let labels = labels.iter();
        sample.name == name
            && labels
                .into_iter()
                .all(|(label, value)| sample.labels.get(*label).is_some_and(|own| own == value))
    };
    samples.iter().filter(fits).map(|sample| sample.value).sum()
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    // No value of ours contains a quote.
    let mut parts = labels.split('"');
    let mut all = BTreeMap::new();
    while let (Some(label), Some(value)) = (parts.next(), parts.next()) {
        all.insert(label.trim_matches([',', '=']).to_owned(), value.to_owned());
    }
    Some(Sample { name: name.to_owned(), labels: all, value: value.parse().ok()? })
}

/// The leaf certificates of a configuration dump.
pub fn certificates(dump: &Value) -> Vec<Held> {
    let all = dump.get("certificates").and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|entry| {
        let leaf = entry.get("certChain")?.as_array()?.first()?;
        Some(Held {
            identity: text(entry, "identity").to_owned(),
            serial: text(leaf, "serialNumber").to_owned(),
            until: text(leaf, "expirationTime").to_owned(),
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_names_labels_and_values() {
        let page = "# TYPE a counter\na_total{x=\"1\",y=\"spiffe://td/ns/a, b\"} 3\na_total{x=\"2\",y=\"\"} 4.5\nup 1\n# EOF\n";
        let samples = samples(page);
        assert_eq!(samples.len(), 3);
        assert_eq!(samples[0].labels["y"], "spiffe://td/ns/a, b");
        assert!((sum(&samples, "a_total", &[]) - 7.5).abs() < 1e-9);
        assert!((sum(&samples, "a_total", &[("x", "2")]) - 4.5).abs() < 1e-9);
    }

    #[test]
    fn a_log_line_has_fields() {
        let lines = LogLine::all(
            "starting\n{\"scope\":\"access\",\"src.identity\":\"spiffe://x\",\"bytes_sent\":7}\n",
        );
        assert!(lines[0].is_access() && lines[0].has(&[("src.identity", "spiffe://x")]));
        assert_eq!(lines[0].number("bytes_sent"), Some(7));
        assert_eq!(lines[0].shown(&["src.identity", "error"]), "src.identity=\"spiffe://x\"");
    }
}
