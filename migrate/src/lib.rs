//! Live migration.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod activation;
mod book;
pub mod crypto;
pub mod destination;
mod error;
mod fingerprint;
pub mod flow;
mod handshake;
mod link;
pub mod message;
pub mod policy;
pub mod source;
mod table;
mod unit;
pub mod vault;
pub mod wire;

pub use activation::{Activation, Commit, NotSealed};
pub use destination::Destination;
pub use error::{Ended, Event, Step, StepError};
pub use handshake::Terms;
pub use link::{Link, MAX_RECORDS, RecordError};
pub use rand_core::CryptoRng;
pub use source::Source;
pub use table::{Full, Slot, Storage};
pub use unit::{Content, Extent, LARGE_BYTES, Place, Round, SMALL_BYTES, Unit};

/// Where a unit's content begins in the frame it is sealed in.
pub const DATA_OFFSET: usize = wire::HEADER_BYTES + wire::UNIT_BYTES;
