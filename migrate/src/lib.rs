//! Live migration of a CVM's tenant: the protocol, both ends, without a machine.
//!
//! Two guests do the work, because only they may see memory; everything between them is hostile and carries ciphertext. It may stop, drop, delay,
//! repeat, reorder, change and replay, and learns the names of migrations, kinds, lengths and times of frames, and no more. Nothing here
//! does I/O, allocates (but for evidence), or takes a lock: frames come and go as bytes, secrets and tables lie where the caller puts them
//! ([`vault`]), and each state is a value that a transition consumes.
//!
//! Who integrates it reads [`source`] and [`destination`]; a relay needs [`wire`] only. `docs/migration.md` is for operators, decision 0016 says
//! why it is as it is.
//!
//! # Messages
//!
//! ```mermaid
//! sequenceDiagram
//!     participant S as source guest
//!     participant N as nodes (hostile)
//!     participant D as destination guest
//!     S->>D: Offer { nonce, manifest, memory, CPU features, lanes }
//!     D->>S: Accept { nonce, key, evidence }
//!     Note over S: manifest's migration policy judges D
//!     S->>D: Proof { key, evidence }
//!     Note over D: the same policy judges S. Both: X25519, HKDF over the transcript
//!     D->>S: Ready
//!     loop rounds, tasks run
//!         S->>D: Data*, Piece*, Empty*, Barrier (each lane)
//!         D->>S: RoundReceived
//!     end
//!     Note over S: all tasks parked at safe points
//!     S->>D: Data*, Piece*, Empty*, Outstanding*, last Barrier (each lane)
//!     S->>D: Final { hash of the final manifest }
//!     Note over D: lanes verified, memory committed
//!     D->>S: Staged { the same hash }
//!     Note over S: Gone: tasks, roots and keys extinguished
//!     S->>N: Commit { activation key, for D alone }
//!     N->>D: Commit, as often as needed, the same bytes
//!     Note over D: activation key opens the roots: tasks run
//!     D->>S: Running, then Fetch { units } for what is outstanding
//!     S->>D: Data*
//!     D->>S: Complete
//!     Note over S: wipes what is left
//! ```
//!
//! `Abort { reason }` may be sent by either end up to Staged, by the source up to Gone. `Refusal` stands in for it before there are keys; it is in the
//! clear and proves nothing. After Staged the destination ends nothing by itself: the source may be gone already.
//!
//! # States
//!
//! ```text
//! source        offer        Accept, policy says yes    prove            Ready          start            park
//!   (Idle) ------------> Offered ------------> Proving ------> Confirming ----> Attested ------> Copying ------> Parked
//!                           |  policy says no                                               begin_round *          | finish
//!                           v                                                                                      v
//!     Aborted(reason) <-- cancel, Abort: everywhere up to and including Staged; the tenant is given back <---- AwaitStaged
//!                                                                                                                  | Staged
//!          Complete                  Complete             Running             go: extinguish the tenant            v
//!   Done <--------- Serving <------------------------------------ Gone <---------------------------------------- Staged
//!     ^-------------------------------Complete----------------------'          Commit comes into being
//!
//! destination   Offer, terms fit        prove              Proof, policy says yes      start              Final
//!   Fresh --------------------> Answering -----> Answered ----------------> Attested --------> Receiving -----> Verifying
//!     |  terms don't fit                            |  policy says no                                               | stage
//!     v                                             v                                                               v
//!   Destroyed(reason) <-- cancel, Abort, a refused unit, a table that differs: up to Verifying; Abort up to <---- Staged
//!     ^ lost                                                                                                        | Commit
//!     '---- Running <-----------------------------------------------------------------------------------------------'
//!              | complete: nothing is missing                       the activation key comes into being, is yielded once
//!              v
//!            Done
//! ```
//!
//! A message that is illegal in a state is an error that names both and changes nothing. One that was said before (after a control connection was
//! resumed) is [`Event::Repeated`]. What *cancel* means:
//!
//! | the source is | cancel | the tenant |
//! |---|---|---|
//! | Offered to Copying | Abort is sent if there are keys; all keys are wiped | never stopped |
//! | Parked, AwaitStaged, Staged | the same; the activation key is wiped, so what the destination has can never run | given back: its tasks go on |
//! | Gone or later | refused: the state comes back | is the destination's |
//!
//! # Frames
//!
//! Little-endian. One header for all, readable alone; what it announces is checked against its kind at once. A frame is at most [`wire::MAX_FRAME_BYTES`].
//!
//! ```text
//!  0  version u8 = 3     1  kind u8     2  connection u8     3  sender u8: 1 source, 2 destination
//!  4  bytes of the body u32             8  epoch u32        12  zero u32
//! 16  counter u64                      24  migration id [16]
//! 40  body
//!
//! connections   0 control, 1 demand, 0x10 + lane: rounds, 0x20 + lane: fetching. Lanes 0 to 7.
//!
//!  1 Offer        S control   in the clear   nonce [32] | SHA-256 of the manifest [32] | memory in bytes u64 | CPU features u64 | lanes u8 | zero [7] | hash of the image [32]
//!  2 Accept       D control   in the clear   nonce [32] | X25519 public key [32] | evidence, 1 byte to 64 KiB
//!  3 Proof        S control   in the clear   X25519 public key [32] | evidence, 1 byte to 64 KiB
//!  4 Refusal      * control   in the clear   reason u8 | zero [7]
//!  5 Resume       * any       sealed         nothing
//!  6 Control      * control   sealed         message u8 | its content | zeros up to 64:  1 Ready, 2 RoundReceived { round u32 },
//!                                            3 Final { hash [32] }, 4 Staged { hash [32] }, 5 Running, 6 Complete, 7 Abort { reason u8 }
//!  7 Data         S all but control  sealed  unit [24] (its last number: bytes that follow) | content
//!  8 Empty        S rounds    sealed         1 to 1024 units [24] (the last number: how many places), zeros or gone
//!  9 Outstanding  S rounds    sealed         the same, with data
//! 10 Barrier      S rounds    sealed         round u32 | 1 if the last u8 | zero [3] | units u64 | fingerprint u128 | zeros up to 64
//! 11 Fetch        D demand, fetching  sealed 1 to 1024 units [24] (the last number: 1)
//! 12 Commit       S control   sealed apart   activation key [32]
//! 13 Piece        S rounds    sealed         unit [24] (its last number: which piece, from 0) | 128 KiB of a large page
//!
//! unit           0 address u64: guest-virtual, or the number of a piece of state     8 generation u32     12 a number u32
//!               16 extent u8: 1 small page (4 KiB), 2 large page (2 MiB), 3 state     17 content u8: 1 data, 2 zero, 3 absent     18 zero [6]
//! reason         1 cancelled, 2 protocol, 3 memory, 4 mismatch, 5 peer, 6 manifest, 7 CPU, 8 unit, 9 image
//! sealed         AES-256-GCM(key, nonce = base nonce xor counter (big-endian, last 8 bytes),
//!                            aad = "nacre migration 3 record" | header | zero [32], text) | tag [16]
//! sealed apart   the same with the Commit's key, counter 0, and the hash of the final manifest in place of the zeros
//! ```
//!
//! A large page travels in sixteen *pieces*, in order, so that what is copied, sealed and opened stays in a core's cache; it is there when the last one is. If the connection
//! breaks it is sent again, whole, in a Data, as it always is when it is fetched: a destination puts pieces only where nothing of that generation can be.
//!
//! A list's places follow each other in their lane: small pages inside their large page, large pages every *lanes* x 2 MiB. A unit's description is part of the
//! sealed text: its address, generation, extent and content are authentic *and* hidden. Epoch and counter are zero in the clear and in a Commit.
//!
//! # Evidence
//!
//! Each end's report binds, as `attest`'s claims: label `nacre migration 3` (which ends in the version), role, own ephemeral key, the *peer's*
//! nonce, id = migration id [16] | *own* nonce [32], manifest hash, loaded code. The peer recomputes all of it but the code
//! ([`policy::Binding`]), and the manifest's migration policy judges the rest; both ends were launched with the same manifest, so it is one policy
//! for both. A destination that has loaded any code is refused: a receiver is a fresh CVM. It takes one offer in its life.
//!
//! A policy may list the images of several releases, and each would judge the other genuine. But stacks and statics hold addresses of the image's code: so the
//! offer names the source's image ([`Terms::image`]), and a destination of another one refuses:
//! SHA-256("nacre migration 3 image" | for each range that can't be written: address u64, bytes u64, content). Both are genuine by then, and so is what they say of themselves.
//!
//! # Keys
//!
//! ```text
//! transcript  t0 = SHA-256("nacre migration 3 transcript"), t = SHA-256(t | frame) for Offer, Accept, Proof, whole
//! root        HKDF-SHA256-Extract(salt = transcript, X25519)
//! secrets     Expand(root, "nacre migration 3 secret" | name), 32 bytes: control, pages, fetch, commit, table; then root is wiped
//! a key       Expand(secret of the connection, "nacre migration 3 key" | sender u8 | connection u8 | epoch u32), 32 + 12 bytes: key, base nonce
//! Commit      Expand(commit, nothing), 32 + 12 bytes; roots: Expand(activation key, "nacre migration 3 roots"), 32 + 12 bytes, counter 0
//! ```
//!
//! | secret | wiped at the source | and at the destination |
//! |---|---|---|
//! | X25519 private key | when the proof is made | when the proof is judged |
//! | pages, table | Gone | Running |
//! | commit, activation key | Gone, before the Commit is returned | Running; the key when its caller drops it |
//! | fetch | Gone if nothing was ever listed as outstanding, else Done | Done |
//! | control | Done | when its caller closes it |
//!
//! So a memory of the source after Gone opens no unit that was sent before it, and no Commit.
//!
//! # Counters, epochs, resending
//!
//! A receiver takes the next counter of the current epoch, nothing else. A connection that broke goes on in a new epoch: the source raises its own, sends
//! `Resume` as record 0 under the new key; the destination follows if that is authentic and higher than its own, and answers with its record 0; until
//! then the source seals nothing else. No answer: the next epoch is proposed. Epochs only rise and each has its own keys, so no counter comes twice with one key. 2^32 records an epoch.
//! What was lost is sent again as a new record: units that the destination has not confirmed by `RoundReceived`, requests that were not answered, and
//! what the state still owes on the control connection (Final; RoundReceived, Staged, Running, Complete). Only a Commit is byte for byte the same each
//! time; it needs no connection of its own, no epoch, and no source that is still alive.
//!
//! # Rounds, generations, the final manifest
//!
//! A unit's *generation* is the round it was last marked for. All records of a place travel on one lane, in order. The destination takes a
//! unit if its generation is newer than what is there and its round is open; the same again is dropped; older is refused ([`destination::UnitRefused`]).
//! A large page splits into small ones, or absorbs them, at the same record on both ends, so every address belongs to exactly one unit.
//!
//! At each barrier both ends compare count and *fingerprint* of all units (place, extent, generation, content; zeros included; the polynomial of decision 0016)
//! of the lane. The last barrier's are the final manifest: with what the lists added, they fix the newest generation of every unit, and which are outstanding. Its hash is
//! SHA-256("nacre migration 3 final" | transcript | last round u32 | for each lane: units u64, fingerprint u128). `Staged` repeats it; the Commit is bound to it. After the last barrier a destination
//! takes exactly the listed generation of a unit that is missing, once.
//!
//! While tasks are parked nothing is proportional to memory: what was confirmed in earlier rounds is in the fingerprint already.
//!
//! # Invariants, and what shows them
//!
//! | | by construction | shown by |
//! |---|---|---|
//! | at most one copy can run | `go` consumes the [`source::Tenant`]; the activation key leaves only in the Commit that `go` returns; it is yielded once | `tests/model.rs`, `tests/adversary.rs` |
//! | failure before Gone loses nothing | every such state owns the tenant and gives it back | the same |
//! | a lost Commit can come again | the same bytes, bound to one destination and one manifest | the same |
//! | nothing older is used | counters, generations, the fingerprint | the same, `src/ledger_tests.rs` |
//! | crashes lose it only inside the window | | `tests/model.rs` |
//! | after Gone nothing is left | types without a place for it; wiping | `tests/erase.rs`, the model |
//! | the tenant's heap is not touched while it is parked | nothing allocates | `tests/erase.rs` |
//!
//! `tests/mutants.rs` breaks the protocol in seven ways and sees the model notice.
//!
//! # Version rule
//!
//! The first byte is the version, and every label ends in it or has it before its purpose: no record, report or signature means anything in another version, so nobody can
//! be talked into an older one. Any change of bytes, labels, or the meaning of a number is a new version, and `tests/vectors.rs` fails on it.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod activation;
mod book;
pub mod channel;
pub mod crypto;
pub mod destination;
mod error;
mod fingerprint;
pub mod flow;
mod handshake;
#[cfg(test)]
mod ledger_tests;
mod link;
#[cfg(test)]
mod link_tests;
pub mod message;
#[cfg(test)]
mod piece_tests;
pub mod policy;
pub mod source;
mod table;
mod unit;
pub mod vault;
pub mod wire;

pub use activation::{Activation, Commit, NotSealed};
pub use destination::Destination;
pub use error::{Ended, Event, Step, StepError};
pub use handshake::{ImageHash, Terms};
pub use link::{Link, MAX_RECORDS, RecordError};
pub use rand_core::CryptoRng;
pub use source::Source;
pub use table::{Full, Slot, Storage};
pub use unit::{Content, Extent, LARGE_BYTES, PIECE_BYTES, PIECES, Place, Round, SMALL_BYTES, Unit};

/// Where a unit's content begins in the frame it is sealed in.
pub const DATA_OFFSET: usize = wire::HEADER_BYTES + wire::UNIT_BYTES;
