//! The charts: what Helm makes of them is what `ambit install` makes of them, and every value is explained.
//! Needs no cluster; what needs Helm is skipped where it was not built.
#![allow(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null: that cannot panic"
)]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]
#![expect(clippy::print_stderr, reason = "clippy exempts only functions marked #[test], not their helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, ensure};
use serde::Deserialize as _;
use serde_json::Value;

const CHARTS: [&str; 5] = ["ambit", "base", "cni", "controller", "ztunnel"];

#[test]
fn helm_finds_nothing_to_complain_about() -> anyhow::Result<()> {
    let Some(helm) = helm() else { return Ok(()) };
    for chart in CHARTS {
        let done = Command::new(&helm)
            .args(["lint", "--strict"])
            .arg(install().join("charts").join(chart))
            .output()?;
        ensure!(done.status.success(), "helm lint {chart}:\n{}", said(&done));
    }
    Ok(())
}

#[test]
fn helm_and_ambit_install_the_same_objects() -> anyhow::Result<()> {
    let Some(helm) = helm() else { return Ok(()) };
    let presets = |folder: &str| -> anyhow::Result<Vec<Option<String>>> {
        let mut names = vec![None];
        for file in std::fs::read_dir(install().join(folder))? {
            let name = file?.file_name().into_string().ok().context("a name")?;
            names.push(name.strip_suffix(".yaml").map(str::to_owned));
        }
        Ok(names)
    };
    let mut compared = 0;
    for profile in presets("profiles")? {
        for platform in presets("platforms")? {
            let sets: &[&str] = &["global.hub=example.org/mesh,global.tag=dev"];
            compared += compare(&helm, profile.as_deref(), platform.as_deref(), sets)?;
        }
    }
    for sets in EVERYTHING {
        compared += compare(&helm, None, None, sets)?;
    }
    // 5 profiles with none, 6 platforms with none.
    ensure!(compared > 500, "only {compared} objects were compared");
    println!("{compared} objects are the same");
    Ok(())
}

/// What no profile says.
const EVERYTHING: &[&[&str]] = &[
    &["global.revision=v2,global.istioNamespace=mesh,global.network=n1,global.logLevel=xds:debug\\,info"],
    &["base.crds.istio=false", "base.namespace.labels.team=mesh"],
    &["base.crds.gatewayApi=false,global.imagePullSecrets[0].name=hub"],
    &[
        "controller.autoscaling.enabled=true,controller.ca.certManager.enabled=true",
        "controller.ca.certManager.issuerName=mesh,controller.ca.certManager.rootsConfigMap=roots",
        "controller.ca.trustedNodeAccounts={a/b,c/d}",
        "controller.env.A=1,controller.env.B=true,controller.podLabels.x=y",
        "controller.disruption.maxUnavailable=50%,controller.nodeSelector.a=b",
        "controller.affinity.nodeAffinity.x=y,controller.serviceAnnotations.a=b",
    ],
    &["controller.validation.enabled=false,controller.disruption.enabled=false,controller.tolerations=null"],
    &["controller.waypoint.enabled=false"],
    &[
        "controller.waypoint.replicas=3,controller.waypoint.image=x/y:z,controller.waypoint.tolerations[0].key=a",
        "controller.waypoint.priorityClassName=high,controller.waypoint.affinity.nodeAffinity.x=b",
        "controller.waypoint.resources=null,global.imagePullSecrets[0].name=hub",
    ],
    &["ztunnel.crl=true,ztunnel.onDemand=true,ztunnel.originalSource=false,ztunnel.workerThreads=3"],
    &["ztunnel.resources.limits.cpu=2,ztunnel.xdsAddress=https://x:1,ztunnel.maxSurge=20%"],
    &[
        "cni.ownedConfig=true,cni.excludeNamespaces={a,b},cni.probes=0,cni.probeAddress=169.254.9.9",
        "cni.ownNodeOnly=false",
    ],
    &[
        "cni.resources=null,ztunnel.resources=null,ztunnel.tolerations=null,cni.podAnnotations.a=b,global.networkPolicies=true",
    ],
];

/// Compares object by object; how many there were.
fn compare(
    helm: &Path,
    profile: Option<&str>,
    platform: Option<&str>,
    sets: &[&str],
) -> anyhow::Result<usize> {
    let what = format!("profile {profile:?}, platform {platform:?}, {sets:?}");
    let mut by_helm = Command::new(helm);
    by_helm.args(["template", "ambit"]).arg(install().join("charts/ambit"));
    // What `ambit install` always does, and Helm's users do with --create-namespace.
    by_helm.args(["--namespace", "istio-system", "--set", "base.namespace.create=true"]);
    let mut by_ambit = Command::new(program("ambit")?);
    by_ambit.args(["install", "--dry-run"]);
    for (flag, folder, name) in [("--profile", "profiles", profile), ("--platform", "platforms", platform)] {
        if let Some(name) = name {
            by_helm.arg("-f").arg(install().join(folder).join(format!("{name}.yaml")));
            by_ambit.args([flag, name]);
        }
    }
    for set in sets {
        by_helm.args(["--set", set]);
        by_ambit.args(["--set", set]);
    }
    let one = objects(&by_helm.output()?).with_context(|| format!("helm template, {what}"))?;
    let other = objects(&by_ambit.output()?).with_context(|| format!("ambit install --dry-run, {what}"))?;
    let (names, other_names): (Vec<_>, Vec<_>) = (one.keys().collect(), other.keys().collect());
    ensure!(names == other_names, "{what}: Helm has {names:#?}, Ambit has {other_names:#?}");
    for (name, object) in &one {
        let same = other.get(name);
        ensure!(same == Some(object), "{what}: {name:?} is for Helm\n{object:#}\nand for Ambit\n{same:#?}");
    }
    Ok(one.len())
}

#[test]
fn a_slip_of_the_hand_is_refused_by_both_with_its_place() -> anyhow::Result<()> {
    for (set, place) in [
        ("global.hubb=x", "hubb"),
        ("cni.cniBinDirectory=/x", "cniBinDirectory"),
        ("ztunnel.terminationGracePeriodSeconds=soon", "terminationGracePeriodSeconds"),
        ("controller.policy.l7DenyWithoutWaypoint=maybe", "l7DenyWithoutWaypoint"),
        ("controler.replicas=1", "controler"),
    ] {
        let done = Command::new(program("ambit")?).args(["install", "--dry-run", "--set", set]).output()?;
        ensure!(!done.status.success() && said(&done).contains(place), "ambit takes {set}: {}", said(&done));
        let Some(helm) = helm() else { continue };
        let chart = install().join("charts/ambit");
        let done = Command::new(helm).args(["template", "ambit"]).arg(chart).args(["--set", set]).output()?;
        ensure!(!done.status.success() && said(&done).contains(place), "helm takes {set}: {}", said(&done));
    }
    Ok(())
}

#[test]
fn every_value_is_explained() -> anyhow::Result<()> {
    for chart in CHARTS {
        let text = std::fs::read_to_string(install().join("charts").join(chart).join("values.yaml"))?;
        let mut before = "";
        let mut values = 0;
        for line in text.lines() {
            let is_value = line
                .trim_start()
                .split_once(':')
                .is_some_and(|(key, _)| !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric()));
            if is_value {
                values += 1;
                let explained = before.trim_start().starts_with("# ");
                ensure!(explained, "{chart}/values.yaml: no comment stands above `{}`", line.trim());
            }
            before = line;
        }
        ensure!(values > 10, "{chart} has only {values} values?");
    }
    Ok(())
}

#[test]
fn images_are_made_of_what_there_is() -> anyhow::Result<()> {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(install())
        .output()?;
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    let mut programs = BTreeSet::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_program =
                target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"));
            if let (true, Some(package), Some(name)) =
                (is_program, package["name"].as_str(), target["name"].as_str())
            {
                programs.insert((package.to_owned(), name.to_owned()));
            }
        }
    }
    for image in ["controller", "ztunnel", "cni", "waypoint"] {
        let text = std::fs::read_to_string(install().join(format!("docker/{image}.Dockerfile")))?;
        let after = |word: &str| -> Vec<String> {
            let words: Vec<_> = text.split_whitespace().collect();
            let pairs = words.windows(2).filter(|pair| pair.first() == Some(&word));
            pairs.filter_map(|pair| pair.get(1)).map(|&word| word.to_owned()).collect()
        };
        let (packages, built) = (after("--package"), after("--bin"));
        ensure!(!built.is_empty() && packages.len() == built.len(), "{image}: what is built?");
        for pair in packages.into_iter().zip(built.iter().cloned()) {
            ensure!(programs.contains(&pair), "{image}: there is no program {pair:?}");
        }
        for copied in after("--from=build") {
            let name = copied.rsplit('/').next().unwrap_or_default();
            ensure!(built.iter().any(|built| built == name), "{image}: {copied} is copied, and not built");
        }
        let entry =
            text.lines().find_map(|line| line.strip_prefix("ENTRYPOINT ")).context("no entry point")?;
        let started = entry.trim_matches(['[', ']', '"']).rsplit('/').next().unwrap_or_default();
        ensure!(built.first().is_some_and(|first| first == started), "{image} starts {started}");
    }
    Ok(())
}

/// Documents by kind, namespace and name.
fn objects(done: &Output) -> anyhow::Result<BTreeMap<(String, String, String), Value>> {
    ensure!(done.status.success(), "{}", said(done));
    let mut objects = BTreeMap::new();
    for document in serde_yaml_ng::Deserializer::from_slice(&done.stdout) {
        let object = Value::deserialize(document)?;
        if object.is_null() {
            continue;
        }
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = (text("/kind"), text("/metadata/namespace"), text("/metadata/name"));
        ensure!(objects.insert(name.clone(), object).is_none(), "{name:?} is there twice");
    }
    Ok(objects)
}

fn said(done: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
}

fn install() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../install")
}

/// A program of ours, where a build puts it.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built; run `cargo build --workspace --bins`"))
}

/// Helm, if it was built; `make cluster-up` does.
fn helm() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let found = own.ancestors().map(|dir| dir.join("tools/kubernetes/helm")).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: Helm is not built; see e2e/kubernetes/programs/helm");
    }
    found
}
