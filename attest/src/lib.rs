//! What evidence is and how it is judged: reports, certificate chains, claims, manifests, statements about code, policies,
//! verdicts. See `docs/evidence.md`.
//!
//! The core needs only `alloc`, because a guest judges its peers with it. The feature `std` adds policy files, the software
//! platform's issuer and output for people. No network anywhere: all is given as bytes.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod certificate;
pub mod chain;
pub mod claims;
pub mod code;
pub mod evidence;
#[cfg(feature = "std")]
pub mod files;
pub mod launch;
pub mod manifest;
pub mod package;
pub mod policy;
pub mod report;
#[cfg(feature = "std")]
pub mod show;
#[cfg(feature = "std")]
pub mod software;
pub mod software_mark;
pub mod tcb;
pub mod verify;
pub mod vmsa;
pub mod wire;

pub use ed25519_dalek;
