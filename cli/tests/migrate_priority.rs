//! Who moves a tenant's memory gives way while its tasks run, and to nobody once they are parked. A file of its own: it looks at all threads of this process.
#![forbid(unsafe_code)]

#[allow(dead_code)]
mod migrate_support;
#[allow(dead_code)]
mod sealed_support;

use migrate_support::{Migration, PATIENCE, movable_world, streams};
use nacre_abi::migrate::MoveMode;
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_vmm::migration::{MoveNews, MoveOptions};
use nacre_vmm::program::{ProgramEvent, ProgramSpec};
use std::time::Instant;

/// Says "started" and reads from standard input, which never comes.
const READER: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 16)
  (data (i32.const 64) "started\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 8))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// Whether this process may lower nice values: CAP_SYS_NICE, bit 23 (capability.h).
fn may_lower() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() >> 23 & 1 != 0
}

/// Nice values of this process's threads whose names begin so, of those that have not ended (proc(5): `stat`, field 19).
fn nice_values(name: &str) -> Vec<i32> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    let nice = |stat: String| {
        let (before, after) = stat.rsplit_once(')')?;
        let is_one = before.split_once('(')?.1.starts_with(name);
        is_one.then(|| after.split_whitespace().nth(16).unwrap().parse().unwrap())
    };
    stats.filter_map(nice).collect()
}

/// Nice values of those who move bytes: of lanes, and of the two channels on which somebody always waits.
fn movers(lanes: usize) -> [Vec<i32>; 2] {
    let of = |channels: std::ops::Range<usize>| {
        let names =
            channels.flat_map(|channel| ["move-out", "move-in"].map(|way| format!("{way}-{channel}")));
        names.flat_map(|name| nice_values(&name)).collect()
    };
    [of(2..2 + lanes), of(0..2)]
}

#[test]
fn lanes_give_way_while_tasks_run_and_to_nobody_once_they_are_parked() {
    let Some(world) = movable_world("priorities in a migration") else { return };
    if !may_lower() {
        return nacre_tests::skip::skipped("priorities in a migration", "this needs CAP_SYS_NICE");
    }
    let normal = nice_values("")[0];
    let wasm = wat::parse_str(READER).unwrap();
    let code = compile(&Module::parse(&wasm, Entry::Command).unwrap(), Default::default()).unwrap();
    let source = world.launch();
    let spec = ProgramSpec { code: code.file(), args: vec!["reader".into()], ..ProgramSpec::default() };
    let program = source.load(&spec).unwrap();
    program.start().unwrap();
    let said = program.events.recv();
    assert!(matches!(&said, Some(ProgramEvent::Output { bytes, .. }) if bytes == b"started\n"), "{said:?}");
    let lanes = source.lanes();

    // So slow that it does not end before it was looked at.
    let slow = MoveOptions { mode: MoveMode::PreCopy, bandwidth: Some(64 << 10), ..MoveOptions::default() };
    let other = world.launch();
    let migration = Migration::with(streams(lanes), &source, &other, slow);
    while !matches!(migration.told_by_source.recv_timeout(PATIENCE).unwrap(), MoveNews::Round(_)) {}
    let begin = Instant::now();
    while movers(lanes)[0] != vec![19; 4 * lanes] {
        assert!(begin.elapsed() < PATIENCE, "{:?}", movers(lanes));
        std::thread::yield_now();
    }
    assert_eq!(movers(lanes)[1], [normal; 8], "control and demand");
    migration.source.cancel();
    let (here, _) = migration.follow(|_, _| ());
    assert!(matches!(here.last(), Some(MoveNews::Aborted(..))), "{here:?}");
    drop((migration, other));

    let destination = world.launch();
    let _moved = destination.adopt_program(program.id, [8, 0]);
    let options = MoveOptions { held: true, ..MoveOptions::default() };
    let migration = Migration::with(streams(lanes), &source, &destination, options);
    let (here, _) = migration.follow(|migration, news| match news {
        MoveNews::Parked => migration.destination.hurry(),
        MoveNews::Staged => {
            let [of_lanes, others] = movers(lanes);
            assert!(of_lanes.len() >= 4 * lanes && !others.is_empty());
            assert!(of_lanes.iter().chain(&others).all(|nice| *nice == normal), "{of_lanes:?} {others:?}");
            migration.source.let_go();
        }
        _ => {}
    });
    assert!(matches!(here.last(), Some(MoveNews::Complete(_))), "{here:?}");
}
