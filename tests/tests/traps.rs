//! Programs that end badly: exit code 134, one line that names the trap, a backtrace with function names; and running out
//! of memory, which is the program's own affair.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::{Ended, Nacre, finish};
use nacre_tests::skip::need;

fn run(how: &str, options: &[&str]) -> Option<Ended> {
    let nacre = need(how, Nacre::find())?;
    Some(finish(nacre.run(options, &app("traps")).arg(how), b"").unwrap())
}

/// The trap ends with 134, is named by one of these words, and its innermost frames are these functions in this order.
fn traps(how: &str, words: &[&str], functions: &[&str]) {
    let Some(ended) = run(how, &[]) else { return };
    assert_eq!((ended.code, ended.stdout.len()), (134, 0), "{how}: {}", ended.stderr);
    assert!(words.iter().any(|word| ended.stderr.contains(word)), "{how} must be named: {}", ended.stderr);
    let mut rest = ended.stderr.as_str();
    for function in functions {
        let Some(at) = rest.find(function) else {
            panic!("{how}: no {function} in its place: {}", ended.stderr)
        };
        rest = &rest[at + function.len()..];
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[test]
fn out_of_bounds() {
    traps("oob", &["out of bounds memory access"], &["trap_oob", "main", "_start"]);
}

#[test]
fn unreachable() {
    traps("unreachable", &["unreachable"], &["trap_unreachable", "main", "_start"]);
}

#[test]
fn stack_overflow() {
    traps("overflow", &["call stack exhausted", "stack overflow"], &["trap_overflow", "trap_overflow"]);
}

#[test]
fn division_by_zero() {
    traps("div0", &["integer divide by zero"], &["trap_div0", "main"]);
}

#[test]
fn division_overflow() {
    traps("divmin", &["integer overflow"], &["trap_divmin", "main"]);
}

#[test]
fn indirect_call_to_nothing() {
    traps("null-call", &["uninitialized element", "null"], &["trap_null_call", "main"]);
}

#[test]
fn indirect_call_of_another_type() {
    traps("wrong-type", &["indirect call type mismatch"], &["trap_wrong_type", "main"]);
}

#[test]
fn conversion_out_of_range() {
    traps("convert", &["integer overflow"], &["trap_convert", "main"]);
}

#[test]
fn out_of_guest_memory_is_an_error_of_the_program() {
    for memory in ["128MiB", "512MiB"] {
        let Some(ended) = run("alloc", &["--memory", memory]) else { return };
        assert_eq!(
            (ended.code, ended.text().as_str()),
            (42, "out of memory, as expected\n"),
            "{}",
            ended.stderr
        );
    }
}

/// A trap must not break the workers' CVM state for others: with workers the same trap looks the same.
#[test]
fn a_trap_on_a_worker_looks_the_same() {
    let (Some(alone), Some(worker)) = (run("div0", &[]), run("div0", &["--workers", "2"])) else { return };
    assert_eq!((alone.code, alone.stderr), (worker.code, worker.stderr));
}
