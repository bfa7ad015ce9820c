//! The charts, profiles and platforms that the program carries.

use anyhow::Context as _;
use serde_json::Value;

/// Everything in `install/` that is installed from, by its path there.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/install.rs"));

/// The chart of the whole mesh.
pub(crate) const WHOLE: &str = "ambit";

/// A chart.
#[derive(Debug)]
pub(crate) struct Chart {
    /// Its name, which is the key of its values in the chart that it belongs to.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// The version of what it installs.
    pub(crate) app_version: String,
    /// Which clusters it is for: `>= 1.30.0-0`.
    pub(crate) kube_version: String,
    /// What holds unless something else is said.
    pub(crate) values: Value,
    /// What may be said.
    pub(crate) schema: Value,
    /// The charts that belong to it, each with the value that switches it off.
    pub(crate) parts: Vec<(Chart, String)>,
}

impl Chart {
    /// The chart of that name, and all that belongs to it.
    pub(crate) fn load(name: &str) -> anyhow::Result<Self> {
        let file = |rest: &str| file(&format!("charts/{name}/{rest}"));
        let about: Value = yaml(file("Chart.yaml")?)?;
        let text = |word: &str| about.get(word).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut parts = Vec::new();
        for part in about.get("dependencies").and_then(Value::as_array).into_iter().flatten() {
            let name = part.get("name").and_then(Value::as_str).context("a dependency has a name")?;
            let condition = part.get("condition").and_then(Value::as_str).unwrap_or_default();
            parts.push((Self::load(name)?, condition.to_owned()));
        }
        Ok(Self {
            name: text("name"),
            version: text("version"),
            app_version: text("appVersion"),
            kube_version: text("kubeVersion"),
            values: yaml(file("values.yaml")?)?,
            schema: serde_json::from_str(file("values.schema.json")?)?,
            parts,
        })
    }

    /// Its templates: path in the chart, and text.
    pub(crate) fn templates(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let root = format!("charts/{}/", self.name);
        FILES
            .iter()
            .filter_map(move |(path, text)| Some((path.strip_prefix(&root)?, *text)))
            .filter(|(path, _)| path.starts_with("templates/"))
    }

    /// A file that templates ask for. Definitions are linked into the chart: `files/crds` is `crds`.
    pub(crate) fn extra(path: &str) -> Option<&'static str> {
        file(path.strip_prefix("files/")?).ok()
    }
}

/// The definitions, by their paths.
#[cfg(test)]
pub(crate) fn definitions() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(path, _)| *path).filter(|path| path.starts_with("crds/") && path.ends_with(".yaml"))
}

/// The values of a profile.
pub(crate) fn profile(name: &str) -> anyhow::Result<Value> {
    preset("profile", "profiles", name)
}

/// The values of a platform.
pub(crate) fn platform(name: &str) -> anyhow::Result<Value> {
    preset("platform", "platforms", name)
}

fn preset(word: &str, folder: &str, name: &str) -> anyhow::Result<Value> {
    let text = file(&format!("{folder}/{name}.yaml"));
    yaml(
        text.with_context(|| {
            format!("there is no {word} {name:?}; there are: {}", names(folder).join(", "))
        })?,
    )
}

fn names(folder: &str) -> Vec<&'static str> {
    let prefix = format!("{folder}/");
    FILES.iter().filter_map(|(path, _)| path.strip_prefix(&prefix)?.strip_suffix(".yaml")).collect()
}

fn file(path: &str) -> anyhow::Result<&'static str> {
    let found = FILES.iter().find(|(name, _)| *name == path).map(|(_, text)| *text);
    found.with_context(|| format!("install/{path} is not in this program"))
}

fn yaml(text: &str) -> anyhow::Result<Value> {
    Ok(serde_yaml_ng::from_str(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_mesh_has_four_parts() {
        let whole = Chart::load(WHOLE).unwrap();
        let parts: Vec<_> =
            whole.parts.iter().map(|(part, condition)| (part.name.as_str(), condition.as_str())).collect();
        let expected = [
            ("base", "base.enabled"),
            ("controller", "controller.enabled"),
            ("cni", "cni.enabled"),
            ("ztunnel", "ztunnel.enabled"),
        ];
        assert_eq!(parts, expected);
        assert_eq!(
            whole.app_version,
            env!("CARGO_PKG_VERSION"),
            "the charts install another version than this"
        );
        for (part, _) in &whole.parts {
            assert_eq!((&part.version, &part.app_version), (&whole.version, &whole.app_version));
            assert_eq!(
                part.values["global"], whole.values["global"],
                "{} has other shared settings",
                part.name
            );
            assert_eq!(
                part.schema["properties"]["global"], whole.schema["properties"]["global"],
                "{} takes other shared settings",
                part.name
            );
        }
    }

    #[test]
    fn presets_are_told_when_one_is_misspelt() {
        assert!(profile("default").is_ok() && platform("gke").is_ok());
        let error = format!("{:#}", platform("gkee").unwrap_err());
        assert!(error.contains("eks, gke, k3s, minikube, openshift"), "{error}");
    }
}
