//! Between two guests sits a relay that does to one connection of their migration whatever it wants, at any byte: one copy goes on, with everything.
//!
//! `NACRE_RELAY_SEED=N` repeats a run.
#![forbid(unsafe_code)]

#[allow(dead_code)]
mod migrate_support;
#[allow(dead_code)]
mod sealed_support;

use migrate_support::{Migration, is_over, movable_world, pair, streams};
use nacre_abi::message::stream;
use nacre_abi::migrate::{FIRST_LANE, MoveMode};
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_tests::random::Random;
use nacre_vmm::Cvm;
use nacre_vmm::migration::{COMMIT_BYTES, MoveNews, MoveOptions, Streams};
use nacre_vmm::program::{Events, ProgramEvent, ProgramId, ProgramSpec};
use sealed_support::World;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Runs in CI and with `--long`.
const RUNS: (u64, u64) = (12, 300);
/// How long both guests may say nothing before their operator does something.
const SILENCE: Duration = Duration::from_millis(700);
/// Ticks that follow a migration.
const TICKS_AFTER: u64 = 20;
/// Bytes of each connection and direction that the relay keeps for later.
const RECORDED: usize = 1 << 20;

/// Each millisecond writes 64 pages, no page again before all others were, after it has seen that each holds what was written to it then, and says how
/// often it did (8 bytes, little-endian). A page that is older than the newest that was written is a trap.
const TICKER: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 257)
  (func (export "_start") (local $count i64) (local $at i32) (local $left i32) (local $tick i64)
    (i32.store (i32.const 0) (i32.const 24)) (i32.store (i32.const 4) (i32.const 8))
    (i32.store (i32.const 80) (i32.const 1)) (i64.store (i32.const 88) (i64.const 1000000))
    (loop $again
      (local.set $left (i32.const 64))
      (loop $more
        (local.set $at (i32.add (i32.const 65536) (i32.mul (i32.const 4096)
          (i32.and (i32.mul (i32.wrap_i64 (local.get $count)) (i32.const 1237)) (i32.const 4095)))))
        (if (i64.ne (i64.load (local.get $at))
            (select (i64.sub (local.get $count) (i64.const 4095)) (i64.const 0)
              (i64.ge_u (local.get $count) (i64.const 4096))))
          (then (unreachable)))
        (local.set $count (i64.add (local.get $count) (i64.const 1)))
        (i64.store (local.get $at) (local.get $count))
        (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
      (local.set $tick (i64.add (local.get $tick) (i64.const 1)))
      (i64.store (i32.const 24) (local.get $tick))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (drop (call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 192)))
      (br $again))))"#;

/// What the relay does, once, when so many bytes have gone by.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Changes a bit.
    Flip,
    /// Leaves some bytes out.
    Drop(usize),
    /// Sends some bytes twice.
    Double(usize),
    /// Exchanges some bytes with the same number after them.
    Swap(usize),
    /// In their place sends what went by there in an earlier migration.
    Replay(usize),
    /// Passes nothing on from there, and says nothing.
    Stop,
    /// Hangs up.
    Cut,
}

/// What is to be done, drawn from a seed.
#[derive(Clone, Copy, Debug)]
struct Plan {
    mode: MoveMode,
    channel: u32,
    /// From the source.
    forth: bool,
    at: usize,
    act: Act,
    /// The Commit, too, comes changed first, and twice afterwards.
    commits_badly: bool,
}

impl Plan {
    fn draw(seed: u64) -> Plan {
        let mut random = Random::of_seed(seed);
        let mode =
            random.of(&[MoveMode::Hybrid, MoveMode::PreCopy, MoveMode::PostCopy, MoveMode::StopAndCopy]);
        let channel = random.of(&[0, 0, 1, FIRST_LANE, FIRST_LANE]);
        let forth = random.below(3) > 0;
        let most = 1 << random.below(if channel == 0 { 14 } else { 24 });
        let at = random.below(most) as usize;
        let bytes = 1 + random.below(5_000) as usize;
        let acts = [
            Act::Flip,
            Act::Drop(bytes),
            Act::Double(bytes),
            Act::Swap(bytes),
            Act::Replay(bytes),
            Act::Stop,
            Act::Cut,
        ];
        Plan { mode, channel, forth, at, act: random.of(&acts), commits_badly: random.below(4) == 0 }
    }
}

/// What went by on each connection and direction in the last migration.
type Recordings = Arc<Mutex<HashMap<(u32, bool), Vec<u8>>>>;

/// One direction of one connection.
struct Relay {
    /// What is done here, and where.
    act: Option<(usize, Act)>,
    passed: usize,
    /// What is kept back until there is enough.
    held: Vec<u8>,
    stopped: bool,
    recorded: Vec<u8>,
    earlier: Vec<u8>,
}

impl Relay {
    /// What goes on of the bytes that came; none if it hangs up.
    fn pass(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let room = RECORDED.saturating_sub(self.recorded.len()).min(bytes.len());
        self.recorded.extend(&bytes[..room]);
        self.held.extend(bytes);
        let begin = self.passed;
        let Some((at, act)) = self.act else { return Some(self.all()) };
        if self.stopped {
            self.held.clear();
            return Some(Vec::new());
        }
        if begin + self.held.len() <= at {
            return Some(self.all());
        }
        let here = at - begin;
        let enough = match act {
            Act::Flip | Act::Stop | Act::Cut => here + 1,
            Act::Drop(count) | Act::Double(count) | Act::Replay(count) => here + count,
            Act::Swap(count) => here + 2 * count,
        };
        if self.held.len() < enough {
            let before: Vec<u8> = self.held.drain(..here).collect();
            self.passed += before.len();
            return Some(before);
        }
        self.act = None;
        let mut all = self.all();
        match act {
            Act::Flip => all[here] ^= 1 << (at % 8),
            Act::Drop(count) => drop(all.drain(here..here + count)),
            Act::Double(count) => {
                let again = all[here..here + count].to_vec();
                all.splice(here..here, again);
            }
            Act::Swap(count) => all[here..here + 2 * count].rotate_left(count),
            Act::Replay(count) => {
                let end = (at + count).min(self.earlier.len());
                let old = self.earlier.get(at..end).unwrap_or_default().to_vec();
                all.splice(here..here + count, old);
            }
            Act::Stop => {
                (self.stopped, self.act) = (true, Some((at, act)));
                all.truncate(here);
            }
            Act::Cut => return None,
        }
        Some(all)
    }

    fn all(&mut self) -> Vec<u8> {
        self.passed += self.held.len();
        std::mem::take(&mut self.held)
    }

    fn run(mut self, mut from: TcpStream, mut to: TcpStream) -> Vec<u8> {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer)
            && let Some(bytes) = self.pass(&buffer[..count])
            && to.write_all(&bytes).is_ok()
        {}
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        self.recorded
    }
}

/// A connection over the relay: what the two ends use.
fn relayed(plan: &Plan, channel: u32, recordings: &Recordings) -> (TcpStream, TcpStream) {
    let ((one, near), (far, other)) = (pair(), pair());
    let ways = [(true, near.try_clone().unwrap(), far.try_clone().unwrap()), (false, far, near)];
    for (forth, from, to) in ways {
        let earlier = recordings.lock().unwrap().get(&(channel, forth)).cloned().unwrap_or_default();
        let acts = plan.channel == channel && plan.forth == forth;
        let act = acts.then_some((plan.at, plan.act));
        let relay = Relay { act, passed: 0, held: Vec::new(), stopped: false, recorded: Vec::new(), earlier };
        let recordings = recordings.clone();
        std::thread::spawn(move || {
            let recorded = relay.run(from, to);
            recordings.lock().unwrap().insert((channel, forth), recorded);
        });
    }
    (one, other)
}

fn over_the_relay(plan: &Plan, lanes: usize, recordings: &Recordings) -> (Streams, Streams) {
    let (mut here, mut there) = streams(lanes);
    (here.control, there.control) = relayed(plan, 0, recordings);
    (here.demand, there.demand) = relayed(plan, 1, recordings);
    for (lane, ends) in here.lanes.iter_mut().zip(&mut there.lanes).enumerate() {
        (*ends.0, *ends.1) = relayed(plan, FIRST_LANE + lane as u32, recordings);
    }
    (here, there)
}

/// Hears a ticker and checks that no tick is left out or comes twice, wherever it runs.
struct Listener {
    id: ProgramId,
    ticks: u64,
    rest: Vec<u8>,
}

impl Listener {
    fn take(&mut self, cvm: &Cvm, event: ProgramEvent) {
        match event {
            ProgramEvent::Output { bytes, end, .. } => {
                self.rest.extend(bytes);
                for tick in self.rest.chunks_exact(8) {
                    self.ticks += 1;
                    assert_eq!(tick, self.ticks.to_le_bytes(), "a tick that is not the next");
                }
                self.rest.drain(..self.rest.len() / 8 * 8);
                let _ = cvm.consumed(self.id, stream::STDOUT, end);
            }
            other => panic!("{other:?} instead of a tick"),
        }
    }

    /// What has come.
    fn hear(&mut self, cvm: &Cvm, events: &Events) {
        while let Some(event) = events.try_recv() {
            self.take(cvm, event);
        }
    }

    /// Waits until it has ticked so many times more.
    fn wait_for(&mut self, cvm: &Cvm, events: &Events, more: u64) {
        let wanted = self.ticks + more;
        while self.ticks < wanted {
            let event = events.recv().expect("the CVM has not ended");
            self.take(cvm, event);
        }
    }
}

/// How a migration ended, as the source tells it.
#[derive(Debug)]
struct Outcome {
    moved: bool,
    /// Connections that broke and were made again.
    rejoined: usize,
    /// How often nothing happened any more, and all were made again.
    silences: u32,
}

/// Plays the operator until it is over: makes connections again that broke after the tenant was gone; when nothing happens any more, cancels, or if it
/// is too late for that, makes all connections again.
fn operate(plan: &Plan, migration: &Migration, mut parked: impl FnMut()) -> Outcome {
    let (mut gone, mut told, mut there) = (false, Vec::new(), Vec::new());
    let (mut rejoined, mut silences, mut broken) = (0, 0, Vec::new());
    let again = |channel| {
        let (one, other) = pair();
        migration.destination.rejoin(channel, other);
        migration.source.rejoin(channel, one);
    };
    while !told.last().is_some_and(is_over) {
        match migration.told_by_source.recv_timeout(SILENCE) {
            Ok(news) => {
                match &news {
                    MoveNews::Parked => parked(),
                    MoveNews::Commit(commit, _) => {
                        gone = true;
                        deliver(plan, migration, commit);
                    }
                    MoveNews::Broken(channel, _) => broken.push(*channel),
                    MoveNews::Aborted(..) => assert!(!gone, "{news:?} after {told:?}"),
                    _ => {}
                }
                told.push(news);
                if gone {
                    rejoined += broken.len();
                    broken.drain(..).for_each(again);
                }
            }
            Err(RecvTimeoutError::Timeout) if !gone => migration.source.cancel(),
            Err(RecvTimeoutError::Timeout) => {
                silences += 1;
                there.extend(migration.told_by_destination.try_iter());
                // The control connection broke with the guest's last word: between nodes, the node says it.
                if there.iter().any(|news| matches!(news, MoveNews::Complete(_))) {
                    break;
                }
                assert!(silences < 20, "it does not go on: {told:?}, {there:?}");
                (0..=FIRST_LANE).for_each(again);
            }
            Err(error) => panic!("{error} after {told:?}"),
        }
    }
    Outcome { moved: gone, rejoined, silences }
}

fn deliver(plan: &Plan, migration: &Migration, commit: &[u8; COMMIT_BYTES]) {
    if plan.commits_badly {
        let mut bad = *commit;
        bad[plan.at % COMMIT_BYTES] ^= 1;
        migration.destination.commit(&bad).unwrap();
        migration.destination.commit(commit).unwrap();
    }
    migration.destination.commit(commit).unwrap();
}

fn run(
    world: &World,
    source: &Cvm,
    here: &Events,
    listener: &mut Listener,
    plan: &Plan,
    kept: &Recordings,
) -> Outcome {
    let destination = world.launch();
    let options = MoveOptions { mode: plan.mode, ..MoveOptions::default() };
    let ends = over_the_relay(plan, 1, kept);
    let migration = Migration::with(ends, source, &destination, options);
    let mut there = None;
    let id = listener.id;
    let outcome = operate(plan, &migration, || {
        there = Some(destination.adopt_program(id, source.outputs_seen(id)));
    });
    listener.hear(source, here);
    match &there {
        Some(there) if outcome.moved => {
            listener.wait_for(&destination, there, TICKS_AFTER);
            // Who was the source has nothing more to say.
            assert!(here.try_recv().is_none());
        }
        _ => {
            listener.wait_for(source, here, TICKS_AFTER);
            assert!(there.is_none_or(|there| there.try_recv().is_none()), "it ran there, too");
        }
    }
    outcome
}

fn seeds() -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var("NACRE_RELAY_SEED").ok().and_then(|text| text.parse().ok()) {
        return seed..seed + 1;
    }
    let count = if nacre_tests::long() { RUNS.1 } else { RUNS.0 };
    let first = std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_millis() as u64);
    first..first + count
}

#[test]
fn whatever_a_relay_does_one_copy_goes_on() {
    let Some(world) = movable_world("migration over a hostile relay") else { return };
    let wasm = wat::parse_str(TICKER).unwrap();
    let code = compile(&Module::parse(&wasm, Entry::Command).unwrap(), Default::default()).unwrap();
    let recordings = Recordings::default();
    let (mut moved, mut stayed, mut rejoined, mut silent) = (0, 0, 0, 0);
    let mut seeds = seeds().peekable();
    while seeds.peek().is_some() {
        let source = world.launch();
        let program = source.load(&ProgramSpec {
            code: code.file(),
            args: vec!["ticks".into()],
            ..ProgramSpec::default()
        });
        let program = program.unwrap();
        program.start().unwrap();
        let mut listener = Listener { id: program.id, ticks: 0, rest: Vec::new() };
        listener.wait_for(&source, &program.events, TICKS_AFTER);
        for seed in seeds.by_ref() {
            let plan = Plan::draw(seed);
            println!("NACRE_RELAY_SEED={seed} {plan:?}");
            let outcome = run(&world, &source, &program.events, &mut listener, &plan, &recordings);
            println!("  {outcome:?}");
            rejoined += u32::from(outcome.rejoined > 0);
            silent += u32::from(outcome.silences > 0);
            if outcome.moved {
                moved += 1;
                break;
            }
            stayed += 1;
        }
    }
    println!(
        "{moved} moved ({rejoined} over connections that were made again, {silent} after silence), {stayed} stayed"
    );
}
