//! Modules that are loaded once and calls of them, in real CVMs: what a call is given and gives back, that no call sees
//! anything of another, and that one that misbehaves ends alone.
#![forbid(unsafe_code)]

mod calls_support;

use calls_support::{compiled, echo, launch, run, run_with, scribbler};
use nacre_vmm::program::{Exit, ProgramSpec, RunOptions};
use nacre_vmm::{Call, CallError, CvmError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

#[test]
fn a_call_gets_its_input_and_gives_its_output() {
    let Some(cvm) = launch("calls", 2) else { return };
    let module = cvm.load_module(echo().file()).unwrap();
    let (args, env) = (["echo", "ä b", ""], [("K", "v=w")]);
    // Up to what needs several messages each way.
    for len in [0, 1, 60_000, 70_000, 300_000, 3 << 20] {
        let stdin: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let call = Call { args: &args, env: &env, stdin: &stdin, max_output: 4 << 20, ..Call::default() };
        let result = run_with(&cvm, &module, call);
        assert_eq!(result.exit, Exit::Code(0), "{}", String::from_utf8_lossy(&result.stderr));
        assert!(result.stdout == stdin, "{len} bytes came back as {}", result.stdout.len());
        assert_eq!(result.stderr, "echo\0ä b\0\0K=v=w\0".as_bytes());
        assert!(!result.stdout_cut && !result.stderr_cut && result.ran > Duration::ZERO);
    }
    assert_eq!(cvm.calls_in_flight(), 0);
}

#[test]
fn output_beyond_the_limit_is_cut_and_flagged() {
    let Some(cvm) = launch("calls", 1) else { return };
    let module = cvm.load_module(echo().file()).unwrap();
    let stdin = vec![7; 200_000];
    for limit in [0, 1, 65_536, 100_000, 199_999, 200_000] {
        let result = run_with(&cvm, &module, Call { stdin: &stdin, max_output: limit, ..Call::default() });
        assert_eq!((result.exit, result.stdout.len()), (Exit::Code(0), limit));
        assert_eq!((result.stdout_cut, result.stderr_cut), (limit < 200_000, false));
    }
}

#[test]
fn what_cannot_be_called_says_why() {
    let Some(cvm) = launch("calls", 1) else { return };
    let refused = |code: &[u8]| match cvm.load_module(code) {
        Err(CvmError::Module(Exit::Error(text) | Exit::OutOfMemory(text))) => text,
        other => panic!("{:?}", other.map(|_| "loaded")),
    };
    assert!(!refused(b"").is_empty());
    assert!(!refused(&[0; 10_000]).is_empty());
    let library = compiled(r#"(module (memory (export "memory") 1) (func (export "f")))"#);
    let module = cvm.load_module(library.file()).unwrap();
    assert!(matches!(run(&cvm, &module, b"").exit, Exit::Error(text) if text.contains("_start")));
    let module = cvm.load_module(echo().file()).unwrap();
    let args = vec![""; 70_000];
    let call = Call { args: &args, ..Call::default() };
    assert!(matches!(cvm.call(&module, call, |_| ()), Err(CallError::TooMany { count: 70_000 })));
    let result = run_with(&cvm, &module, Call { args: &["a\0b"], ..Call::default() });
    assert!(matches!(result.exit, Exit::Error(_)), "{result:?}");
    assert_eq!(run(&cvm, &module, b"x").stdout, b"x");
}

/// Code that was posted can be called before the guest has looked at it; what is wrong with it is told by the call and the module.
#[test]
fn calls_wait_for_a_module_that_was_posted() {
    for workers in [0, 2] {
        let Some(cvm) = launch("calls", workers) else { return };
        let results: Vec<_> = (0..40u8)
            .map(|number| {
                let module = cvm.post_module(echo().file()).unwrap().expect("short code");
                let (sender, result) = mpsc::channel();
                let stdin = vec![number; 5000];
                let call = Call { stdin: &stdin, max_output: 5000, ..Call::default() };
                let handle = cvm.call(&module, call, move |result| sender.send(result).unwrap()).unwrap();
                if number % 4 == 3 {
                    handle.cancel();
                }
                // The module goes when the call has ended, not before.
                (number, result)
            })
            .collect();
        for (number, result) in results {
            let result = result.recv().unwrap();
            match result.exit {
                Exit::Code(0) => assert_eq!(result.stdout, vec![number; 5000]),
                Exit::Error(text) if number % 4 == 3 => assert_eq!(text, "killed"),
                other => panic!("call {number}: {other:?}"),
            }
        }
        for bad in [&[][..], &[0; 10_000], &echo().file()[..5000]] {
            let module = cvm.post_module(bad).unwrap().expect("short code");
            assert!(matches!(run(&cvm, &module, b"").exit, Exit::Error(_) | Exit::OutOfMemory(_)));
            assert!(matches!(module.refused(), Some(Exit::Error(_) | Exit::OutOfMemory(_))));
        }
        let module = cvm.post_module(echo().file()).unwrap().expect("short code");
        assert_eq!(run(&cvm, &module, b"x").stdout, b"x");
        assert_eq!(module.refused(), None);
        let long = vec![0; nacre_vmm::MAX_POSTED_CODE_BYTES + 1];
        assert!(cvm.post_module(&long).unwrap().is_none());
        assert_eq!(cvm.calls_in_flight(), 0);
    }
}

/// Every call finds its memory, globals and tables as the module says, whatever the calls before did and however they ended.
#[test]
fn no_call_sees_anything_of_another() {
    let Some(cvm) = launch("calls", 2) else { return };
    for module in scribbler() {
        let module = cvm.load_module(module.file()).unwrap();
        let limits = RunOptions { wall_limit: Some(Duration::from_millis(30)), ..RunOptions::default() };
        for round in 0..12 {
            // Ends by itself, by a trap, out of bounds, by a time limit, by being cancelled.
            for (way, how) in [(b"n", 0), (b"t", 1), (b"o", 1), (b"l", 2), (b"l", 3), (b"n", 0)] {
                let (sender, results) = mpsc::channel();
                let options = if how == 2 { limits } else { RunOptions::default() };
                let call = Call { stdin: way, options, max_output: 1 << 16, ..Call::default() };
                let handle = cvm.call(&module, call, move |result| sender.send(result).unwrap()).unwrap();
                if how == 3 {
                    handle.cancel();
                }
                let result = results.recv().unwrap();
                let as_expected = match how {
                    0 => result.exit == Exit::Code(0),
                    1 => matches!(result.exit, Exit::Trap(_)),
                    2 => matches!(result.exit, Exit::TimeLimit(_)),
                    _ => matches!(result.exit, Exit::Error(_)),
                };
                let stderr = String::from_utf8_lossy(&result.stderr);
                assert!(
                    as_expected && stderr.is_empty(),
                    "round {round}, {way:?}: {:?} {stderr}",
                    result.exit
                );
            }
        }
    }
}

#[test]
fn calls_that_misbehave_end_alone() {
    let Some(cvm) = launch("calls", 2) else { return };
    let looping =
        compiled(r#"(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))"#);
    let greedy = compiled(
        r#"(module (memory (export "memory") 1)
            (func (export "_start")
              (loop $more (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable))
                (br $more))))"#,
    );
    let printer = compiled(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\10\00\00\00\00\80\00\00")
            (func (export "_start")
              (loop $l (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br $l))))"#,
    );
    let sleeper = compiled(
        r#"(module (import "wasi_snapshot_preview1" "poll_oneoff" (func $p (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "_start")
              (i32.store8 (i32.const 8) (i32.const 0)) (i32.store (i32.const 16) (i32.const 1))
              (i64.store (i32.const 24) (i64.const 1000000000000))
              (drop (call $p (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))"#,
    );
    let good = cvm.load_module(echo().file()).unwrap();
    let options = RunOptions { wall_limit: Some(Duration::from_millis(200)), ..RunOptions::default() };
    let cpu = RunOptions { cpu_limit: Some(Duration::from_millis(50)), ..RunOptions::default() };
    let (sender, results) = mpsc::channel();
    for (name, program, options) in [
        ("wall", &looping, options),
        ("cpu", &looping, cpu),
        ("greedy", &greedy, RunOptions::default()),
        ("printer", &printer, options),
        ("sleeper", &sleeper, options),
    ] {
        let module = cvm.load_module(program.file()).unwrap();
        let sender = sender.clone();
        let call = Call { options, memory_limit: Some(8 << 20), max_output: 100_000, ..Call::default() };
        // The module goes at once: its calls run to their ends.
        cvm.call(&module, call, move |result| sender.send((name, result)).unwrap()).unwrap();
    }
    drop(sender);
    for _ in 0..50 {
        assert_eq!(run(&cvm, &good, b"still here").stdout, b"still here");
    }
    for (name, result) in results {
        match (name, &result.exit) {
            ("wall" | "cpu" | "sleeper", Exit::TimeLimit(_)) => {}
            ("printer", Exit::TimeLimit(_)) => assert!(result.stdout.len() == 100_000 && result.stdout_cut),
            ("greedy", Exit::OutOfMemory(text)) => assert!(text.contains("8 MiB"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_memory_limit_holds_for_the_initial_memory_and_for_tables() {
    let Some(cvm) = launch("calls", 1) else { return };
    for text in [
        r#"(module (memory (export "memory") 100) (func (export "_start")))"#,
        r#"(module (memory (export "memory") 1) (table 500000 funcref) (func (export "_start")))"#,
    ] {
        let module = cvm.load_module(compiled(text).file()).unwrap();
        let call =
            |limit| run_with(&cvm, &module, Call { memory_limit: Some(limit), ..Call::default() }).exit;
        assert_eq!(call(64 << 20), Exit::Code(0));
        assert!(matches!(call(1 << 20), Exit::OutOfMemory(_)), "{:?}", call(1 << 20));
        assert_eq!(call(64 << 20), Exit::Code(0));
    }
}

/// Thousands of calls at once of several modules, which go while their calls still run.
#[test]
fn thousands_of_calls_at_once() {
    let Some(cvm) = launch("calls", 3) else { return };
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    let (sender, results) = mpsc::channel();
    let mut busy = 0;
    let mut made = 0;
    for round in 0..4 {
        let modules: Vec<_> = (0..3).map(|_| cvm.load_module(echo().file()).unwrap()).collect();
        for number in 0..1500_u32 {
            let stdin = (round * 10_000 + number).to_le_bytes();
            let call = || {
                let sender = sender.clone();
                let call = Call { stdin: &stdin, max_output: 1000, ..Call::default() };
                cvm.call(&modules[number as usize % 3], call, move |result| {
                    ENDED.fetch_add(1, Ordering::Relaxed);
                    sender.send((stdin, result)).unwrap();
                })
            };
            loop {
                match call() {
                    Ok(_) => break made += 1,
                    Err(CallError::Busy) => {
                        busy += 1;
                        let (stdin, result) = results.recv().unwrap();
                        assert_eq!((result.exit, &result.stdout[..]), (Exit::Code(0), &stdin[..]));
                        made -= 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    for (stdin, result) in results.iter().take(made) {
        assert_eq!((result.exit, &result.stdout[..]), (Exit::Code(0), &stdin[..]));
    }
    assert_eq!(ENDED.load(Ordering::Relaxed), 6000);
    assert_eq!(cvm.calls_in_flight(), 0);
    let stats = cvm.stats().unwrap().guest;
    assert_eq!((stats.calls, stats.worker_locks), (6000, 0), "{busy} times busy");
}

#[test]
fn the_end_of_a_cvm_ends_its_calls() {
    let Some(cvm) = launch("calls", 1) else { return };
    let looping =
        compiled(r#"(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))"#);
    let module = cvm.load_module(looping.file()).unwrap();
    let (sender, results) = mpsc::channel();
    for _ in 0..10 {
        let sender = sender.clone();
        cvm.call(&module, Call::default(), move |result| sender.send(result.exit).unwrap()).unwrap();
    }
    drop(sender);
    cvm.stop();
    assert_eq!(results.iter().filter(|exit| matches!(exit, Exit::Error(_))).count(), 10);
    assert_eq!(cvm.call(&module, Call::default(), |_| ()).err(), Some(CallError::Ended));
}

/// A worker rings once for several brief calls; a call that is brief as a rule and then is not must not keep their results back.
#[test]
fn results_come_though_the_next_call_takes_long() {
    let Some(cvm) = launch("calls", 1) else { return };
    let moody = compiled(
        r#"(module (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\10\00\00\00\01\00\00\00")
            (func (export "_start")
              (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
              (if (i32.eq (i32.load8_u (i32.const 16)) (i32.const 108)) (then (loop $l (br $l))))))"#,
    );
    let module = cvm.load_module(moody.file()).unwrap();
    for _ in 0..200 {
        assert_eq!(run(&cvm, &module, b"n").exit, Exit::Code(0));
    }
    for _ in 0..20 {
        let (sender, results) = mpsc::channel();
        let brief = |_| {
            let sender = sender.clone();
            let call = Call { stdin: b"n", ..Call::default() };
            cvm.call(&module, call, move |result| sender.send(result.exit).unwrap()).unwrap();
        };
        (0..5).for_each(brief);
        let (ended, end) = mpsc::channel();
        let call = Call { stdin: b"l", ..Call::default() };
        let long = cvm.call(&module, call, move |result| ended.send(result.exit).unwrap()).unwrap();
        for _ in 0..5 {
            assert_eq!(results.recv().unwrap(), Exit::Code(0));
        }
        long.cancel();
        assert!(matches!(end.recv().unwrap(), Exit::Error(_)));
    }
}

/// What is kept for later calls is no reason to refuse a program that needs the memory.
#[test]
fn kept_memories_make_room_for_a_program() {
    let Some(cvm) = launch("calls", 2) else { return };
    // 4 MiB each, of which every page is written. They wait for each other's number, so that many memories are in use at once.
    let writer = compiled(
        r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32))) (memory (export "memory") 64)
          (func (export "_start") (local $n i32)
            (memory.fill (i32.const 0) (i32.const 7) (i32.const 4194304))
            (loop $again
              (drop (call $yield))
              (local.set $n (i32.add (local.get $n) (i32.const 1)))
              (br_if $again (i32.lt_u (local.get $n) (i32.const 200))))))"#,
    );
    let module = cvm.load_module(writer.file()).unwrap();
    let (sender, results) = mpsc::channel();
    for _ in 0..60 {
        let sender = sender.clone();
        cvm.call(&module, Call::default(), move |result| sender.send(result.exit).unwrap()).unwrap();
    }
    (0..60).for_each(|_| assert_eq!(results.recv().unwrap(), Exit::Code(0)));
    // The CVM has 512 MiB, of which a quarter may be kept.
    let large = compiled(r#"(module (memory (export "memory") 6800) (func (export "_start")))"#);
    let spec = ProgramSpec { code: large.file(), args: vec!["large".into()], ..ProgramSpec::default() };
    let (exit, output, errors) = cvm.load(&spec).unwrap().run_to_end().unwrap();
    assert_eq!(
        exit,
        Exit::Code(0),
        "{} {}",
        String::from_utf8_lossy(&output),
        String::from_utf8_lossy(&errors)
    );
}
