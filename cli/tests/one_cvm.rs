//! Several programs in one CVM, one after the other and at once: what one leaves behind must not reach the next.
#![forbid(unsafe_code)]

use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_cli::program::Program as Compiled;
use nacre_vmm::program::{Exit, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig};

fn launch(workers: u32, memory_mib: u64) -> Option<Cvm> {
    if let Err(error) = nacre_vmm::kvm::available() {
        nacre_tests::skip::skipped("programs in one CVM", &error.to_string());
        return None;
    }
    Some(Cvm::launch(CvmConfig { workers, memory_bytes: memory_mib << 20, ..CvmConfig::default() }).unwrap())
}

fn compiled(text: &str) -> Compiled {
    let wasm = wat::parse_str(text).unwrap();
    compile(&Module::parse(&wasm, Entry::Command).unwrap(), Default::default()).unwrap()
}

fn run(cvm: &Cvm, code: &Compiled) -> Exit {
    let spec = ProgramSpec { code: code.file(), args: vec!["test".into()], ..ProgramSpec::default() };
    cvm.load(&spec).unwrap().run_to_end().unwrap().0
}

/// A freed linear memory keeps pages for the next one of its kind; none of them may be in reach of a smaller one.
#[test]
fn a_memory_never_reaches_what_an_earlier_one_left() {
    let Some(cvm) = launch(1, 256) else { return };
    let writer = compiled(
        r#"(module (memory (export "memory") 4) (func (export "_start")
          (memory.fill (i32.const 0) (i32.const 0x5a) (i32.const 262144))))"#,
    );
    let empty = compiled(
        r#"(module (memory (export "memory") 0) (func (export "_start") (drop (i32.load (i32.const 0)))))"#,
    );
    // One page; the second must trap, the first must be zero.
    let small = compiled(
        r#"(module (memory (export "memory") 1) (func (export "_start") (local $p i32)
          (loop $next
            (if (i64.ne (i64.load (local.get $p)) (i64.const 0)) (then (unreachable)))
            (br_if $next (i32.lt_u (local.tee $p (i32.add (local.get $p) (i32.const 8))) (i32.const 65536))))
          (drop (i32.load (i32.const 65536)))))"#,
    );
    for round in 0..20 {
        assert_eq!(run(&cvm, &writer), Exit::Code(0), "round {round}");
        for code in [&empty, &small] {
            let Exit::Trap(text) = run(&cvm, code) else { panic!("round {round}: no trap") };
            assert!(text.contains("out of bounds"), "round {round}: {text}");
        }
    }
}

/// Timers belong to task slots, which the next program uses again.
#[test]
fn programs_that_sleep_wake_up_one_after_the_other() {
    let Some(cvm) = launch(1, 256) else { return };
    // poll_oneoff with one relative monotonic clock of 1 ms, five times.
    let sleeper = compiled(
        r#"(module
          (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "_start") (local $n i32)
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 1000000))
            (loop $again
              (if (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)) (then (unreachable)))
              (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 5))))))"#,
    );
    for _ in 0..10 {
        assert_eq!(run(&cvm, &sleeper), Exit::Code(0));
    }
    let spec = ProgramSpec { code: sleeper.file(), args: vec!["test".into()], ..ProgramSpec::default() };
    let together: Vec<_> = (0..8).map(|_| cvm.load(&spec).unwrap()).collect();
    std::thread::scope(|scope| {
        let running: Vec<_> = together
            .into_iter()
            .map(|program| scope.spawn(move || program.run_to_end().unwrap().0))
            .collect();
        for thread in running {
            assert_eq!(thread.join().unwrap(), Exit::Code(0));
        }
    });
}

/// More looping programs than workers, all of them dropped while they run: each comes to a safe point and ends.
#[test]
fn dropping_a_program_that_computes_ends_it() {
    let Some(cvm) = launch(1, 256) else { return };
    let looping =
        compiled(r#"(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))"#);
    let ending = compiled(r#"(module (memory (export "memory") 1) (func (export "_start")))"#);
    let spec = ProgramSpec { code: looping.file(), args: vec!["loop".into()], ..ProgramSpec::default() };
    for _ in 0..5 {
        let loops: Vec<_> = (0..3).map(|_| cvm.load(&spec).unwrap()).collect();
        for program in &loops {
            program.start().unwrap();
        }
        // It gets its share of the one worker beside them.
        assert_eq!(run(&cvm, &ending), Exit::Code(0));
        drop(loops);
        assert_eq!(run(&cvm, &ending), Exit::Code(0));
    }
    // Nothing is left of them but the runtime: all their memory can be had again.
    let large = compiled(r#"(module (memory (export "memory") 2000) (func (export "_start")))"#);
    assert_eq!(run(&cvm, &large), Exit::Code(0));
}

/// Memory that one program freed is there for the next, also while it is being given back to the host.
#[test]
fn freed_memory_can_be_had_at_once() {
    let Some(cvm) = launch(1, 512) else { return };
    let greedy = compiled(
        r#"(module (memory (export "memory") 6000) (func (export "_start") (local $p i32)
          (loop $next
            (i32.store (local.get $p) (i32.const 1))
            (br_if $next (i32.lt_u (local.tee $p (i32.add (local.get $p) (i32.const 4096))) (i32.const 393216000))))))"#,
    );
    for round in 0..6 {
        assert_eq!(run(&cvm, &greedy), Exit::Code(0), "round {round}");
    }
}
