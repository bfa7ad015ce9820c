//! `up` and `down`: starts a supervisor and waits until all is up; ends it and waits until all is gone.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use ambit_lab::Topology;
use ambit_lab::address::Family as Families;
use ambit_lab::mesh::{Binaries, SHOP};
use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::progress::{Event, Progress, TICK};
use super::state::Place;
use super::supervise::{self, Plan};
use super::{Family, UpArgs, documents};
use crate::output::{Out, Tone};

/// Stopping pods and processes takes two seconds; a busy machine more.
const DOWN_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);
/// What the file of the shop is called in a directory that was empty.
const SHOP_FILE: &str = "shop.yaml";

/// Brings a playground up.
pub(super) async fn up(place: &Place, args: &UpArgs, out: &mut Out) -> anyhow::Result<()> {
    as_root()?;
    if place.supervisor()?.is_some() {
        bail!("{}", place.is_up());
    }
    supervise::sweep(place)?;
    let plan = plan(place, args)?;
    let mut progress = Progress::new();
    if args.foreground {
        let mut broken = Ok(());
        supervise::run(plan, |event| {
            let shown = progress.event(&event, out).and_then(|()| match &event {
                Event::Up { summary } => welcome(summary, place, out),
                Event::Step(_) | Event::Failed(_) => Ok(()),
            });
            broken = std::mem::replace(&mut broken, Ok(())).and(shown);
        })
        .await?;
        return broken;
    }
    detached(place, args, &mut progress, out).await
}

/// What `up` leaves running: tells of its steps on standard output, a JSON line each.
pub(super) async fn supervise(place: &Place, args: &UpArgs) -> anyhow::Result<()> {
    as_root()?;
    supervise::run(plan(place, args)?, |event| {
        let mut line = serde_json::to_string(&event).unwrap_or_default();
        line.push('\n');
        // Whoever started it may have gone: it goes on all the same.
        let _ = std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes());
    })
    .await
}

fn as_root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a playground is made of network namespaces, which takes root: sudo ambit playground …");
    }
    Ok(())
}

fn plan(place: &Place, args: &UpArgs) -> anyhow::Result<Plan> {
    let binaries = match &args.binaries {
        Some(dir) => Binaries::in_dir(dir),
        None => Binaries::found(),
    }
    .context("say where the programs are with --binaries DIR")?;
    let directory = args.dir.clone().unwrap_or_else(|| place.own_directory());
    fill(&directory, args.nodes)?;
    let topology = Topology {
        nodes: node_names(args.nodes),
        family: match args.family {
            Family::V4 => Families::V4,
            Family::V6 => Families::V6,
            Family::Dual => Families::Dual,
        },
        ..Topology::default()
    };
    Ok(Plan { place: place.clone(), directory, topology, binaries })
}

/// `node-a`, `node-b` and so on.
fn node_names(count: u8) -> Vec<String> {
    (b'a'..=b'z').take(usize::from(count)).map(|letter| format!("node-{}", char::from(letter))).collect()
}

/// Writes the shop into a directory without anything of the user's. On a single node, all of it is there.
fn fill(directory: &Path, nodes: u8) -> anyhow::Result<()> {
    let unusable =
        || format!("cannot write to {}; run as root, or choose another --dir", directory.display());
    fs::create_dir_all(directory).with_context(unusable)?;
    if documents::is_empty(directory) {
        let shop = if nodes == 1 { SHOP.replace("node-b", "node-a") } else { SHOP.to_owned() };
        fs::write(directory.join(SHOP_FILE), shop).with_context(unusable)?;
    }
    Ok(())
}

/// Starts the supervisor in a session of its own, and shows what it tells until all is up.
async fn detached(
    place: &Place,
    args: &UpArgs,
    progress: &mut Progress,
    out: &mut Out,
) -> anyhow::Result<()> {
    let log = place.supervisor_log();
    let open = |path: &PathBuf| {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        OpenOptions::new().create(true).append(true).open(path)
    };
    let errors = open(&log).with_context(|| format!("cannot write {}; run as root", log.display()))?;
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new("setsid");
    command.arg(own).args(["playground", "--playground", &place.name, "supervise"]);
    command.args(["--nodes", &args.nodes.to_string(), "--family", args.family.word()]);
    for (flag, dir) in [("--dir", &args.dir), ("--binaries", &args.binaries)] {
        if let Some(dir) = dir {
            let full = std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display()))?;
            command.arg(flag).arg(full);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    let mut supervisor = command.spawn().context("cannot start `setsid`; install the package util-linux")?;
    let pid = supervisor.id().and_then(|pid| i32::try_from(pid).ok());
    let told = supervisor.stdout.take().context("the supervisor has no standard output")?;
    let mut told = BufReader::new(told).lines();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            line = told.next_line() => match line.context("cannot hear the supervisor")? {
                Some(line) => {
                    let event: Event = serde_json::from_str(&line)
                        .with_context(|| format!("the supervisor said {line:?}"))?;
                    progress.event(&event, out)?;
                    match event {
                        Event::Step(_) => {}
                        Event::Up { summary } => return welcome(&summary, place, out),
                        Event::Failed(why) => bail!("{why}"),
                    }
                }
                None => {
                    let said = fs::read_to_string(&log).unwrap_or_default();
                    let said = said.lines().last().unwrap_or("it said nothing");
                    bail!("the supervisor ended before all was up: {said}");
                }
            },
            _ = tokio::signal::ctrl_c() => {
                if let Some(pid) = pid {
                    supervise::ask_to_end(pid, Signal::SIGTERM);
                }
                supervisor.wait().await.context("the supervisor does not end")?;
                bail!("interrupted; nothing is left");
            }
            _ = tick.tick() => progress.tick(out)?,
        }
    }
}

fn welcome(summary: &str, place: &Place, out: &mut Out) -> anyhow::Result<()> {
    let name =
        if place.name == "playground" { String::new() } else { format!(" --playground {}", place.name) };
    out.line(format!("\nThe playground is up: {summary}. Try:"))?;
    for (command, about) in [
        (format!("ambit playground{name} exec shop/client -- curl -s http://web/"), "a call, in mutual TLS"),
        (
            format!("ambit playground{name} label namespace shop istio.io/dataplane-mode-"),
            "the same without the mesh",
        ),
        (format!("ambit status{name}"), "is everything in sync?"),
        (format!("ambit tunnel-config connections{name}"), "who talks to whom"),
        (format!("ambit playground{name} down"), ""),
    ] {
        let about =
            if about.is_empty() { String::new() } else { out.toned(Tone::Faint, &format!("  # {about}")) };
        out.line(format!("  {command}{about}"))?;
    }
    Ok(())
}

/// Ends a playground, whatever state it is in.
pub(super) async fn down(place: &Place, out: &mut Out) -> anyhow::Result<()> {
    as_root()?;
    let Some(pid) = place.supervisor()? else {
        let there = place.root().exists();
        supervise::sweep(place)?;
        return out.line(if there { "removed what a playground had left" } else { "no playground is up" });
    };
    supervise::ask_to_end(pid, Signal::SIGTERM);
    let deadline = Instant::now() + DOWN_LIMIT;
    while place.supervisor()?.is_some() {
        if Instant::now() >= deadline {
            // Its processes die with it; what it made is swept below.
            supervise::ask_to_end(pid, Signal::SIGKILL);
        }
        tokio::time::sleep(PAUSE).await;
    }
    supervise::sweep(place)?;
    out.line("the playground is down")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_by_letters() {
        assert_eq!(node_names(3), ["node-a", "node-b", "node-c"]);
    }

    #[test]
    fn only_an_empty_directory_is_filled() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("config");
        fill(&inside, 2).unwrap();
        assert_eq!(fs::read_to_string(inside.join(SHOP_FILE)).unwrap(), SHOP);
        fs::write(dir.path().join("mine.yaml"), "").unwrap();
        fill(dir.path(), 2).unwrap();
        assert!(!dir.path().join(SHOP_FILE).exists());
        let single = tempfile::tempdir().unwrap();
        fill(single.path(), 1).unwrap();
        assert!(!fs::read_to_string(single.path().join(SHOP_FILE)).unwrap().contains("node-b"));
    }
}
