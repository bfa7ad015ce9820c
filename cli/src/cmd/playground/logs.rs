//! `logs`: what components and pods have said.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::state::{Place, State};
use crate::output::Out;

/// How often a log is looked at while following it.
const PAUSE: Duration = Duration::from_millis(200);

/// One log.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    title: String,
    file: PathBuf,
}

/// Prints the last lines, and goes on if asked to.
pub(super) async fn logs(
    place: &Place,
    of: Option<&str>,
    tail: usize,
    follow: bool,
    out: &mut Out,
) -> anyhow::Result<()> {
    let state = place.state()?;
    let sources = chosen(all(place, &state), of)?;
    let prefix = |source: &Source, line: &str| match sources.len() {
        1 => format!("{line}\n"),
        _ => format!("{}: {line}\n", source.title),
    };
    let mut places = Vec::new();
    for source in &sources {
        let text = fs::read(&source.file)
            .with_context(|| format!("cannot read {}; run as root", source.file.display()))?;
        for line in last_lines(&String::from_utf8_lossy(&text), tail) {
            out.text(prefix(source, line))?;
        }
        places.push(u64::try_from(text.len())?);
    }
    if !follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(PAUSE).await;
        for (source, at) in sources.iter().zip(&mut places) {
            for line in more(&source.file, at)?.lines() {
                out.text(prefix(source, line))?;
            }
        }
    }
}

/// What was added since, up to the end of a line.
fn more(file: &Path, at: &mut u64) -> anyhow::Result<String> {
    let unreadable = || format!("{} is gone: was the playground ended?", file.display());
    let mut file = File::open(file).with_context(unreadable)?;
    file.seek(SeekFrom::Start(*at)).with_context(unreadable)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(unreadable)?;
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1));
    *at += u64::try_from(bytes.len())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(text: &str, count: usize) -> impl Iterator<Item = &str> {
    let skip = text.lines().count().saturating_sub(count);
    text.lines().skip(skip)
}

/// Components first, then the supervisor, then pods. A pod's containers are `namespace.pod.container.log`.
fn all(place: &Place, state: &State) -> Vec<Source> {
    let components = state.components.iter().map(|component| Source {
        title: format!("{}/{}", component.kind.word(), component.node),
        file: component.log.clone(),
    });
    let supervisor = Source { title: "supervisor".to_owned(), file: place.supervisor_log() };
    let entries = fs::read_dir(&state.logs).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    files.sort();
    let pods = state.pods.iter().flat_map(|pod| {
        let prefix = format!("{}.{}.", pod.namespace, pod.name);
        let of_pod = files.iter().filter(move |file| file.starts_with(&prefix) && file.ends_with(".log"));
        of_pod.map(|file| Source {
            title: format!("{}/{}", pod.namespace, pod.name),
            file: state.logs.join(file),
        })
    });
    let there = |source: &Source| source.file.is_file();
    components.chain([supervisor]).chain(pods).filter(there).collect()
}

/// All, or those whose title it is; the node of the one controller need not be named.
fn chosen(all: Vec<Source>, of: Option<&str>) -> anyhow::Result<Vec<Source>> {
    let Some(of) = of else { return Ok(all) };
    let titles: Vec<_> = all.iter().map(|source| source.title.clone()).collect();
    let is_it = |title: &str| title == of || title.split_once('/').is_some_and(|(kind, _)| kind == of);
    let found: Vec<_> = all.into_iter().filter(|source| is_it(&source.title)).collect();
    if found.is_empty() {
        bail!("there is no log of {of:?}; there are: {}", titles.join(", "));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Vec<Source> {
        let titles = ["controller/node-a", "ztunnel/node-a", "ztunnel/node-b", "supervisor", "shop/web-1"];
        titles.map(|title| Source { title: title.to_owned(), file: PathBuf::new() }).into()
    }

    fn titles(of: Option<&str>) -> Vec<String> {
        chosen(sources(), of).unwrap().into_iter().map(|source| source.title).collect()
    }

    #[test]
    fn a_log_is_chosen_by_its_title_or_kind() {
        assert_eq!(titles(Some("ztunnel/node-b")), ["ztunnel/node-b"]);
        assert_eq!(titles(Some("ztunnel")), ["ztunnel/node-a", "ztunnel/node-b"]);
        assert_eq!(titles(Some("controller")), ["controller/node-a"]);
        assert_eq!(titles(Some("shop/web-1")), ["shop/web-1"]);
        assert_eq!(titles(None).len(), 5);
        let err = chosen(sources(), Some("waypoint")).unwrap_err().to_string();
        assert!(err.contains("supervisor, shop/web-1"), "{err}");
    }

    #[test]
    fn following_gives_whole_lines_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let mut at = 0;
        for (text, expected) in [("a\nb", "a\n"), ("a\nbc\n", "bc\n"), ("a\nbc\n", "")] {
            fs::write(&file, text).unwrap();
            assert_eq!(more(&file, &mut at).unwrap(), expected);
        }
        assert_eq!(last_lines("a\nb\nc\n", 2).collect::<Vec<_>>(), ["b", "c"]);
    }
}
