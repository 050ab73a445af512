//! Running the fuzz targets (`fuzz/fuzz_targets/*.rs`) with libFuzzer on the stable toolchain: the coverage
//! instrumentation is asked for by compiler flags, without sanitizers. Inputs that were found interesting stay in the
//! cache folder and are the next run's start; one that crashes is kept in `fuzz/artifacts/`.

use crate::steps::Steps;
use anyhow::{Context, Result, ensure};
use nacre_tests::cache::Cache;
use nacre_tests::registry::cargo;
use nacre_tests::repository;
use std::path::PathBuf;
use std::process::Command;

/// The target is named explicitly so that the flags don't apply to build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Builds all targets and runs each (or only `only`) for `seconds`.
pub fn run(steps: &mut Steps, seconds: u64, only: Option<&str>) -> Result<()> {
    let folder = repository().join("fuzz");
    let targets = targets()?;
    if targets.is_empty() {
        steps.skip("fuzz", "there is no target in fuzz/fuzz_targets");
        return Ok(());
    }
    ensure!(
        only.is_none_or(|name| targets.iter().any(|target| target == name)),
        "the fuzz targets are {targets:?}"
    );
    check_lists(&targets)?;
    let products = crate::test::target_dir().join("fuzz");
    let mut build = cargo();
    build.args(["build", "--release", "--bins", "--target", TARGET]).current_dir(&folder);
    build.env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", &products);
    steps.run("fuzz: build", &mut build)?;
    let artifacts = folder.join("artifacts");
    std::fs::create_dir_all(&artifacts)?;
    for target in targets.iter().filter(|target| only.is_none_or(|name| name == *target)) {
        let found = Cache::open()?.scratch(&format!("fuzz-{target}"))?;
        let mut command = Command::new(products.join(TARGET).join("release").join(target));
        command.arg(format!("-max_total_time={seconds}")).args([
            "-rss_limit_mb=4096",
            "-timeout=20",
            "-verbosity=0",
        ]);
        command
            .args(["-print_final_stats=1", &format!("-artifact_prefix={}/{target}-", artifacts.display())]);
        command.arg(found);
        command.arg(folder.join("corpus").join(target));
        steps.run(&format!("fuzz: {target}"), &mut command)?;
    }
    Ok(())
}

/// Checks that every target has seeds and a row in docs/fuzzing.md, and that neither is there for another one.
fn check_lists(targets: &[String]) -> Result<()> {
    let mut seeded = Vec::new();
    for folder in std::fs::read_dir(repository().join("fuzz/corpus"))? {
        seeded.push(folder?.file_name().to_string_lossy().into_owned());
    }
    seeded.sort();
    ensure!(seeded == targets, "fuzz/corpus has seeds for {seeded:?}, but the targets are {targets:?}");
    let document = std::fs::read_to_string(repository().join("docs/fuzzing.md"))?;
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut rows: Vec<&str> = rows.collect();
    rows.sort_unstable();
    ensure!(rows == targets, "docs/fuzzing.md has rows for {rows:?}, but the targets are {targets:?}");
    Ok(())
}

/// The names of all targets, sorted.
fn targets() -> Result<Vec<String>> {
    let folder = repository().join("fuzz/fuzz_targets");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for file in std::fs::read_dir(&folder)? {
        let path: PathBuf = file?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.push(path.file_stem().context("a file has a name")?.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
