//! `ambit status`: asks every component how it is, and judges whether what it knows is up to date.

mod judge;

use std::process::ExitCode;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::timeout;

use self::judge::{Asked, Health, Row};
use super::playground::state::Kind;
use super::sources::{Sources, Target};
use crate::connect::Endpoint;
use crate::output::{Format, Out, Table, Tone, age, moment};

/// Whether it is ready a process knows at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// Something is stale, not ready or unreachable.
const STALE: u8 = 3;

const ABOUT: &str = "States:
  synced       it has and has acknowledged everything that the controller has for it
  ready        it serves (controllers and agents)
  stale        it does not hear the controller, or has not taken what it heard; what it knows stays in force
  not ready    it has not got as far as serving
  unreachable  its pages do not answer
The exit status is 3 if any component is in one of the last three states.";

/// Whom to ask and how to print.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    sources: Sources,
}

/// Does it.
pub(crate) async fn run(args: &Args, out: &mut Out) -> anyhow::Result<ExitCode> {
    let mut asked = Vec::new();
    for target in args.sources.all().await? {
        let answers = ask(&target).await;
        asked.push((target, answers));
    }
    // Each controller knows those that are connected to it.
    let subscribers: Vec<Value> = asked
        .iter()
        .filter_map(|(_, answers)| answers.syncz.as_ref()?.as_array())
        .flatten()
        .cloned()
        .collect();
    let rows: Vec<_> =
        asked.iter().map(|(target, answers)| judge::judge(target, answers, &subscribers)).collect();
    let all_well = rows.iter().all(|row| row.health.is_well());
    match args.output {
        Format::Table => print(&rows, out)?,
        Format::Json | Format::Yaml => {
            let components: Vec<_> = rows.iter().map(Row::value).collect();
            out.value(&json!({ "healthy": all_well, "components": components }), args.output)?;
        }
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::from(STALE) })
}

/// Everything that is to be known of a component. What does not answer is absent.
async fn ask(target: &Target) -> Asked {
    let mut asked = Asked::default();
    match timeout(PATIENCE, target.readiness.ask(Method::GET, "/healthz/ready")).await {
        Ok(Ok(answer)) if answer.status.is_success() => {}
        Ok(Ok(answer)) => {
            let pending = answer.body.trim().trim_start_matches("not ready, ").to_owned();
            asked.ready = Err(Health::NotReady(pending));
        }
        // Who does not answer this is not asked for more: each question would take as long.
        Ok(Err(error)) => {
            return Asked { ready: Err(Health::Unreachable(error.to_string())), ..asked };
        }
        Err(_) => {
            let why =
                format!("no answer from {} within {PATIENCE:?}; is the process stopped?", target.readiness);
            return Asked { ready: Err(Health::Unreachable(why)), ..asked };
        }
    }
    match target.kind {
        Kind::Controller => {
            asked.version = target.admin.get("/version").await.ok().map(|text| text.trim().to_owned());
            asked.syncz = document(&target.admin, "/debug/syncz").await;
        }
        Kind::Agent => asked.pods = document(&target.admin, "/debug/pods").await,
        Kind::Ztunnel => {
            asked.sync = document(&target.admin, "/debug/sync").await;
            asked.metrics = target.metrics.get("/metrics").await.ok();
            // A dump has everything in it; the sync page may say the version by itself.
            let told = asked.sync.as_ref().and_then(|sync| sync.get("version")?.as_str().map(str::to_owned));
            asked.version = match told {
                Some(version) => Some(version),
                None => document(&target.admin, "/config_dump")
                    .await
                    .and_then(|dump| Some(dump.get("version")?.get("version")?.as_str()?.to_owned())),
            };
        }
    }
    asked
}

async fn document(endpoint: &Endpoint, path: &str) -> Option<Value> {
    serde_json::from_str(&endpoint.get(path).await.ok()?).ok()
}

fn print(rows: &[Row], out: &mut Out) -> anyhow::Result<()> {
    let now = OffsetDateTime::now_utc();
    let ago = |text: &Option<String>| {
        text.as_deref().and_then(moment).map_or_else(|| "-".to_owned(), |then| age(then, now))
    };
    let plain = |text: String| (text, Tone::Plain);
    let mut table =
        Table::new(2, &["COMPONENT", "VERSION", "UP", "STATE", "SINCE", "PODS", "HOLDS", "LAST NACK"]);
    for row in rows {
        let nack = match &row.nack {
            Some(nack) => {
                let when = moment(&nack.at).map_or_else(|| nack.at.clone(), |then| age(then, now));
                (format!("{when} ago"), Tone::Wait)
            }
            None => ("-".to_owned(), Tone::Faint),
        };
        table.toned_row(vec![
            plain(row.title.clone()),
            plain(row.version.clone().unwrap_or_else(|| "-".to_owned())),
            plain(ago(&row.up_since)),
            (row.health.word().to_owned(), row.health.tone()),
            plain(ago(&row.since)),
            plain(row.pods.clone().unwrap_or_else(|| "-".to_owned())),
            plain(row.holds.clone().unwrap_or_else(|| "-".to_owned())),
            nack,
        ]);
    }
    out.table(&table)?;
    for row in rows {
        let nack = row.nack.as_ref().map(|nack| format!("refused {}: {}", nack.kind, nack.message));
        for note in row.health.why().into_iter().chain(nack.as_deref()) {
            out.line(format!("{}: {note}", row.title))?;
        }
    }
    Ok(())
}
