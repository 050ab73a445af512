//! A directory tree read into memory, to compare what two engines left behind.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What a path in a tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A file with its content.
    File(Vec<u8>),
    /// A symbolic link with its target.
    Link(PathBuf),
}

/// All paths below a directory, relative to it.
pub type Tree = BTreeMap<PathBuf, Node>;

/// Reads everything below `root`.
pub fn read(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let full = root.join(&dir);
        for entry in fs::read_dir(&full).with_context(|| format!("can't list {}", full.display()))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let kind = entry.file_type()?;
            let node = if kind.is_dir() {
                todo.push(path.clone());
                Node::Directory
            } else if kind.is_symlink() {
                Node::Link(fs::read_link(entry.path())?)
            } else {
                Node::File(fs::read(entry.path())?)
            };
            tree.insert(path, node);
        }
    }
    Ok(tree)
}

/// Writes the tree below `root`, which is made.
pub fn write(tree: &Tree, root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    for (path, node) in tree {
        let full = root.join(path);
        match node {
            Node::Directory => fs::create_dir_all(&full)?,
            Node::File(data) => fs::write(&full, data)?,
            Node::Link(target) => std::os::unix::fs::symlink(target, &full)?,
        }
    }
    Ok(())
}

/// A tree of plain files in one directory.
pub fn of_files(files: &[(&str, &[u8])]) -> Tree {
    files.iter().map(|(name, data)| (PathBuf::from(name), Node::File(data.to_vec()))).collect()
}

/// The paths at which two trees differ, with how; empty if they are the same.
pub fn difference(left: &Tree, right: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for path in left.keys().chain(right.keys().filter(|path| !left.contains_key(*path))) {
        match (left.get(path), right.get(path)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(Node::File(a)), Some(Node::File(b))) => {
                let at = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len()));
                lines.push(format!(
                    "{}: {} and {} bytes, first difference at {at}",
                    path.display(),
                    a.len(),
                    b.len()
                ));
            }
            (a, b) => lines.push(format!("{}: {} / {}", path.display(), kind(a), kind(b))),
        }
    }
    lines
}

fn kind(node: Option<&Node>) -> &'static str {
    match node {
        None => "missing",
        Some(Node::Directory) => "a directory",
        Some(Node::File(_)) => "a file",
        Some(Node::Link(_)) => "a link",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_tree_reads_back_and_differences_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = of_files(&[("a", b"one"), ("b", b"")]);
        tree.insert("sub".into(), Node::Directory);
        tree.insert("sub/x".into(), Node::File(b"deep".to_vec()));
        tree.insert("way".into(), Node::Link("sub/x".into()));
        write(&tree, dir.path()).unwrap();
        let mut again = read(dir.path()).unwrap();
        assert_eq!(difference(&tree, &again), Vec::<String>::new());
        again.insert("a".into(), Node::File(b"onE".to_vec()));
        again.remove(Path::new("way"));
        assert_eq!(
            difference(&tree, &again),
            ["a: 3 and 3 bytes, first difference at 2", "way: a link / missing"]
        );
    }
}
