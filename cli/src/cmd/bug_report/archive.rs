//! An archive in a fixed layout: what it is to hold is put together first, bounded, and then written at once.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;

/// The directory that it unpacks to.
const ROOT: &str = "ambit-bug-report";
/// No single file is longer; the end of a log is worth more than its beginning.
const LONGEST: usize = 16 * 1024 * 1024;
/// All of it fits into the memory of whoever makes it, and mails it.
const LARGEST: usize = 256 * 1024 * 1024;

/// What is to be written, by its path.
#[derive(Debug, Default)]
pub(super) struct Archive {
    files: BTreeMap<String, Vec<u8>>,
    bytes: usize,
    /// What could not be had, or was cut.
    pub(super) missing: Vec<String>,
}

impl Archive {
    /// Puts text at a path. A text that is too long loses its beginning, and one that does not fit any more is left out.
    pub(super) fn put(&mut self, path: impl Into<String>, text: &str) {
        let path = path.into();
        let kept = if text.len() > LONGEST {
            let from = (text.len() - LONGEST..).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            self.missing.push(format!("{path}: only its last {} MiB", LONGEST / 1024 / 1024));
            text.get(from..).unwrap_or_default()
        } else {
            text
        };
        if self.bytes + kept.len() > LARGEST {
            self.missing.push(format!("{path}: the archive is full"));
            return;
        }
        self.bytes += kept.len();
        self.files.insert(path, kept.as_bytes().to_vec());
    }

    /// The paths, in order.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// How many files there are.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Writes it to a new file that only its owner can read.
    pub(super) fn write(&self, to: &Path, modified: u64) -> anyhow::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let file = file.with_context(|| {
            format!("cannot make {}; name a file that is not there with --output", to.display())
        })?;
        let cannot = || format!("cannot write {}; is the disk full?", to.display());
        let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        for (path, bytes) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(bytes.len())?);
            header.set_mode(0o600);
            header.set_mtime(modified);
            tar.append_data(&mut header, format!("{ROOT}/{path}"), bytes.as_slice()).with_context(cannot)?;
        }
        let mut file = tar.into_inner().and_then(GzEncoder::finish).with_context(cannot)?;
        file.flush().with_context(cannot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn an_archive_is_in_order_private_and_never_written_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar.gz");
        let mut archive = Archive::default();
        archive.put("b.txt", "two");
        archive.put("a/c.log", "one");
        archive.write(&path, 1_700_000_000).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap()));
        let read: Vec<_> = tar
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        let expected = [("ambit-bug-report/a/c.log", "one"), ("ambit-bug-report/b.txt", "two")];
        assert_eq!(read, expected.map(|(path, text)| (path.to_owned(), text.to_owned())));
        let again = format!("{:#}", archive.write(&path, 0).unwrap_err());
        assert!(again.contains("--output"), "{again}");
        let other = dir.path().join("y.tar.gz");
        archive.write(&other, 1_700_000_000).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), std::fs::read(other).unwrap());
    }

    #[test]
    fn long_texts_lose_their_beginning_and_are_told() {
        let mut archive = Archive::default();
        let long = format!("first{}last", "é".repeat(LONGEST / 2));
        archive.put("long.log", &long);
        assert!(archive.files["long.log"].len() <= LONGEST);
        assert!(archive.files["long.log"].ends_with(b"last"));
        assert!(archive.missing[0].contains("long.log"), "{:?}", archive.missing);
    }
}
