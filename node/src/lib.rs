//! The node: functions and services behind one daemon. `nacre node start` calls [`run`].
//!
//! A request travels through here as: [`http`] (socket, key, body -> typed request) -> [`invoke`] (limits, activation)
//! -> [`runner`] (the tenant's CVM) -> back, and into the [`store`].
//!
//! * [`config`]: what a node is started with. [`names`], [`limits`], [`records`]: types that can't be wrong.
//! * [`store`]: everything durable: an embedded database, and files for modules.
//! * [`tenants`]: who may do what: keys, limits, and what of them is in use now.
//! * [`compile`]: modules become code in child processes, bounded and in fair order.
//! * [`runner`]: one CVM per tenant; the only module that knows the VMM. [`services`]: programs that run all the time.
//! * [`metrics`]: what is counted. [`daemon`]: start, signals, end.
#![forbid(unsafe_code)]

pub mod compile;
pub mod config;
pub mod daemon;
pub mod http;
pub mod invoke;
pub mod limits;
pub mod metrics;
pub mod names;
pub mod outcome;
pub mod records;
pub mod runner;
pub mod services;
pub mod store;
pub mod tenants;

pub use config::{Backend, NodeConfig};
pub use daemon::{StartError, run};
