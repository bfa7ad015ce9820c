//! The conformance suite of Gateway API, for meshes: its own tests, unchanged, against an installed Ambit. What it says
//! is the story's verdict; its report and its own words go to `conformance/` in the target directory.
//! `docs/conformance/README.md` says what is claimed and how the suite is given what it needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ambit_e2e::kubernetes::{images, story};
use ambit_e2e::telling::{Evidence, Telling};
use ambit_e2e::wait::Stop;
use ambit_lab::process::{self, Process, Program};
use anyhow::{Context as _, ensure};

use crate::claims::{FEATURES, PROFILES, TESTS, UNPASSABLE, is_published};
use crate::scene::Scene;

/// The namespaces of its manifests.
const NAMESPACES: [&str; 2] = ["gateway-conformance-mesh", "gateway-conformance-mesh-consumer"];
/// It takes a minute on two cores, with debug builds; a test that fails, half a minute more.
const LIMIT: Duration = Duration::from_secs(540);
const QUESTION: Duration = Duration::from_secs(10);

#[test]
fn the_mesh_conforms_to_gateway_api() -> anyhow::Result<()> {
    story(|cluster| {
        let scene = Scene::set(cluster)?;
        let told = tell(&scene);
        let cleared = scene.clear(&NAMESPACES);
        told.and(cleared)
    })
}

fn tell(scene: &Scene<'_>) -> anyhow::Result<()> {
    let mut telling = Telling::aloud(Stop::default());
    telling.step("Installed, with a waypoint in each namespace of the suite", |_| prepare(scene));
    if telling.outcomes().iter().all(|outcome| outcome.failure.is_none()) {
        telling.step("Every test of the suite passes, and its report is the published one", |seen| {
            suite(scene, seen)
        });
    }
    ensure!(telling.verdict(2), "a step did not hold; see above");
    Ok(())
}

/// The suite labels its namespaces as it is told; a waypoint it cannot make, so they are there before it.
fn prepare(scene: &Scene<'_>) -> anyhow::Result<()> {
    let asked = Program::new(scene.programs().join("conformance")).arg("images");
    let asked = process::run(None, &asked, QUESTION)?.ok()?;
    ensure!(!asked.trim().is_empty(), "the suite names no image");
    for name in asked.lines() {
        scene.cluster.load_image(&images::conformance(name, scene.binaries())?)?;
    }
    scene.install(&[])?;
    for namespace in NAMESPACES {
        scene.kubectl().fresh_namespace(namespace)?;
        let apply = ["waypoint", "apply", "--namespace", namespace, "--wait"];
        scene.ambit(&apply).with_context(|| scene.kubectl().evidence(namespace))?;
    }
    Ok(())
}

fn suite(scene: &Scene<'_>, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let report = report(scene)?;
    // The cluster's own folder goes with it.
    let log = report.with_file_name("suite.log");
    for old in [&report, &log] {
        let _ = fs::remove_file(old);
    }
    let begun = Instant::now();
    let process = Process::start(None, &program(scene, &report), &log)?;
    let ended = process.wait(LIMIT);
    let said = process.said();
    let verdicts = verdicts(&said);
    let of = |test: &str| verdicts.get(test).map_or("not run", String::as_str);
    for test in TESTS {
        seen.saw(format!("{test}: {}", of(test)));
    }
    let not_passed: Vec<_> = TESTS.into_iter().filter(|test| of(test) != "PASS").collect();
    // What is skipped otherwise is of gateways, which are no claim of ours.
    let passed_over = |(test, verdict): &(&String, &String)| {
        let of_a_mesh = test.starts_with("Mesh") && *test != UNPASSABLE;
        !TESTS.contains(&test.as_str()) && (of_a_mesh || *verdict != "SKIP")
    };
    let passed_over: Vec<_> = verdicts.iter().filter(passed_over).collect();
    let status = ended.with_context(|| tail(&said))?;
    ensure!(
        status.success() && not_passed.is_empty(),
        "{status}; not passed: {not_passed:?}\n{}",
        tail(&said)
    );
    ensure!(passed_over.is_empty(), "tests of which nothing is claimed: {passed_over:?}");
    let written =
        fs::read_to_string(&report).with_context(|| format!("no report at {}", report.display()))?;
    is_published(&written)?;
    seen.saw(format!("in {:.0?}; the report is {}", begun.elapsed(), report.display()));
    Ok(())
}

fn report(scene: &Scene<'_>) -> anyhow::Result<PathBuf> {
    let target = scene.programs().ancestors().nth(2).context("the programs are in no target directory")?;
    let folder = target.join("conformance");
    fs::create_dir_all(&folder)?;
    Ok(folder.join("report.yaml"))
}

fn program(scene: &Scene<'_>, report: &Path) -> Program {
    Program::new(scene.programs().join("conformance"))
        .arg("-test.v")
        .arg(format!("-test.timeout={}s", LIMIT.as_secs()))
        .arg(format!("-conformance-profiles={}", PROFILES.join(",")))
        .arg(format!("-supported-features={}", FEATURES.join(",")))
        .arg("-namespace-labels=istio.io/dataplane-mode=ambient,istio.io/use-waypoint=waypoint")
        .arg("-organization=ambit")
        .arg("-project=ambit")
        .arg("-url=https://ambit.example")
        .arg(format!("-version=v{}", env!("CARGO_PKG_VERSION")))
        .arg("-contact=https://ambit.example")
        .arg(format!("-report-output={}", report.display()))
        .env("KUBECONFIG", scene.cluster.kubeconfig())
        .env("HOME", scene.cluster.home().dir())
}

/// What came of each of the suite's tests, of what Go says of them when they end.
fn verdicts(said: &str) -> BTreeMap<String, String> {
    let ends = said.lines().filter_map(|line| line.trim_start().strip_prefix("--- "));
    ends.filter_map(|end| {
        let (verdict, rest) = end.split_once(": Conformance/")?;
        let name = rest.split_whitespace().next()?;
        // A part of a test counts in it.
        (!name.contains('/')).then(|| (name.to_owned(), verdict.to_owned()))
    })
    .collect()
}

fn tail(said: &str) -> String {
    let lines: Vec<_> = said.lines().collect();
    lines.get(lines.len().saturating_sub(200)..).unwrap_or_default().join("\n")
}

#[test]
fn a_test_is_told_from_its_parts() {
    let said = "--- FAIL: Conformance (2.00s)\n    --- PASS: Conformance/MeshBasic (1.00s)\n        \
        --- PASS: Conformance/MeshBasic/a (0.10s)\n    --- SKIP: Conformance/GatewayX (0.00s)\n";
    let expected = [("GatewayX", "SKIP"), ("MeshBasic", "PASS")];
    let expected = expected.map(|(test, verdict)| (test.to_owned(), verdict.to_owned()));
    assert_eq!(verdicts(said), BTreeMap::from(expected));
}
