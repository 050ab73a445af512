//! What is left in a source's memory when its tenant has gone. A file of its own: it looks which of this process's mappings are new.
#![forbid(unsafe_code)]

#[allow(dead_code)]
mod migrate_support;
#[allow(dead_code)]
mod sealed_support;

use migrate_support::{Migration, movable_world};
use nacre_abi::migrate::MoveMode;
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_vmm::migration::MoveNews;
use nacre_vmm::program::{ProgramEvent, ProgramSpec};

/// Copies its arguments to its memory, says "started", and reads from standard input, which never comes.
const KEEPER: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (memory (export "memory") 16)
  (data (i32.const 64) "started\n")
  (func (export "_start")
    (drop (call $args (i32.const 128) (i32.const 100000)))
    (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 8))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// The mappings of this process that are exactly as long as a CVM's private memory, by their addresses.
fn private_memories(bytes: u64) -> Vec<(u64, u64)> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let range = |line: &str| {
        let (from, to) = line.split_ascii_whitespace().next()?.split_once('-')?;
        Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
    };
    maps.lines().filter_map(range).filter(|(from, to)| to - from == bytes).collect()
}

/// How often the text is in a range of this process's memory.
fn count(text: &[u8], (from, to): (u64, u64)) -> usize {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut buffer = vec![0; (4 << 20) + text.len()];
    let mut found = 0;
    for at in (from..to).step_by(4 << 20) {
        let length = ((to - at) as usize).min(buffer.len());
        memory.read_exact_at(&mut buffer[..length], at).unwrap();
        let mut rest = &buffer[..length];
        while let Some(place) = rest.iter().position(|byte| *byte == text[0]) {
            found += usize::from(rest[place..].starts_with(text));
            rest = &rest[place + 1..];
        }
    }
    found
}

#[test]
fn who_sees_all_memory_of_a_source_finds_nothing_of_its_tenant_any_more() {
    let Some(world) = movable_world("memory of a source that is done") else { return };
    let wasm = wat::parse_str(KEEPER).unwrap();
    let code = compile(&Module::parse(&wasm, Entry::Command).unwrap(), Default::default()).unwrap();
    let planted = "planted-secret-of-the-tenant-".repeat(3);
    for mode in [MoveMode::PreCopy, MoveMode::Hybrid, MoveMode::PostCopy, MoveMode::StopAndCopy] {
        let before = private_memories(sealed_support::MEMORY_BYTES);
        let source = world.launch();
        let all = private_memories(sealed_support::MEMORY_BYTES);
        let new: Vec<_> = all.into_iter().filter(|range| !before.contains(range)).collect();
        let [memory] = new[..] else { panic!("{new:?} are not one memory") };
        let args = vec!["keeper".into(), planted.clone()];
        let spec = ProgramSpec { code: code.file(), args, ..ProgramSpec::default() };
        let program = source.load(&spec).unwrap();
        program.start().unwrap();
        let said = program.events.recv();
        assert!(
            matches!(&said, Some(ProgramEvent::Output { bytes, .. }) if bytes == b"started\n"),
            "{said:?}"
        );
        assert!(count(planted.as_bytes(), memory) >= 2, "it is on the heap and in the linear memory");
        let destination = world.launch();
        let _moved = destination.adopt_program(program.id, [8, 0]);
        let (here, _) = Migration::begin(&source, &destination, mode).follow(|_, _| ());
        assert!(matches!(here.last(), Some(MoveNews::Complete(_))), "{mode:?}: {here:?}");
        assert_eq!(count(planted.as_bytes(), memory), 0, "{mode:?}");
    }
}
