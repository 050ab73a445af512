//! Tests of the inlining: each module is valid afterwards and computes the same, traps included.

use wasmparser::{Parser, Payload, Validator, WasmFeatures};
use wasmtime::{Engine, Instance, Module, Store};

use super::super::{rewrite, rewrite_and_count};
use super::*;

const ARGUMENTS: [i32; 9] = [0, 1, 2, 3, 7, 100, -1, i32::MIN, i32::MAX];

fn validate(wasm: &[u8]) {
    Validator::new_with_features(WasmFeatures::all()).validate_all(wasm).expect("valid");
}

fn results(wasm: &[u8]) -> Vec<Option<i32>> {
    let engine = Engine::default();
    let module = Module::new(&engine, wasm).unwrap();
    let mut store = Store::new(&engine, ());
    let instance = Instance::new(&mut store, &module, &[]).unwrap();
    let function = instance.get_typed_func::<i32, i32>(&mut store, "f").unwrap();
    ARGUMENTS.iter().map(|&argument| function.call(&mut store, argument).ok()).collect()
}

/// `expected` calls of the module are inlined, and its `f` computes the same.
#[track_caller]
fn check(functions: &str, expected: usize) {
    let text = format!("(module (memory 1) (global $g (mut i32) (i32.const 3)) {functions})");
    let before = wat::parse_str(&text).unwrap();
    validate(&before);
    let (after, changes) = rewrite_and_count(&before).unwrap();
    validate(&after);
    assert_eq!(changes.calls_inlined, expected, "{text}");
    assert_eq!(results(&before), results(&after), "{text}");
}

/// `f(n) = leaf(n) + 31 * leaf(leaf(n + 5))`
const CALLER: &str = r#"(func (export "f") (param $n i32) (result i32) (local $r i32)
    (local.set $r (call $leaf (call $leaf (i32.add (local.get $n) (i32.const 5)))))
    (i32.add (call $leaf (local.get $n)) (i32.mul (i32.const 31) (local.get $r))))"#;

#[track_caller]
fn check_leaf(leaf: &str, expected: usize) {
    check(&format!("(func $leaf {leaf}) {CALLER}"), expected);
    check(&format!("{CALLER} (func $leaf {leaf})"), expected);
}

#[test]
fn straight_lines() {
    check_leaf("(param $a i32) (result i32) (i32.mul (local.get $a) (i32.const 7))", 3);
    check_leaf("(param i32) (result i32) (i32.const 7)", 3);
    check_leaf("(param $a i32) (result i32) (local.tee $a (i32.xor (local.get $a) (i32.const -1)))", 3);
    check_leaf(
        "(param $a i32) (result i32) (global.set $g (i32.add (global.get $g) (local.get $a))) (global.get $g)",
        3,
    );
    check_leaf(
        "(param $a i32) (result i32) (i32.wrap_i64 (i64.trunc_sat_f64_s (f64.sqrt (f64.convert_i32_s (local.get $a)))))",
        0,
    );
}

#[test]
fn locals_start_at_zero_every_time() {
    check_leaf(
        "(param $a i32) (result i32) (local $x i32) (local $y i64) (local $z f32) (local $w f64)
         (local.set $x (i32.add (local.get $x) (local.get $a)))
         (local.set $y (i64.add (local.get $y) (i64.extend_i32_s (local.get $x))))
         (local.set $z (f32.add (local.get $z) (f32.convert_i32_s (local.get $x))))
         (local.set $w (f64.add (local.get $w) (f64.promote_f32 (local.get $z))))
         (i32.add (local.get $x) (i32.add (i32.wrap_i64 (local.get $y)) (i32.reinterpret_f32 (f32.demote_f64 (local.get $w)))))",
        3,
    );
    check(
        r#"(func $leaf (param $a i32) (result i32) (local $x i32)
            (local.set $x (i32.add (local.get $x) (local.get $a))) (local.get $x))
           (func (export "f") (param $n i32) (result i32) (local $i i32) (local $sum i32)
            (loop $again
                (local.set $sum (i32.add (local.get $sum) (call $leaf (local.get $i))))
                (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.and (local.get $n) (i32.const 63)))))
            (local.get $sum))"#,
        1,
    );
}

#[test]
fn branches_and_returns() {
    check_leaf(
        "(param $a i32) (result i32)
         (if (i32.lt_s (local.get $a) (i32.const 0)) (then (return (i32.const -3))))
         (block $b (br_if $b (i32.and (local.get $a) (i32.const 1))) (return (i32.const 44)))
         (br_if 0 (i32.const 9) (i32.gt_s (local.get $a) (i32.const 50)))
         (i32.add (i32.const 1))",
        3,
    );
    check_leaf(
        "(param $a i32) (result i32)
         (if (result i32) (i32.and (local.get $a) (i32.const 2)) (then (i32.const 5)) (else (br 1 (local.get $a))))",
        3,
    );
    check_leaf("(param $a i32) (result i32) (return (local.get $a))", 3);
}

#[test]
fn no_result_many_parameters_and_unreachable_calls() {
    check(
        r#"(func $set (param $a i32) (param $b i32) (global.set $g (i32.sub (local.get $a) (local.get $b))))
           (func $minus (param $a i32) (param $b i32) (result i32) (i32.sub (local.get $a) (local.get $b)))
           (func (export "f") (param $n i32) (result i32)
            (call $set (local.get $n) (i32.const 5))
            (if (global.get $g) (then (return (call $minus (global.get $g) (call $minus (local.get $n) (i32.const 3))))))
            (br 0 (global.get $g)) (call $set) (call $minus))"#,
        5,
    );
}

#[test]
fn imported_functions_shift_the_indices() {
    let before = wat::parse_str(
        r#"(module (import "a" "b" (func $imported (param i32) (result i32))) (import "a" "m" (memory 1))
            (func $leaf (param i32) (result i32) (local.get 0))
            (func (param i32) (result i32) (call $imported (call $leaf (local.get 0)))))"#,
    )
    .unwrap();
    let (after, changes) = rewrite_and_count(&before).unwrap();
    validate(&after);
    assert_eq!(changes.calls_inlined, 1);
    let calls = Parser::new(0).parse_all(&after).filter_map(|payload| match payload.unwrap() {
        Payload::CodeSectionEntry(body) => Some(body),
        _ => None,
    });
    let called: Vec<u32> = calls
        .flat_map(|body| body.get_operators_reader().unwrap())
        .filter_map(|operator| match operator.unwrap() {
            Operator::Call { function_index } => Some(function_index),
            _ => None,
        })
        .collect();
    assert_eq!(called, [0]);
}

#[test]
fn what_does_not_qualify_stays_a_call() {
    check_leaf("(param $a i32) (result i32) (i32.div_s (i32.const 100) (local.get $a))", 0);
    check_leaf("(param $a i32) (result i32) (i32.rem_u (i32.const 100) (local.get $a))", 0);
    check_leaf("(param $a i32) (result i32) (i32.trunc_f32_s (f32.reinterpret_i32 (local.get $a)))", 0);
    check_leaf("(param $a i32) (result i32) (i32.load (local.get $a))", 0);
    check_leaf("(param $a i32) (result i32) (i32.store (i32.const 0) (local.get $a)) (i32.const 1)", 0);
    check_leaf("(param $a i32) (result i32) (memory.size)", 0);
    check_leaf("(param $a i32) (result i32) (if (local.get $a) (then (unreachable))) (i32.const 1)", 0);
    check_leaf("(param $a i32) (result i32) (loop) (i32.const 1)", 0);
    check_leaf("(param $a i32) (result i32) (local funcref) (local.get $a)", 0);
    check_leaf(
        &format!("(param $a i32) (result i32) {} local.get $a", "nop ".repeat(MAX_LEAF_OPERATORS - 2)),
        3,
    );
    check_leaf(
        &format!("(param $a i32) (result i32) {} local.get $a", "nop ".repeat(MAX_LEAF_OPERATORS - 1)),
        0,
    );
}

#[test]
fn growth_and_locals_of_a_function_are_bounded() {
    let nops = "nop ".repeat(30);
    let leaf = format!("(func $leaf (param i32) (result i32) {nops} (local.get 0))");
    let calls = "(call $leaf)".repeat(5_000);
    let text =
        format!(r#"(module {leaf} (func (export "f") (param i32) (result i32) (local.get 0) {calls}))"#);
    let before = wat::parse_str(&text).unwrap();
    let (after, changes) = rewrite_and_count(&before).unwrap();
    validate(&after);
    assert!(changes.calls_inlined > 300 && changes.calls_inlined < 5_000);
    assert!(after.len() <= 2 * before.len() + FLAT_GROWTH_BYTES);

    let leaves: String = (0..300)
        .map(|i| format!("(func $leaf{i} (param i32) (result i32) (i32.add (local.get 0) (i32.const {i})))"))
        .collect();
    let calls: String = (0..300).map(|i| format!("(call $leaf{i})")).collect();
    check(
        &format!(r#"{leaves} (func (export "f") (param i32) (result i32) (local.get 0) {calls})"#),
        MAX_ADDED_LOCALS,
    );
}

#[test]
fn an_inlined_loop_body_is_unrolled_as_well() {
    let before = wat::parse_str(
        r#"(module (func $step (param i64) (result i64) (i64.mul (local.get 0) (i64.const 3)))
            (func (export "f") (param $n i32) (result i32) (local $x i64) (local.set $x (i64.const 1))
                (loop $l (local.set $x (call $step (local.get $x)))
                    (br_if $l (i32.gt_s (local.tee $n (i32.sub (local.get $n) (i32.const 1))) (i32.const 0))))
                (i32.wrap_i64 (local.get $x))))"#,
    )
    .unwrap();
    let (after, changes) = rewrite_and_count(&before).unwrap();
    validate(&after);
    assert_eq!((changes.calls_inlined, changes.loops_unrolled), (1, 1));
    assert_eq!(rewrite(&before), Ok(after));
}

#[test]
fn damaged_modules_do_not_panic() {
    let whole = wat::parse_str(
        r#"(module (import "a" "b" (func)) (func $leaf (param $a i32) (result i32) (local i64)
                (if (local.get $a) (then (return (i32.const 2)))) (br_if 0 (i32.const 3) (local.get $a)))
            (func (export "f") (param $n i32) (result i32) (local f64 f32) (call $leaf (call $leaf (local.get $n)))))"#,
    )
    .unwrap();
    let is_valid = |wasm: &[u8]| Validator::new_with_features(WasmFeatures::all()).validate_all(wasm).is_ok();
    for position in 0..whole.len() {
        for value in 0..=255 {
            let mut damaged = whole.clone();
            damaged[position] = value;
            let valid = is_valid(&damaged);
            match rewrite(&damaged) {
                Ok(after) if valid => validate(&after),
                Ok(_) => {}
                Err(error) => assert!(!valid || error == RewriteError::Component, "{error}"),
            }
        }
    }
}
