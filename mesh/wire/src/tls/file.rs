//! A file that someone else may replace: re-read when it changed and has come to rest.
//!
//! The file is looked at (`stat`, through symbolic links) whenever its user asks. That sees every
//! way of replacing it, Kubernetes' swap of a directory link included, where an inotify watch on
//! the parent directory needs one case for each; and it costs no thread and no descriptor.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// How long a file must have been left alone: whoever writes it in place may not be done yet.
pub const REST: Duration = Duration::from_secs(2);

/// More than any bundle of roots or revocation list we know; a bound on what we read into memory.
const LARGEST: u64 = 64 * 1024 * 1024;

/// A file and what it looked like when it was read last.
#[derive(Debug)]
pub struct WatchedFile {
    path: PathBuf,
    read: Stamp,
}

impl WatchedFile {
    /// Reads the file for the first time.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<(Self, Vec<u8>)> {
        let path = path.into();
        let (stamp, content) = read(&path)?;
        Ok((Self { path, read: stamp }, content))
    }

    /// The new content, once, if the file was replaced or rewritten and rests since [`REST`].
    /// An error is returned once for each change as well.
    pub fn changed(&mut self, now: SystemTime) -> Option<io::Result<Vec<u8>>> {
        let seen = match Stamp::of(&self.path) {
            Ok(seen) => seen,
            // In the middle of a swap, or gone for good: what was read stays in force.
            Err(_) => return None,
        };
        if seen == self.read || !seen.rests(now) {
            return None;
        }
        Some(
            read(&self.path)
                .map(|(stamp, content)| {
                    self.read = stamp;
                    content
                })
                .inspect_err(|_| self.read = seen),
        )
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: metadata.modified().ok(),
        })
    }

    fn rests(&self, now: SystemTime) -> bool {
        // A time in the future says nothing about writers; do not wait for it.
        self.modified.and_then(|at| now.duration_since(at).ok()).is_none_or(|age| age >= REST)
    }
}

fn read(path: &Path) -> io::Result<(Stamp, Vec<u8>)> {
    // The stamp first: if the file changes in between, the next look finds another stamp.
    let stamp = Stamp::of(path)?;
    if stamp.size > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{} bytes are more than the {LARGEST} that are read", stamp.size),
        ));
    }
    Ok((stamp, fs::read(path)?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn later() -> SystemTime {
        SystemTime::now() + REST
    }

    #[test]
    fn a_change_is_seen_once_and_only_when_it_rests() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        fs::write(&path, "one").unwrap();
        let (mut file, content) = WatchedFile::open(&path).unwrap();
        assert_eq!(content, b"one");
        assert!(file.changed(later()).is_none());

        fs::write(&path, "second").unwrap();
        assert!(file.changed(SystemTime::now()).is_none(), "it was written this instant");
        assert_eq!(file.changed(later()).unwrap().unwrap(), b"second");
        assert!(file.changed(later()).is_none());
    }

    #[test]
    fn a_swap_of_the_directory_link_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["v1", "v2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("ca"), version).unwrap();
        }
        symlink("v1", dir.path().join("..data")).unwrap();
        symlink("..data/ca", dir.path().join("ca")).unwrap();
        let (mut file, content) = WatchedFile::open(dir.path().join("ca")).unwrap();
        assert_eq!(content, b"v1");

        symlink("v2", dir.path().join("..new")).unwrap();
        fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
        assert_eq!(file.changed(later()).unwrap().unwrap(), b"v2");
    }

    #[test]
    fn a_file_that_vanishes_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca");
        fs::write(&path, "one").unwrap();
        let (mut file, _) = WatchedFile::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(file.changed(later()).is_none());
        fs::write(&path, "back again").unwrap();
        assert_eq!(file.changed(later()).unwrap().unwrap(), b"back again");
    }
}
