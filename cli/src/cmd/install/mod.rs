//! `ambit install`, `upgrade` and `uninstall`: the charts of `install/`, rendered here and applied by the API server.

mod apply;
mod charts;
mod diff;
mod inventory;
pub(crate) mod object;
mod prepare;
mod remove;
mod render;
pub(crate) mod rollout;
mod schema;
mod values;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use self::charts::{Chart, WHOLE};
use self::values::Taken;
use crate::cluster::ClusterArgs;
use crate::output::Out;

/// Images are pulled in it, on every node.
const PATIENCE: &str = "5m";

/// What to install.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "What to install")]
pub(crate) struct Said {
    /// A set of values for a purpose: default, minimal, production, or canary for a second control plane.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// The values of a platform: gke, eks, openshift, k3s or minikube.
    #[arg(long, value_name = "NAME")]
    platform: Option<String>,

    /// A file of values; again for each. Later ones win.
    #[arg(long, short = 'f', value_name = "FILE")]
    values: Vec<PathBuf>,

    /// Values, `path=value,path=value`, as with Helm; again for more.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,

    /// Values that are text, whatever they look like.
    #[arg(long, value_name = "PATH=VALUE")]
    set_string: Vec<String>,

    /// The revision of the control plane; it ends the names of its objects.
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,

    /// The system namespace.
    #[arg(long, short = 'n', value_name = "NAME")]
    namespace: Option<String>,
}

impl Said {
    /// What was said, later over earlier: before, the profile, the platform, files, words, flags.
    fn values(&self, before: Option<&Value>) -> anyhow::Result<Value> {
        // Helm's --create-namespace has no labels; here the namespace is an object like others.
        let mut said = json!({ "base": { "namespace": { "create": true } } });
        if let Some(before) = before {
            values::overlay(&mut said, before);
        }
        if let Some(name) = &self.profile {
            values::overlay(&mut said, &charts::profile(name)?);
        }
        if let Some(name) = &self.platform {
            values::overlay(&mut said, &charts::platform(name)?);
        }
        for file in &self.values {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read --values {}", file.display()))?;
            let read: Value = serde_yaml_ng::from_str(&text)
                .with_context(|| format!("--values {} is not YAML", file.display()))?;
            match read {
                Value::Null => {}
                Value::Object(_) => values::overlay(&mut said, &read),
                Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    bail!("--values {} is no map of values", file.display())
                }
            }
        }
        for word in &self.set {
            values::set(&mut said, word, Taken::AsItLooks).context("--set")?;
        }
        for word in &self.set_string {
            values::set(&mut said, word, Taken::AsText).context("--set-string")?;
        }
        for (flag, path) in [(&self.revision, "revision"), (&self.namespace, "istioNamespace")] {
            if let Some(word) = flag {
                values::overlay(&mut said, &json!({ "global": { path: word } }));
            }
        }
        Ok(said)
    }
}

/// How to go about it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "How")]
pub(crate) struct Way {
    /// Ask nothing.
    #[arg(long, short = 'y')]
    yes: bool,

    /// How long it may take until everything runs.
    #[arg(long, value_name = "TIME", default_value = PATIENCE, value_parser = duration)]
    timeout: Duration,
}

/// `ambit install`.
#[derive(Debug, clap::Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    said: Said,
    /// Print the objects, and change nothing. Needs no cluster.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    way: Way,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// `ambit upgrade`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    said: Said,
    /// Forget what was said when it was installed.
    #[arg(long)]
    reset_values: bool,
    /// Print what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Go back to an older version, or over more than one minor version.
    #[arg(long)]
    allow_skew: bool,
    #[command(flatten)]
    way: Way,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// `ambit uninstall`.
#[derive(Debug, clap::Args)]
pub(crate) struct UninstallArgs {
    /// The revision to remove.
    #[arg(long, value_name = "NAME", default_value = "")]
    revision: String,
    /// The system namespace.
    #[arg(long, short = 'n', value_name = "NAME", default_value = "istio-system")]
    namespace: String,
    /// Take the labels of the mesh from namespaces, too; they are listed first.
    #[arg(long)]
    purge: bool,
    /// Remove definitions that were installed with it, and with them every object of their kinds.
    #[arg(long)]
    purge_crds: bool,
    #[command(flatten)]
    way: Way,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Installs.
pub(crate) async fn install(args: &InstallArgs, out: &mut Out) -> anyhow::Result<ExitCode> {
    let chart = Chart::load(WHOLE)?;
    let plan = prepare::plan(&chart, args.said.values(None)?)?;
    if args.dry_run {
        for object in &plan.rendered.objects {
            out.text(format!("---\n{}", serde_yaml_ng::to_string(&object.value)?))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let client = args.cluster.client().await?;
    prepare::cluster_is_new_enough(&client, &chart).await?;
    prepare::nothing_is_installed(&client, &plan).await?;
    apply::apply(&client, &plan, None, &args.way, false, out).await
}

/// Installs over what is installed.
pub(crate) async fn upgrade(args: &UpgradeArgs, out: &mut Out) -> anyhow::Result<ExitCode> {
    let chart = Chart::load(WHOLE)?;
    let client = args.cluster.client().await?;
    prepare::cluster_is_new_enough(&client, &chart).await?;
    let first = prepare::plan(&chart, args.said.values(None)?)?;
    let installed = inventory::read(&client, &first.namespace, &first.revision).await?.with_context(|| {
        format!(
            "nothing is installed in {} by `ambit install`{}; is it another --namespace or --revision, or Helm's?",
            first.namespace,
            first.of_revision(),
        )
    })?;
    let before = (!args.reset_values).then_some(&installed.values);
    let plan = prepare::plan(&chart, args.said.values(before)?)?;
    if !args.allow_skew {
        prepare::versions_meet(&installed.version, &plan.version)?;
    }
    apply::apply(&client, &plan, Some(&installed), &args.way, args.dry_run, out).await
}

/// Removes.
pub(crate) async fn uninstall(args: &UninstallArgs, out: &mut Out) -> anyhow::Result<ExitCode> {
    let client = args.cluster.client().await?;
    remove::remove(&client, args, out).await
}

/// Whether the operator wants it.
fn confirmed(question: &str, way: &Way, out: &mut Out) -> anyhow::Result<bool> {
    if way.yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        bail!("nobody is there to ask: {question} Say --yes to go on without");
    }
    out.text(format!("{question} [y/N] "))?;
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// `90s`, `5m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time; write 90s or 5m");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => Some(number),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3600),
        _ => None,
    };
    seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(change: impl FnOnce(&mut Said)) -> anyhow::Result<Value> {
        let mut said = Said::default();
        change(&mut said);
        said.values(None)
    }

    #[test]
    fn later_words_win_over_earlier_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.yaml");
        std::fs::write(&file, "controller: { replicas: 5 }\nglobal: { hub: file }\n").unwrap();
        let values = said(|said| {
            said.profile = Some("production".to_owned());
            said.platform = Some("k3s".to_owned());
            said.values = vec![file];
            said.set = vec!["global.hub=set,ztunnel.maxSurge=2".to_owned()];
            said.set_string = vec!["global.tag=1".to_owned()];
            said.revision = Some("v2".to_owned());
        });
        let values = values.unwrap();
        assert_eq!(values["controller"]["replicas"], 5);
        assert_eq!(values["controller"]["spread"], "DoNotSchedule");
        assert_eq!(values["cni"]["cniBinDir"], "/var/lib/rancher/k3s/data/cni");
        assert_eq!(values["global"]["hub"], "set");
        assert_eq!(values["global"]["tag"], "1");
        assert_eq!(values["global"]["revision"], "v2");
        assert_eq!(values["ztunnel"]["maxSurge"], 2);
    }

    #[test]
    fn the_namespace_is_an_object_whatever_else_is_said() {
        let values = said(|_| {}).unwrap();
        assert_eq!(values, json!({ "base": { "namespace": { "create": true } } }));
        let before = json!({ "global": { "hub": "x" } });
        let values = Said::default().values(Some(&before)).unwrap();
        assert_eq!(values["base"]["namespace"]["create"], true);
        assert_eq!(values["global"], before["global"]);
    }

    #[test]
    fn what_cannot_be_read_says_which() {
        let error = said(|said| said.values = vec!["/nowhere/values.yaml".into()]).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/values.yaml"), "{error:#}");
        let error = said(|said| said.set = vec!["x".to_owned()]).unwrap_err();
        assert!(format!("{error:#}").contains("--set"), "{error:#}");
    }

    #[test]
    fn lengths_of_time_are_read() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "5", "m", "-1s", "0s", "5µ", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
