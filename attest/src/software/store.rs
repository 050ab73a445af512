//! A software platform's files: `platform.pem` with root and intermediate authority, `node-NAME.pem` for each node; key and
//! certificate of each in one file, so that they can't be apart. Files are 0600, written whole or not at all.

use super::issue::{Issued, belongs};
use super::{NodeKey, Root, Signer, SoftwareError};
use der::pem::{self, LineEnding};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const KEY: &str = "PRIVATE KEY";
const CERTIFICATE: &str = "CERTIFICATE";
const PLATFORM_FILE: &str = "platform.pem";
/// Largest file that is read.
const MAX_BYTES: u64 = 64 << 10;

/// A software platform in a folder.
#[derive(Debug)]
pub struct SoftwarePlatform {
    dir: PathBuf,
    root: Root,
}

impl SoftwarePlatform {
    /// Makes a new one in a folder, which is made (0700) if it is not there.
    ///
    /// # Errors
    /// If there is one already, or it can't be written.
    pub fn init(dir: &Path) -> Result<SoftwarePlatform, SoftwareError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| SoftwareError::File { path: dir.to_path_buf(), error })?;
        let root = Root::generate()?;
        let path = dir.join(PLATFORM_FILE);
        if !write_new(&path, &bundle(&[&root.root, &root.intermediate])?)? {
            return Err(SoftwareError::Exists(path));
        }
        Ok(SoftwarePlatform { dir: dir.to_path_buf(), root })
    }

    /// Opens the one in a folder.
    ///
    /// # Errors
    /// If there is none, or its file is damaged or readable by others.
    pub fn open(dir: &Path) -> Result<SoftwarePlatform, SoftwareError> {
        let path = dir.join(PLATFORM_FILE);
        let [root, intermediate] = read(&path)?;
        Ok(SoftwarePlatform { dir: dir.to_path_buf(), root: Root { root, intermediate } })
    }

    /// A node's signer. Its key is issued and stored the first time.
    ///
    /// # Errors
    /// If the name is none, or the node's file is damaged, readable by others, or can't be written.
    pub fn signer(&self, node: &str) -> Result<Signer, SoftwareError> {
        // The name is judged before it becomes part of a path.
        let fresh = self.root.issue_vcek(node)?;
        let path = self.dir.join(format!("node-{node}.pem"));
        let issued = Issued { key: fresh.key().to_vec(), certificate: fresh.certificate().to_vec() };
        let key = if write_new(&path, &bundle(&[&issued])?)? {
            fresh
        } else {
            let [stored] = read(&path)?;
            NodeKey::new(node, stored)?
        };
        let above = self.root.above();
        let chain = [key.certificate(), &above[0], &above[1]];
        let chip_id = crate::software_mark::chip_id(node);
        match crate::chain::Chain::verify(&chain) {
            Ok(chain) if chain.leaf.chip_id == Some(chip_id) => Signer::new(&key, above),
            _ => Err(SoftwareError::Content(path)),
        }
    }

    /// SHA-256 of the root certificate: what policies pin in `software_roots`.
    pub fn root_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.root.root.certificate).into()
    }
}

fn bundle(all: &[&Issued]) -> Result<String, SoftwareError> {
    let mut text = String::new();
    for issued in all {
        for (label, der) in [(KEY, &issued.key), (CERTIFICATE, &issued.certificate)] {
            let block = pem::encode_string(label, LineEnding::LF, der);
            text.push_str(&block.map_err(|_| SoftwareError::Crypto("encode a file"))?);
        }
    }
    Ok(text)
}

/// Writes a file that is not there yet; `false` if it is. Two callers at once: one of them writes it, whole.
fn write_new(path: &Path, text: &str) -> Result<bool, SoftwareError> {
    let failed = |error| SoftwareError::File { path: path.to_path_buf(), error };
    if path.exists() {
        return Ok(false);
    }
    let mut random = [0; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)
        .map_err(|_| SoftwareError::Crypto("name a file"))?;
    let part = path.with_extension(format!("{:016x}.part", u64::from_le_bytes(random)));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&part, path)
    };
    let written = write();
    // Whatever became of it; the link, if there is one, stays.
    let removed = fs::remove_file(&part);
    match written {
        Ok(()) => removed.map(|()| true).map_err(failed),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// Reads pairs of key and certificate.
fn read<const N: usize>(path: &Path) -> Result<[Issued; N], SoftwareError> {
    let failed = |error| SoftwareError::File { path: path.to_path_buf(), error };
    let wrong = || SoftwareError::Content(path.to_path_buf());
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.permissions().mode() & 0o077 != 0 {
        return Err(SoftwareError::Permissions(path.to_path_buf()));
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    let mut blocks = Vec::new();
    for block in text.split_inclusive("-----\n").collect::<Vec<_>>().chunks(2) {
        let block = block.concat();
        let (label, der) = pem::decode_vec(block.as_bytes()).map_err(|_| wrong())?;
        blocks.push((label.to_string(), der));
    }
    let mut pairs = Vec::new();
    for pair in blocks.chunks(2) {
        let [(first, key), (second, certificate)] = pair else { return Err(wrong()) };
        if first != KEY || second != CERTIFICATE {
            return Err(wrong());
        }
        let issued = Issued { key: key.clone(), certificate: certificate.clone() };
        if !belongs(&issued) {
            return Err(wrong());
        }
        pairs.push(issued);
    }
    pairs.try_into().map_err(|_| wrong())
}
