//! What the end-to-end tests and `cargo xtask` share: the cache of third-party programs and the recipes that fill it
//! ([`cache`], [`registry`], [`programs`]), our own programs ([`apps`]), and running one program under Nacre and under
//! the reference engine with the same input ([`job`], [`live`]), and the key-value store's native build with a client for
//! it ([`kv`]), nodes that tenants move between ([`cluster`]), clients that keep the books ([`auditor`]), a host that does not run a vCPU ([`frozen`]), and
//! choices that a seed repeats ([`random`]). The tests themselves are in `tests/tests/`.
#![forbid(unsafe_code)]

pub mod apps;
pub mod auditor;
pub mod cache;
pub mod cluster;
pub mod frozen;
pub mod job;
pub mod kv;
pub mod live;
pub mod memory;
pub mod node;
pub mod programs;
pub mod random;
pub mod registry;
pub mod skip;
pub mod tree;

use std::path::{Path, PathBuf};

/// The repository's root folder.
///
/// # Panics
/// If this package is not one folder below it.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository's root").to_path_buf()
}

/// Whether the tests that are too long for CI are wanted (`cargo xtask test --long`).
pub fn long() -> bool {
    std::env::var_os("NACRE_LONG").is_some_and(|value| value == "1")
}
