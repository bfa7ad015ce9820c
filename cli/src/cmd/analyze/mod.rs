//! `ambit analyze`: what is wrong with objects, in files before they are applied or in a cluster.

mod findings;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ambit_api::directory::{Directory, Loaded, MAX_FILE_BYTES, read_text};
use ambit_controller::cluster::{L7Deny, Settings};
use anyhow::{Context as _, bail};
use serde_json::json;

use self::findings::{Finding, Given, Severity};
use crate::cluster::ClusterArgs;
use crate::cmd::live;
use crate::output::{Format, Out, Tone};

const ABOUT: &str = "The parsers are the controller's: what is refused here is refused there.
Errors are not in force as they are written; warnings may be meant so.

Examples:
  ambit analyze -f policies/ --fail-on warning
  kubectl get authorizationpolicies -A -o yaml | ambit analyze -f -
  ambit analyze --namespace shop

Exit status: 0 without errors, 1 with some (with --fail-on warning, with any finding).";

/// What is analyzed.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// A file, a directory, or - for standard input; again for more. Without it, the objects of the cluster.
    #[arg(long = "filename", short, visible_alias = "file", value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// Judges the files as if they had been applied to the cluster.
    #[arg(long, requires = "filename")]
    with_cluster: bool,
    /// Reports only on objects of this namespace.
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// From which severity on the exit status is 1.
    #[arg(long, value_enum, default_value_t, value_name = "SEVERITY")]
    fail_on: FailOn,
    /// What the controller does with DENY rules that only a waypoint could judge, its --l7-deny-without-waypoint.
    #[arg(long, value_enum, default_value = "deny", value_name = "HOW")]
    l7_deny: L7Deny,
    /// Whether the controller sends dry-run policies, its --dry-run-policies.
    #[arg(long)]
    dry_run_policies: bool,
    /// The namespace of the control plane, whose policies hold everywhere.
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
    system_namespace: String,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum FailOn {
    #[default]
    Error,
    Warning,
}

/// Does it.
pub(crate) async fn run(args: &Args, out: &mut Out) -> anyhow::Result<ExitCode> {
    let given = given(args).await?;
    let settings = Settings {
        root_namespace: args.system_namespace.as_str().into(),
        l7_deny: args.l7_deny,
        dry_run_policies: args.dry_run_policies,
        ..Settings::default()
    };
    let mut findings = findings::find(&given, settings);
    if let Some(namespace) = &args.namespace {
        // What belongs to no namespace could not even be read: that is told in any case.
        findings.retain(|one| one.namespace.as_ref().is_none_or(|of| of == namespace));
    }
    let (errors, warnings) = findings::count(&findings);
    let objects = findings::read(&given.documents);
    match args.output {
        Format::Table => print(&findings, objects, out)?,
        Format::Json | Format::Yaml => {
            let list: Vec<_> = findings.iter().map(Finding::value).collect();
            let value =
                json!({ "objects": objects, "errors": errors, "warnings": warnings, "findings": list });
            out.value(&value, args.output)?;
        }
    }
    let failed = errors > 0 || (args.fail_on == FailOn::Warning && warnings > 0);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn given(args: &Args) -> anyhow::Result<Given> {
    let mut given = Given::default();
    if args.filename.is_empty() {
        let live = live::documents(&args.cluster.client().await?).await?;
        return Ok(Given { documents: live, complete: true, ..given });
    }
    for file in &args.filename {
        let loaded = read(file)?;
        given.documents.extend(loaded.objects);
        given.problems.extend(loaded.problems);
    }
    if args.with_cluster {
        given.around = live::documents(&args.cluster.client().await?).await?;
        given.complete = true;
    }
    Ok(given)
}

/// The documents of a file, a directory or standard input.
fn read(file: &Path) -> anyhow::Result<Loaded> {
    if file == Path::new("-") {
        let mut text = String::new();
        let limit = MAX_FILE_BYTES.saturating_mul(16);
        let read = std::io::stdin().lock().take(limit + 1).read_to_string(&mut text);
        if u64::try_from(read.context("cannot read standard input")?)? > limit {
            bail!("standard input is longer than {limit} bytes; write it to several files");
        }
        return Ok(read_text(file, &text));
    }
    if file.is_dir() {
        let mut loaded = Directory::open(file)?.load()?;
        for document in &mut loaded.objects {
            document.file = file.join(&document.file).into();
        }
        for problem in &mut loaded.problems {
            problem.file = file.join(&problem.file);
        }
        return Ok(loaded);
    }
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read {}; name a file or a directory of YAML", file.display()))?;
    Ok(read_text(file, &text))
}

fn print(findings: &[Finding], objects: usize, out: &mut Out) -> anyhow::Result<()> {
    for one in findings {
        let tone = match one.severity {
            Severity::Error => Tone::Bad,
            Severity::Warning => Tone::Wait,
        };
        let severity = out.toned(tone, one.severity.word());
        let field = (!one.field.is_empty()).then(|| one.field.clone());
        let about: Vec<_> = one.place().into_iter().chain(one.object.clone()).chain(field).collect();
        out.line(format!("{severity}: {}: {}", about.join(": "), one.what))?;
        if !one.remedy.is_empty() {
            out.line(format!("  {}", one.remedy))?;
        }
    }
    let (errors, warnings) = findings::count(findings);
    out.line(format!("objects of the mesh: {objects}, errors: {errors}, warnings: {warnings}"))
}
