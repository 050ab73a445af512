//! `--dir`: copies a directory of this machine into a program's file system.

use crate::execute::cvm_failure;
use crate::failure::Failure;
use crate::program::io_reason;
use nacre_abi::message::TreeKind;
use nacre_vmm::program::{Program, TreeEntry};
use std::fs::{self, Metadata};
use std::io::Read;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Copies everything below `host` to below `guest`. Symbolic links are copied as links; what is neither file, directory
/// nor link (a socket, a device) is left out with a warning.
pub fn bring_in(program: &Program<'_>, host: &Path, guest: &str) -> Result<(), Failure> {
    let mut buffer = vec![0; 256 << 10];
    let mut open = vec![(host.to_path_buf(), guest.to_owned())];
    while let Some((host, guest)) = open.pop() {
        let failed = |error| failure(&host, &error);
        let mut entries =
            fs::read_dir(&host).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        // The same directory always gives the same tree, whatever order the host's file system has.
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                return Err(Failure::new(path.display(), "its name is not UTF-8; rename it or leave it out"));
            };
            let guest = format!("{guest}/{name}");
            let metadata = fs::symlink_metadata(&path).map_err(|error| failure(&path, &error))?;
            if metadata.is_dir() {
                send(program, TreeKind::Directory, &guest, "", &metadata)?;
                open.push((path, guest));
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).map_err(|error| failure(&path, &error))?;
                send(program, TreeKind::Symlink, &guest, &target.to_string_lossy(), &metadata)?;
            } else if metadata.is_file() {
                send(program, TreeKind::File, &guest, "", &metadata)?;
                send_content(program, &path, &mut buffer)?;
            } else {
                eprintln!("nacre: warning: {}: neither file, directory nor link; left out", path.display());
            }
        }
    }
    Ok(())
}

fn failure(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        path.display(),
        format_args!("{}; check its permissions or leave it out of --dir", io_reason(error)),
    )
}

fn send(
    program: &Program<'_>,
    kind: TreeKind,
    path: &str,
    target: &str,
    metadata: &Metadata,
) -> Result<(), Failure> {
    let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
    let entry = TreeEntry { kind, path: path.into(), target: target.into(), modified };
    program.tree_entry(&entry).map_err(|error| cvm_failure(&error))
}

fn send_content(program: &Program<'_>, path: &Path, buffer: &mut [u8]) -> Result<(), Failure> {
    let mut file = fs::File::open(path).map_err(|error| failure(path, &error))?;
    loop {
        match file.read(buffer).map_err(|error| failure(path, &error))? {
            0 => return Ok(()),
            len => program.tree_data(&buffer[..len]).map_err(|error| cvm_failure(&error))?,
        }
    }
}
