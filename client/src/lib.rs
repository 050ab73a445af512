//! Client of Nacre's nodes: verifies what a CVM proves about itself, and talks to it sealed.
//!
//! * [`http`]: the way to a node; [`node`]: what it offers for sealed CVMs. Nothing that a node says is believed.
//! * [`session`]: evidence, verified under a policy, and only then a session; calls, installations, removals.
//! * [`release`]: sealed code with its key and secrets; [`deploy`]: bringing it into a CVM.
//! * [`store`] and [`broker`]: the key broker, which does that for every CVM that its owner's policy accepts.
//! * [`keys`]: files with signing keys. `tunnel` (feature `tls`): connections to sealed services.
//!
//! ```text
//! client                                   node                          CVM
//!   | POST /v1/sealed/evidence  nonce        |                             |
//!   |--------------------------------------->|---------------------------->|
//!   |            evidence(nonce, public key) |                             |
//!   |<---------------------------------------|<----------------------------|
//!   | verify(policy): rejected -> SessionError::Rejected, nothing was sent |
//!   | POST /v1/sealed/records   sealed to the public key                   |
//!   |--------------------------------------->|---------------------------->|
//!   |<---------------------------------------|<----------------------------|  sealed answer
//! ```
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use nacre_client::{Expectations, Node, Policy, SealedSession};
//!
//! let node = Node::http("http://127.0.0.1:3233")?.with_credentials("UUID:KEY");
//! let policy = Policy::from_toml(&std::fs::read_to_string("policy.toml")?)?;
//! let mut session = SealedSession::open(&node, &policy, &Expectations::new()).await?;
//! let outcome = session.call("hash", b"what nobody else may see").await?;
//! println!("{}", String::from_utf8_lossy(&outcome.stdout));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod broker;
pub mod deploy;
pub mod http;
pub mod keys;
pub mod node;
pub mod release;
pub mod session;
pub mod store;
#[cfg(feature = "tls")]
pub mod tunnel;

mod files;
mod outcome;

pub use deploy::{DeployError, Deployed, deploy};
pub use files::read_private;
pub use http::{Node, NodeError};
pub use nacre_attest::ed25519_dalek::{SigningKey, VerifyingKey};
pub use nacre_attest::manifest::{Manifest, Mode, SignedManifest};
pub use nacre_attest::policy::Policy;
pub use nacre_attest::verify::Verdict;
pub use nacre_session::command::{Invoke, Limits, ModuleKind, Priority};
pub use nacre_session::reply::{ExitKind, Refusal};
pub use outcome::{Installed, Outcome};
pub use release::{Code, Release, ReleaseSpec, Service};
pub use session::{Expectations, SealedSession, SessionError};
pub use store::Store;

use rand_core::UnwrapErr;

/// The system's generator of random numbers. Without one nothing here can be done: it ends the process then.
pub(crate) fn random() -> UnwrapErr<getrandom::SysRng> {
    UnwrapErr(getrandom::SysRng)
}

/// Random bytes.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand_core::Rng::fill_bytes(&mut random(), &mut bytes);
    bytes
}
