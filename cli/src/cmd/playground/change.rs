//! `apply`, `edit`, `delete`, `label`: changes of the YAML, which the playground follows by itself.

use std::io::{Read as _, stdin};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::documents::{self, Documents, LabelChange, Wanted};
use super::state::Place;
use crate::output::Out;

/// Adds or replaces the objects of files. Nothing is changed if one of them cannot be read.
pub(super) fn apply(place: &Place, files: &[PathBuf], out: &mut Out) -> anyhow::Result<()> {
    let documents = Documents::open(&place.state()?.directory)?;
    let mut objects = Vec::new();
    for file in files {
        objects.extend(documents::parse(file, &read(file)?)?);
    }
    for (key, text) in objects {
        let applied = documents.apply(&key, &text)?;
        out.line(format!("{key}: {}", applied.word()))?;
    }
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}; does it exist?", file.display()))
}

/// Lets the user write the object anew. What cannot be applied is kept.
pub(super) fn edit(place: &Place, object: &Wanted, editor: &str, out: &mut Out) -> anyhow::Result<()> {
    let documents = Documents::open(&place.state()?.directory)?;
    let found = documents.find(object)?;
    let draft =
        std::env::temp_dir().join(format!("ambit-edit-{}-{}.yaml", std::process::id(), found.key.name));
    let unusable = || format!("cannot use {}; is the disk full?", draft.display());
    std::fs::write(&draft, found.text()).with_context(unusable)?;
    // As git does it: the editor may have arguments, and quotes in them.
    let ended = Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(&draft).status();
    let kept = || format!("what was written is kept in {}", draft.display());
    let ended = ended.with_context(|| format!("cannot start {editor}; set EDITOR"))?;
    if !ended.success() {
        bail!("{editor} ended with {ended}, so nothing is applied; {}", kept());
    }
    let text = std::fs::read_to_string(&draft).with_context(unusable)?;
    if text == found.text() {
        out.line(format!("{}: unchanged", found.key))?;
    } else {
        match documents::parse(&draft, &text).with_context(kept)?.as_slice() {
            [(key, _)] if *key == found.key => documents.replace(&found, &text).with_context(kept)?,
            _ => bail!("an edit changes one object and not its name: {}; {}", found.key, kept()),
        }
        out.line(format!("{}: changed", found.key))?;
    }
    std::fs::remove_file(&draft).with_context(unusable)
}

/// Removes an object.
pub(super) fn delete(place: &Place, object: &Wanted, out: &mut Out) -> anyhow::Result<()> {
    let documents = Documents::open(&place.state()?.directory)?;
    let found = documents.find(object)?;
    documents.delete(&found)?;
    out.line(format!("{}: deleted", found.key))
}

/// Sets and removes labels.
pub(super) fn label(
    place: &Place,
    kind: &str,
    name: &str,
    changes: &[LabelChange],
    out: &mut Out,
) -> anyhow::Result<()> {
    let documents = Documents::open(&place.state()?.directory)?;
    let wanted = match name.split_once('/') {
        Some((namespace, name)) => Wanted::new(kind, Some(namespace), name),
        None => Wanted::new(kind, None, name),
    };
    let found = documents.find(&wanted)?;
    match found.relabelled(changes)? {
        None => out.line(format!("{}: unchanged", found.key)),
        Some(text) => {
            documents.replace(&found, &text)?;
            out.line(format!("{}: labelled", found.key))
        }
    }
}
