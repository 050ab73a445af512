//! A tenant moves from one CVM to another, both of this process: tasks in the middle of their work, in every mode.
#![forbid(unsafe_code)]

#[allow(dead_code)]
mod migrate_support;
#[allow(dead_code)]
mod sealed_support;

use migrate_support::{Migration, PATIENCE, is_over, movable_world, pair, streams};
use nacre_abi::message::{Header, Kind, stream};
use nacre_abi::migrate::{MoveFailure, MoveMode};
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_vmm::Cvm;
use nacre_vmm::migration::{MoveNews, MoveOptions};
use nacre_vmm::program::{Events, Exit, Program, ProgramEvent, ProgramSpec};
use sealed_support::World;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Touches 64 MiB, says "started", mixes that memory for a while, grows its memory, and ends with a trap three calls deep.
const MOVER: &str = include_str!("mover.wat");

/// The same with more to do: longer than a destination takes to have its memory, before which nothing is parked.
fn long_mover() -> String {
    MOVER.replace("(i32.const 15000000)", "(i32.const 60000000)")
}

/// As [`MOVER`], but before its end it reads from standard input, which blocks until there is some, or its end.
fn waiter() -> String {
    let import =
        r#"(import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))"#;
    let wait = "(i32.store (i32.const 0) (i32.const 160)) (i32.store (i32.const 4) (i32.const 1))
        (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))";
    let text = MOVER.replace("(memory (export", &format!("{import}\n(memory (export"));
    text.replace("(if (i32.ne (memory.grow", &format!("{wait}\n(if (i32.ne (memory.grow"))
}

fn output(events: &Events, wanted: usize) -> Vec<u8> {
    let mut text = Vec::new();
    while text.len() < wanted {
        match events.recv().unwrap() {
            ProgramEvent::Output { bytes, .. } => text.extend(bytes),
            other => panic!("{other:?} instead of output"),
        }
    }
    text
}

fn end(events: &Events) -> (Vec<u8>, Exit) {
    let mut text = Vec::new();
    loop {
        match events.recv().unwrap() {
            ProgramEvent::Output { bytes, .. } => text.extend(bytes),
            ProgramEvent::Exited(exit) => return (text, exit),
            _ => {}
        }
    }
}

/// Sleeps for three seconds by `poll_oneoff`, and says by how many milliseconds its monotonic clock has gone on.
const SLEEPER: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "sleeping")
  (data (i32.const 80) "woken in time")
  (func $say (param $at i32) (param $len i32)
    (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $len))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start") (local $begin i64)
    (drop (call $time (i32.const 1) (i64.const 1) (i32.const 16)))
    (local.set $begin (i64.load (i32.const 16)))
    (call $say (i32.const 64) (i32.const 8))
    (i32.store (i32.const 128) (i32.const 7))
    (i32.store (i32.const 144) (i32.const 1))
    (i64.store (i32.const 152) (i64.const 3000000000))
    (if (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 320)) (then (unreachable)))
    (drop (call $time (i32.const 1) (i64.const 1) (i32.const 16)))
    (if (i64.lt_u (i64.sub (i64.load (i32.const 16)) (local.get $begin)) (i64.const 3000000000)) (then (unreachable)))
    (call $say (i32.const 80) (i32.const 13))))"#;

/// Fills a part of each of its 24 large pages, says "started", reads until the end of its input, and writes out what it filled.
const WRITER: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 800)
  (data (i32.const 64) "started\n")
  (func $say (param $at i32) (param $len i32)
    (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $len))
    (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
    (if (i32.ne (i32.load (i32.const 8)) (local.get $len)) (then (unreachable))))
  (func $place (param $n i32) (result i32) (i32.add (i32.mul (local.get $n) (i32.const 2097152)) (i32.const 65530)))
  (func (export "_start") (local $n i32)
    (loop $fill
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (memory.fill (call $place (local.get $n)) (i32.add (local.get $n) (i32.const 64)) (i32.const 1000))
      (br_if $fill (i32.lt_u (local.get $n) (i32.const 24))))
    (call $say (i32.const 64) (i32.const 8))
    (i32.store (i32.const 0) (i32.const 160)) (i32.store (i32.const 4) (i32.const 1))
    (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
    (local.set $n (i32.const 0))
    (loop $show
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (call $say (call $place (local.get $n)) (i32.const 1000))
      (br_if $show (i32.lt_u (local.get $n) (i32.const 24))))))"#;

struct Code(nacre_cli::program::Program);

impl Code {
    fn of(text: &str) -> Code {
        let wasm = wat::parse_str(text).unwrap();
        Code(compile(&Module::parse(&wasm, Entry::Command).unwrap(), Default::default()).unwrap())
    }

    fn spec(&self) -> ProgramSpec<'_> {
        ProgramSpec { code: self.0.file(), args: vec!["moves".into()], ..ProgramSpec::default() }
    }

    /// Starts it and waits until it has said `wanted`.
    fn start<'c>(&self, cvm: &'c Cvm, wanted: &[u8]) -> Program<'c> {
        let program = cvm.load(&self.spec()).unwrap();
        program.start().unwrap();
        assert_eq!(output(&program.events, wanted.len()), wanted);
        program
    }
}

/// What [`MOVER`] says and how it ends when nobody moves it.
fn undisturbed(world: &World, code: &Code) -> (Vec<u8>, Exit) {
    let (exit, said, _) = world.launch().load(&code.spec()).unwrap().run_to_end().unwrap();
    (said, exit)
}

fn has_ended(events: &Events, before: &[u8], expected: &(Vec<u8>, Exit), what: &str) {
    let (text, exit) = end(events);
    assert_eq!((&[before, &text].concat(), &exit), (&expected.0, &expected.1), "{what}");
}

#[test]
fn a_task_in_the_middle_of_its_work_moves_in_every_mode() {
    let Some(world) = movable_world("migration of a task") else { return };
    let code = Code::of(&long_mover());
    let expected = undisturbed(&world, &code);
    for mode in [MoveMode::StopAndCopy, MoveMode::PreCopy, MoveMode::Hybrid, MoveMode::PostCopy] {
        let (source, destination) = (world.launch(), world.launch());
        let program = code.start(&source, b"started\n");
        let moved = destination.adopt_program(program.id, [8, 0]);
        let (here, there) = Migration::begin(&source, &destination, mode).follow(|_, news| {
            let ended = matches!(news, MoveNews::Parked) && program.events.try_recv().is_some();
            assert!(!ended, "it has ended before it was parked: give it more to do");
        });
        let order: Vec<_> =
            here.iter().filter(|news| !matches!(news, MoveNews::Round(_) | MoveNews::Running(_))).collect();
        assert!(
            matches!(
                order[..],
                [
                    MoveNews::Attested,
                    MoveNews::Parked,
                    MoveNews::Staged,
                    MoveNews::Commit(..),
                    MoveNews::Complete(_)
                ]
            ),
            "{mode:?}: {here:?}"
        );
        assert!(matches!(there.last(), Some(MoveNews::Complete(_))), "{mode:?}: {there:?}");
        has_ended(&moved, b"started\n", &expected, &format!("{mode:?}"));
    }
}

#[test]
fn what_is_written_from_pages_that_are_still_to_come_waits_and_lets_others_write() {
    let Some(world) = movable_world("writing from pages that are still to come") else { return };
    let code = Code::of(WRITER);
    let (source, destination) = (world.launch(), world.launch());
    let programs: Vec<_> = (0..3).map(|_| code.start(&source, b"started\n")).collect();
    let moved: Vec<_> =
        programs.iter().map(|program| destination.adopt_program(program.id, [8, 0])).collect();
    // Slow enough that all of them wait, on the same vCPUs.
    let options =
        MoveOptions { mode: MoveMode::PostCopy, bandwidth: Some(400 << 20), ..MoveOptions::default() };
    let lanes = source.lanes().min(destination.lanes());
    let migration = Migration::with(streams(lanes), &source, &destination, options);
    let (here, there) = migration.follow(|_, news| {
        if let MoveNews::Running(_) = news {
            for program in &programs {
                let end_of_input = Header::new(Kind::StreamEnd, program.id.0).stream(stream::STDIN);
                destination.send(end_of_input, &[]).unwrap();
            }
        }
    });
    assert!(matches!(here.last(), Some(MoveNews::Complete(_))), "{here:?}");
    assert!(matches!(there.last(), Some(MoveNews::Complete(_))), "{there:?}");
    let expected: Vec<u8> = (1..=24).flat_map(|number| [64 + number; 1000]).collect();
    for events in &moved {
        let (text, exit) = end(events);
        assert_eq!(exit, Exit::Code(0));
        assert!(text == expected, "{} bytes that are not what was written", text.len());
    }
}

#[test]
fn a_task_that_sleeps_is_woken_where_it_went() {
    let Some(world) = movable_world("migration of a sleeper") else { return };
    let code = Code::of(SLEEPER);
    loop {
        let (source, destination) = (world.launch(), world.launch());
        let program = code.start(&source, b"sleeping");
        let moved = destination.adopt_program(program.id, [8, 0]);
        let (here, _) = Migration::begin(&source, &destination, MoveMode::Hybrid).follow(|_, _| ());
        assert!(matches!(here.last(), Some(MoveNews::Complete(_))), "{here:?}");
        // On a machine that was busy it may have woken before it moved.
        if program.events.try_recv().is_none() {
            assert_eq!(end(&moved), (b"woken in time".to_vec(), Exit::Code(0)));
            return;
        }
    }
}

#[test]
fn who_is_cancelled_goes_on_and_can_move_later() {
    let Some(world) = movable_world("cancelled migrations") else { return };
    let code = Code::of(&waiter());
    let expected = undisturbed(&world, &code);
    let source = world.launch();
    let program = code.start(&source, b"started\n");
    let moments: [fn(&MoveNews) -> bool; 3] = [
        |news| matches!(news, MoveNews::Attested),
        |news| matches!(news, MoveNews::Round(_)),
        |news| matches!(news, MoveNews::Parked),
    ];
    for moment in moments {
        let other = world.launch();
        let (here, there) = Migration::begin(&source, &other, MoveMode::PreCopy).follow(|migration, news| {
            if moment(news) {
                migration.source.cancel();
            }
        });
        assert!(matches!(here.last(), Some(MoveNews::Aborted(MoveFailure::Cancelled, _))), "{here:?}");
        assert!(matches!(there.last(), Some(MoveNews::Aborted(MoveFailure::There, _))), "{there:?}");
    }
    let destination = world.launch();
    let moved = destination.adopt_program(program.id, [8, 0]);
    let (here, _) = Migration::begin(&source, &destination, MoveMode::Hybrid).follow(|_, _| ());
    assert!(matches!(here.last(), Some(MoveNews::Complete(_))), "{here:?}");
    // It has been blocked in its read all the time.
    let end_of_input = Header::new(Kind::StreamEnd, program.id.0).stream(stream::STDIN);
    destination.send(end_of_input, &[]).unwrap();
    has_ended(&moved, b"started\n", &expected, "after three that were cancelled");
}

#[test]
fn who_is_held_back_does_not_go_before_its_host_lets_it() {
    let Some(world) = movable_world("held migrations") else { return };
    let code = Code::of(&waiter());
    let expected = undisturbed(&world, &code);
    let source = world.launch();
    let program = code.start(&source, b"started\n");
    let held = |destination: &Cvm| {
        let options = MoveOptions { mode: MoveMode::Hybrid, held: true, ..MoveOptions::default() };
        Migration::with(streams(source.lanes()), &source, destination, options)
    };
    // The destination is staged, and yet it is not too late to cancel.
    let other = world.launch();
    let (here, _) = held(&other).follow(|migration, news| {
        if let MoveNews::Staged = news {
            migration.source.cancel();
        }
    });
    assert!(matches!(here.last(), Some(MoveNews::Aborted(MoveFailure::Cancelled, _))), "{here:?}");
    let destination = world.launch();
    let moved = destination.adopt_program(program.id, [8, 0]);
    let mut let_go = false;
    let (here, _) = held(&destination).follow(|migration, news| match news {
        MoveNews::Staged => {
            let_go = true;
            migration.source.let_go();
        }
        MoveNews::Commit(..) => assert!(let_go, "it went by itself"),
        _ => {}
    });
    assert!(matches!(here.last(), Some(MoveNews::Complete(_))), "{here:?}");
    destination.send(Header::new(Kind::StreamEnd, program.id.0).stream(stream::STDIN), &[]).unwrap();
    has_ended(&moved, b"started\n", &expected, "after it was held");
}

#[test]
fn only_who_the_manifest_accepts_gets_anything() {
    let Some(mut world) = movable_world("refused migrations") else { return };
    let code = Code::of(&waiter());
    let expected = undisturbed(&world, &code);
    let source = world.launch();
    let program = code.start(&source, b"started\n");
    let refused = |source: &Cvm, destination: &Cvm, why: &str| {
        let migration = Migration::begin(source, destination, MoveMode::Hybrid);
        let mut said = Vec::new();
        while !said.iter().any(|text: &String| text.contains(why)) {
            let news = migration.told_by_source.recv_timeout(PATIENCE / 20);
            let news = news.or_else(|_| migration.told_by_destination.recv_timeout(PATIENCE / 20));
            match news {
                Ok(MoveNews::Aborted(_, text)) => said.push(text),
                Ok(MoveNews::Commit(..)) => panic!("{why:?}: it went to one who is not accepted"),
                Ok(_) => {}
                Err(_) => panic!("{why:?} is not among {said:?}"),
            }
        }
        migration.source.cancel();
        // Whatever is still told.
        while let Ok(news) = migration.told_by_source.recv_timeout(Duration::from_millis(200)) {
            assert!(!matches!(news, MoveNews::Commit(..)));
        }
    };
    // One that has run something.
    let used = world.launch();
    let _program = code.start(&used, b"started\n");
    refused(&source, &used, "only a fresh one can receive");
    // One of another image, whatever the policy says of that.
    world.debug_image = true;
    refused(&source, &world.launch(), "another guest image");
    world.debug_image = false;
    // One of another owner.
    let mut other = movable_world("refused migrations").unwrap();
    other.manifest.name = "other".into();
    refused(&source, &other.launch(), "another manifest");
    // A manifest without a policy.
    world.manifest.migration = None;
    refused(&world.launch(), &world.launch(), "no migration policy");
    // A policy that accepts other guests only.
    let mut policy = world.policy();
    policy.measurements.truncate(0);
    world.manifest.migration = Some(policy.encode());
    let strict = world.launch();
    let strict_program = code.start(&strict, b"started\n");
    refused(&strict, &world.launch(), "refuses the peer");
    for program in [&program, &strict_program] {
        program.stdin().end().unwrap();
        has_ended(&program.events, b"started\n", &expected, "after it was refused");
    }
}

/// A network that does something to the bytes of one direction of a stream. Returns what the two ends use.
fn through(spoil: impl FnMut(&mut Vec<u8>) -> bool + Send + 'static) -> (TcpStream, TcpStream) {
    let ((one, relay), (other, end)) = (pair(), pair());
    let (back_from, back_to) = (other.try_clone().unwrap(), relay.try_clone().unwrap());
    std::thread::spawn(move || copy(relay, other, spoil));
    std::thread::spawn(move || copy(back_from, back_to, |_| true));
    (one, end)
}

fn copy(mut from: TcpStream, mut to: TcpStream, mut spoil: impl FnMut(&mut Vec<u8>) -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..count].to_vec();
        let goes_on = spoil(&mut bytes);
        if to.write_all(&bytes).is_err() || !goes_on {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn a_network_that_changes_or_cuts_costs_the_migration_and_nothing_else() {
    let Some(world) = movable_world("migration over a hostile network") else { return };
    let code = Code::of(&waiter());
    let expected = undisturbed(&world, &code);
    let source = world.launch();
    let program = code.start(&source, b"started\n");
    let lanes = source.lanes();
    for (control, at, cuts) in [
        (true, 10, false),
        (true, 200, false),
        (true, 2_000, true),
        (false, 3, false),
        (false, 100_000, false),
        (false, 5_000_000, true),
    ] {
        let mut passed = 0usize;
        let stream = through(move |bytes| {
            let before = passed;
            passed += bytes.len();
            if !(before..passed).contains(&at) {
                return true;
            }
            bytes[at - before] ^= u8::from(!cuts);
            !cuts
        });
        let (mut here, mut there) = streams(lanes);
        if control {
            (here.control, there.control) = stream;
        } else {
            (here.lanes[0], there.lanes[0]) = stream;
        }
        let destination = world.launch();
        let migration = Migration::over((here, there), &source, &destination, MoveMode::StopAndCopy);
        let mut told = Vec::new();
        while !told.last().is_some_and(is_over) {
            match migration.told_by_source.recv_timeout(Duration::from_secs(3)) {
                Ok(news) => told.push(news),
                // What was changed made the other end wait for what does not come: its operator cancels.
                Err(_) => migration.source.cancel(),
            }
            assert!(
                !told.iter().any(|news| matches!(news, MoveNews::Commit(..))),
                "{control} {at}: {told:?}"
            );
        }
        assert!(matches!(told.last(), Some(MoveNews::Aborted(..))), "{control} {at}: {told:?}");
    }
    program.stdin().end().unwrap();
    has_ended(&program.events, b"started\n", &expected, "after six that failed");
}

#[test]
fn connections_that_break_after_the_hand_over_are_made_again() {
    // In the middle of what is fetched: what `post-copy` sends before the hand-over is 4 MiB.
    let mut passed = 0usize;
    goes_on_when(move |bytes| {
        passed += bytes.len();
        passed < 6 << 20
    });
}

#[test]
fn connections_that_carry_what_nobody_sent_are_made_again() {
    // Nothing breaks by itself: the guest notices, and has its host hang up.
    let mut passed = 0usize;
    goes_on_when(move |bytes| {
        let before = passed;
        passed += bytes.len();
        if (before..passed).contains(&(6 << 20)) {
            bytes[(6 << 20) - before] ^= 1;
        }
        true
    });
}

/// A migration by `post-copy` over whose lane something is done after the hand-over that makes it useless.
fn goes_on_when(spoil: impl FnMut(&mut Vec<u8>) -> bool + Send + 'static) {
    let Some(world) = movable_world("migration that goes on after a break") else { return };
    let code = Code::of(&long_mover());
    let expected = undisturbed(&world, &code);
    let (source, destination) = (world.launch(), world.launch());
    let program = code.start(&source, b"started\n");
    let moved = destination.adopt_program(program.id, [8, 0]);
    let (mut here, mut there) = streams(1);
    (here.lanes[0], there.lanes[0]) = through(spoil);
    let migration = Migration::over((here, there), &source, &destination, MoveMode::PostCopy);
    let mut broken = Vec::new();
    let (here, there) = migration.follow(|migration, news| {
        if let MoveNews::Broken(channel, _) = news
            && !broken.contains(channel)
        {
            broken.push(*channel);
            let (one, other) = pair();
            migration.destination.rejoin(*channel, other);
            migration.source.rejoin(*channel, one);
        }
    });
    assert_eq!(broken, [2], "{here:?} {there:?}");
    assert!(matches!(here.last(), Some(MoveNews::Complete(_))), "{here:?}");
    has_ended(&moved, b"started\n", &expected, "after a break");
}
