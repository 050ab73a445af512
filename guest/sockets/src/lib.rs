//! The connection table of one program in the guest: what its sockets are, without the machine.
//!
//! One task owns a [`Table`]: it feeds it the host's messages ([`Table::receive`]) and calls it for the program's calls.
//! What the table wants to say goes to a [`Link`]. Nothing here blocks, waits or is shared; all of it is ordinary memory of
//! the tenant arena, byte offsets of both directions included, so it moves with its program.
//!
//! The host is hostile: a message that breaks the rules of [`nacre_abi::socket`] resets the connection it names, one about
//! a number that is not in the table is dropped. Memory is bounded: by the window of each connection, by a budget that
//! windows are made of, and by how many connections there can be.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod connection;
mod table;

pub use table::{Link, Message, Table};

#[cfg(test)]
mod tests;
