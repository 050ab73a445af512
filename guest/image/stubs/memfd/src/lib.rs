//! Empty: see the `[patch.crates-io]` section of the guest image's Cargo.toml.
#![no_std]
