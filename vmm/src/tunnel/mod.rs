//! What stays behind when a tenant moves: clients' connections and calls that somebody waits for end at the host where they began,
//! while the guest that serves them is another host's. Here their messages cross between the two, each once and in order.
//!
//! ```text
//! source host A                                            destination host B
//! MoveNews::Parked    Cvm::hold() -> Roster     ------->   Roster::decode
//! (Aborted            Cvm::go_on())
//! MoveNews::Commit    Cvm::leave() -> Kept      ------->   Cvm::adopt(roster), then Moving::commit(..)
//!                     Kept::attach(stream)      <------>   Cvm::accept_link(origin, stream)
//! ```
//!
//! **Words.** *Tables* ([`Tables`](crate::tables::Tables)) are what a host knows of connections, calls and programs of one CVM. They outlive it: once the
//! tenant has left they are an [`Origin`](origin::Origin) at whichever host has the guest, named by 16 random bytes. A *link* ([`link`]) joins
//! the two over a byte stream, which may break and be replaced. A [`Roster`] is what the new host must know before its guest says
//! a word.
//!
//! **Who has what.** Programs and their standard streams move: the new host gets handles, and the old one's say
//! [`CvmError::Moved`]. Connections, calls and modules stay with the tables that numbered them: what the guest says of
//! them goes to their origin, where it is checked as ever, and what the origin says goes to the guest, if it is about something that
//! is the origin's. The new host numbers what it makes itself so that nothing collides: slots that are in use are no one
//! else's until both sides have said their last word, numbers of calls until their origin says `CallDone` (which it never says
//! to a guest), programs and modules are counted on. A module whose last handle is dropped at its origin is dropped in the guest; calls under way keep its code.
//!
//! **Exactly once.** What lies unread on the old guest's ring, or waits for room there, is in the roster and goes to the new
//! guest first of all. What is said after [`Cvm::hold`] waits, and goes to the old guest ([`Cvm::go_on`]) or through the link
//! ([`Cvm::leave`]). On a link messages are numbered and acknowledged: see [`frame`].
//!
//! **One hop.** When the tenant moves on, from B to C, B's roster has the state of A's link in it: what was received and what was not
//! acknowledged. A attaches its end to C and both go on. If it moves back to A, whose tables are still there
//! ([`Kept`]), `adopt` joins these to the new CVM without a link.

pub mod frame;

pub use crate::cvm::CvmError;

/// Names the tables of one CVM, for as long as anything of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginId(pub [u8; 16]);
