//! What the tests of calls share: programs, a CVM, a call that is waited for.

use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module as Checked};
use nacre_cli::program::Program as Compiled;
use nacre_vmm::{Call, CallResult, Cvm, CvmConfig, Module};
use std::sync::mpsc;

/// A CVM, or `None` with a word why not.
pub fn launch(what: &str, workers: u32) -> Option<Cvm> {
    if let Err(error) = nacre_vmm::kvm::available() {
        nacre_tests::skip::skipped(what, &error.to_string());
        return None;
    }
    Some(Cvm::launch(CvmConfig { workers, memory_bytes: 512 << 20, ..CvmConfig::default() }).unwrap())
}

/// A module from its text form.
pub fn compiled(text: &str) -> Compiled {
    let wasm = wat::parse_str(text).unwrap();
    compile(&Checked::parse(&wasm, Entry::Any).unwrap(), Default::default()).unwrap()
}

/// Makes a call and waits for its result.
pub fn run_with(cvm: &Cvm, module: &Module, call: Call<'_>) -> CallResult {
    let (sender, results) = mpsc::channel();
    cvm.call(module, call, move |result| sender.send(result).unwrap()).unwrap();
    results.recv().unwrap()
}

/// The same with only an input.
pub fn run(cvm: &Cvm, module: &Module, stdin: &[u8]) -> CallResult {
    run_with(cvm, module, Call { stdin, max_output: 1 << 20, ..Call::default() })
}

/// Copies standard input to standard output; arguments and environment, as they lie in memory, go to standard error.
pub fn echo() -> Compiled {
    compiled(
        r#"(module
          (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
          (memory (export "memory") 4)
          (func $put (param $fd i32) (param $at i32) (param $len i32)
            (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $len))
            (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
          (func (export "_start")
            (drop (call $args_sizes (i32.const 16) (i32.const 20)))
            (drop (call $args (i32.const 4096) (i32.const 8192)))
            (if (i32.load (i32.const 20))
              (then (call $put (i32.const 2) (i32.const 8192) (i32.load (i32.const 20)))))
            (drop (call $env_sizes (i32.const 16) (i32.const 20)))
            (drop (call $env (i32.const 4096) (i32.const 8192)))
            (if (i32.load (i32.const 20))
              (then (call $put (i32.const 2) (i32.const 8192) (i32.load (i32.const 20)))))
            (block $end
              (loop $more
                (i32.store (i32.const 0) (i32.const 65536)) (i32.store (i32.const 4) (i32.const 65536))
                (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
                (br_if $end (i32.eqz (i32.load (i32.const 8))))
                (call $put (i32.const 1) (i32.const 65536) (i32.load (i32.const 8)))
                (br $more)))))"#,
    )
}

/// Programs that check that all their memory is as the module says (zeros and initial data), their global and their table
/// too, and complain on standard error if not; then write all over it, grow it, write there too, change global and table;
/// and then end as the first byte of standard input says: n by itself, t by a trap, o by a load beyond the memory, l never. A
/// small one, one with data in many places, and one of many MiB.
pub fn scribbler() -> Vec<Compiled> {
    let data = |pages: u32| {
        (0..pages.div_ceil(3)).map(|number| {
            let at = 70_000 + number * 3 * 65_536;
            format!("(data (i32.const {at}) \"{}\")", "initial data ".repeat(40 + number as usize % 90))
        })
    };
    [2_u32, 17, 40, 200]
        .into_iter()
        .map(|pages| compiled(&scribbler_text(pages, &data(pages - 1).collect::<String>())))
        .collect()
}

fn scribbler_text(pages: u32, data: &str) -> String {
    format!(
        r#"(module
          (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") {pages})
          (global $g (mut i64) (i64.const 42))
          (table $t 10 funcref) (elem (i32.const 0) $complain)
          (data (i32.const 1024) "\00\08\00\00\06\00\00\00")
          (data (i32.const 2048) "dirty\n")
          {data}
          (func $complain (drop (call $write (i32.const 2) (i32.const 1024) (i32.const 1) (i32.const 1040))))
          ;; The sum over all words, position included.
          (func $sum (param $end i32) (result i64) (local $at i32) (local $sum i64)
            (loop $next
              (local.set $sum (i64.add (i64.mul (local.get $sum) (i64.const 31)) (i64.load (local.get $at))))
              (local.set $at (i32.add (local.get $at) (i32.const 8)))
              (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
            (local.get $sum))
          (func $fill (param $from i32) (param $to i32)
            (memory.fill (local.get $from) (i32.const 0xa5) (i32.sub (local.get $to) (local.get $from))))
          (func (export "_start") (local $old i32) (local $way i32) (local $end i32)
            (local.set $end (i32.mul (i32.const {pages}) (i32.const 65536)))
            (if (i64.ne (call $sum (local.get $end)) (i64.const {sum})) (then (call $complain)))
            (if (i64.ne (global.get $g) (i64.const 42)) (then (call $complain)))
            (if (ref.is_null (table.get $t (i32.const 0))) (then (call $complain)))
            (if (i32.eqz (ref.is_null (table.get $t (i32.const 5)))) (then (call $complain)))
            (if (i32.ne (memory.size) (i32.const {pages})) (then (call $complain)))
            (i32.store (i32.const 1032) (i32.const 1100)) (i32.store (i32.const 1036) (i32.const 1))
            (drop (call $read (i32.const 0) (i32.const 1032) (i32.const 1) (i32.const 1040)))
            (local.set $way (i32.load8_u (i32.const 1100)))
            (call $fill (i32.const 0) (local.get $end))
            (local.set $old (memory.grow (i32.const 5)))
            (if (i64.ne (i64.load (local.get $end)) (i64.const 0)) (then unreachable))
            (if (i64.ne (i64.load offset=327672 (local.get $end)) (i64.const 0)) (then unreachable))
            (call $fill (local.get $end) (i32.add (local.get $end) (i32.const 327680)))
            (global.set $g (i64.const 7))
            (table.set $t (i32.const 0) (ref.null func))
            (table.set $t (i32.const 5) (ref.func $complain))
            (if (i32.eq (local.get $way) (i32.const 116)) (then unreachable))
            (if (i32.eq (local.get $way) (i32.const 111))
              (then (drop (i32.load (i32.add (local.get $end) (i32.const 327680))))))
            (if (i32.eq (local.get $way) (i32.const 108)) (then (loop $l (br $l)))))
          (elem declare func $complain))"#,
        sum = expected_sum(pages, data),
    )
}

/// The sum that `$sum` gives for the memory as the module says.
fn expected_sum(pages: u32, data: &str) -> i64 {
    let mut memory = vec![0_u8; pages as usize * 65_536];
    memory[1024..1032].copy_from_slice(b"\x00\x08\x00\x00\x06\x00\x00\x00");
    memory[2048..2054].copy_from_slice(b"dirty\n");
    for segment in data.split("(data (i32.const ").skip(1) {
        let (at, rest) = segment.split_once(')').unwrap();
        let text = rest.split('"').nth(1).unwrap().as_bytes();
        let at: usize = at.parse().unwrap();
        memory[at..at + text.len()].copy_from_slice(text);
    }
    memory
        .as_chunks::<8>()
        .0
        .iter()
        .fold(0, |sum: i64, word| sum.wrapping_mul(31).wrapping_add(i64::from_le_bytes(*word)))
}
