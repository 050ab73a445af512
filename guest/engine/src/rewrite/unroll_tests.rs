//! Tests of the unrolling: each module is valid afterwards and computes the same, hand-written ones and random ones.

use std::fmt::Write;

use wasmparser::{Parser, Payload, Validator, WasmFeatures};
use wasmtime::{Engine, Instance, Module, Store};

use super::super::{RewriteError, rewrite, rewrite_and_count};
use super::*;

/// Arguments every case is run with.
const ARGUMENTS: [i32; 12] = [0, 1, 2, 3, 5, 7, 8, 9, 16, 31, 100, -1];

fn validate(wasm: &[u8]) {
    Validator::new_with_features(WasmFeatures::all()).validate_all(wasm).expect("valid");
}

/// The module before and after, and how many loops were unrolled.
fn unrolled(text: &str) -> (Vec<u8>, Vec<u8>, usize) {
    let before = wat::parse_str(text).unwrap();
    validate(&before);
    let (after, changes) = rewrite_and_count(&before).unwrap();
    validate(&after);
    (before, after, changes.loops_unrolled)
}

/// What the export `f` returns for each argument, `None` for a trap.
fn results(wasm: &[u8], arguments: &[i32]) -> Vec<Option<i32>> {
    let engine = Engine::default();
    let module = Module::new(&engine, wasm).unwrap();
    let mut store = Store::new(&engine, ());
    let instance = Instance::new(&mut store, &module, &[]).unwrap();
    let function = instance.get_typed_func::<i32, i32>(&mut store, "f").unwrap();
    arguments.iter().map(|&argument| function.call(&mut store, argument).ok()).collect()
}

/// A function `f` from `$n` to an i32, with the locals `$i` and `$s`.
fn function(body: &str) -> String {
    format!(
        r#"(module (memory 1)
        (func (export "f") (param $n i32) (result i32) (local $i i32) (local $s i32) {body}))"#
    )
}

/// `expected` loops of the function are unrolled, and it computes the same.
#[track_caller]
fn check(body: &str, expected: usize) {
    let (before, after, loops) = unrolled(&function(body));
    assert_eq!(loops, expected);
    assert_eq!(before == after, expected == 0);
    assert_eq!(results(&before, &ARGUMENTS), results(&after, &ARGUMENTS));
}

/// `s = s * 31 + i; i += 1`
const STEP: &str = "(local.set $s (i32.add (i32.mul (local.get $s) (i32.const 31)) (local.get $i)))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))";

#[test]
fn a_loop_that_continues_by_br_if() {
    check(
        &format!(
            "(loop $l {STEP} (br_if $l (i32.lt_u (local.get $i) (i32.rem_u (local.get $n) (i32.const 77))))) local.get $s"
        ),
        1,
    );
}

#[test]
fn a_loop_that_continues_by_br_and_is_left_to_an_outer_block() {
    check(
        &format!(
            "(block $a (block $b (loop $l
                (br_if $a (i32.eq (local.get $i) (local.get $n)))
                (br_if $b (i32.eq (local.get $i) (i32.const 60)))
                {STEP} (br $l)))
             (return (i32.const -5)))
             local.get $s"
        ),
        1,
    );
}

#[test]
fn a_loop_that_is_left_by_return() {
    check(
        &format!(
            "(loop $l (if (i32.gt_u (local.get $i) (local.get $n)) (then (return (local.get $s)))) {STEP}
            (br_if $l (i32.lt_u (local.get $i) (i32.const 50)))) i32.const 9"
        ),
        1,
    );
}

#[test]
fn a_loop_that_branches_by_table_in_all_directions() {
    check(
        &format!(
            "(block $out (block $other (loop $l
                {STEP}
                (br_if $out (i32.gt_u (local.get $i) (i32.const 40)))
                (block $inner
                    (br_table $inner $l $l $other $out $inner
                        (i32.rem_u (i32.add (local.get $i) (local.get $n)) (i32.const 6))))
                (local.set $s (i32.add (local.get $s) (i32.const 1000)))
                (br $l)))
             (local.set $s (i32.xor (local.get $s) (i32.const -1))))
             local.get $s"
        ),
        1,
    );
}

#[test]
fn a_loop_with_a_result() {
    check(
        &format!(
            "(i32.add (i32.const 3) (loop $l (result i32) {STEP}
            (br_if $l (i32.lt_u (local.get $i) (i32.and (local.get $n) (i32.const 63))))
            local.get $s))"
        ),
        1,
    );
}

#[test]
fn a_loop_whose_result_goes_to_an_outer_block_as_well() {
    check(
        &format!(
            "(block $out (result i32) (i32.mul (i32.const 3) (loop $l (result i32) {STEP}
            (drop (br_if $out (i32.const 77) (i32.eq (local.get $i) (local.get $n))))
            (br_if $l (i32.lt_u (local.get $i) (i32.const 20)))
            local.get $s)))"
        ),
        1,
    );
}

#[test]
fn branches_from_nested_frames() {
    check(
        &format!(
            "(block $out (loop $l {STEP}
                (if (i32.and (local.get $i) (i32.const 1))
                    (then (if (i32.and (local.get $i) (i32.const 2)) (then (br $l)))
                          (br_if $out (i32.gt_u (local.get $i) (local.get $n))))
                    (else (block (br_if 0 (i32.and (local.get $i) (i32.const 4)))
                          (local.set $s (i32.sub (local.get $s) (i32.const 5)))
                          (br_if $out (i32.gt_u (local.get $i) (i32.const 30)))
                          (br $l))))
                (br_if $l (i32.lt_u (local.get $i) (i32.const 45)))))
             local.get $s"
        ),
        1,
    );
}

#[test]
fn only_the_innermost_of_nested_loops() {
    check(
        &format!(
            "(local $j i32) (loop $outer
                (local.set $j (i32.const 0))
                (loop $a {STEP} (local.set $j (i32.add (local.get $j) (i32.const 1)))
                    (br_if $outer (i32.eq (local.get $i) (i32.const 33)))
                    (br_if $a (i32.lt_u (local.get $j) (i32.and (local.get $n) (i32.const 15)))))
                (loop $b {STEP} (br_if $b (i32.and (local.get $i) (i32.const 3))))
                (br_if $outer (i32.lt_u (local.get $i) (i32.const 99))))
             local.get $s"
        ),
        2,
    );
}

#[test]
fn a_loop_whose_end_is_never_reached() {
    check(
        &format!("(loop $l (result i32) {STEP}
            (if (i32.gt_u (local.get $i) (i32.and (local.get $n) (i32.const 31))) (then (return (local.get $s))))
            (br $l))"),
        1,
    );
}

#[test]
fn a_trap_in_the_middle_of_the_copies() {
    check(
        &format!(
            "(loop $l {STEP} (drop (i32.load (i32.mul (local.get $i) (i32.const 5000))))
            (br_if $l (i32.ne (local.get $i) (local.get $n)))) local.get $s"
        ),
        1,
    );
}

#[test]
fn a_loop_in_unreachable_code() {
    check("(return (local.get $n)) (loop $l (result i32) (br_if $l (local.get $i)) (br $l))", 1);
}

#[test]
fn branches_on_null() {
    let (_, _, loops) = unrolled(
        "(module (func (param $r funcref)
            (block $out (loop $l
                (br_if $l (ref.is_null (block $b (result funcref) (br_on_null $l (local.get $r))
                    (br_on_null $out) (drop) (local.get $r))))))
            (drop (block $t (result (ref func)) (loop $l
                (br_on_non_null $t (local.get $r)) (br $l)) (unreachable)))))",
    );
    assert_eq!(loops, 2);
}

#[test]
fn what_does_not_qualify_stays_the_same() {
    check("(loop) local.get $n", 0);
    check("(loop $l (br_if 1 (local.get $n) (local.get $n)) (drop)) local.get $n", 0);
    check("(loop (loop)) local.get $n", 0);
    check("local.get $n (loop $l (param i32) (result i32))", 0);
    check(&format!("(loop $l {} (br_if $l (i32.const 0))) local.get $s", STEP.repeat(MAX_WEIGHT / 4)), 0);
    for body in [
        "(loop $l (try_table) (br_if $l (i32.const 0)))",
        "(block $b (loop $l (try_table (catch_all $l)) (br $b)))",
        "(loop $l (drop (br_on_cast $l anyref (ref i31) (ref.null any))) (br $l))",
        "(loop $l (br_table $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l
            $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l
            $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l
            $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l $l
            (i32.const 0)))",
    ] {
        let before = wat::parse_str(format!("(module (func {body}))")).unwrap();
        assert_eq!(rewrite(&before), Ok(before), "{body}");
    }
}

#[test]
fn heavier_bodies_get_fewer_copies() {
    let copies_of = |weight: usize| {
        let nops = "nop ".repeat(weight - 1);
        let (_, after, loops) = unrolled(&function(&format!("(loop $l {nops} (br $l)) unreachable")));
        let bodies = Parser::new(0).parse_all(&after).filter_map(|payload| match payload.unwrap() {
            Payload::CodeSectionEntry(body) => Some(body),
            _ => None,
        });
        let nops = bodies
            .flat_map(|body| body.get_operators_reader().unwrap())
            .filter(|operator| matches!(operator, Ok(Operator::Nop)));
        (loops, nops.count() / (weight - 1))
    };
    assert_eq!(copies_of(TINY_WEIGHT), (1, COPIES_OF_TINY));
    assert_eq!(copies_of(TINY_WEIGHT + 1), (1, COPIES_OF_SMALL));
    assert_eq!(copies_of(MAX_WEIGHT), (1, COPIES_OF_SMALL));
    assert_eq!(copies_of(MAX_WEIGHT + 1), (0, 1));
}

#[test]
fn growth_of_a_function_is_bounded() {
    let loops = "(loop $l (br_if $l (i32.const 0)))".repeat(5_000);
    let (before, after, unrolled) = unrolled(&function(&format!("{loops} local.get $n")));
    assert!(unrolled > 100 && unrolled < 5_000);
    assert!(after.len() > before.len() && after.len() <= 2 * before.len() + FLAT_GROWTH_BYTES);
    assert_eq!(results(&after, &[7]), [Some(7)]);
}

#[test]
fn everything_but_the_code_stays_the_same() {
    let text = r#"(module $named
        (memory (export "memory") 1) (global $g (mut i32) (i32.const 4)) (table 2 funcref) (elem (i32.const 0) $first)
        (@custom "before" (before code) "abc")
        (func $first) (func $second (export "f") (param $x i32) (result i32)
            (loop $again (br_if $again (i32.lt_s (local.tee $x (i32.add (local.get $x) (i32.const 1))) (i32.const 9))))
            local.get $x)
        (data (i32.const 8) "data") (@custom "after" (after data) "xyz"))"#;
    let (before, after, loops) = unrolled(text);
    assert_eq!(loops, 1);
    let others = |wasm: &[u8]| -> Vec<(u8, Vec<u8>)> {
        let sections = Parser::new(0).parse_all(wasm).filter_map(|payload| payload.unwrap().as_section());
        sections
            .filter(|(id, _)| *id != opcode::CODE_SECTION)
            .map(|(id, range)| (id, wasm[range].to_vec()))
            .collect()
    };
    assert_eq!(others(&before), others(&after));
    assert!(others(&after).len() >= 9);
    let first = |wasm: &[u8]| {
        let bodies = Parser::new(0).parse_all(wasm).filter_map(|payload| match payload.unwrap() {
            Payload::CodeSectionEntry(body) => Some(body.as_bytes().to_vec()),
            _ => None,
        });
        bodies.collect::<Vec<_>>().remove(0)
    };
    assert_eq!(first(&before), first(&after));
}

#[test]
fn no_input_panics() {
    assert_eq!(rewrite(b"\0asm\x0d\0\x01\0"), Err(RewriteError::Component));
    assert!(matches!(rewrite(b"hello"), Err(RewriteError::Malformed { .. })));
    assert!(rewrite(b"").is_err());
    let whole = wat::parse_str(function(
        "(block $o (loop $l (if (local.get $n) (then (br_table $l $o 0 (local.get $i)))) (br $l))) local.get $s",
    ))
    .unwrap();
    let is_valid = |wasm: &[u8]| Validator::new_with_features(WasmFeatures::all()).validate_all(wasm).is_ok();
    for length in 0..whole.len() {
        let part = &whole[..length];
        match rewrite(part) {
            Ok(after) => assert_eq!(is_valid(part), is_valid(&after)),
            Err(_) => assert!(!is_valid(part)),
        }
    }
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

/// Writes random functions whose every loop counts `$n` down, so that they end.
struct Generator {
    state: u64,
    /// Whether each open frame is a loop.
    frames: Vec<bool>,
    text: String,
}

impl Generator {
    /// xorshift64
    fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % bound
    }

    fn label(&mut self) -> u64 {
        let frames = self.frames.len() as u64;
        self.below(frames)
    }

    fn condition(&mut self) -> String {
        let (shift, mask) = (self.below(5), 1 + self.below(3));
        format!("(i32.and (i32.shr_u (local.get $s) (i32.const {shift})) (i32.const {mask}))")
    }

    fn frame(&mut self, is_loop: bool, depth: u64) {
        self.frames.push(is_loop);
        for _ in 0..=self.below(4) {
            self.statement(depth);
        }
        self.frames.pop();
    }

    fn statement(&mut self, depth: u64) {
        let mix = 3 + self.below(1000);
        let step =
            format!("(local.set $s (i32.add (i32.mul (local.get $s) (i32.const 31)) (i32.const {mix})))\n");
        self.text.push_str(&step);
        let choices = if depth == 0 { 4 } else { 8 };
        match self.below(choices) {
            0 | 1 if !self.frames.is_empty() => {
                let (label, condition) = (self.label(), self.condition());
                writeln!(self.text, "(br_if {label} {condition})").unwrap();
            }
            2 if !self.frames.is_empty() => {
                let (a, b, c, condition) = (self.label(), self.label(), self.label(), self.condition());
                let wrapped = format!("(if {condition} (then (br_table {} {} {}", a + 1, b + 1, c + 1);
                let selector = self.condition();
                writeln!(self.text, "{wrapped} {selector})))").unwrap();
            }
            4 => {
                self.text.push_str("(block\n");
                self.frame(false, depth - 1);
                self.text.push_str(")\n");
            }
            5 => {
                let condition = self.condition();
                writeln!(self.text, "(if {condition} (then").unwrap();
                self.frame(false, depth - 1);
                self.text.push_str(") (else\n");
                self.frame(false, depth - 1);
                self.text.push_str("))\n");
            }
            6 | 7 => {
                self.text.push_str(
                    "(loop (if (i32.eqz (local.get $n)) (then (return (local.get $s))))
                     (local.set $n (i32.sub (local.get $n) (i32.const 1)))\n",
                );
                self.frame(true, depth - 1);
                if self.below(3) > 0 {
                    let condition = self.condition();
                    writeln!(self.text, "(br_if 0 {condition})").unwrap();
                }
                self.text.push_str(")\n");
            }
            _ => {}
        }
    }
}

#[test]
fn random_functions_compute_the_same() {
    let mut total = 0;
    for seed in 1..=200 {
        let mut generator = Generator {
            state: 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed),
            frames: Vec::new(),
            text: String::new(),
        };
        for _ in 0..6 {
            generator.statement(4);
        }
        let text = function(&format!("{} local.get $s", generator.text));
        let (before, after, loops) = unrolled(&text);
        total += loops;
        let arguments = [0, 1, 2, 7, 8, 30, 500];
        assert_eq!(results(&before, &arguments), results(&after, &arguments), "{text}");
    }
    assert!(total > 200, "{total} loops unrolled");
}
