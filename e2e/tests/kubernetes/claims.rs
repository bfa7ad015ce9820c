//! What is claimed of the conformance suite of Gateway API. The story of [`crate::conformance`] holds the mesh to it, and
//! the document and the report that are published say the same.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// The profiles.
pub(crate) const PROFILES: [&str; 2] = ["MESH-HTTP", "MESH-GRPC"];
/// All that a test of a mesh asks for, but for what [`UNPASSABLE`] does. Taking one out is taking a claim back.
pub(crate) const FEATURES: [&str; 16] = [
    "Mesh",
    "HTTPRoute",
    "GRPCRoute",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
];
/// The suite's tests of meshes, all but [`UNPASSABLE`]: one that is passed over because a feature was renamed is missed.
pub(crate) const TESTS: [&str; 21] = [
    "MeshBasic",
    "MeshConsumerRoute",
    "MeshFrontend",
    "MeshFrontendHostname",
    "MeshGRPCRouteWeight",
    "MeshHTTPRoute303Redirect",
    "MeshHTTPRoute308Redirect",
    "MeshHTTPRouteBackendRequestHeaderModifier",
    "MeshHTTPRouteMatching",
    "MeshHTTPRouteNamedRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectHostAndStatus",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRequestHeaderModifier",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteSimpleSameNamespace",
    "MeshHTTPRouteWeight",
    "MeshPorts",
    "MeshTrafficSplit",
];
/// A test of release 1.5.1 that applies the manifest of another, so what it calls is no route's. Release 1.6 has it right
/// (<https://github.com/kubernetes-sigs/gateway-api/pull/4806>). What it asks for is not claimed, so it is skipped.
pub(crate) const UNPASSABLE: &str = "MeshHTTPRoute307Redirect";
/// Where the report is published.
const PUBLISHED: &str = "docs/conformance/report.yaml";

/// That a report of the suite is the published one, but for when it was made and the order of its lists, which the suite
/// leaves to chance.
pub(crate) fn is_published(written: &str) -> anyhow::Result<()> {
    let published = comparable(include_str!("../../../docs/conformance/report.yaml"))?;
    let written = comparable(written)?;
    ensure!(
        written == published,
        "the report is not {PUBLISHED}; if it is the better one, publish it:\n{written}"
    );
    Ok(())
}

fn comparable(report: &str) -> anyhow::Result<Value> {
    let mut report: Value = serde_yaml_ng::from_str(report).context("a report that is no YAML")?;
    let fields = report.as_object_mut().context("a report without fields")?;
    fields.remove("date").context("a report without a date")?;
    sort(&mut report);
    Ok(report)
}

fn sort(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.iter_mut().for_each(sort);
            items.sort_by_key(Value::to_string);
        }
        Value::Object(fields) => fields.values_mut().for_each(sort),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn the_document_claims_what_the_story_checks() {
    let document = include_str!("../../../docs/conformance/README.md");
    // The first cells of the tables.
    let cells = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let claimed: BTreeSet<_> = cells.map(|(name, _)| name).collect();
    let checked: BTreeSet<_> = PROFILES.into_iter().chain(FEATURES).chain(TESTS).collect();
    assert_eq!(claimed, checked);
    assert!(document.contains(&format!("`{UNPASSABLE}`")));
}

#[test]
fn the_published_report_claims_what_the_story_checks() {
    let report = comparable(include_str!("../../../docs/conformance/report.yaml")).unwrap();
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(report["implementation"]["version"], version, "a new version has a report of its own");
    let definitions =
        include_str!("../../../install/crds/gateway-api/gateway.networking.k8s.io_httproutes.yaml");
    for (name, field) in [("bundle-version", "gatewayAPIVersion"), ("channel", "gatewayAPIChannel")] {
        let annotation = format!("gateway.networking.k8s.io/{name}: {}\n", report[field].as_str().unwrap());
        assert!(
            definitions.contains(&annotation),
            "{field} is not that of the definitions that are installed"
        );
    }
    let profiles = report["profiles"].as_array().unwrap();
    let named: BTreeSet<_> = profiles.iter().filter_map(|profile| profile["name"].as_str()).collect();
    assert_eq!(named, PROFILES.into_iter().collect());
    for profile in profiles {
        for level in ["core", "extended"] {
            let Some(outcome) = profile.get(level) else { continue };
            assert_eq!(outcome["result"], "success", "{}: {level}", profile["name"]);
            assert_eq!(outcome["statistics"]["Failed"], 0);
            assert_eq!(outcome["statistics"]["Skipped"], 0);
            assert!(outcome.get("unsupportedFeatures").is_none(), "{}: {level}", profile["name"]);
        }
    }
    let extended = profiles.iter().find(|profile| profile["name"] == "MESH-HTTP").unwrap();
    let extended = extended["extended"]["supportedFeatures"].as_array().unwrap();
    assert!(!extended.is_empty());
    let unchecked = extended.iter().find(|name| !FEATURES.iter().any(|feature| name == feature));
    assert_eq!(unchecked, None);
}

#[test]
fn reports_are_alike_whatever_the_order_and_the_day() {
    let one = comparable("date: a\nprofiles: [{name: x}, {name: y}]\nmode: m\n").unwrap();
    assert_eq!(one, comparable("date: b\nmode: m\nprofiles: [{name: y}, {name: x}]\n").unwrap());
    assert_ne!(one, comparable("date: b\nmode: m\nprofiles: [{name: y}]\n").unwrap());
}
