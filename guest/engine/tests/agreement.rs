//! Code from the compiling side loads and runs in an engine made the guest's way: from [`nacre_engine::configure`] and
//! nothing else. On the host this engine has std and the operating system's virtual memory; the end-to-end tests run
//! the real guest.
//!
//! Each module exports `run: [] -> [i32]`.

use std::{collections::BTreeSet, sync::Mutex};

use nacre_engine::{CpuFeatures, CpuTarget, compiler::compiling_config, configure};
use wasmtime::{Config, Engine, Instance, Module, Store, Trap};

fn precompile(wat: &str) -> wasmtime::Result<Vec<u8>> {
    let wasm = wat::parse_str(wat).expect("the test's own text is valid");
    Engine::new(&compiling_config(CpuTarget::X86_64V3)?)?.precompile_module(&wasm)
}

/// An engine as the guest makes it: no compiler, every CPU feature taken for granted (the header was checked before).
fn guest_engine() -> Engine {
    let mut config = Config::new();
    config.enable_compiler(false);
    configure(&mut config);
    // SAFETY: the callers run code for x86-64-v3 on the build machine, which the tests require to have it.
    unsafe { config.detect_host_feature(|_| Some(true)) };
    Engine::new(&config).expect("the shared settings are valid without a compiler")
}

fn start(code: &[u8]) -> wasmtime::Result<(Store<()>, Instance)> {
    let engine = guest_engine();
    // SAFETY: `code` comes from `precompile` in this process.
    let module = unsafe { Module::deserialize(&engine, code) }?;
    let mut store = Store::new(&engine, ());
    store.set_epoch_deadline(1);
    let instance = Instance::new(&mut store, &module, &[])?;
    Ok((store, instance))
}

fn run(wat: &str) -> wasmtime::Result<i32> {
    let (mut store, instance) = start(&precompile(wat)?)?;
    instance.get_typed_func::<(), i32>(&mut store, "run")?.call(&mut store, ())
}

#[track_caller]
fn assert_runs(wat: &str, expected: i32) {
    match run(wat) {
        Ok(found) => assert_eq!(found, expected),
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn simd() {
    assert_runs(
        r#"(module (func (export "run") (result i32)
            (i32x4.extract_lane 2 (i32x4.mul (v128.const i32x4 1 2 3 4) (i32x4.splat (i32.const 5))))))"#,
        15,
    );
}

#[test]
fn relaxed_simd_uses_fma() {
    assert_runs(
        r#"(module (func (export "run") (result i32) (i32.trunc_f32_s (f32x4.extract_lane 0
            (f32x4.relaxed_madd (f32x4.splat (f32.const 2)) (f32x4.splat (f32.const 3)) (f32x4.splat (f32.const 4)))))))"#,
        10,
    );
}

#[test]
fn bulk_memory() {
    assert_runs(
        r#"(module (memory 1) (data $d "\07\08\09") (func (export "run") (result i32)
            (memory.init $d (i32.const 10) (i32.const 0) (i32.const 3))
            (memory.copy (i32.const 20) (i32.const 11) (i32.const 2))
            (memory.fill (i32.const 30) (i32.const 1) (i32.const 4))
            (i32.add (i32.load8_u (i32.const 21)) (i32.load8_u (i32.const 33)))))"#,
        10,
    );
}

#[test]
fn multi_memory() {
    assert_runs(
        r#"(module (memory $a 1) (memory $b 1) (data (memory $b) (i32.const 8) "*")
            (func (export "run") (result i32)
                (i32.store8 $a (i32.const 8) (i32.const 1))
                (i32.sub (i32.load8_u $b (i32.const 8)) (i32.load8_u $a (i32.const 8)))))"#,
        41,
    );
}

#[test]
fn memory64_beyond_4_gib() {
    assert_runs(
        r#"(module (memory i64 1) (func (export "run") (result i32)
            (drop (memory.grow (i64.const 65540)))
            (i32.store (i64.const 0x1_0000_8000) (i32.const 99))
            (i32.load (i64.const 0x1_0000_8000))))"#,
        99,
    );
}

#[test]
fn reference_types() {
    assert_runs(
        r#"(module (table $t 2 externref) (table $f 1 funcref) (elem (table $f) (i32.const 0) func $seven)
            (func $seven (result i32) (i32.const 7))
            (func (export "run") (result i32)
                (table.set $t (i32.const 1) (ref.null extern))
                (i32.add (ref.is_null (table.get $t (i32.const 1))) (call_indirect $f (result i32) (i32.const 0)))))"#,
        8,
    );
}

#[test]
fn tail_calls_use_no_stack() {
    assert_runs(
        r#"(module (func $down (param i32 i32) (result i32)
                (if (result i32) (i32.eqz (local.get 0)) (then (local.get 1))
                    (else (return_call $down (i32.sub (local.get 0) (i32.const 1)) (i32.add (local.get 1) (i32.const 1))))))
            (func (export "run") (result i32) (call $down (i32.const 3000000) (i32.const 0))))"#,
        3_000_000,
    );
}

#[test]
fn exceptions_are_caught_across_frames() {
    assert_runs(
        r#"(module (tag $e (param i32)) (tag $other)
            (func $throw (param i32) (if (local.get 0) (then (throw $e (local.get 0)))))
            (func $middle (param i32) (block $b (try_table (catch $other $b) (call $throw (local.get 0)))))
            (func (export "run") (result i32)
                (block $caught (result i32)
                    (try_table (catch $e $caught) (call $middle (i32.const 42)))
                    (i32.const -1))))"#,
        42,
    );
}

#[test]
fn exceptions_are_rethrown_by_reference() {
    assert_runs(
        r#"(module (tag $e (param i32))
            (func $inner (local $x exnref)
                (block $all (result exnref)
                    (try_table (catch_all_ref $all) (throw $e (i32.const 5)))
                    (unreachable))
                (local.set $x) (throw_ref (local.get $x)))
            (func (export "run") (result i32)
                (block $caught (result i32) (try_table (catch $e $caught) (call $inner)) (i32.const -1))))"#,
        5,
    );
}

/// Exceptions are objects of the collected heap: many in one call must not exhaust it.
#[test]
fn many_exceptions() {
    assert_runs(
        r#"(module (tag $e (param i32))
            (func (export "run") (result i32) (local $n i32) (local $sum i32)
                (loop $again
                    (local.set $sum (i32.add (local.get $sum)
                        (block $caught (result i32) (try_table (catch $e $caught) (throw $e (i32.const 1))) (i32.const 0))))
                    (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 20000))))
                (local.get $sum)))"#,
        20000,
    );
}

#[track_caller]
fn assert_traps(wat: &str, expected: Trap) {
    let error = run(wat).expect_err("the module traps");
    assert_eq!(error.downcast_ref::<Trap>(), Some(&expected), "{error:?}");
}

#[test]
fn traps() {
    assert_traps(
        r#"(module (memory 1) (func (export "run") (result i32) (i32.load (i32.const 65533))))"#,
        Trap::MemoryOutOfBounds,
    );
    assert_traps(
        r#"(module (memory i64 1) (func (export "run") (result i32) (i32.load (i64.const 0x7fff_ffff_ffff_0000))))"#,
        Trap::MemoryOutOfBounds,
    );
    assert_traps(
        r#"(module (func (export "run") (result i32) (i32.div_s (i32.const 1) (i32.const 0))))"#,
        Trap::IntegerDivisionByZero,
    );
    assert_traps(
        r#"(module (func $f (export "run") (result i32) (i32.add (call $f) (i32.const 1))))"#,
        Trap::StackOverflow,
    );
    assert_traps(
        r#"(module (table 1 funcref) (func (export "run") (result i32) (call_indirect (result i32) (i32.const 0))))"#,
        Trap::IndirectCallToNull,
    );
}

#[test]
fn loops_have_epoch_checks() {
    let code =
        precompile(r#"(module (func (export "run") (result i32) (loop $l (br $l)) (unreachable)))"#).unwrap();
    let (mut store, instance) = start(&code).unwrap();
    store.engine().increment_epoch();
    let run = instance.get_typed_func::<(), i32>(&mut store, "run").unwrap();
    assert_eq!(run.call(&mut store, ()).unwrap_err().downcast_ref::<Trap>(), Some(&Trap::Interrupt));
}

#[test]
fn backtraces_name_functions() {
    let error = run(r#"(module (func $deep_one unreachable)
        (func (export "run") (result i32) (call $deep_one) (i32.const 0)))"#)
    .unwrap_err();
    let trace = error.downcast_ref::<wasmtime::WasmBacktrace>().expect("a backtrace is attached");
    assert_eq!(trace.frames()[0].func_name(), Some("deep_one"));
}

#[test]
fn excluded_proposals_do_not_compile() {
    for (name, wat) in [
        ("threads", "(module (memory 1 1 shared))"),
        ("gc", "(module (type (struct (field i32))))"),
        (
            "function references",
            "(module (type $t (func)) (func (param (ref $t)) (call_ref $t (local.get 0))))",
        ),
    ] {
        assert!(precompile(wat).is_err(), "{name}");
    }
}

#[test]
fn every_target_is_accepted_by_the_compiler() {
    let all = CpuFeatures::probe(|_| true);
    for target in [CpuTarget::X86_64V3, CpuTarget::Native(CpuFeatures::BASELINE), CpuTarget::Native(all)] {
        let engine = Engine::new(&compiling_config(target).unwrap()).unwrap();
        engine.precompile_module(&wat::parse_str("(module)").unwrap()).unwrap();
    }
}

/// The guest answers wasmtime's questions from `CpuFeatures`, so the names must be those wasmtime asks for.
#[test]
fn features_have_the_names_wasmtime_asks_for() {
    static ASKED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let all = CpuFeatures::probe(|_| true);
    let engine = Engine::new(&compiling_config(CpuTarget::Native(all)).unwrap()).unwrap();
    let code = engine.precompile_module(&wat::parse_str("(module)").unwrap()).unwrap();
    let mut config = Config::new();
    config.enable_compiler(false);
    configure(&mut config);
    // SAFETY: the module has no functions, so it does not matter which CPU features its code would need.
    unsafe {
        config.detect_host_feature(|name| {
            ASKED.lock().unwrap().insert(name.to_owned());
            Some(true)
        })
    };
    // SAFETY: `code` comes from this process.
    unsafe { Module::deserialize(&Engine::new(&config).unwrap(), &code) }.unwrap();
    assert_eq!(*ASKED.lock().unwrap(), all.names().map(str::to_owned).collect());
}
