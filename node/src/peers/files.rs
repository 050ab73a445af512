//! The files below `STATE_DIR/peer`: small, only for this user, and there whole or not at all.

use super::error::PeersError;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Longest file in bytes.
const MAX_BYTES: u64 = 64 << 10;

fn failed(path: &Path) -> impl Fn(io::Error) -> PeersError {
    move |error| PeersError::File { path: path.to_owned(), error }
}

/// Makes a directory, if there is none.
pub(super) fn directory(path: &Path) -> Result<(), PeersError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))
}

/// A file's text; none if there is no file.
pub(super) fn read(path: &Path) -> Result<Option<String>, PeersError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed(path))?,
    };
    let mut text = String::new();
    let taken = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed(path))?;
    if taken as u64 > MAX_BYTES {
        return Err(failed(path)(ErrorKind::FileTooLarge.into()));
    }
    Ok(Some(text))
}

/// Writes a file that is on the disk, and whole, when this returns.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), PeersError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let written = || {
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    };
    written().map_err(failed(path))
}

/// Removes a file; no less gone if it was not there.
pub(super) fn remove(path: &Path) -> Result<(), PeersError> {
    let removed = || {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    removed().map_err(failed(path))
}
