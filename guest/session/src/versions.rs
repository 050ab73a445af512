//! Which version of each name a CVM has seen, so that none comes back.

use crate::reply::Refusal;
use alloc::collections::BTreeMap;
use alloc::string::String;

/// The newest version of each name that was ever installed in this CVM. Names stay after they are removed, or a removal
/// would make room for an older version.
#[derive(Default)]
pub struct Versions {
    /// With the package of that version, `None` once it was removed.
    names: BTreeMap<String, (u64, Option<[u8; 32]>)>,
}

impl Versions {
    /// Names that are remembered.
    pub const MAX_NAMES: usize = 4096;

    /// None yet.
    pub const fn new() -> Versions {
        Versions { names: BTreeMap::new() }
    }

    /// Whether this version of `name`, with this package, may be installed. The same one again may, unless it was removed.
    ///
    /// # Errors
    /// `OlderVersion` with the newest one, `SameVersion`, `TooMany`, each with the value that a reply carries.
    pub fn check(&self, name: &str, version: u64, package: &[u8; 32]) -> Result<(), (Refusal, u64)> {
        match self.names.get(name) {
            Some((newest, _)) if version < *newest => Err((Refusal::OlderVersion, *newest)),
            Some((newest, known)) if version == *newest && known.as_ref() != Some(package) => {
                Err((Refusal::SameVersion, *newest))
            }
            None if self.names.len() >= Self::MAX_NAMES => Err((Refusal::TooMany, Self::MAX_NAMES as u64)),
            _ => Ok(()),
        }
    }

    /// Remembers an installation that succeeded.
    ///
    /// # Errors
    /// Those of [`check`](Self::check); then nothing changes.
    pub fn installed(&mut self, name: &str, version: u64, package: &[u8; 32]) -> Result<(), (Refusal, u64)> {
        self.check(name, version, package)?;
        self.names.insert(name.into(), (version, Some(*package)));
        Ok(())
    }

    /// Remembers that this version of `name` was removed, or is not to come: an order to install it that was held back is refused.
    ///
    /// # Errors
    /// `OlderVersion` with the newest one, `TooMany`; then nothing changes.
    pub fn removed(&mut self, name: &str, version: u64) -> Result<(), (Refusal, u64)> {
        match self.names.get(name) {
            Some((newest, _)) if version < *newest => Err((Refusal::OlderVersion, *newest)),
            None if self.names.len() >= Self::MAX_NAMES => Err((Refusal::TooMany, Self::MAX_NAMES as u64)),
            _ => {
                self.names.insert(name.into(), (version, None));
                Ok(())
            }
        }
    }
}
