//! `ambit waypoint`: makes waypoints, shows them with who goes through them, takes them away, and has requests explained
//! by them.

mod place;
mod shape;
mod token;

use std::process::ExitCode;
use std::time::Duration;

use ambit_api::directory::{Document, ObjectKey};
use ambit_api::gateway::WAYPOINT_CLASSES;
use ambit_api::labels;
use ambit_controller::cluster::object::Key;
use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use self::place::{Place, of_waypoint};
use self::shape::{For, Standing, Wish, gateway, standings};
use self::token::{TokenArgs, token};
use super::playground::state;
use crate::cluster::ClusterArgs;
use crate::output::{Format, Out, Table, Tone, few};

/// A waypoint is ready within some seconds; this is how often it is looked whether it is.
const PAUSE: Duration = Duration::from_millis(500);
/// What a waypoint is called if nothing else is said.
const NAME: &str = "waypoint";

const ABOUT: &str = "Without --kubeconfig or --context, the playground is meant if it is up.

Examples:
  ambit waypoint apply --namespace shop --enroll-namespace --wait
  ambit waypoint apply --namespace shop --name reviews --for all
  ambit waypoint list --all-namespaces
  ambit waypoint status --namespace shop
  ambit waypoint delete --namespace shop waypoint --cleanup
  ambit waypoint token --namespace shop --for 10m";

/// What is to be done.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// The namespace. Not given: that of the cluster's context.
    #[arg(long, short, global = true, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Makes a waypoint, or changes the one of that name.
    Apply(ApplyArgs),
    /// Prints the Gateway that `apply` would write.
    Generate(Shape),
    /// Takes waypoints away.
    Delete(DeleteArgs),
    /// The waypoints, and how many objects go through each.
    List(ListArgs),
    /// How waypoints are, and who goes through them.
    Status(StatusArgs),
    /// Signs a debug token: a request that carries it is explained by its waypoint.
    Token(TokenArgs),
}

/// Whose waypoints.
#[derive(Debug, clap::Args)]
struct Mesh {
    #[command(flatten)]
    playground: state::Place,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, clap::Args)]
struct Shape {
    /// What it is called.
    #[arg(id = "waypoint", long = "name", value_name = "NAME", default_value = NAME)]
    name: String,
    /// What goes through it. Not given: what is addressed to services.
    #[arg(long = "for", value_enum, value_name = "TRAFFIC")]
    traffic: Option<For>,
    /// The revision of the control plane that it belongs to.
    #[arg(long, short, value_name = "NAME")]
    revision: Option<String>,
    /// Its GatewayClass.
    #[arg(long, value_name = "NAME", default_value = WAYPOINT_CLASSES[0])]
    class: String,
}

#[derive(Debug, clap::Args)]
struct ApplyArgs {
    #[command(flatten)]
    shape: Shape,
    /// Has everything in the namespace go through it, unless it says otherwise itself.
    #[arg(long)]
    enroll_namespace: bool,
    /// Even if the namespace goes through another one.
    #[arg(long, requires = "enroll_namespace")]
    overwrite: bool,
    /// Waits until it is ready.
    #[arg(long, short)]
    wait: bool,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    mesh: Mesh,
}

#[derive(Debug, clap::Args)]
struct Patience {
    /// How long to wait, in seconds.
    #[arg(long, visible_alias = "wait-timeout", value_name = "SECONDS", default_value_t = 90)]
    timeout: u64,
}

#[derive(Debug, clap::Args)]
struct DeleteArgs {
    /// Which.
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,
    /// All of the namespace.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Takes the labels away, too, that name them.
    #[arg(long)]
    cleanup: bool,
    #[command(flatten)]
    mesh: Mesh,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Of every namespace.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    mesh: Mesh,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// Which. Not given: all of the namespace.
    #[arg(id = "waypoint", value_name = "NAME")]
    name: Option<String>,
    /// Waits until they are ready.
    #[arg(long, short)]
    wait: bool,
    #[command(flatten)]
    patience: Patience,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    mesh: Mesh,
}

/// Does it.
pub(crate) async fn run(args: Args, out: &mut Out) -> anyhow::Result<ExitCode> {
    let named = args.namespace.as_deref();
    match &args.what {
        What::Generate(shape) => {
            // Nobody is asked, so `default` is the namespace if none is named.
            out.value(&gateway(&wish(shape, named.unwrap_or("default"))), Format::Yaml)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Apply(args) => {
            let (place, namespace) = args.mesh.find(named).await?;
            apply(&place, &namespace, args, out).await
        }
        What::Delete(args) => {
            let (place, namespace) = args.mesh.find(named).await?;
            delete(&place, &namespace, args, out).await
        }
        What::List(args) => {
            let (place, namespace) = args.mesh.find(named).await?;
            list(&place, &namespace, args, out).await
        }
        What::Status(args) => {
            let (place, namespace) = args.mesh.find(named).await?;
            status(&place, &namespace, args, out).await
        }
        What::Token(args) => token(named, args, out).await,
    }
}

impl Mesh {
    /// Where it is, and the namespace that is meant.
    async fn find(&self, namespace: Option<&str>) -> anyhow::Result<(Place, String)> {
        let place = Place::find(&self.playground, &self.cluster).await?;
        let namespace = namespace.unwrap_or_else(|| place.namespace()).to_owned();
        Ok((place, namespace))
    }
}

fn wish(shape: &Shape, namespace: &str) -> Wish {
    Wish {
        namespace: namespace.to_owned(),
        name: shape.name.clone(),
        class: shape.class.clone(),
        traffic: shape.traffic,
        revision: shape.revision.clone(),
    }
}

async fn apply(place: &Place, namespace: &str, args: &ApplyArgs, out: &mut Out) -> anyhow::Result<ExitCode> {
    let name = args.shape.name.as_str();
    if args.enroll_namespace {
        // Before anything is written.
        let documents = place.documents().await?;
        may_enroll(&documents, namespace, name, args.overwrite)?;
        if let Some(caution) = outside(&documents, namespace) {
            out.line(format!("{} {caution}", out.toned(Tone::Wait, "caution:")))?;
        }
    }
    let written = place.apply(&gateway(&wish(&args.shape, namespace))).await;
    let word = of_waypoint(written, "applied", namespace, name)?;
    out.line(format!("waypoint {namespace}/{name} {word}"))?;
    if args.wait {
        let limit = Duration::from_secs(args.patience.timeout);
        wait(place, namespace, Some(name), limit).await?;
        out.line(format!("waypoint {namespace}/{name} is ready"))?;
    }
    if args.enroll_namespace {
        place.bind(&ObjectKey::new("Namespace", "", namespace), Some(name)).await?;
        let when = if args.wait { "" } else { " as soon as it is ready" };
        out.line(format!("namespace {namespace} goes through waypoint {namespace}/{name}{when}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the namespace may be given this waypoint.
fn may_enroll(documents: &[Document], namespace: &str, name: &str, overwrite: bool) -> anyhow::Result<()> {
    let found = namespace_of(documents, namespace);
    let found = found.with_context(|| format!("there is no namespace {namespace:?}; create it first"))?;
    let label = |label: &str| found.value.pointer("/metadata/labels")?.get(label)?.as_str();
    let elsewhere = label(labels::USE_WAYPOINT_NAMESPACE).unwrap_or(namespace);
    match label(labels::USE_WAYPOINT) {
        Some(other) if (other, elsewhere) != (name, namespace) && !overwrite => {
            bail!(
                "namespace {namespace} goes through waypoint {elsewhere}/{other}; say --overwrite to change that"
            )
        }
        Some(_) | None => Ok(()),
    }
}

/// What keeps a namespace's traffic from the waypoint, if something does.
fn outside(documents: &[Document], namespace: &str) -> Option<String> {
    let found = namespace_of(documents, namespace)?;
    let mode = found.value.pointer("/metadata/labels").and_then(|all| all.get(labels::DATAPLANE_MODE));
    let inside = mode.and_then(Value::as_str) == Some(labels::DATAPLANE_MODE_AMBIENT);
    (!inside).then(|| {
        format!("namespace {namespace} is not in the mesh: calls of its own pods go past the waypoint; `ambit namespace add {namespace}`")
    })
}

fn namespace_of<'a>(documents: &'a [Document], name: &str) -> Option<&'a Document> {
    documents.iter().find(|document| document.kind == "Namespace" && document.name == name)
}

async fn delete(
    place: &Place,
    namespace: &str,
    args: &DeleteArgs,
    out: &mut Out,
) -> anyhow::Result<ExitCode> {
    let here: Vec<_> = standings(&place.documents().await?);
    let here: Vec<_> = here.into_iter().filter(|one| one.namespace == namespace).collect();
    let mut chosen = Vec::new();
    for name in &args.names {
        chosen.push(named(&here, namespace, name)?);
    }
    if args.all {
        chosen.extend(&here);
    }
    if chosen.is_empty() {
        out.line(format!("there is no waypoint in namespace {namespace}"))?;
    }
    for one in chosen {
        if let Some(caution) = farewell(one, args.cleanup) {
            out.line(format!("{} {caution}", out.toned(Tone::Wait, "caution:")))?;
        }
        if args.cleanup {
            // First: what is bound leaves while its waypoint still answers.
            for key in &one.labelled {
                place.bind(&object(key), None).await?;
                out.line(format!("{key} names no waypoint any more"))?;
            }
        }
        of_waypoint(place.delete(namespace, &one.name).await, "deleted", namespace, &one.name)?;
        out.line(format!("waypoint {namespace}/{} deleted", one.name))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What becomes of those that go through a waypoint which is taken away.
fn farewell(one: &Standing, cleanup: bool) -> Option<String> {
    if one.bound.is_empty() && one.labelled.is_empty() {
        return None;
    }
    let (namespace, name) = (&one.namespace, &one.name);
    let mut text = format!("{namespace}/{name}: ");
    if !one.bound.is_empty() {
        let bound = few(&one.bound);
        text.push_str(&format!("{bound}: called directly from now on, without its routes and policies"));
    }
    if !cleanup && !one.labelled.is_empty() {
        let labelled: Vec<_> = one.labelled.iter().map(ToString::to_string).collect();
        let between = if one.bound.is_empty() { "" } else { "; " };
        text.push_str(&format!(
            "{between}still named by {}: whoever makes a waypoint of that name gets their traffic; --cleanup takes the labels away",
            few(&labelled)
        ));
    }
    Some(text)
}

fn object(key: &Key) -> ObjectKey {
    ObjectKey::new(key.kind.word(), key.name.namespace.as_str(), key.name.name.as_str())
}

fn named<'a>(here: &'a [Standing], namespace: &str, name: &str) -> anyhow::Result<&'a Standing> {
    here.iter().find(|one| one.name == name).with_context(|| {
        let names: Vec<_> = here.iter().map(|one| one.name.clone()).collect();
        let there = if names.is_empty() { "none".to_owned() } else { few(&names) };
        format!("there is no waypoint {name:?} in namespace {namespace}; there is: {there}")
    })
}

async fn list(place: &Place, namespace: &str, args: &ListArgs, out: &mut Out) -> anyhow::Result<ExitCode> {
    let mut all = standings(&place.documents().await?);
    all.retain(|one| args.all_namespaces || one.namespace == namespace);
    match args.output {
        Format::Table if all.is_empty() => out.line("there is no waypoint")?,
        Format::Table => out.table(&overview(&all))?,
        Format::Json | Format::Yaml => {
            out.value(&Value::Array(all.iter().map(Standing::value).collect()), args.output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn overview(all: &[Standing]) -> Table {
    let mut table = Table::new(2, &["NAMESPACE", "NAME", "CLASS", "FOR", "REVISION", "PROGRAMMED", "BOUND"]);
    for one in all {
        let (word, tone) = match one.programmed() {
            Some(true) => ("True", Tone::Good),
            Some(false) => ("False", Tone::Bad),
            None => ("Unknown", Tone::Wait),
        };
        let plain = |text: &str| (text.to_owned(), Tone::Plain);
        table.toned_row(vec![
            plain(&one.namespace),
            plain(&one.name),
            plain(&one.class),
            plain(one.traffic),
            plain(&one.revision),
            (word.to_owned(), tone),
            plain(&one.bound.len().to_string()),
        ]);
    }
    table
}

async fn status(
    place: &Place,
    namespace: &str,
    args: &StatusArgs,
    out: &mut Out,
) -> anyhow::Result<ExitCode> {
    let limit = if args.wait { Duration::from_secs(args.patience.timeout) } else { Duration::ZERO };
    let late = wait(place, namespace, args.name.as_deref(), limit).await.err();
    let mut all = standings(&place.documents().await?);
    all.retain(|one| one.namespace == namespace);
    if let Some(name) = &args.name {
        named(&all, namespace, name)?;
        all.retain(|one| one.name == *name);
    }
    if args.output == Format::Table {
        if all.is_empty() {
            out.line(format!("there is no waypoint in namespace {namespace}"))?;
        }
        for one in &all {
            print(one, out)?;
        }
    } else {
        out.value(&Value::Array(all.iter().map(Standing::value).collect()), args.output)?;
    }
    match late {
        Some(late) if args.wait => Err(late),
        _ if all.iter().any(|one| one.programmed() != Some(true)) => Ok(ExitCode::FAILURE),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn print(one: &Standing, out: &mut Out) -> anyhow::Result<()> {
    let address = one.address.as_deref().unwrap_or("no address yet");
    out.line(format!(
        "{}/{} (class {}, for {}): {address}",
        one.namespace, one.name, one.class, one.traffic
    ))?;
    let mut table = Table::new(2, &["CONDITION", "STATUS", "REASON", "MESSAGE"]);
    for condition in &one.conditions {
        let tone = match condition.status.as_str() {
            "True" => Tone::Good,
            "False" => Tone::Bad,
            _ => Tone::Wait,
        };
        table.toned_row(vec![
            (condition.type_.clone(), Tone::Plain),
            (condition.status.clone(), tone),
            (condition.reason.clone(), Tone::Plain),
            (condition.message.clone(), Tone::Plain),
        ]);
    }
    if one.conditions.is_empty() {
        out.line(format!("  {}", one.trouble().unwrap_or_default()))?;
    } else {
        out.table(&table)?;
    }
    out.line(format!(
        "  bound: {}",
        if one.bound.is_empty() { "nothing".to_owned() } else { one.bound.join(", ") }
    ))?;
    for (object, reason) in &one.refused {
        out.line(format!("  {}: {object}: {reason}", out.toned(Tone::Wait, "not bound")))?;
    }
    out.line("")
}

/// Returns when the waypoints of a namespace, or one of them, are ready; or says why they are not.
async fn wait(place: &Place, namespace: &str, name: Option<&str>, limit: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + limit;
    loop {
        let all = standings(&place.documents().await?);
        let chosen = all.iter().filter(|one| one.namespace == namespace);
        let chosen: Vec<_> = chosen.filter(|one| name.is_none_or(|name| one.name == name)).collect();
        let troubles = chosen.iter().filter_map(|one| Some(format!("{}: {}", one.name, one.trouble()?)));
        let troubles: Vec<_> = troubles.collect();
        let missing = name.is_some() && chosen.is_empty();
        if troubles.is_empty() && !missing {
            return Ok(());
        }
        if Instant::now() >= until {
            let why = if missing { "it is not there".to_owned() } else { troubles.join("; ") };
            bail!("not ready within {limit:?}: {why}");
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ambit_api::directory::read_text;

    use super::*;

    const BOUND: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: gate}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gate, namespace: shop}
spec: {gatewayClassName: ambit-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: Hostname, value: gate.shop.svc.cluster.local}]}
";

    #[test]
    fn a_namespace_is_not_taken_from_another_waypoint_by_the_way() {
        let documents = read_text(Path::new("x.yaml"), BOUND).objects;
        assert!(may_enroll(&documents, "shop", "gate", false).is_ok());
        assert!(may_enroll(&documents, "shop", "other", true).is_ok());
        let error = may_enroll(&documents, "shop", "other", false).unwrap_err().to_string();
        assert!(error.contains("shop/gate") && error.contains("--overwrite"), "{error}");
        let error = may_enroll(&documents, "nowhere", "gate", false).unwrap_err().to_string();
        assert!(error.contains("create it first"), "{error}");
        assert!(outside(&documents, "shop").unwrap().contains("ambit namespace add shop"));
    }

    #[test]
    fn whoever_takes_a_waypoint_away_is_told_who_loses_it() {
        let documents = read_text(Path::new("x.yaml"), BOUND).objects;
        let all = standings(&documents);
        let told = farewell(&all[0], false).unwrap();
        for part in ["Service shop/web", "called directly", "named by Namespace shop", "--cleanup"] {
            assert!(told.contains(part), "{part:?} in {told}");
        }
        assert!(!farewell(&all[0], true).unwrap().contains("--cleanup"));
        let free = BOUND.replace(", labels: {istio.io/use-waypoint: gate}", "");
        let all = standings(&read_text(Path::new("x.yaml"), &free).objects);
        assert_eq!(farewell(&all[0], false), None);
    }

    #[test]
    fn one_that_is_not_there_is_told_with_those_that_are() {
        let all = standings(&read_text(Path::new("x.yaml"), BOUND).objects);
        let error = named(&all, "shop", "gat").unwrap_err().to_string();
        assert!(error.contains("there is: gate"), "{error}");
        let table = overview(&all).render(false);
        assert_eq!(
            table.lines().last().unwrap().split_whitespace().collect::<Vec<_>>(),
            ["shop", "gate", "ambit-waypoint", "service", "default", "Unknown", "1"]
        );
    }
}
