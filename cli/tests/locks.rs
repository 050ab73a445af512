//! No Worker vCPU ever takes one of the engine's locks, whatever programs do: a worker that the host stops holds up nobody.
#![forbid(unsafe_code)]

use nacre_abi::message::{Header, Kind, SelfTest};
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_cli::program::Program as Compiled;
use nacre_vmm::program::{Exit, ProgramEvent, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig};

fn launch(debug_image: bool) -> Option<Cvm> {
    if let Err(error) = nacre_vmm::kvm::available() {
        nacre_tests::skip::skipped("locks on workers", &error.to_string());
        return None;
    }
    let config = CvmConfig { workers: 3, memory_bytes: 512 << 20, debug_image, ..CvmConfig::default() };
    Some(Cvm::launch(config).unwrap())
}

fn compiled(text: &str) -> Compiled {
    let wasm = wat::parse_str(text).unwrap();
    compile(&Module::parse(&wasm, Entry::Command).unwrap(), Default::default()).unwrap()
}

/// Whether a program ended as it must.
type Expected = fn(&Exit) -> bool;

/// Programs with, among them, every way into the engine: (text, how it must end).
fn programs() -> Vec<(&'static str, Expected)> {
    let ends: Expected = |exit| *exit == Exit::Code(0);
    let traps: Expected = |exit| matches!(exit, Exit::Trap(_));
    vec![
        (r#"(module (memory (export "memory") 1) (func (export "_start")))"#, ends),
        (r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#, traps),
        (
            r#"(module (memory (export "memory") 1)
              (func (export "_start") (drop (i32.load (i32.const 0x7fffffff)))))"#,
            traps,
        ),
        (
            r#"(module (memory (export "memory") 1)
              (func (export "_start") (drop (i32.div_s (i32.const 1) (i32.load (i32.const 0))))))"#,
            traps,
        ),
        (r#"(module (memory (export "memory") 1) (func $f (export "_start") (call $f) (call $f)))"#, traps),
        (
            r#"(module (memory (export "memory") 1) (table 4 funcref) (type $t (func (param i32)))
              (func (export "_start") (call_indirect (type $t) (i32.const 1) (i32.const 1))))"#,
            traps,
        ),
        // Exceptions: thrown and caught many times, through calls; then one that nobody catches.
        (
            r#"(module (memory (export "memory") 1) (tag $e (param i32))
              (func $throw (param i32) (throw $e (local.get 0)))
              (func (export "_start") (local $n i32)
                (loop $next
                  (block $caught (result i32)
                    (try_table (catch $e $caught) (call $throw (local.get $n)))
                    (unreachable))
                  (drop)
                  (br_if $next (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 1000))))))"#,
            ends,
        ),
        (
            r#"(module (memory (export "memory") 1) (tag $e)
              (func (export "_start") (throw $e)))"#,
            traps,
        ),
        // Memory and tables that grow; bulk operations; references.
        (
            r#"(module (memory (export "memory") 1) (table $t 1 externref)
              (func (export "_start") (local $n i32)
                (loop $next
                  (drop (memory.grow (i32.const 1)))
                  (drop (table.grow $t (ref.null extern) (i32.const 10)))
                  (memory.fill (i32.const 0) (i32.const 7) (i32.const 65536))
                  (br_if $next (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 100))))))"#,
            ends,
        ),
        // Waits on the host's clock, reads its input to the end.
        (
            r#"(module
              (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
              (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
              (memory (export "memory") 1)
              (func (export "_start") (local $n i32)
                (i32.store (i32.const 16) (i32.const 1))
                (i64.store (i32.const 24) (i64.const 100000))
                (i32.store (i32.const 512) (i32.const 600))
                (i32.store (i32.const 516) (i32.const 3))
                (loop $again
                  (if (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)) (then (unreachable)))
                  (if (call $write (i32.const 1) (i32.const 512) (i32.const 1) (i32.const 128)) (then (unreachable)))
                  (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 5))))))"#,
            ends,
        ),
    ]
}

fn spec(code: &Compiled) -> ProgramSpec<'_> {
    ProgramSpec { code: code.file(), args: vec!["test".into()], ..ProgramSpec::default() }
}

#[test]
fn workers_take_no_lock_whatever_programs_do() {
    let Some(cvm) = launch(false) else { return };
    let programs: Vec<_> =
        programs().into_iter().map(|(text, check)| (compiled(text), check, text)).collect();
    // 64 at once on three workers, each kind many times; then one after the other.
    std::thread::scope(|scope| {
        for index in 0..64 {
            let (code, check, text) = &programs[index % programs.len()];
            let program = cvm.load(&spec(code)).unwrap();
            scope.spawn(move || {
                let exit = program.run_to_end().unwrap().0;
                assert!(check(&exit), "{text} ended with {exit:?}");
            });
        }
    });
    for (code, check, text) in &programs {
        let exit = cvm.load(&spec(code)).unwrap().run_to_end().unwrap().0;
        assert!(check(&exit), "{text} ended with {exit:?}");
    }
    let stats = cvm.stats().unwrap().guest;
    assert!(stats.handed_over >= 64, "only {} hand-overs: does the engine use its locks?", stats.handed_over);
    assert_eq!(stats.worker_locks, 0);
}

#[test]
fn a_lock_on_a_worker_is_counted() {
    let Some(cvm) = launch(true) else { return };
    let code = compiled(r#"(module (memory (export "memory") 1) (func (export "_start")))"#);
    let program = cvm.load(&spec(&code)).unwrap();
    cvm.send(Header::new(Kind::SelfTest, program.id.0).arg(SelfTest::TakeLock as u64), &[]).unwrap();
    loop {
        if let ProgramEvent::Message(Header { kind: Kind::SelfTest, .. }, body) =
            program.next_event().unwrap()
        {
            assert_eq!(body, b"taken");
            break;
        }
    }
    assert_eq!(cvm.stats().unwrap().guest.worker_locks, 1);
}
