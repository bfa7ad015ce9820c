//! Files of the authority: secrets for their owner only, what is published for everybody, each in one step.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tracing::warn;

/// More than any chain with its roots.
const LARGEST: u64 = 1024 * 1024;

/// Writes a file for others in one step: readers see the old one or the new one.
pub fn publish(path: &Path, content: &[u8]) -> Result<(), FileError> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    write(path, content, 0o644).map_err(|error| FileError::write(path, error))
}

/// Reads a file that everybody may read.
pub fn read(path: &Path) -> Result<String, FileError> {
    File::open(path).and_then(read_all).map_err(|error| FileError::read(path, error))
}

/// Reads a file that nobody else should be able to read, and sees to that.
pub(super) fn read_secret(path: &Path) -> Result<String, FileError> {
    let file = File::open(path).map_err(|error| FileError::read(path, error))?;
    let mode = file.metadata().map_err(|error| FileError::read(path, error))?.permissions().mode();
    if mode & 0o077 != 0 {
        let mode = format!("{:o}", mode & 0o777);
        match file.set_permissions(Permissions::from_mode(0o600)) {
            Ok(()) => {
                warn!(key.path = %path.display(), mode, "The key was not for its owner only; now it is. Who has read it?");
            }
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                warn!(key.path = %path.display(), mode, "The key is not for its owner only; mount it with mode 0400");
            }
            Err(source) => return Err(FileError::Exposed { path: path.to_owned(), source }),
        }
    }
    read_all(file).map_err(|error| FileError::read(path, error))
}

fn read_all(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// In one step, and on the disk when it returns: a root that was used must not be lost.
pub(super) fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .prefix(".writing-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    // Whatever the umask is.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|failed| failed.error)?;
    File::open(folder)?.sync_all()
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Others can read the key.
    #[error("others than its owner can read the key {path}, and that cannot be changed: {source}; chmod 600 it", path = path.display())]
    Exposed {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read {path}: {source}; check its owner and mode", path = path.display())]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {path}: {source}; check the owner and mode of its directory, and free space", path = path.display())]
    Unwritable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FileError {
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), source }
    }

    pub(super) fn write(path: &Path, source: io::Error) -> Self {
        Self::Unwritable { path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_published_is_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/root.pem");
        publish(&path, b"one").unwrap();
        publish(&path, b"two").unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"two".to_vec(), 0o644));
        let left: Vec<_> = fs::read_dir(dir.path().join("deep")).unwrap().collect();
        assert_eq!(left.len(), 1);
    }
}
