//! Launches CVMs and runs programs in them: the untrusted side.
//!
//! * [`image`]: the guest images that are built into this crate.
//! * [`launch`]: from an image and launch parameters to initial memory and vCPU states; pure, so that it can be measured.
//! * [`memory`]: private memory, which nobody can read or write after launch, and the shared window.
//! * [`kvm`]: the machine. [`vcpu`]: one thread per vCPU.
//! * [`cvm`]: a running CVM. [`link`]: messages to and from its guest. [`program`]: programs in it, and
//!   [`events`]: what happens to them. [`calls`]: modules that are loaded once, and calls of them.
//! * [`evidence`]: reports and offers of sessions, and the measurement of a launch.
//! * [`socket`]: TCP connections to programs that listen.
//! * [`tunnel`]: what stays behind when a tenant moves, and the way from there to its guest.
//! * [`tables`]: what is known of connections, calls and programs, together.
//! * [`elastic`]: which workers run on which physical CPUs, and when.
//!
//! * [`hooks`]: where a test of the guest takes the host's place.
//!
//! `unsafe` is in [`memory`], [`kvm`], [`vcpu`] and one function of [`socket`] only.

pub mod calls;
pub mod cvm;
pub mod elastic;
pub mod events;
pub mod evidence;
pub mod hooks;
pub mod image;
pub mod kvm;
mod last_words;
pub mod launch;
pub mod link;
mod measure;
pub mod memory;
pub mod migration;
pub mod program;
pub mod socket;
pub mod tables;
pub mod tunnel;
pub mod vcpu;

pub use calls::{Call, CallError, CallHandle, CallResult, MAX_POSTED_CODE_BYTES, Module};
pub use cvm::{Cvm, CvmConfig, CvmError};
pub use elastic::{CpuConfig, CpuLimits, CpuManager, ElasticConfig};
pub use nacre_abi::message::GuestStats;
