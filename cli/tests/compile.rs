//! End-to-end tests of `nacre compile`: the real binary, each kind of bad input, the cache across processes.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use nacre_cli::{host_cpu, program::Program};

const HELLO: &str = r#"(module (memory 1) (func (export "_start")))"#;

/// A directory for one test, with a cache of its own.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("NACRE_CACHE_DIR", self.path("cache")).env_remove("NACRE_LOG");
        command
    }

    fn nacre(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must fail with `code` and one line on stderr, which is returned.
    #[track_caller]
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.nacre(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert_eq!(output.stdout, b"");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        stderr.trim_end().to_owned()
    }

    fn cached(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("cache")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

#[track_caller]
fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(bytes)))
}

fn load(path: &Path) -> Program {
    Program::load(path, host_cpu::features()).unwrap()
}

#[test]
fn compiles_text_and_binary_to_the_same_program() {
    let place = Place::new();
    place.file("a.wat", HELLO);
    place.file("b.wasm", wat::parse_str(HELLO).unwrap());
    let output = place.nacre(&["compile", "a.wat", "-o", "out.cwasm"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("out.cwasm: "));
    let program = load(&place.path("out.cwasm"));
    assert!(program.header().is_command);
    assert_eq!(program.header().target.name(), "x86-64-v3");

    let result = json(&place.nacre(&["compile", "b.wasm", "--json"]).stdout);
    assert_eq!(result["output"], "b.cwasm");
    assert_eq!(result["from_cache"], true);
    assert_eq!(result["cpu"], "x86-64-v3");
    assert_eq!(load(&place.path("b.cwasm")), program);
    let mode = fs::metadata(place.path("b.cwasm")).unwrap().permissions().mode();
    assert_eq!(mode & 0o400, 0o400);
}

#[test]
fn native_is_recorded() {
    let place = Place::new();
    place.file("a.wat", HELLO);
    let result = json(&place.nacre(&["compile", "a.wat", "--cpu", "native", "--json"]).stdout);
    assert_eq!(result["cpu"], "native");
    let features: Vec<_> = host_cpu::features().names().collect();
    assert_eq!(result["cpu_features"], serde_json::json!(features));
    assert_eq!(load(&place.path("a.cwasm")).header().target.features(), host_cpu::features());
}

#[test]
fn bad_input_is_named_with_its_remedy() {
    let place = Place::new();
    let start = r#"(func (export "_start"))"#;
    let wasm = |text: String| wat::parse_str(text).unwrap();
    let big = wasm(format!("(module (memory 1) {start} (data (i32.const 0) \"{}\"))", "x".repeat(500)));
    for (name, bytes, why, remedy) in [
        (
            "elf",
            b"\x7fELF rest".to_vec(),
            "not a WebAssembly module, it looks like an ELF",
            "for wasm32-wasip1",
        ),
        ("text", b"hello".to_vec(), "not a WebAssembly module", "for wasm32-wasip1"),
        (
            "cut",
            big[..big.len() - 9].to_vec(),
            "truncated, it ends early at byte",
            "copy or build the file again",
        ),
        ("comp", wasm("(component)".into()), "is a component (WASI preview 2)", "wasm32-wasip1"),
        (
            "import",
            wasm(format!("(module (import \"env\" \"fly\" (func)) {start})")),
            "imports env.fly, which nobody provides",
            "wasm32-wasip1",
        ),
        (
            "lib",
            wasm("(module (func (export \"f\")))".into()),
            "has no `_start` function",
            "build it as a command",
        ),
        (
            "threads",
            wasm(format!("(module (memory 1 1 shared) {start})")),
            "proposal threads",
            "without threads",
        ),
        ("gc", wasm(format!("(module (type (array i8)) {start})")), "gc", "without garbage collection"),
        (
            "invalid",
            wasm(format!("(module (func (result i32)) {start})")),
            "invalid WebAssembly at byte",
            "again",
        ),
    ] {
        place.file(name, bytes);
        let line = place.fails(1, &["compile", name, "-o", "out.cwasm"]);
        assert!(line.starts_with(&format!("nacre: {name}: ")) && line.contains(why), "{line}");
        assert!(line.rsplit_once("; ").is_some_and(|(_, found)| found.contains(remedy)), "{line}");
        assert!(!place.path("out.cwasm").exists());
    }
    let line = place.fails(1, &["compile", "missing.wasm"]);
    assert_eq!(line, "nacre: missing.wasm: no such file or directory; check the path and its permissions");
    assert!(place.fails(1, &["compile", "."]).contains("is a directory"));
}

#[test]
fn a_compiled_program_is_not_compiled_again() {
    let place = Place::new();
    place.file("a.wat", HELLO);
    assert!(place.nacre(&["compile", "a.wat"]).status.success());
    assert!(place.fails(1, &["compile", "a.cwasm"]).contains("is compiled already"));
}

#[test]
fn errors_can_be_json() {
    let place = Place::new();
    place.file("a", "hello");
    let error = json(place.fails(1, &["compile", "a", "--json"]).as_bytes());
    assert_eq!(error["error"]["what"], "a");
    assert_eq!(error["error"]["why"], "not a WebAssembly module");
    assert_eq!(error["error"]["remedy"], "compile the program for wasm32-wasip1");
    assert_eq!(error["error"]["exit_code"], 1);
    let error = json(place.fails(2, &["compile", "--json", "--bad"]).as_bytes());
    assert!(error["error"]["why"].as_str().unwrap().contains("--bad"));
}

#[test]
fn usage_errors_and_help() {
    let place = Place::new();
    for args in [&["compile"][..], &["fly"], &[], &["compile", "a", "--cpu", "z80"]] {
        assert_eq!(place.nacre(args).status.code(), Some(2), "{args:?}");
    }
    for args in [&["--help"][..], &["compile", "--help"], &["--version"]] {
        let output = place.nacre(args);
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    let help = String::from_utf8(place.nacre(&["compile", "--help"]).stdout).unwrap();
    assert!(help.contains("nacre compile app.wasm -o app.cwasm"));
}

#[test]
fn the_cache_survives_damage_and_concurrent_processes() {
    let place = Place::new();
    place.file("a.wat", HELLO);
    let children: Vec<_> = (0..4)
        .map(|n| {
            let output = format!("{n}.cwasm");
            place.command(&["compile", "a.wat", "-o", &output]).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let program = load(&place.path("0.cwasm"));
    assert!((1..4).all(|n| load(&place.path(&format!("{n}.cwasm"))) == program));
    let entries = place.cached();
    assert_eq!(entries.len(), 1);

    let mut bytes = fs::read(&entries[0]).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&entries[0], bytes).unwrap();
    let result = json(&place.nacre(&["compile", "a.wat", "--json"]).stdout);
    assert_eq!(result["from_cache"], false);
    assert_eq!(load(&place.path("a.cwasm")), program);
    assert_eq!(json(&place.nacre(&["compile", "a.wat", "--json"]).stdout)["from_cache"], true);
}

#[test]
fn an_unusable_cache_is_a_warning() {
    let place = Place::new();
    place.file("a.wat", HELLO);
    place.file("cache", "a file where the directory should be");
    let output = place.nacre(&["compile", "a.wat"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success());
    assert!(stderr.starts_with("nacre: warning: compiled programs are not kept: "), "{stderr}");
    assert!(stderr.contains("; set NACRE_CACHE_DIR to a writable directory"));
    assert_eq!(stderr.lines().count(), 1);
    load(&place.path("a.cwasm"));
}

#[test]
fn an_unwritable_output_is_named() {
    let place = Place::new();
    place.file("a.wat", HELLO);
    let line = place.fails(1, &["compile", "a.wat", "-o", "missing/a.cwasm"]);
    assert_eq!(
        line,
        "nacre: missing/a.cwasm: can not be written: no such file or directory; choose another place with -o"
    );
}
