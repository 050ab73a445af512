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
//! tenant has left they are an *origin* at whichever host has the guest, named by 16 random bytes. A *link* ([`link`]) joins
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

pub(crate) mod concern;
pub mod frame;
pub mod link;
pub(crate) mod origin;
pub mod roster;

#[cfg(test)]
mod tests;

use crate::cvm::{Cvm, CvmError};
use crate::events::Events;
use crate::program::ProgramId;
use crate::tables::Tables;
pub use link::Break;
use link::Link;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

pub use roster::{NoRoster, Roster};

/// Names the tables of one CVM, for as long as anything of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginId(pub [u8; 16]);

/// A program that came with its tenant: [`Program::adopted`] makes a handle of it, or [`Cvm::connector`] and [`Cvm::consumed`] do for who
/// keeps its CVM otherwise.
pub struct Adopted {
    /// Its number, which is the one it had.
    pub id: ProgramId,
    /// What happens to it, from where the events of the other host ended.
    pub events: Events,
    /// Whether it can be connected to.
    pub listens: bool,
}

/// What another host has of the tenant that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// Its name.
    pub origin: OriginId,
    /// Connections of its clients.
    pub connections: usize,
    /// Calls that it waits for.
    pub calls: usize,
    /// Streams that its link has had.
    pub streams: u64,
}

/// What stayed behind when a tenant left: connections and calls, which end when this is dropped.
pub struct Kept(Arc<Tables>);

impl Kept {
    /// Its name, by which the host with the tenant [accepts](Cvm::accept_link) its stream.
    pub fn origin(&self) -> OriginId {
        self.0.origin
    }

    /// Goes on over `stream`, whose other end the host with the tenant accepts; again when a stream broke, or the tenant moved on. Nothing is lost in
    /// between. Until the first one everything waits.
    ///
    /// `on_break` is told when this stream is of no use any more; it may be called from any thread, and must not wait for anything or use
    /// this value.
    ///
    /// # Errors
    /// The kernel's, or that there is no need: the tenant is back in this process.
    pub fn attach(
        &self,
        stream: UnixStream,
        on_break: impl Fn(Break) + Send + Sync + 'static,
    ) -> io::Result<()> {
        let link = self.0.link().ok_or_else(|| io::Error::other("the tenant is not at another host"))?;
        link.attach(stream, Box::new(on_break))
    }

    /// Whether the tenant is at another host: if not it is back, and no stream is needed.
    pub fn is_distant(&self) -> bool {
        self.0.link().is_some()
    }

    /// Whether nobody waits for anything any more: then it can be dropped.
    pub fn is_done(&self) -> bool {
        !self.0.is_needed()
    }

    /// Connections whose clients are here, and calls that are waited for.
    pub fn counts(&self) -> (usize, usize) {
        (self.0.connections.open_here(), self.0.calls.in_flight())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

impl Cvm {
    /// Source, once all tasks are parked ([`MoveNews::Parked`](crate::migration::MoveNews::Parked)): nothing more goes to the guest, and new
    /// connections, calls, modules and programs are refused or wait. Returns what the destination's host must know if the tenant goes;
    /// [`go_on`](Self::go_on) or [`leave`](Self::leave) must follow.
    pub fn hold(&self) -> Roster {
        Roster { next_evidence: self.attestation.next_number(), ..self.tables.hold() }
    }

    /// Source, after the migration was aborted: what was held goes to the guest, in order.
    pub fn go_on(&self) {
        self.tables.go_on();
    }

    /// Source, after [`MoveNews::Commit`](crate::migration::MoveNews::Commit): the tenant is not here any more. Programs' users find that it
    /// [moved](CvmError::Moved); what was held, and what is said from here on, waits for [`Kept::attach`]. The CVM may be dropped, what is
    /// returned lives on. Tables that the tenant left here before have to be attached anew too, to where it is now.
    pub fn leave(&self) -> Kept {
        self.tables.leave();
        self.attestation.close();
        Kept(self.tables.clone())
    }

    /// Destination, when the source's Commit is here and before its guest is given it: takes over what the roster says. `kept` are those of this
    /// process: if the tenant left some of them it is back, and they are joined to it at once. Returns the programs that run.
    ///
    /// # Errors
    /// [`CvmError::Migration`] if this CVM has run or adopted anything.
    pub fn adopt(&self, roster: &Roster, kept: &[&Kept]) -> Result<Vec<Adopted>, CvmError> {
        let kept: Vec<Arc<Tables>> = kept.iter().map(|kept| kept.0.clone()).collect();
        let newcomers = self.tables.adopt(roster, &kept).ok_or_else(|| {
            CvmError::Migration("this CVM has run something: a tenant can come to a fresh one only".into())
        })?;
        self.attestation.go_on_from(roster.next_evidence);
        Ok(newcomers)
    }

    /// Destination: the stream of an origin's [`Kept::attach`]. The same for one that replaces it. `on_break` as there.
    ///
    /// # Errors
    /// The kernel's; `NotFound` if nothing is known of this origin.
    pub fn accept_link(
        &self,
        origin: OriginId,
        stream: UnixStream,
        on_break: impl Fn(Break) + Send + Sync + 'static,
    ) -> io::Result<()> {
        accept_link(&self.tables, origin, stream, Box::new(on_break))
    }

    /// Destination: an origin will never be heard of again, because its process has ended or its link [can't](Break::is_final) go on. The guest is
    /// told that its connections failed and its calls are cancelled.
    pub fn lose(&self, origin: OriginId) {
        self.tables.lose(origin);
    }

    /// What other hosts have of the tenant that is here.
    pub fn relayed(&self) -> Vec<Relayed> {
        relayed(&self.tables)
    }

    /// Whether the tenant has left.
    pub fn has_left(&self) -> bool {
        self.tables.has_left()
    }
}

fn accept_link(
    tables: &Tables,
    origin: OriginId,
    stream: UnixStream,
    on_break: link::OnBreak,
) -> io::Result<()> {
    let origins = tables.origins();
    let link = origins.iter().find(|one| one.id == origin).and_then(|one| one.link());
    let link: &Arc<Link> = link.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "no tenant here has left anything at the host that calls")
    })?;
    link.attach(stream, on_break)
}

fn relayed(tables: &Tables) -> Vec<Relayed> {
    let of = |origin: &Arc<origin::Origin>| Relayed {
        origin: origin.id,
        connections: tables.connections.relayed(origin),
        calls: tables.calls.numbers_of(origin).len(),
        streams: origin.link().map_or(0, |link| link.streams()),
    };
    tables.origins().iter().map(of).collect()
}
