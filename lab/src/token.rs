//! Tokens: who shows one is known by it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Writes a new token, which nobody guesses and nobody else reads.
pub(crate) fn write(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    // The kernel's own generator.
    let token = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    fs::write(path, "")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    fs::write(path, token.trim())
}
