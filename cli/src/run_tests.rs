//! Tests of planning a run: files, directories, environment, memory. They use no cache of the user's.

use std::fs;

use nacre_engine::{CpuFeatures, CpuTarget};

use super::*;
use crate::{
    args::{CpuArg, CvmArgs},
    compile::compile,
    values::{parse_dir, parse_env, parse_export, parse_memory},
};

const PROGRAM: &str = r#"(module (memory 2048) (func (export "_start")))"#;

fn compiled(text: &str) -> Vec<u8> {
    let module = Module::parse(text.as_bytes(), Entry::Any).unwrap();
    compile(&module, CpuTarget::X86_64V3).unwrap().file().to_vec()
}

fn args(program: &Path) -> RunArgs {
    RunArgs {
        cvm: CvmArgs { workers: 2, memory: parse_memory("1GiB").unwrap() },
        cpus: None,
        spin_limit: std::time::Duration::ZERO,
        name: None,
        time_limit: None,
        dirs: Vec::new(),
        exports: Vec::new(),
        env: Vec::new(),
        cpu: None,
        stats: false,
        stats_json: None,
        json: false,
        command_line: vec![program.into(), "--flag".into()],
    }
}

/// A directory with `app.cwasm` and the arguments to run it.
fn setup(text: &str) -> (tempfile::TempDir, RunArgs) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.cwasm");
    fs::write(&path, compiled(text)).unwrap();
    let args = args(&path);
    (dir, args)
}

#[track_caller]
fn failure(args: RunArgs) -> String {
    plan(args).expect_err("the plan must fail").to_string()
}

#[test]
fn a_compiled_program_is_planned() {
    let (dir, mut args) = setup(PROGRAM);
    args.dirs = vec![parse_dir(&format!("{}::/d", dir.path().display())).unwrap()];
    args.exports = vec![parse_export(&format!("/d::{}/out", dir.path().display())).unwrap()];
    args.env = ["B=1", "A=2", "B=3", "PATH"].map(|text| parse_env(text).unwrap()).to_vec();
    let plan = plan(args).unwrap();
    assert_eq!(plan.args, ["app.cwasm", "--flag"]);
    assert_eq!(plan.workers, 2);
    assert_eq!(plan.program.header().min_memory_bytes, 128 << 20);
    let path = std::env::var("PATH").unwrap();
    assert_eq!(
        plan.env,
        [("B", "3"), ("A", "2"), ("PATH", &path)].map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
}

#[test]
fn memory_must_hold_what_the_program_starts_with() {
    let (_dir, mut args) = setup(PROGRAM);
    args.cvm.memory = parse_memory("128MiB").unwrap();
    let text = failure(args);
    assert!(
        text.ends_with("starts with 128MiB of memory, the CVM has 128MiB; use --memory 256MiB"),
        "{text}"
    );
}

#[test]
fn damaged_and_foreign_code_is_refused() {
    let (dir, base) = setup(PROGRAM);
    let path = dir.path().join("app.cwasm");
    let good = fs::read(&path).unwrap();
    let text_after = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        edit(&mut bytes);
        fs::write(&path, bytes).unwrap();
        failure(args(&path))
    };
    assert!(
        text_after(&|file| file.truncate(5000)).contains("truncated or damaged; compile the program again")
    );
    assert!(text_after(&|file| file.push(0)).contains("truncated or damaged"));
    assert!(text_after(&|file| *file.last_mut().unwrap() ^= 1).contains("code is damaged"));
    assert!(text_after(&|file| file[100] ^= 1).contains("header is damaged"));
    assert!(text_after(&|file| file[8] = 9).contains("header version 9"));
    drop(base);
}

#[test]
fn code_for_another_cpu_is_refused_unless_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.cwasm");
    let module = Module::parse(PROGRAM.as_bytes(), Entry::Any).unwrap();
    let host = host_cpu::features();
    let native = compile(&module, CpuTarget::Native(host)).unwrap();
    fs::write(&path, native.file()).unwrap();
    assert_eq!(plan(args(&path)).unwrap().program, native);

    let everything = CpuFeatures::probe(|_| true);
    let lacking = everything.missing_from(host);
    let error = Program::from_bytes(
        compile(&module, CpuTarget::Native(everything)).unwrap().file().to_vec(),
        CpuFeatures::X86_64_V3,
    );
    assert!(error.unwrap_err().to_string().contains("avx512f"));
    if !lacking.is_empty() {
        fs::write(&path, compile(&module, CpuTarget::Native(everything)).unwrap().file()).unwrap();
        assert!(failure(args(&path)).contains(&format!("compiled for a CPU with {lacking}")));
    }
}

#[test]
fn options_that_do_not_fit_are_usage_errors() {
    let (_dir, mut args) = setup(PROGRAM);
    args.cpu = Some(CpuArg::Native);
    let failure = plan(args).unwrap_err();
    assert_eq!(failure.exit_code, crate::failure::EXIT_USAGE);
    assert!(
        failure.to_string().starts_with("--cpu: ") && failure.to_string().contains("is compiled already")
    );
}

#[test]
fn libraries_are_not_run() {
    let (_dir, args) = setup(r#"(module (func (export "f")))"#);
    assert!(failure(args).contains("has no `_start` function"));
}

#[test]
fn missing_places_are_found_before_the_run() {
    let (dir, _) = setup(PROGRAM);
    let program = dir.path().join("app.cwasm");
    let missing = dir.path().join("missing");
    let mut with = args(&program);
    with.dirs = vec![parse_dir(missing.to_str().unwrap()).unwrap()];
    let text = failure(with);
    assert_eq!(
        text,
        format!("--dir {}: no such file or directory; check the path and its permissions", missing.display())
    );

    let mut with = args(&program);
    with.dirs = vec![parse_dir(program.to_str().unwrap()).unwrap()];
    assert!(failure(with).contains("is not a directory; pass the directory the file is in"));

    let mut with = args(&program);
    with.stats_json = Some(missing.join("s.json"));
    assert!(failure(with).starts_with("--stats-json "));

    let mut with = args(&program);
    with.exports = vec![parse_export(&format!("/x::{}/y", program.display())).unwrap()];
    assert!(failure(with).contains("is not a directory; choose another place"));

    assert!(
        failure(args(&missing))
            .ends_with("missing: no such file or directory; check the path and its permissions")
    );
    assert!(failure(args(dir.path())).contains("is a directory"));
}

#[test]
fn inherited_variables_must_exist() {
    let (_dir, mut args) = setup(PROGRAM);
    args.env = vec![parse_env("NACRE_TEST_SURELY_UNSET").unwrap()];
    let text = failure(args);
    assert_eq!(
        text,
        "--env NACRE_TEST_SURELY_UNSET: is not set here; give a value: --env NACRE_TEST_SURELY_UNSET=VALUE"
    );
}
