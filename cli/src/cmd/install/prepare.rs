//! Before anything is changed: what is to be there, and whether it may.

use anyhow::{Context as _, bail};
use kube::Client;
use serde_json::Value;

use super::charts::Chart;
use super::render::{self, Rendered};
use super::{inventory, values};

/// What is to be installed, and where.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What was said, to be remembered.
    pub(crate) said: Value,
    /// What follows from it.
    pub(crate) rendered: Rendered,
    /// The system namespace.
    pub(crate) namespace: String,
    /// The revision; empty is the default one.
    pub(crate) revision: String,
    /// The version.
    pub(crate) version: String,
}

impl Plan {
    /// ` with the revision NAME`, or nothing.
    pub(crate) fn of_revision(&self) -> String {
        if self.revision.is_empty() { String::new() } else { format!(" with the revision {}", self.revision) }
    }
}

/// What follows from what was said.
pub(crate) fn plan(chart: &Chart, said: Value) -> anyhow::Result<Plan> {
    let whole = values::of_chart(chart, &said);
    let text = |path: &str| whole.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (namespace, revision) = (text("/global/istioNamespace"), text("/global/revision"));
    let rendered = render::render(chart, &said, &namespace)?;
    Ok(Plan { said, rendered, namespace, revision, version: chart.app_version.clone() })
}

/// Refuses clusters that are too old for what the chart says.
pub(crate) async fn cluster_is_new_enough(client: &Client, chart: &Chart) -> anyhow::Result<()> {
    let version = client.apiserver_version().await.context("cannot reach the cluster")?;
    let is = minor(&format!("{}.{}", version.major, version.minor));
    let least = minor(chart.kube_version.trim_start_matches(['>', '=', ' ']));
    if is.zip(least).is_some_and(|(is, least)| is < least) {
        bail!("the cluster is Kubernetes {}, and this needs {}", version.git_version, chart.kube_version);
    }
    Ok(())
}

/// `1.30`, `1.30.0-0`, or `1.30+` as some platforms write it. What cannot be read is not judged.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|part| part.trim_end_matches('+').parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Refuses what another installation already does.
pub(crate) async fn nothing_is_installed(client: &Client, plan: &Plan) -> anyhow::Result<()> {
    for installed in inventory::all(client, &plan.namespace).await? {
        if installed.revision == plan.revision {
            // One that did not get to its end is taken up again.
            if installed.is_complete {
                bail!(
                    "version {} is installed{}; use `ambit upgrade`, or --revision for a second one",
                    installed.version,
                    plan.of_revision(),
                );
            }
            continue;
        }
        let shared = plan.rendered.objects.iter().find(|object| installed.has(&object.key));
        if let Some(object) = shared {
            bail!(
                "{} belongs to the installation {}; a second one has a control plane alone: say --profile canary",
                object.key,
                installed.name(),
            );
        }
    }
    Ok(())
}

/// Refuses to go back, and to go further than what runs meanwhile is made to understand.
pub(crate) fn versions_meet(from: &str, to: &str) -> anyhow::Result<()> {
    let parts = |version: &str| {
        let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    let (old, new) = parts(from).zip(parts(to)).with_context(|| {
        format!("cannot compare the versions {from:?} and {to:?}; say --allow-skew to go on")
    })?;
    if new < old {
        bail!("{from} is installed, and this is {to}: to go back, say --allow-skew");
    }
    if (old.0, old.1 + 1) < (new.0, new.1) {
        bail!("{from} is installed: go to {}.{} before {to}, or say --allow-skew", old.0, old.1 + 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_clusters_are_read() {
        for (version, expected) in
            [("1.30", Some((1, 30))), ("1.31+", Some((1, 31))), ("1.30.0-0", Some((1, 30))), ("one", None)]
        {
            assert_eq!(minor(version), expected);
        }
    }

    #[test]
    fn one_minor_version_at_a_time_and_never_back() {
        for (from, to) in
            [("0.1.0", "0.1.0"), ("0.1.0", "0.1.7"), ("0.1.9", "0.2.0"), ("0.1.0-rc.1", "0.2.0")]
        {
            assert!(versions_meet(from, to).is_ok(), "{from} {to}");
        }
        for (from, to, why) in [
            ("0.2.0", "0.1.9", "go back"),
            ("0.1.0", "0.3.0", "go to 0.2 before"),
            ("0.1.0", "1.0.0", "go to 0.2 before"),
            ("old", "0.1.0", "cannot compare"),
        ] {
            let error = versions_meet(from, to).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
