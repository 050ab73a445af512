//! `cargo xtask test`: the list of everything CI runs, in order. Change it here and nowhere else.

use crate::fuzz;
use crate::steps::Steps;
use anyhow::Result;
use nacre_tests::registry::cargo;
use nacre_tests::repository;
use std::path::PathBuf;
use std::process::Command;

/// What the command line asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Also what is too long for CI.
    pub long: bool,
    /// Only the steps with this word in their name.
    pub only: Option<String>,
}

/// Workspaces beside the root one, each with its own lock file. One that isn't there yet is left out.
const OTHER_WORKSPACES: [Workspace; 2] = [
    Workspace { folder: "guest/image", clippy: &["--release"] },
    Workspace { folder: "fuzz", clippy: &["--release", "--bins"] },
];

struct Workspace {
    folder: &'static str,
    clippy: &'static [&'static str],
}

/// Small packages, tested with debug assertions and overflow checks.
const CHECKED_PACKAGES: [&str; 6] =
    ["nacre-abi", "nacre-bytes", "nacre-mm", "nacre-wval", "nacre-wasi", "nacre-sockets"];

/// Tests under loom: all interleavings of a package's concurrent parts. Package and test file.
const LOOM_TESTS: [(&str, &str); 1] = [("nacre-wval", "loom")];

/// Seeds of the simulated hostile host in CI and with `--long`: see docs/hostile-host.md.
const SIMULATED_SEEDS: (u64, u64) = (2_000, 300_000);

/// Seconds per fuzz target in CI and with `--long`.
const FUZZ_SECONDS: (u64, u64) = (5, 60);

/// End-to-end tests that run alone, after the others, because they need the machine for themselves.
const E2E_ALONE: [&str; 8] = [
    "many",
    "migrate_cases",
    "migrate_chaos",
    "migrate_frozen",
    "migrate_many",
    "node_scale",
    "node_soak",
    "second_kvm",
];

/// Runs all steps; whether all went well.
pub fn run(options: Options) -> Result<bool> {
    let mut steps = Steps::new();
    let result = all(&mut steps, &options);
    let fine = steps.summary();
    result?;
    Ok(fine)
}

fn all(steps: &mut Steps, options: &Options) -> Result<()> {
    let wanted = |name: &str| options.only.as_ref().is_none_or(|word| name.contains(word.as_str()));
    for (name, mut command) in commands(options) {
        if wanted(&name) {
            steps.run(&name, &mut command)?;
        }
    }
    if wanted("reproducible") {
        steps.call("reproducible guest image", || crate::reproducible::check(&target_dir()))?;
    }
    if wanted("third-party") {
        steps.call("third-party programs", fetch)?;
    }
    for (name, mut command) in end_to_end(options) {
        if wanted(&name) {
            steps.run(&name, &mut command)?;
        }
    }
    if options.long && wanted("apps") {
        let same = || {
            anyhow::ensure!(crate::apps::check()?, "run cargo xtask apps and commit the modules");
            Ok(())
        };
        steps.call("apps are what their sources give", same)?;
    }
    if wanted("fuzz") {
        let seconds = if options.long { FUZZ_SECONDS.1 } else { FUZZ_SECONDS.0 };
        fuzz::run(steps, seconds, None)?;
    }
    Ok(())
}

/// A cargo call in the root workspace.
fn root(args: &[&str]) -> Command {
    let mut command = cargo();
    command.args(args).current_dir(repository());
    command
}

/// Everything before the end-to-end tests: cheap checks first.
fn commands(options: &Options) -> Vec<(String, Command)> {
    let mut list = vec![("fmt".to_string(), root(&["fmt", "--all", "--check"]))];
    let others: Vec<_> = OTHER_WORKSPACES.iter().filter(|other| manifest(other).is_file()).collect();
    for other in &others {
        let mut fmt = root(&["fmt", "--all", "--check", "--manifest-path"]);
        fmt.arg(manifest(other));
        list.push((format!("fmt {}", other.folder), fmt));
    }
    list.push((
        "build".to_string(),
        root(&["build", "--release", "--package", "nacre-cli", "--bin", "nacre"]),
    ));
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    list.push(("clippy".to_string(), root(&clippy)));
    for other in &others {
        let mut clippy = root(&["clippy"]);
        clippy.current_dir(repository().join(other.folder)).args(other.clippy).args(["--", "-D", "warnings"]);
        list.push((format!("clippy {}", other.folder), clippy));
    }
    let mut checked = root(&["test"]);
    checked.args(CHECKED_PACKAGES.iter().flat_map(|name| ["--package", name]));
    list.push(("unit tests with all checks".to_string(), checked));
    let mut rest = whole_workspace();
    // They have a step of their own.
    rest.args(["--", "--skip", "what_must_hold_holds_on_every_seed"]);
    rest.env("NACRE_BIN", target_dir().join("release/nacre"));
    rest.env("NACRE_LONG", if options.long { "1" } else { "0" });
    list.push(("unit and integration tests".to_string(), rest));
    let mut recipes = root(&["test", "--release", "--package", "nacre-tests", "--lib"]);
    recipes.env("NACRE_LONG", if options.long { "1" } else { "0" });
    list.push(("tests of the test tools".to_string(), recipes));
    for (package, test) in LOOM_TESTS {
        let mut loom = root(&["test", "--release", "--package", package, "--test", test]);
        // A target folder of its own: with other flags everything would be compiled again, twice.
        loom.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", target_dir().join("loom"));
        list.push((format!("loom {package}"), loom));
    }
    list.push(("hostile host, simulated".to_string(), simulated(options)));
    list
}

/// Tests of all packages but the small ones and the end-to-end tests. Whoever wants one of them selects the same packages:
/// with others, cargo would unify other features and build the compiler again.
fn whole_workspace() -> Command {
    let mut command =
        root(&["test", "--release", "--no-fail-fast", "--workspace", "--exclude", "nacre-tests"]);
    command.args(CHECKED_PACKAGES.iter().flat_map(|name| ["--exclude", name]));
    command
}

/// The scheduler under a hostile host, without a machine: every atomic operation is a point where a vCPU may be stopped.
fn simulated(options: &Options) -> Command {
    let mut command = root(&["test", "--release", "--package", "nacre-wval", "--test", "hostile"]);
    // Output stays captured: broken guests panic on purpose.
    command.env("RUST_BACKTRACE", "0");
    command.env("RUSTFLAGS", "--cfg stepped").env("CARGO_TARGET_DIR", target_dir().join("stepped"));
    let seeds = if options.long { SIMULATED_SEEDS.1 } else { SIMULATED_SEEDS.0 };
    command.env("NACRE_SIM_SEEDS", seeds.to_string());
    command
}

/// The end-to-end tests, against the release build.
fn end_to_end(options: &Options) -> Vec<(String, Command)> {
    let mut list = Vec::new();
    let mut together = Vec::new();
    let files = std::fs::read_dir(repository().join("tests/tests")).into_iter().flatten().flatten();
    let mut names: Vec<String> = files
        .filter_map(|file| file.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    for name in names {
        if !E2E_ALONE.contains(&name.as_str()) {
            together.extend(["--test".to_string(), name]);
        }
    }
    let call = |tests: &[String]| {
        let mut command = root(&["test", "--release", "--no-fail-fast", "--package", "nacre-tests"]);
        command.args(tests).env("NACRE_BIN", target_dir().join("release/nacre"));
        command.env("NACRE_LONG", if options.long { "1" } else { "0" });
        command
    };
    list.push(("end-to-end tests".to_string(), call(&together)));
    for name in E2E_ALONE {
        let mut command = call(&["--test".to_string(), name.to_string()]);
        command.args(["--", "--test-threads=1"]);
        list.push((format!("end-to-end tests: {name}"), command));
    }
    let mut hostile = whole_workspace();
    hostile.args(["--test", "seeds", "--", "--nocapture"]);
    hostile.env("NACRE_BIN", target_dir().join("release/nacre"));
    hostile.env("NACRE_LONG", if options.long { "1" } else { "0" });
    list.push(("hostile host, on KVM".to_string(), hostile));
    list
}

fn fetch() -> Result<()> {
    match crate::fetch() {
        // The tests that need them say that they are skipped; in CI that is a failure.
        Err(error) if error.downcast_ref::<nacre_tests::skip::Unavailable>().is_some() => {
            nacre_tests::skip::skipped("third-party programs", &format!("{error:#}"));
            Ok(())
        }
        other => other,
    }
}

fn manifest(other: &Workspace) -> PathBuf {
    repository().join(other.folder).join("Cargo.toml")
}

/// Where cargo puts the root workspace's products.
pub fn target_dir() -> PathBuf {
    repository().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
