//! `--export`: copies files out of a program's file system after its end.
//!
//! The guest is not trusted with paths of this machine: each path it names is taken apart, and one that is absolute or
//! leaves the destination ends the export. Links are written as links and never followed.

use crate::execute::cvm_failure;
use crate::failure::Failure;
use crate::values::{DirMapping, ExportMapping};
use nacre_abi::message::{Kind, TreeKind, stream};
use nacre_vmm::program::{Program, ProgramEvent, TreeEntry};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

/// An export whose place in the guest's file system is known.
#[derive(Debug, PartialEq, Eq)]
pub struct Export {
    /// What the user wrote.
    name: String,
    /// Path in the guest's file system.
    path: String,
    /// Where it goes.
    host: PathBuf,
}

/// Finds for each export the directory that holds it.
///
/// # Errors
/// If no directory that the program sees holds it.
pub fn resolve(exports: &[ExportMapping], dirs: &[DirMapping]) -> Result<Vec<Export>, Failure> {
    exports
        .iter()
        .map(|export| {
            let wanted = parts(&export.guest);
            let holder = dirs.iter().enumerate().filter_map(|(number, dir)| {
                let held = wanted.as_ref()?.strip_prefix(parts(&dir.guest)?.as_slice())?;
                // A relative name holds no absolute path.
                if held.first() == Some(&"/") {
                    return None;
                }
                Some((held.len(), format!("/{number}/{}", held.join("/"))))
            });
            // The longest directory name leaves the shortest rest.
            let (_, path) = holder.min().ok_or_else(|| {
                let why = "no directory that the program sees holds it; bring one in with --dir HOST::GUEST";
                Failure::new(format_args!("--export {}", export.guest), why)
            })?;
            Ok(Export { name: export.guest.clone(), path, host: export.host.clone() })
        })
        .collect()
}

/// The parts of a guest path, "/" first if it is absolute; `None` if it goes upwards.
fn parts(path: &str) -> Option<Vec<&str>> {
    let root = path.starts_with('/').then_some("/");
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    let parts: Vec<&str> = root.into_iter().chain(names).collect();
    (!parts.contains(&"..")).then_some(parts)
}

/// Copies one export out.
///
/// # Errors
/// If it does not exist, can't be written, or the guest names a path outside of it.
pub fn take_out(program: &Program<'_>, export: &Export) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::new(format_args!("--export {}", export.name), why);
    program.request_export(&export.path).map_err(|error| cvm_failure(&error))?;
    let mut writer = Writer { root: &export.host, file: None, directories: Vec::new() };
    let mut problem = None;
    loop {
        let ProgramEvent::Message(header, body) =
            program.next_event().map_err(|error| cvm_failure(&error))?
        else {
            continue;
        };
        let done = match header.kind {
            Kind::TreeEntry => writer.entry(TreeEntry::decode(header, &body)),
            Kind::TreeData => {
                let received = header.arg + body.len() as u64;
                let written = writer.data(&body);
                program.consumed(stream::TREE, received).map_err(|error| cvm_failure(&error))?;
                written
            }
            Kind::TreeEnd => {
                let told = String::from_utf8_lossy(&body);
                if !told.is_empty() {
                    problem.get_or_insert_with(|| {
                        failed(&format_args!("{told}; check the path in the program"))
                    });
                }
                break;
            }
            _ => Ok(()),
        };
        // The rest is still read, so that the next export finds its own messages.
        if let Err(error) = done {
            problem.get_or_insert_with(|| failed(&format_args!("{error}; choose another place")));
        }
    }
    match problem {
        Some(failure) => Err(failure),
        None => writer.finish().map_err(|error| failed(&error)),
    }
}

/// Writes a tree below `root`.
struct Writer<'a> {
    root: &'a Path,
    file: Option<(File, SystemTime)>,
    /// Their times are set at the end: writing into them changes them.
    directories: Vec<(PathBuf, SystemTime)>,
}

impl Writer<'_> {
    fn entry(&mut self, entry: Option<TreeEntry>) -> io::Result<()> {
        self.close_file()?;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the guest names an impossible path");
        let entry = entry.ok_or_else(invalid)?;
        let relative = Path::new(&entry.path);
        // Only one exported file has no path of its own: it goes where the user said, as a file.
        let is_root = entry.path.is_empty();
        let stays_inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if !stays_inside || is_root && entry.kind != TreeKind::File {
            return Err(invalid());
        }
        let path = if entry.path.is_empty() { self.root.to_path_buf() } else { self.root.join(relative) };
        self.check_parents(relative)?;
        match entry.kind {
            TreeKind::Directory => {
                match fs::symlink_metadata(&path) {
                    Ok(metadata) if metadata.is_dir() => {}
                    Ok(_) => {
                        return Err(io::Error::new(
                            io::ErrorKind::AlreadyExists,
                            "something else has its name",
                        ));
                    }
                    Err(_) => fs::create_dir_all(&path)?,
                }
                self.directories.push((path, entry.modified));
            }
            TreeKind::File => {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                remove_link(&path)?;
                let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
                self.file = Some((file, entry.modified));
            }
            TreeKind::Symlink => {
                fs::create_dir_all(self.root)?;
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => std::os::unix::fs::symlink(&entry.target, &path)?,
                }
            }
        }
        Ok(())
    }

    /// No directory on the way down from the root may be a link: a guest could have sent it to lead elsewhere.
    fn check_parents(&self, relative: &Path) -> io::Result<()> {
        for parent in relative.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            if fs::symlink_metadata(self.root.join(parent)).is_ok_and(|metadata| metadata.is_symlink()) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a link stands where a directory should be",
                ));
            }
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some((file, _)) => file.write_all(bytes),
            // The file could not be made; that was reported.
            None => Ok(()),
        }
    }

    fn close_file(&mut self) -> io::Result<()> {
        match self.file.take() {
            Some((file, modified)) => file.set_modified(modified),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> io::Result<()> {
        self.close_file()?;
        // An empty directory is exported as one.
        if fs::symlink_metadata(self.root).is_err() {
            fs::create_dir_all(self.root)?;
        }
        for (path, modified) in self.directories.iter().rev() {
            File::open(path)?.set_modified(*modified)?;
        }
        Ok(())
    }
}

/// A link where a file is to go is replaced, not followed.
fn remove_link(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => fs::remove_file(path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(guest: &str) -> DirMapping {
        DirMapping { host: "h".into(), guest: guest.into() }
    }

    fn path_of(guest: &str, dirs: &[DirMapping]) -> Option<String> {
        let export = ExportMapping { guest: guest.into(), host: "out".into() };
        resolve(&[export], dirs).ok().map(|exports| exports[0].path.clone())
    }

    #[test]
    fn the_longest_directory_name_holds_an_export() {
        let dirs = [dir("/data"), dir("/data/deep"), dir(".")];
        assert_eq!(path_of("/data/x", &dirs).as_deref(), Some("/0/x"));
        assert_eq!(path_of("/data/deep/x/y", &dirs).as_deref(), Some("/1/x/y"));
        assert_eq!(path_of("/data", &dirs).as_deref(), Some("/0/"));
        assert_eq!(path_of("here/./it", &dirs).as_deref(), Some("/2/here/it"));
        assert_eq!(path_of("/database", &dirs), None);
        assert_eq!(path_of("/data/../etc", &dirs), None);
    }

    #[test]
    fn a_guest_cannot_write_outside_of_the_destination() {
        let place = tempfile::tempdir().unwrap();
        let outside = place.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let root = place.path().join("root");
        let mut writer = Writer { root: &root, file: None, directories: Vec::new() };
        let entry = |kind, path: &str, target: &str| {
            Some(TreeEntry {
                kind,
                path: path.into(),
                target: target.into(),
                modified: SystemTime::UNIX_EPOCH,
            })
        };
        for path in ["../evil", "/etc/evil", "a/../../evil"] {
            assert!(writer.entry(entry(TreeKind::File, path, "")).is_err(), "{path}");
        }
        assert!(writer.entry(entry(TreeKind::Symlink, "", outside.to_str().unwrap())).is_err());
        writer.entry(entry(TreeKind::Symlink, "link", outside.to_str().unwrap())).unwrap();
        assert!(writer.entry(entry(TreeKind::File, "link/evil", "")).is_err());
        assert!(writer.entry(entry(TreeKind::Directory, "link", "")).is_err());
        writer.entry(entry(TreeKind::File, "link", "")).unwrap();
        writer.data(b"content").unwrap();
        writer.finish().unwrap();
        assert_eq!(fs::read(root.join("link")).unwrap(), b"content");
        assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    }
}
