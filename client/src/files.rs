//! Files that only their owner may read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Reads a file of at most `max` bytes that nobody else may read.
///
/// # Errors
/// The system's; `PermissionDenied` with a remedy if others may read it.
pub fn read_private(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other("is open to other users; chmod 600 it"));
    }
    let mut bytes = Vec::new();
    if Read::by_ref(&mut file).take(max + 1).read_to_end(&mut bytes)? as u64 > max {
        return Err(io::Error::other("is too long to be such a file; name another"));
    }
    Ok(bytes)
}

/// Writes a new file for this user only; fails if there is one.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Replaces a file, for this user only: it is the old one or the new one, also after a loss of power.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".part-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}
