//! Both ends of a migration, with real cryptography, and whatever a relay may send them between two honest frames.
//!
//! Input: a byte for the mode, then steps: a byte that says what, and what it needs. Checked after each: no panic; nothing that nobody
//! sealed is accepted or moves a state; at most one copy can run; the tenant is whole before Gone and not at the source after it;
//! nothing stale is used. In the end, over a network that behaves, exactly one copy runs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_migrate::crypto::X25519Pair as Suite;
use nacre_migrate::wire::{HEADER_BYTES, Header, Kind};
use std::sync::LazyLock;
use support::Frames;
use support::world::{PAGES, Step, World, undisturbed};

#[path = "../../migrate/tests/support/mod.rs"]
mod support;

/// Frames of other migrations, with pages left outstanding and without.
static OTHER: LazyLock<[Frames; 2]> =
    LazyLock::new(|| [false, true].map(|mode| undisturbed(mode, 3000).sent));

/// Most steps of one input.
const STEPS: usize = 60;

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<usize> {
        Some(usize::from(self.byte()?) | usize::from(self.byte()?) << 8)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = usize::from(self.byte()?).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(bytes.to_vec())
    }

    fn step(&mut self, what: u8) -> Option<Step> {
        Some(match what % 16 {
            0..=2 => Step::Honest(self.byte()?),
            3 => Step::Drop,
            4 => Step::Repeat(self.number()?),
            5 => Step::Reorder(self.number()?),
            6 => Step::Truncate(self.number()?, self.number()?),
            7 => Step::Flip(self.number()?, self.number()?, self.byte()? % 8),
            8 => Step::Replay(self.number()?),
            9 => Step::Misdirect(self.number()?),
            10 => Step::Write(u64::from(self.byte()?) % PAGES, self.byte()?),
            11 => Step::Round,
            12 => Step::Park,
            13 => Step::Stage,
            14 => Step::Go,
            _ => Step::Resume(self.number()?),
        })
    }

    /// Bytes behind a genuine header, of the length that it announces.
    fn inject(&mut self, world: &mut World) -> Option<()> {
        let which = self.number()?;
        let mut frame = world.sent[which % world.sent.len()].clone();
        let body = self.bytes()?;
        let (header, _) = Header::split(&frame).expect("it was sent");
        if body.is_empty() {
            return None;
        }
        for (at, byte) in frame[HEADER_BYTES..].iter_mut().enumerate() {
            *byte ^= body[at % body.len()];
        }
        let changed = body.iter().any(|byte| *byte != 0);
        let clear = matches!(header.kind, Kind::Offer | Kind::Accept | Kind::Proof | Kind::Refusal);
        if changed && !clear {
            let to = if frame[3] == 1 { Some(usize::from(self.byte()? % 2)) } else { None };
            world.forged(&frame, to, header.kind);
        }
        Some(())
    }
}

fn run(data: &[u8]) -> Option<()> {
    let mut input = Input(data);
    let outstanding = input.byte()? & 1 == 1;
    let mut world = World::new(outstanding, 1, OTHER[usize::from(outstanding)].clone());
    for _ in 0..STEPS {
        let Some(what) = input.byte() else { break };
        let done = match what {
            240.. => input.inject(&mut world),
            _ => input.step(what).map(|step| world.step(&step)),
        };
        world.check();
        if done.is_none() {
            break;
        }
    }
    world.settle();
    world.check();
    Some(())
}

fuzz_target!(|data: &[u8]| {
    run(data);
});
