//! The context file: which node, and the credentials of its tenants. Only this user may read it.

use crate::cache::write_atomically;
use crate::failure::Failure;
use crate::program::io_reason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// One tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// URL of the node.
    pub node: String,
    /// `uuid:key`.
    pub auth: String,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Context {
    /// The tenant that is meant when none is named.
    pub current: Option<String>,
    /// By name.
    pub tenants: BTreeMap<String, Entry>,
}

/// `$NACRE_CONTEXT`, else `$XDG_CONFIG_HOME/nacre/context.json`, else `~/.config/nacre/context.json`.
#[must_use]
pub fn path() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("NACRE_CONTEXT").or_else(|| {
        let config = var("XDG_CONFIG_HOME").filter(|dir| dir.is_absolute());
        Some(config.or_else(|| var("HOME").map(|home| home.join(".config")))?.join("nacre/context.json"))
    })
}

impl Context {
    /// Reads the file; nothing if there is none.
    ///
    /// # Errors
    /// If it can't be read, is damaged, or others may read it.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let failure = |why: String| Failure::new(path.display(), why);
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failure(format!("{}; check its permissions", io_reason(&error)))),
        };
        let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o077 != 0 {
            return Err(failure("holds keys and is open to other users; chmod 600 it".to_owned()));
        }
        serde_json::from_slice(&text)
            .map_err(|error| failure(format!("is damaged ({error}); remove it and add the tenants again")))
    }

    /// Writes the file, for this user only.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let failure = |error: std::io::Error| {
            Failure::new(
                path.display(),
                format_args!("{}; set NACRE_CONTEXT to another file", io_reason(&error)),
            )
        };
        if let Some(dir) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failure)?;
        }
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        write_atomically(path, &text, 0o600).map_err(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_private_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.json");
        assert_eq!(Context::read(&path).unwrap(), Context::default());
        let entry = Entry { node: "http://a:1".into(), auth: "u:k".into() };
        let context = Context { current: Some("t".into()), tenants: [("t".to_owned(), entry)].into() };
        context.write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Context::read(&path).unwrap(), context);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Context::read(&path).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(Context::read(&path).unwrap_err().to_string().contains("damaged"));
    }
}
