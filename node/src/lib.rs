//! The node: functions and services behind one daemon. `nacre node start` calls [`run`].
//!
//! A request travels through here as: [`http`] (socket, key, body -> typed request) -> [`invoke`] (limits, activation)
//! -> [`runner`] (the tenant's CVM) -> back, and into the [`store`].
//!
//! * [`config`]: what a node is started with. [`nacre_node_api`]: what strangers write, read into types that can't be wrong.
//! * [`store`]: everything durable: an embedded database, and files for modules.
//! * [`tenants`]: who may do what: keys, limits, and what of them is in use now.
//! * [`compile`]: modules become code in child processes, bounded and in fair order.
//! * [`platform`]: who signs reports of its CVMs.
//! * [`runner`]: one CVM per tenant; the only module that knows the VMM. [`services`]: programs that run all the time.
//! * [`migration`]: tenants that move between nodes.
//! * [`peers`]: other nodes: who they are, which are trusted, and the way to them.
//! * [`metrics`]: what is counted. [`daemon`]: start, signals, end.
#![forbid(unsafe_code)]

pub mod compile;
pub mod config;
pub mod daemon;
pub mod http;
pub mod invoke;
pub mod metrics;
pub mod migration;
pub mod peers;
pub mod platform;
pub mod runner;
pub mod services;
pub mod store;
pub mod tenants;

pub use nacre_node_api::{limits, names, outcome, records};

pub use config::{Backend, NodeConfig};
pub use daemon::{Addresses, StartError, run};

// The smaller crate repeats these, so that it need not know the compiler.
const _: () = assert!(
    limits::MIN_MEMORY_BYTES == nacre_compile::size::MIN_MEMORY_BYTES
        && limits::MAX_MEMORY_BYTES == nacre_compile::size::MAX_MEMORY_BYTES
);
