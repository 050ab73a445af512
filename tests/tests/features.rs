//! WebAssembly's features, one self-checking module each.
#![forbid(unsafe_code)]

use nacre_tests::apps::app;
use nacre_tests::job::{Ended, Nacre, finish};
use nacre_tests::skip::need;

fn run(feature: &str, options: &[&str]) -> Option<Ended> {
    let nacre = need(feature, Nacre::find())?;
    Some(finish(&mut nacre.run(options, &app(&format!("features/{feature}"))), b"").unwrap())
}

/// The module must end with 0: other codes are the number of the check that failed.
fn passes(feature: &str, options: &[&str]) {
    let Some(ended) = run(feature, options) else { return };
    assert_eq!((ended.code, ended.text().as_str()), (0, ""), "{feature}: {}", ended.stderr);
}

#[test]
fn the_smallest_program_ends_with_0() {
    passes("empty", &[]);
}

#[test]
fn a_64_bit_memory_reaches_beyond_4_gib() {
    passes("memory64", &["--memory", "6GiB"]);
}

#[test]
fn a_64_bit_memory_that_cannot_grow_says_so_to_the_program() {
    let Some(ended) = run("memory64", &["--memory", "1GiB"]) else { return };
    assert_eq!(ended.code, 2, "memory.grow must give -1: {}", ended.stderr);
}

#[test]
fn an_access_far_beyond_a_64_bit_memory_traps() {
    let Some(ended) = run("memory64-bounds", &[]) else { return };
    assert_eq!(ended.code, 134, "{}", ended.stderr);
    assert!(ended.stderr.contains("out of bounds") && ended.stderr.contains("beyond"), "{}", ended.stderr);
}

#[test]
fn two_memories_stay_apart() {
    passes("two-memories", &[]);
}

#[test]
fn two_full_memories_make_8_gib() {
    passes("big-memories", &["--memory", "10GiB"]);
}

#[test]
fn tail_calls_use_no_stack() {
    passes("tail-call", &[]);
}

#[test]
fn exceptions_are_thrown_and_caught() {
    passes("exceptions", &[]);
}

#[test]
fn an_uncaught_exception_ends_the_program_with_its_place() {
    let Some(ended) = run("uncaught", &[]) else { return };
    assert!(ended.code != 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("thrower") && ended.stderr.contains("exception"), "{}", ended.stderr);
}

#[test]
fn vectors_compute() {
    passes("simd", &[]);
}

#[test]
fn bulk_memory_and_tables_of_references_work() {
    passes("bulk-and-references", &[]);
}
