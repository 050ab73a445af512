//! Tests of the judgement on programs: one per kind of bad input, each with its remedy, and arbitrary damage.

use super::*;

const HELLO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (func (export "_start")))"#;

fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[track_caller]
fn error(bytes: &[u8]) -> ModuleError {
    Module::parse(bytes, Entry::Command).expect_err("the program is bad")
}

#[track_caller]
fn message(bytes: &[u8]) -> String {
    error(bytes).to_string()
}

#[test]
fn a_command_is_accepted_in_both_forms() {
    let binary = wasm(HELLO);
    for bytes in [HELLO.as_bytes(), binary.as_slice(), format!(";; text\n {HELLO}").as_bytes()] {
        let module = Module::parse(bytes, Entry::Command).unwrap();
        assert!(module.is_command);
        assert_eq!(module.min_memory_bytes, 2 << 16);
        assert_eq!(*module.wasm, binary);
    }
}

#[test]
fn other_files_are_recognised() {
    for (bytes, what) in [
        (&b"\x7fELF\x02\x01\x01"[..], "an ELF program"),
        (b"#!/bin/sh\n", "a script"),
        (b"PK\x03\x04", "a zip archive"),
        (b"", "an empty file"),
    ] {
        let text = message(bytes);
        assert!(
            text.starts_with("not a WebAssembly module, it looks like ") && text.contains(what),
            "{text}"
        );
        assert!(text.ends_with("; compile the program for wasm32-wasip1"), "{text}");
    }
    assert_eq!(error(b"hello"), ModuleError::NotWasm(None));
    assert_eq!(error(b"\xff\xfe(module)"), ModuleError::NotWasm(None));
}

#[test]
fn bad_text_has_its_position() {
    let text = message(b"(module\n  (func (i33.const 1)))");
    assert!(text.starts_with("invalid WebAssembly text at line 2, column "), "{text}");
    assert!(text.contains("unknown operator or unexpected token"), "{text}");
}

#[test]
fn every_truncation_is_called_so() {
    let binary = wasm(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
        (memory 1) (func (export "_start") (call 0 (i32.const 7))) (data (i32.const 0) "abcdefgh"))"#,
    );
    for len in 1..binary.len() {
        match Module::parse(&binary[..len], Entry::Any) {
            Err(ModuleError::Truncated(at)) => assert_eq!(at, len),
            // Cut exactly between two sections, it is a shorter module in its own right.
            Ok(module) => assert!(len == 8 || explain_invalid(&module.wasm).is_none(), "{len}"),
            Err(other) => panic!("{len}: {other}"),
        }
    }
}

#[test]
fn arbitrary_damage_never_panics() {
    let binary = wasm(HELLO);
    for at in 0..binary.len() {
        for bit in 0..8 {
            let mut bad = binary.clone();
            bad[at] ^= 1 << bit;
            if let Ok(module) = Module::parse(&bad, Entry::Any) {
                let _ = explain_invalid(&module.wasm);
            }
        }
    }
}

#[test]
fn components_are_named() {
    let text = message(&wasm("(component)"));
    assert!(
        text.starts_with("is a component (WASI preview 2), Nacre runs core modules (WASI preview 1); "),
        "{text}"
    );
    assert_eq!(error(b"\0asm\x02\0\0\0"), ModuleError::Version(2));
}

#[test]
fn unknown_imports_are_named_with_a_hint() {
    let with_import = |import: &str| wasm(&format!("(module (import {import}) (func (export \"_start\")))"));
    for (import, what, hint) in [
        (r#""env" "emscripten_sleep" (func)"#, "env.emscripten_sleep", "Emscripten"),
        (r#""wasi_snapshot_preview1" "fd_fly" (func)"#, "wasi_snapshot_preview1.fd_fly", "current toolchain"),
        (r#""wasi_snapshot_preview1" "fd_read" (global i32)"#, "wasi_snapshot_preview1.fd_read", ""),
        (r#""wasi_unstable" "fd_write" (func)"#, "wasi_unstable.fd_write", "preview 0"),
        (r#""wbg" "f" (func)"#, "wbg.f", "browser"),
        (r#""env" "memory" (memory 1)"#, "env.memory", ""),
        (r#""mine" "t" (table 1 funcref)"#, "mine.t", "wasi_snapshot_preview1 and nacre only"),
        (r#""nacre" "fork" (func)"#, "nacre.fork", "docs/spawn.md"),
        (r#""nacre" "join" (memory 1)"#, "nacre.join", ""),
    ] {
        let text = message(&with_import(import));
        assert!(text.starts_with(&format!("imports {what}, which nobody provides; ")), "{text}");
        assert!(text.contains(hint), "{text}");
    }
}

#[test]
fn the_functions_of_nacre_are_provided_with_their_types_only() {
    for (name, params, result) in spawn::FUNCTIONS {
        let params: String = params.iter().map(|ty| format!(" {}", ty.replace('u', "i"))).collect();
        let module = |params: &str, result: &str| {
            let import = format!("(import \"nacre\" \"{name}\" (func (param{params}) (result {result})))");
            wasm(&format!("(module {import} (func (export \"_start\")))"))
        };
        assert!(result == "errno" || result == "count");
        assert!(Module::parse(&module(&params, "i32"), Entry::Command).is_ok(), "{name}");
        for wrong in [module(&(params.clone() + " i32"), "i32"), module(&params, "i64")] {
            assert_eq!(error(&wrong), ModuleError::SpawnType(name));
        }
    }
}

/// `(import ...)` of a WASI function with its right type.
fn import_text((name, params, result): &(&str, &[&str], &str)) -> String {
    let params: String = params.iter().map(|ty| format!(" {}", ty.replace('u', "i"))).collect();
    let result = if *result == "never" { "" } else { "(result i32)" };
    format!("(import \"{WASI_MODULE}\" \"{name}\" (func (param{params}) {result}))")
}

#[test]
fn every_wasi_function_is_accepted_with_its_type() {
    let imports: String = PREVIEW1.iter().map(import_text).collect();
    let binary = wasm(&format!("(module {imports} (func (export \"_start\")))"));
    assert!(Module::parse(&binary, Entry::Command).unwrap().is_command);
}

#[test]
fn wasi_functions_of_another_type_are_named() {
    for ty in ["(func)", "(func (param i64))", "(func (param i32) (result i32))"] {
        let text = message(&wasm(&format!(
            "(module (import \"{WASI_MODULE}\" \"proc_exit\" {ty}) (func (export \"_start\")))"
        )));
        assert!(text.starts_with("imports wasi_snapshot_preview1.proc_exit with other parameters"), "{text}");
    }
}

#[test]
fn programs_need_a_start() {
    let library = wasm(r#"(module (func (export "add")))"#);
    assert_eq!(error(&library), ModuleError::NoStart { reactor: false });
    assert!(!Module::parse(&library, Entry::Any).unwrap().is_command);
    let text = message(&wasm(r#"(module (func (export "_initialize")))"#));
    assert!(text.contains("it is a reactor") && text.contains("; build it as a command"), "{text}");
    for start in [
        r#"(module (func (export "_start") (param i32)))"#,
        r#"(module (func (export "_start") (result i32) (i32.const 0)))"#,
        r#"(module (memory (export "_start") 1))"#,
    ] {
        assert_eq!(error(&wasm(start)), ModuleError::StartType);
    }
}

#[test]
fn unsupported_proposals_are_named() {
    let explain = |text: &str| explain_invalid(&wasm(text)).expect("it is not supported").to_string();
    let text = explain("(module (type (struct (field i32))))");
    assert!(text.starts_with("uses the Wasm proposal") && text.contains("gc"), "{text}");
    let text = explain(
        "(module (func (param i64 i64 i64 i64) (result i64 i64) local.get 0 local.get 1 local.get 2 local.get 3 i64.add128))",
    );
    assert_eq!(
        text,
        "uses the Wasm proposal wide-arithmetic, which Nacre does not support; build it without that proposal"
    );
    let text = explain("(module (memory 1) (func (drop (i32.atomic.load (i32.const 0)))))");
    assert!(text.contains("the Wasm proposal threads") && text.contains("no -pthread"), "{text}");
    let text = explain("(module (tag $e) (func try throw $e catch $e end))");
    assert!(text.contains("legacy-exceptions") && text.contains("-wasm-use-legacy-eh=false"), "{text}");
    // Found without validation, because everything with threads imports or defines a shared memory.
    let text = message(&wasm(r#"(module (memory 1 1 shared) (func (export "_start")))"#));
    assert!(text.contains("threads"), "{text}");
    let text =
        message(&wasm(r#"(module (import "env" "memory" (memory 1 1 shared)) (func (export "_start")))"#));
    assert!(text.contains("threads"), "{text}");
}

#[test]
fn invalid_bodies_have_their_position() {
    let text = explain_invalid(&wasm("(module (func (result i32)))")).unwrap().to_string();
    assert!(text.starts_with("invalid WebAssembly at byte ") && text.contains("type mismatch"), "{text}");
    assert_eq!(explain_invalid(&wasm(HELLO)), None);
}

#[test]
fn memory_is_the_sum_and_saturates() {
    let memory = |text: &str| Module::parse(&wasm(text), Entry::Any).unwrap().min_memory_bytes;
    assert_eq!(memory("(module (memory 1) (memory 3))"), 4 << 16);
    assert_eq!(memory("(module)"), 0);
    assert_eq!(memory("(module (memory i64 0x1000000000000) (memory i64 1))"), u64::MAX);
}

#[test]
fn the_memory_remedy_is_a_size_that_exists() {
    let text = |need| ModuleError::Memory { need, have: 64 << 20 }.to_string();
    assert_eq!(text(65 << 20), "starts with 65MiB of memory, the CVM has 64MiB; use --memory 128MiB");
    assert!(text(64 << 20).ends_with("use --memory 128MiB"));
    assert!(text(64 << 30).ends_with("a CVM has at most 64GiB: build it with less initial memory"));
    assert!(text(u64::MAX).ends_with("less initial memory"));
}
