//! The file system, through the calls a program makes, against a simple model: paths to files, files to sparse bytes.
//!
//! Input: operations on a few paths, offsets around the borders of blocks. Checked: every answer is the model's, so are
//! sizes, link counts and contents at the end (read by the program and as exported to the host), and nothing leaks.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use nacre_fuzz::program::Program;
use nacre_wasi::{BLOCK_BYTES, EntryKind, Errno, Fs};
use std::collections::BTreeMap;

#[derive(Debug, arbitrary::Arbitrary)]
enum Op {
    Mkdir(Path),
    Write(Path, Offset, u8, u8),
    Truncate(Path, Offset),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path),
    Link(Path, Path),
    Read(Path, Offset, u8),
    /// The host puts a file there instead.
    Import(Path, u8),
}

/// A name, in one of two directories or in one of their two, or in the root.
#[derive(Debug, arbitrary::Arbitrary)]
struct Path(u8);

impl Path {
    fn text(&self) -> String {
        let name = ["a", "b", "c", "d"][usize::from(self.0 & 3)];
        let outer = ["a", "b"][usize::from(self.0 >> 2 & 1)];
        let inner = ["a", "b"][usize::from(self.0 >> 3 & 1)];
        match self.0 >> 4 {
            0..8 => name.to_string(),
            8..13 => format!("{outer}/{name}"),
            _ => format!("{outer}/{inner}/{name}"),
        }
    }
}

/// An offset near the start, or near the border of a block or of a leaf of blocks.
#[derive(Debug, arbitrary::Arbitrary)]
struct Offset(u8, u8);

impl Offset {
    fn bytes(&self) -> u64 {
        let base = [0, BLOCK_BYTES as u64, 256 * BLOCK_BYTES as u64, 1 << 40][usize::from(self.0 % 4)];
        (base + u64::from(self.1)).saturating_sub(128)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct File {
    size: u64,
    /// The bytes that were written.
    bytes: BTreeMap<u64, u8>,
}

impl File {
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.size.min(offset + len as u64).max(offset);
        let mut bytes = vec![0; (end - offset) as usize];
        for (at, byte) in self.bytes.range(offset..end) {
            bytes[(at - offset) as usize] = *byte;
        }
        bytes
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.bytes.extend((offset..).zip(data.iter().copied()));
        if !data.is_empty() {
            self.size = self.size.max(offset + data.len() as u64);
        }
    }

    fn set_size(&mut self, size: u64) {
        self.bytes.split_off(&size);
        self.size = size;
    }
}

/// What should be there. A path without a file is a directory; the root is not listed.
#[derive(Default)]
struct Model {
    names: BTreeMap<String, Option<usize>>,
    files: Vec<File>,
}

impl Model {
    fn check_parents(&self, path: &str) -> Result<(), Errno> {
        let Some((parent, _)) = path.rsplit_once('/') else { return Ok(()) };
        self.check_parents(parent)?;
        match self.names.get(parent) {
            None => Err(Errno::Noent),
            Some(Some(_)) => Err(Errno::Notdir),
            Some(None) => Ok(()),
        }
    }

    fn find(&self, path: &str) -> Result<Option<usize>, Errno> {
        self.check_parents(path)?;
        self.names.get(path).copied().ok_or(Errno::Noent)
    }

    fn has_children(&self, path: &str) -> bool {
        self.names.keys().any(|name| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
    }

    fn add(&mut self, path: &str, node: Option<usize>) -> Result<(), Errno> {
        match self.find(path) {
            Ok(_) => Err(Errno::Exist),
            Err(Errno::Noent) if self.check_parents(path).is_ok() => {
                self.names.insert(path.into(), node);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The file there, which is made if nothing is.
    fn open(&mut self, path: &str) -> Result<&mut File, Errno> {
        if self.add(path, Some(self.files.len())).is_ok() {
            self.files.push(File::default());
        }
        let file = self.find(path)?.ok_or(Errno::Isdir)?;
        Ok(&mut self.files[file])
    }

    fn remove(&mut self, path: &str, directory: bool) -> Result<(), Errno> {
        match (self.find(path)?, directory) {
            (None, false) => Err(Errno::Isdir),
            (Some(_), true) => Err(Errno::Notdir),
            (None, true) if self.has_children(path) => Err(Errno::Notempty),
            _ => {
                self.names.remove(path);
                Ok(())
            }
        }
    }

    fn link(&mut self, old: &str, new: &str) -> Result<(), Errno> {
        let file = self.find(old)?.ok_or(Errno::Perm)?;
        self.add(new, Some(file))
    }

    fn rename(&mut self, old: &str, new: &str) -> Result<(), Errno> {
        let node = self.find(old)?;
        self.check_parents(new)?;
        let target = self.names.get(new).copied();
        if old == new || node.is_some() && target == Some(node) {
            return Ok(());
        }
        let inside = |name: &str| name.strip_prefix(old).is_some_and(|rest| rest.starts_with('/'));
        if inside(new) {
            return Err(Errno::Inval);
        }
        match (node, target) {
            (Some(_), Some(None)) => return Err(Errno::Isdir),
            (None, Some(Some(_))) => return Err(Errno::Notdir),
            (None, Some(None)) if self.has_children(new) => return Err(Errno::Notempty),
            _ => {}
        }
        let moved: Vec<_> = self.names.keys().filter(|name| *name == old || inside(name)).cloned().collect();
        for name in moved {
            let node = self.names.remove(&name).flatten();
            self.names.insert(format!("{new}{}", &name[old.len()..]), node);
        }
        Ok(())
    }

    fn link_count(&self, file: usize) -> u64 {
        self.names.values().filter(|node| **node == Some(file)).count() as u64
    }
}

/// Does something with the file at `path` on both sides.
fn with_file(
    program: &mut Program,
    model: &mut Model,
    path: &str,
    act: impl FnOnce(&mut Program, u32, &mut File),
) {
    match (program.open(path, true), model.open(path)) {
        (Ok(fd), Ok(file)) => {
            act(program, fd, file);
            assert_eq!(program.close(fd), Ok(()));
        }
        (opened, expected) => assert_eq!(opened.map(|_| ()), expected.map(|_| ())),
    }
}

fn step(program: &mut Program, model: &mut Model, op: &Op) {
    match op {
        Op::Mkdir(path) => assert_eq!(program.mkdir(&path.text()), model.add(&path.text(), None)),
        Op::Write(path, offset, len, byte) => {
            let data: Vec<u8> = (0..*len).map(|at| at ^ byte).collect();
            with_file(program, model, &path.text(), |program, fd, file| {
                assert_eq!(program.write(fd, offset.bytes(), &data), Ok(data.len() as u32));
                file.write(offset.bytes(), &data);
            });
        }
        Op::Truncate(path, size) => with_file(program, model, &path.text(), |program, fd, file| {
            assert_eq!(program.set_size(fd, size.bytes()), Ok(()));
            file.set_size(size.bytes());
        }),
        Op::Read(path, offset, len) => with_file(program, model, &path.text(), |program, fd, file| {
            let len = usize::from(*len);
            assert_eq!(program.read(fd, offset.bytes(), len), Ok(file.read(offset.bytes(), len)));
        }),
        Op::Unlink(path) => {
            assert_eq!(program.remove(&path.text(), false), model.remove(&path.text(), false))
        }
        Op::Rmdir(path) => assert_eq!(program.remove(&path.text(), true), model.remove(&path.text(), true)),
        Op::Rename(old, new) => {
            assert_eq!(program.rename(&old.text(), &new.text()), model.rename(&old.text(), &new.text()));
        }
        Op::Link(old, new) => {
            assert_eq!(program.link(&old.text(), &new.text()), model.link(&old.text(), &new.text()));
        }
        Op::Import(path, byte) => {
            let handle = program.ctx.fs_mut().create_file(&path.text(), 0, false);
            match (handle, model.open(&path.text())) {
                (Ok(handle), Ok(file)) => {
                    file.set_size(0);
                    for _ in 0..2 {
                        assert_eq!(program.ctx.fs_mut().append(handle, &[*byte; 100]), Ok(()));
                        file.write(file.size, &[*byte; 100]);
                    }
                }
                (handle, file) => assert_eq!(handle.map(|_| ()), file.map(|_| ())),
            }
        }
    }
}

/// What is exported is what should be there.
fn check_export(fs: &Fs, model: &Model) {
    let mut left = model.names.clone();
    let mut cursor = fs.export("/").expect("the root is there");
    while let Some(entry) = cursor.next(fs).expect("memory for a path") {
        let node = left.remove(entry.path).expect("exported what is not there");
        match (entry.kind, node) {
            (EntryKind::Dir, None) => {}
            (EntryKind::File { size, handle, .. }, Some(file)) => {
                // Zeros that were written are like those that never were.
                let mut stored = BTreeMap::new();
                let mut at = 0;
                while let Some((offset, bytes)) = fs.next_block(handle, at).expect("the file is there") {
                    assert!(bytes.len() <= BLOCK_BYTES && offset + bytes.len() as u64 <= size);
                    stored.extend((offset..).zip(bytes.iter().copied()).filter(|(_, byte)| *byte != 0));
                    at = offset + BLOCK_BYTES as u64;
                }
                let mut expected = model.files[file].clone();
                expected.bytes.retain(|_, byte| *byte != 0);
                assert_eq!((size, stored), (expected.size, expected.bytes), "{}", entry.path);
            }
            (kind, _) => panic!("{} is exported as {kind:?}", entry.path),
        }
    }
    assert!(left.is_empty(), "not exported: {left:?}");
}

fuzz_target!(|ops: Vec<Op>| {
    let mut program = Program::new(Fs::new(0).expect("memory for a root"));
    let mut model = Model::default();
    for op in ops.iter().take(200) {
        step(&mut program, &mut model, op);
    }
    for (path, node) in &model.names {
        if let Some(file) = node {
            let fd = program.open(path, false).expect("it is there");
            assert_eq!(program.stat(fd), Ok((model.files[*file].size, model.link_count(*file))));
            assert_eq!(program.close(fd), Ok(()));
        }
    }
    check_export(program.ctx.fs(), &model);
    program.check_nothing_leaks();
});
