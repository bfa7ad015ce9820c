//! `ambit ca`: how the mesh's root stands, and from one root to the next, a step at a time.

mod holders;
mod judge;

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use ambit_api::labels;
use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};

use self::holders::Roots;
use self::judge::{Certificate, Haste, Page, Plan, Stage, Stand};
use super::components::{self, Instance, System};
use super::playground::state::Kind;
use crate::cluster::ClusterArgs;
use crate::objects;
use crate::output::{Format, Out, Table, Tone, age, moment};

/// Where the root is kept. Of this Secret only metadata are read and written here.
const SECRET: &str = "istio-ca-secret";
const ROOTS: &str = "istio-ca-root-cert";
const ROOT_KEY: &str = "root-cert.pem";

/// A dump of a large node takes a second or two.
const PATIENCE: Duration = Duration::from_secs(10);
/// The leader hears of a wish within a second; it may have to be elected first.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

const ABOUT: &str = "A rotation has three steps, and each can be taken back before the last:
  prepare   a new root is made and trusted by everybody; the old one signs
  activate  the new root signs; both are trusted
  retire    the old root is forgotten
A step is refused until nobody can be hurt by it; --now does not wait, and breaks connections.";

/// What about the root.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Who signs, who is trusted, how a rotation stands, and who still uses the other root.
    Status(StatusArgs),
    /// Takes the next step of a rotation, or a named one.
    Rotate(RotateArgs),
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    system: System,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, clap::Args)]
struct RotateArgs {
    /// The step. Not given: the one that follows.
    #[arg(long, value_enum)]
    stage: Option<Stage>,
    /// Does not wait until nobody is hurt: for a key that was stolen.
    #[arg(long)]
    now: bool,
    /// Does not ask.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    system: System,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Does it.
pub(crate) async fn run(args: &Args, out: &mut Out) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Status(args) => {
            let client = args.cluster.client().await?;
            let stand = stand(&client, &args.system.system_namespace).await?;
            match args.output {
                Format::Table => print(&stand, out)?,
                Format::Json | Format::Yaml => out.value(&stand.value(), args.output)?,
            }
        }
        What::Rotate(args) => rotate(args, out).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn rotate(args: &RotateArgs, out: &mut Out) -> anyhow::Result<()> {
    let client = args.cluster.client().await?;
    let system = &args.system.system_namespace;
    let before = stand(&client, system).await?;
    print(&before, out)?;
    let haste = if args.now { Haste::Now } else { Haste::Patient };
    let plan =
        judge::plan(&before, args.stage, haste, OffsetDateTime::now_utc()).map_err(anyhow::Error::msg)?;
    out.line(format!("\n{}: {}", plan.wish, plan.stage.means()))?;
    for cost in &plan.costs {
        out.line(format!("{}: {cost}", out.toned(Tone::Bad, "warning")))?;
    }
    if !args.yes && !confirmed(&plan, out)? {
        bail!("nothing was changed");
    }
    wish(&client, system, &plan.wish).await?;
    out.line("done")?;
    print(&stand(&client, system).await?, out)
}

/// Asks a person. Where nobody can answer, --yes has to be said.
fn confirmed(plan: &Plan, out: &mut Out) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to confirm {}; say --yes", plan.wish);
    }
    out.text(format!("Go on with {}? [y/N] ", plan.wish))?;
    std::io::stdout().flush().context("cannot print")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Writes the wish, and waits until the leading controller has granted or refused it.
async fn wish(client: &Client, system: &str, wish: &str) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), system);
    let patch =
        json!({ "metadata": { "annotations": { labels::CA_ROTATION: wish, labels::CA_REFUSAL: null } } });
    // Metadata only: keys stay where they are.
    let written = secrets.patch_metadata(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await;
    objects::plain(written).with_context(|| format!("cannot annotate Secret {system}/{SECRET}"))?;
    let until = Instant::now() + LIMIT;
    loop {
        let meta = objects::plain(secrets.get_metadata(SECRET).await);
        let meta =
            meta.with_context(|| format!("cannot read the metadata of Secret {system}/{SECRET}"))?.metadata;
        let annotations = meta.annotations.unwrap_or_default();
        if let Some(refusal) = annotations.get(labels::CA_REFUSAL) {
            bail!("refused: {refusal}");
        }
        if !annotations.contains_key(labels::CA_ROTATION) {
            return Ok(());
        }
        if Instant::now() >= until {
            bail!(
                "no controller has taken up the wish within {LIMIT:?}; it stands in annotation {} of Secret \
                 {SECRET}: is there a leader? `ambit check`",
                labels::CA_ROTATION
            );
        }
        sleep(PAUSE).await;
    }
}

/// Asks every controller and every tunnel.
async fn stand(client: &Client, system: &str) -> anyhow::Result<Stand> {
    let instances = components::instances(client, system).await?;
    let mut silent = Vec::new();
    let mut pages = Vec::new();
    for one in instances.iter().filter(|one| one.kind == Kind::Controller) {
        match page::<Page>(client, one, "/debug/ca").await {
            Ok(page) => pages.push(page),
            Err(error) => silent.push(format!("{}: {error:#}", one.title())),
        }
    }
    let roots = roots(client, system).await.unwrap_or_default();
    let mut held: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in instances.iter().filter(|one| one.kind == Kind::Ztunnel) {
        match page::<Value>(client, one, "/config_dump").await {
            Ok(dump) => {
                for (root, identity) in roots.holders(&dump) {
                    held.entry(root).or_default().push(format!("{}: {identity}", one.place()));
                }
            }
            Err(error) => silent.push(format!("{}: {error:#}", one.title())),
        }
    }
    let why = silent.join("; ");
    Stand::of(pages, held, silent).with_context(|| {
        if why.is_empty() {
            format!("there is no controller in namespace {system}; name another with --system-namespace")
        } else {
            format!("no controller says how its authority stands: {why}")
        }
    })
}

async fn roots(client: &Client, system: &str) -> anyhow::Result<Roots> {
    let map = objects::plain(Api::<ConfigMap>::namespaced(client.clone(), system).get(ROOTS).await)?;
    Ok(Roots::read(map.data.unwrap_or_default().get(ROOT_KEY).map_or("", String::as_str)))
}

async fn page<T: serde::de::DeserializeOwned>(
    client: &Client,
    one: &Instance,
    path: &str,
) -> anyhow::Result<T> {
    let text = timeout(PATIENCE, one.admin(client).get(path)).await;
    let text = text.with_context(|| format!("no answer within {PATIENCE:?}"))??;
    serde_json::from_str(&text).with_context(|| format!("{path} is not what was expected"))
}

fn print(stand: &Stand, out: &mut Out) -> anyhow::Result<()> {
    out.text(told(stand, OffsetDateTime::now_utc()))?;
    out.table(&table(stand, OffsetDateTime::now_utc()))
}

fn told(stand: &Stand, now: OffsetDateTime) -> String {
    let page = &stand.page;
    let mut text = format!("stage {}; signed by: {} ({})\n", page.stage, page.signer, page.origin);
    if !stand.agreed {
        text.push_str("the controllers do not agree yet\n");
    }
    for (step, from) in due(page) {
        match moment(from) {
            Some(at) if at > now => text.push_str(&format!("{step} in {} ({from})\n", age(now, at))),
            Some(_) => text.push_str(&format!("{step}: since {from}\n")),
            None => text.push_str(&format!("{step}: {from}\n")),
        }
    }
    if let Some(problem) = &page.problem {
        text.push_str(&format!("not in force: {problem}\n"));
    }
    for silent in &stand.silent {
        text.push_str(&format!("not asked: {silent}\n"));
    }
    text
}

/// The steps that are possible from here and have to wait, and until when.
fn due(page: &Page) -> Vec<(&'static str, &str)> {
    let (activate, retire) = (page.activate_from.as_deref(), page.retire_from.as_deref());
    let steps = match page.stage.as_str() {
        "prepared" => vec![("activate", activate), ("rollback", retire)],
        "active" => vec![("retire", retire)],
        _ => Vec::new(),
    };
    steps.into_iter().filter_map(|(step, from)| Some((step, from?))).collect()
}

fn table(stand: &Stand, now: OffsetDateTime) -> Table {
    let mut table = Table::new(2, &["ROOT", "SUBJECT", "SIGNS", "ENDS IN", "ISSUED", "HELD BY TUNNELS"]);
    let active = stand.page.active.as_ref().map(|active| active.fingerprint.as_str());
    // What signs may be an intermediate, which is no root.
    let signer = stand.page.active.iter().filter(|one| !stand.page.trusted.contains(one));
    for root in stand.page.trusted.iter().chain(signer) {
        table.row(row(stand, root, active, now));
    }
    table
}

fn row(stand: &Stand, root: &Certificate, active: Option<&str>, now: OffsetDateTime) -> [String; 6] {
    let ends = moment(&root.not_after);
    [
        root.fingerprint.chars().take(16).collect(),
        root.subject.clone(),
        if active == Some(root.fingerprint.as_str()) { "yes" } else { "no" }.to_owned(),
        ends.map_or_else(
            || "-".to_owned(),
            |ends| if ends > now { age(now, ends) } else { "over".to_owned() },
        ),
        stand.issued.get(&root.fingerprint).copied().unwrap_or(0).to_string(),
        stand.held.get(&root.fingerprint).map_or(0, Vec::len).to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_rotation_under_way() {
        let now = moment("2026-06-01T12:00:00Z").unwrap();
        let root = |fingerprint: &str, ends: &str| Certificate {
            fingerprint: fingerprint.repeat(32),
            subject: "O=cluster.local".to_owned(),
            not_after: ends.to_owned(),
        };
        let page = Page {
            signer: "authority".to_owned(),
            origin: "own".to_owned(),
            stage: "active".to_owned(),
            active: Some(root("ab", "2036-06-01T00:00:00Z")),
            trusted: vec![root("ab", "2036-06-01T00:00:00Z"), root("cd", "2026-07-01T00:00:00Z")],
            issued: vec![judge::Issued { fingerprint: "cd".repeat(32), count: 7, until: String::new() }],
            activate_from: Some("2026-06-01T11:00:00Z".to_owned()),
            retire_from: Some("2026-06-02T12:00:00Z".to_owned()),
            ..Page::default()
        };
        let held = BTreeMap::from([("ab".repeat(32), vec!["n1: spiffe://x".to_owned()])]);
        let stand = Stand::of(vec![page], held, vec!["ztunnel/n2: refused".to_owned()]).unwrap();
        insta::assert_snapshot!(format!("{}{}", told(&stand, now), table(&stand, now).render(false)));
    }
}
