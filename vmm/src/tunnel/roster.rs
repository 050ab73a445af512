//! [`Roster`]: what a host must know of a tenant that comes to it, in bytes. Its author is another host, which is trusted with nothing but this
//! tenant: everything is bounded and checked when it is read.

use super::OriginId;
use super::link::{LinkState, Message};
use crate::link::Sender;
use nacre_abi::message::{HEADER_WORDS, Header};
use nacre_abi::socket::{ConnectionId, MAX_CONNECTIONS};

/// Bytes of a roster at most.
pub const MAX_ROSTER_BYTES: usize = 256 << 20;
/// First bytes of one, and its version.
const MAGIC: [u8; 8] = *b"NCROST\x01\x00";
/// Numbers of calls are below this.
pub const MAX_CALLS: u32 = 1 << 16;
/// Origins of one tenant at most: hosts where it has left something.
pub const MAX_ORIGINS: usize = 256;

/// What a host must know of a tenant that comes to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// Whose connections, calls and modules there are: the tables that the tenant leaves, then those it left before.
    pub origins: Vec<OriginEntry>,
    /// Programs.
    pub programs: Vec<ProgramEntry>,
    /// The number of the next program that the host makes.
    pub next_program: u32,
    /// The number of the last module.
    pub last_module: u32,
    /// The number of the next request for evidence.
    pub next_evidence: u32,
    /// What the guest has not read of what was sent, in order.
    pub unread: Vec<Message>,
}

/// What an origin has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginEntry {
    /// Its name.
    pub id: OriginId,
    /// How far the host that the tenant leaves is with its link to it.
    pub link: LinkState,
    /// Calls under way.
    pub calls: Vec<u32>,
    /// Modules.
    pub modules: Vec<u32>,
}

/// How far a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It was being loaded, and will not be started any more.
    Loading,
    /// It was started.
    Running,
    /// It is over, and that was told.
    Over,
}

/// One stream that a program writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputEntry {
    /// The offset of the next byte.
    pub next: u64,
    /// Where it ends, if the program has ended it.
    pub end: Option<u64>,
}

/// A program's standard input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputEntry {
    /// Bytes that were sent.
    pub sent: u64,
    /// Bytes that the program is known to have consumed.
    pub consumed: u64,
    /// Its end was sent.
    pub ended: bool,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramEntry {
    /// Its number.
    pub number: u32,
    /// How far it is.
    pub phase: Phase,
    /// Standard output and standard error.
    pub outputs: [OutputEntry; 2],
    /// Standard input.
    pub input: InputEntry,
    /// Its slots, by number, if it listens.
    pub slots: Option<Vec<SlotEntry>>,
}

/// A slot of a program that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotEntry {
    /// The number that is used, or the next one.
    pub id: ConnectionId,
    /// Who uses it, if somebody does.
    pub taken: Option<SlotUse>,
}

/// How a slot is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotUse {
    /// By which of [`Roster::origins`].
    pub origin: u16,
    /// It waits to be accepted no more.
    pub accepted: bool,
    /// The guest has said its last word.
    pub guest_done: bool,
    /// The origin has.
    pub host_done: bool,
}

/// What was read is no roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what the other host says of its tenant makes no sense ({0}): is it of another version?")]
pub struct NoRoster(pub &'static str);

const ACCEPTED: u8 = 1;
const GUEST_DONE: u8 = 2;
const HOST_DONE: u8 = 4;
const TAKEN: u8 = 8;

impl Roster {
    /// In bytes, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer(MAGIC.to_vec());
        for number in [self.next_program, self.last_module, self.next_evidence] {
            out.u32(number);
        }
        out.all(&self.origins, |out, origin| {
            out.0.extend_from_slice(&origin.id.0);
            out.u64(origin.link.next_in);
            out.u64(origin.link.first_out);
            out.all(&origin.link.unacknowledged, Writer::message);
            out.all(&origin.calls, |out, call| out.u32(*call));
            out.all(&origin.modules, |out, module| out.u32(*module));
        });
        out.all(&self.programs, Writer::program);
        out.all(&self.unread, Writer::message);
        out.0
    }

    /// Reads what [`encode`](Self::encode) wrote. Any input is fine.
    ///
    /// # Errors
    /// [`NoRoster`].
    pub fn decode(bytes: &[u8]) -> Result<Roster, NoRoster> {
        if bytes.len() > MAX_ROSTER_BYTES {
            return Err(NoRoster("it is too long"));
        }
        let mut from = Reader(bytes);
        if from.array::<8>()? != MAGIC {
            return Err(NoRoster("it begins with something else"));
        }
        let [next_program, last_module, next_evidence] = [from.u32()?, from.u32()?, from.u32()?];
        let origins = from.all(44, |from| {
            let id = OriginId(from.array()?);
            let [next_in, first_out] = [from.u64()?, from.u64()?];
            let unacknowledged = from.all(HEADER_WORDS * 8, Reader::message)?;
            first_out.checked_add(unacknowledged.len() as u64).ok_or(NoRoster("numbers overflow"))?;
            let (calls, modules) = (from.all(4, Reader::u32)?, from.all(4, Reader::u32)?);
            Ok(OriginEntry { id, link: LinkState { next_in, first_out, unacknowledged }, calls, modules })
        })?;
        let programs = from.all(61, Reader::program)?;
        let unread = from.all(HEADER_WORDS * 8, Reader::message)?;
        if !from.0.is_empty() {
            return Err(NoRoster("something follows it"));
        }
        let roster = Roster { origins, programs, next_program, last_module, next_evidence, unread };
        roster.check().map(|()| roster)
    }

    /// Whether the parts fit each other.
    fn check(&self) -> Result<(), NoRoster> {
        let unique = |numbers: &mut Vec<u32>| {
            numbers.sort_unstable();
            numbers.windows(2).all(|pair| pair[0] != pair[1])
        };
        let all = |of: fn(&OriginEntry) -> &Vec<u32>| self.origins.iter().flat_map(of).copied().collect();
        let (mut calls, mut modules): (Vec<u32>, Vec<u32>) =
            (all(|origin| &origin.calls), all(|origin| &origin.modules));
        let mut programs: Vec<u32> = self.programs.iter().map(|program| program.number).collect();
        let mut ids: Vec<OriginId> = self.origins.iter().map(|origin| origin.id).collect();
        ids.sort_unstable_by_key(|id| id.0);
        if self.origins.is_empty()
            || self.origins.len() > MAX_ORIGINS
            || ids.windows(2).any(|two| two[0] == two[1])
        {
            return Err(NoRoster("its origins"));
        }
        if !unique(&mut calls) || calls.last().is_some_and(|call| *call >= MAX_CALLS) || !unique(&mut modules)
        {
            return Err(NoRoster("its calls or modules"));
        }
        if !unique(&mut programs) || programs.last().is_some_and(|last| *last >= self.next_program) {
            return Err(NoRoster("its programs"));
        }
        for slots in self.programs.iter().filter_map(|program| program.slots.as_ref()) {
            let in_place = (0..).zip(slots).all(|(place, slot)| slot.id.slot() == place);
            let known =
                slots.iter().filter_map(|slot| slot.taken).all(|taken| usize::from(taken.origin) < ids.len());
            if slots.len() > MAX_CONNECTIONS as usize || !in_place || !known {
                return Err(NoRoster("its connections"));
            }
        }
        Ok(())
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn all<T>(&mut self, all: &[T], write: impl Fn(&mut Writer, &T)) {
        self.u32(all.len() as u32);
        all.iter().for_each(|one| write(self, one));
    }

    fn message(&mut self, (header, body): &Message) {
        let words = Header { len: body.len() as u32, ..*header }.encode();
        words.into_iter().for_each(|word| self.u64(word));
        self.0.extend_from_slice(body);
    }

    fn program(&mut self, program: &ProgramEntry) {
        self.u32(program.number);
        self.0.push(program.phase as u8);
        for output in program.outputs {
            self.u64(output.next);
            self.0.push(u8::from(output.end.is_some()));
            self.u64(output.end.unwrap_or(0));
        }
        self.u64(program.input.sent);
        self.u64(program.input.consumed);
        self.0.push(u8::from(program.input.ended));
        self.0.push(u8::from(program.slots.is_some()));
        self.all(program.slots.as_deref().unwrap_or_default(), |out, slot| {
            let taken = slot.taken.unwrap_or(SlotUse {
                origin: 0,
                accepted: false,
                guest_done: false,
                host_done: false,
            });
            out.u32(slot.id.0);
            out.0.extend_from_slice(&taken.origin.to_le_bytes());
            let flag = |set: bool, bit: u8| if set { bit } else { 0 };
            out.0.push(
                flag(taken.accepted, ACCEPTED)
                    | flag(taken.guest_done, GUEST_DONE)
                    | flag(taken.host_done, HOST_DONE)
                    | flag(slot.taken.is_some(), TAKEN),
            );
        });
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], NoRoster> {
        let (front, rest) = self.0.split_at_checked(count).ok_or(NoRoster("it is cut off"))?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NoRoster> {
        let (front, rest) = self.0.split_first_chunk::<N>().ok_or(NoRoster("it is cut off"))?;
        self.0 = rest;
        Ok(*front)
    }

    fn u32(&mut self) -> Result<u32, NoRoster> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, NoRoster> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, NoRoster> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(NoRoster("a flag")),
        }
    }

    /// So many of something that takes at least `least_bytes` each.
    fn all<T>(
        &mut self,
        least_bytes: usize,
        read: impl Fn(&mut Reader<'a>) -> Result<T, NoRoster>,
    ) -> Result<Vec<T>, NoRoster> {
        let count = self.u32()? as usize;
        if count > self.0.len() / least_bytes {
            return Err(NoRoster("it is cut off"));
        }
        (0..count).map(|_| read(self)).collect()
    }

    fn message(&mut self) -> Result<Message, NoRoster> {
        let words = [self.u64()?, self.u64()?, self.u64()?];
        let header = Header::decode(words).filter(|header| header.len as usize <= Sender::MAX_BODY);
        let header = header.ok_or(NoRoster("a message"))?;
        Ok((header, self.take(header.len as usize)?.to_vec()))
    }

    fn output(&mut self) -> Result<OutputEntry, NoRoster> {
        let (next, ended, end) = (self.u64()?, self.flag()?, self.u64()?);
        Ok(OutputEntry { next, end: ended.then_some(end) })
    }

    fn program(&mut self) -> Result<ProgramEntry, NoRoster> {
        let number = self.u32()?;
        let phase = match self.array()? {
            [0] => Phase::Loading,
            [1] => Phase::Running,
            [2] => Phase::Over,
            _ => return Err(NoRoster("a program's phase")),
        };
        let outputs = [self.output()?, self.output()?];
        let input = InputEntry { sent: self.u64()?, consumed: self.u64()?, ended: self.flag()? };
        let listens = self.flag()?;
        let slots = self.all(7, |from| {
            let (id, origin) = (ConnectionId(from.u32()?), u16::from_le_bytes(from.array()?));
            let [flags] = from.array()?;
            if flags >= TAKEN * 2 {
                return Err(NoRoster("a flag"));
            }
            let is = |bit: u8| flags & bit != 0;
            let taken = SlotUse {
                origin,
                accepted: is(ACCEPTED),
                guest_done: is(GUEST_DONE),
                host_done: is(HOST_DONE),
            };
            Ok(SlotEntry { id, taken: is(TAKEN).then_some(taken) })
        })?;
        Ok(ProgramEntry { number, phase, outputs, input, slots: listens.then_some(slots) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_abi::message::Kind;
    use proptest::prelude::*;

    fn full() -> Roster {
        let message =
            |kind, body: &[u8]| (Header { len: body.len() as u32, ..Header::new(kind, 2) }, body.to_vec());
        let origin = |id, calls: &[u32], modules: &[u32]| OriginEntry {
            id: OriginId([id; 16]),
            link: LinkState {
                next_in: 7,
                first_out: u64::from(id),
                unacknowledged: vec![message(Kind::SocketData, b"bytes")],
            },
            calls: calls.to_vec(),
            modules: modules.to_vec(),
        };
        let taken =
            |origin, host_done| Some(SlotUse { origin, accepted: true, guest_done: false, host_done });
        let slots = [taken(0, false), None, taken(1, true)];
        let slots = (0..).zip(slots).map(|(slot, taken)| SlotEntry { id: ConnectionId::new(slot, 5), taken });
        let program = |number, phase, slots| ProgramEntry {
            number,
            phase,
            outputs: [OutputEntry { next: 1, end: Some(9) }, OutputEntry { next: 2, end: None }],
            input: InputEntry { sent: 3, consumed: 2, ended: true },
            slots,
        };
        Roster {
            origins: vec![origin(1, &[3, 4], &[1]), origin(2, &[7], &[])],
            programs: vec![
                program(2, Phase::Running, Some(slots.collect())),
                program(5, Phase::Over, None),
                program(6, Phase::Loading, Some(Vec::new())),
            ],
            next_program: 7,
            last_module: 3,
            next_evidence: 4,
            unread: vec![message(Kind::StreamData, b""), message(Kind::SocketClose, b"x")],
        }
    }

    #[test]
    fn a_roster_survives_a_round_trip_and_no_cut() {
        let bytes = full().encode();
        assert_eq!(Roster::decode(&bytes), Ok(full()));
        for cut in 0..bytes.len() {
            assert!(Roster::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(Roster::decode(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let wrong: [fn(&mut Roster); 7] = [
            |roster| roster.origins.clear(),
            |roster| roster.origins[1].id = roster.origins[0].id,
            |roster| roster.origins[1].calls = vec![3],
            |roster| roster.origins[1].calls = vec![MAX_CALLS],
            |roster| roster.next_program = 6,
            |roster| {
                roster.programs[0].slots = Some(vec![SlotEntry { id: ConnectionId::new(1, 0), taken: None }])
            },
            |roster| roster.origins.truncate(1),
        ];
        for (number, change) in wrong.iter().enumerate() {
            let mut roster = full();
            change(&mut roster);
            assert!(Roster::decode(&roster.encode()).is_err(), "{number}");
        }
    }

    proptest! {
        #[test]
        fn a_roster_that_was_changed_is_read_or_refused(at in 0usize..500, byte in any::<u8>(), cut in 0usize..500) {
            let mut bytes = full().encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Roster::decode(&bytes);
            bytes.truncate(cut);
            let _ = Roster::decode(&bytes);
        }
    }
}
