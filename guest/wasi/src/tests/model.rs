//! The file system against a simple model: a map from paths to contents, over random sequences of operations.

use std::{
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};

use proptest::prelude::*;

use crate::{Errno, Fs, fs::OpenHow};

#[derive(Clone, Debug)]
enum Op {
    Mkdir(String),
    Write(String, u64, Vec<u8>),
    Truncate(String, u64),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    Read(String, u64, usize),
    List(String),
}

/// `None` is a directory. The root is not listed.
type Model = BTreeMap<String, Option<BTreeMap<u64, u8>>>;

/// The model's files: size, and the bytes that are not zero.
#[derive(Default)]
struct World {
    nodes: Model,
    sizes: BTreeMap<String, u64>,
}

fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent)
}

impl World {
    /// What is wrong with the directories above a path.
    fn check_parents(&self, path: &str) -> Result<(), Errno> {
        let Some(parent) = parent(path) else { return Ok(()) };
        self.check_parents(parent)?;
        match self.nodes.get(parent) {
            None => Err(Errno::Noent),
            Some(Some(_)) => Err(Errno::Notdir),
            Some(None) => Ok(()),
        }
    }

    fn children(&self, path: &str) -> Vec<String> {
        let prefix = std::format!("{path}/");
        let inside = |name: &&String| path == "." || name.starts_with(&prefix);
        let rest = |name: &String| if path == "." { name.clone() } else { name[prefix.len()..].to_string() };
        self.nodes.keys().filter(inside).map(rest).filter(|name| !name.contains('/')).collect()
    }

    fn mkdir(&mut self, path: &str) -> Result<(), Errno> {
        self.check_parents(path)?;
        if self.nodes.contains_key(path) {
            return Err(Errno::Exist);
        }
        self.nodes.insert(path.into(), None);
        Ok(())
    }

    fn file(&mut self, path: &str) -> Result<(&mut BTreeMap<u64, u8>, &mut u64), Errno> {
        self.check_parents(path)?;
        let node = self.nodes.entry(path.into()).or_insert_with(|| Some(BTreeMap::new()));
        let bytes = node.as_mut().ok_or(Errno::Isdir)?;
        Ok((bytes, self.sizes.entry(path.into()).or_default()))
    }

    fn remove(&mut self, path: &str, dir: bool) -> Result<(), Errno> {
        self.check_parents(path)?;
        match (self.nodes.get(path), dir) {
            (None, _) => Err(Errno::Noent),
            (Some(None), false) => Err(Errno::Isdir),
            (Some(Some(_)), true) => Err(Errno::Notdir),
            (Some(None), true) if !self.children(path).is_empty() => Err(Errno::Notempty),
            _ => {
                self.nodes.remove(path);
                self.sizes.remove(path);
                Ok(())
            }
        }
    }

    fn rename(&mut self, old: &str, new: &str) -> Result<(), Errno> {
        self.check_parents(old)?;
        let is_dir = self.nodes.get(old).map(Option::is_none);
        // Resolution of both comes first; only then is the old name missed.
        if is_dir.is_none() {
            return Err(Errno::Noent);
        }
        self.check_parents(new)?;
        if old == new {
            return Ok(());
        }
        let is_dir = is_dir == Some(true);
        if is_dir && new.starts_with(&std::format!("{old}/")) {
            return Err(Errno::Inval);
        }
        match self.nodes.get(new) {
            Some(None) if !is_dir => return Err(Errno::Isdir),
            Some(Some(_)) if is_dir => return Err(Errno::Notdir),
            Some(None) if !self.children(new).is_empty() => return Err(Errno::Notempty),
            _ => {}
        }
        self.sizes.remove(new);
        let prefix = std::format!("{old}/");
        let moved: Vec<String> =
            self.nodes.keys().filter(|name| *name == old || name.starts_with(&prefix)).cloned().collect();
        for name in moved {
            let to = std::format!("{new}{}", &name[old.len()..]);
            let node = self.nodes.remove(&name).unwrap();
            self.nodes.insert(to.clone(), node);
            if let Some(size) = self.sizes.remove(&name) {
                self.sizes.insert(to, size);
            }
        }
        Ok(())
    }
}

/// Does one operation on both and compares what comes out.
fn step(fs: &mut Fs, world: &mut World, op: &Op) {
    let root = fs.open_dir("/").unwrap();
    let how = OpenHow { create: true, write: true, ..OpenHow::default() };
    match op {
        Op::Mkdir(path) => assert_eq!(fs.mkdir(root, path, 0).map(|_| ()), world.mkdir(path)),
        Op::Write(path, offset, data) => {
            let file = fs.open(root, path, how, 0);
            let model = world.file(path);
            match (file, model) {
                (Ok(id), Ok((bytes, size))) => {
                    assert_eq!(fs.write(id, *offset, data, 0), Ok(data.len()));
                    bytes.extend((*offset..).zip(data.iter().copied()));
                    if !data.is_empty() {
                        *size = (*size).max(offset + data.len() as u64);
                    }
                    fs.release(id);
                }
                (file, model) => assert_eq!(file.map(|_| ()), model.map(|_| ())),
            }
        }
        Op::Truncate(path, to) => {
            if let (Ok(id), Ok((bytes, size))) = (fs.open(root, path, how, 0), world.file(path)) {
                fs.set_size(id, *to, 0).unwrap();
                bytes.split_off(to);
                *size = *to;
                fs.release(id);
            }
        }
        Op::Unlink(path) => assert_eq!(fs.unlink(root, path, 0), world.remove(path, false)),
        Op::Rmdir(path) => assert_eq!(fs.rmdir(root, path, 0), world.remove(path, true)),
        Op::Rename(old, new) => assert_eq!(fs.rename((root, old), (root, new), 0), world.rename(old, new)),
        Op::Read(path, offset, len) => {
            if let (Ok(id), Some(Some(bytes))) = (fs.lookup(root, path, false), world.nodes.get(path)) {
                let mut buf = std::vec![0xee; *len];
                let n = fs.read(id, *offset, &mut buf).unwrap();
                let size = world.sizes[path];
                assert_eq!(n as u64, size.saturating_sub(*offset).min(*len as u64));
                for (at, byte) in (*offset..).zip(&buf[..n]) {
                    assert_eq!(bytes.get(&at).copied().unwrap_or(0), *byte, "at {at}");
                }
                assert_eq!(fs.size(id), Ok(size));
            }
        }
        Op::List(path) => {
            if world.nodes.get(path) == Some(&None) {
                let id = fs.lookup(root, path, false).unwrap();
                let dir = fs.inode(id).unwrap().dir().unwrap();
                let mut names: Vec<String> = dir.after(0).map(|entry| entry.name.clone()).collect();
                names.sort();
                assert_eq!(names, world.children(path));
            }
        }
    }
    fs.release(root);
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(&["a", "b", "c", "d"][..]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn offset() -> impl Strategy<Value = u64> {
    // Around the borders of blocks and leaves.
    (prop::sample::select(&[0_u64, 65536, 131_072, 256 * 65536, 1 << 36][..]), 0..40_u64)
        .prop_map(|(base, delta)| (base + delta).saturating_sub(20))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => path().prop_map(Op::Mkdir),
        4 => (path(), offset(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(p, o, d)| Op::Write(p, o, d)),
        1 => (path(), offset()).prop_map(|(p, o)| Op::Truncate(p, o)),
        1 => path().prop_map(Op::Unlink),
        1 => path().prop_map(Op::Rmdir),
        2 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        3 => (path(), offset(), 0..100_usize).prop_map(|(p, o, n)| Op::Read(p, o, n)),
        1 => path().prop_map(Op::List),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_a_map(ops in prop::collection::vec(op(), 1..120)) {
        let mut fs = Fs::new(0).unwrap();
        let mut world = World::default();
        for op in &ops {
            step(&mut fs, &mut world, op);
        }
        // Nothing is lost and nothing leaks: inodes, link counts, and in the end memory.
        prop_assert_eq!(fs.inode_count(), world.nodes.len() + 1);
        let root = fs.open_dir("/").unwrap();
        for (path, node) in world.nodes.iter().rev() {
            let stat = fs.stat(fs.lookup(root, path, false).unwrap()).unwrap();
            let dirs = |name: &String| world.nodes.get(&std::format!("{path}/{name}")) == Some(&None);
            let expected = node.as_ref().map_or(2 + world.children(path).iter().filter(|n| dirs(n)).count() as u64, |_| 1);
            prop_assert_eq!(stat.nlink, expected);
        }
        // In reverse order children come before their directories, which are then empty.
        for (path, node) in world.nodes.iter().rev() {
            let removed = if node.is_none() { fs.rmdir(root, path, 0) } else { fs.unlink(root, path, 0) };
            prop_assert_eq!(removed, Ok(()));
        }
        prop_assert_eq!((fs.inode_count(), fs.allocated_bytes()), (1, 0));
    }
}
