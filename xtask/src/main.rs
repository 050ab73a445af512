//! `cargo xtask`: everything that is done to this repository by a program, and exactly what CI runs.
//!
//! ```text
//! cargo xtask test [--long] [--only WORD]   all checks and tests, in order; --long adds what is too long for CI
//! cargo xtask fetch                         fetch and build the third-party programs of the tests
//! cargo xtask apps [--check]                rebuild apps/*.wasm; --check compares with what is committed
//! cargo xtask fuzz [--seconds N] [TARGET]   run the fuzz targets, N seconds each (default 60)
//! ```
#![forbid(unsafe_code)]

mod apps;
mod fuzz;
mod reproducible;
mod steps;
mod test;

use anyhow::{Context, Result, bail};
use nacre_tests::cache::Cache;
use nacre_tests::programs::{self, Program};
use std::process::ExitCode;

const USAGE: &str =
    "usage: cargo xtask test [--long] [--only WORD] | fetch | apps [--check] | fuzz [--seconds N] [TARGET]";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything went well.
fn run() -> Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test", rest @ ..] => test::run(test_options(rest)?),
        ["fetch"] => fetch().map(|()| true),
        ["apps"] => apps::rebuild().map(|()| true),
        ["apps", "--check"] => apps::check(),
        ["fuzz", rest @ ..] => fuzz_command(rest),
        _ => bail!("{USAGE}"),
    }
}

fn test_options(mut words: &[&str]) -> Result<test::Options> {
    let mut options = test::Options::default();
    loop {
        words = match words {
            [] => return Ok(options),
            ["--long", rest @ ..] => {
                options.long = true;
                rest
            }
            ["--only", word, rest @ ..] => {
                options.only = Some(word.to_string());
                rest
            }
            _ => bail!("{USAGE}"),
        };
    }
}

fn fuzz_command(words: &[&str]) -> Result<bool> {
    let (seconds, rest) = match words {
        ["--seconds", number, rest @ ..] => (number.parse().context("--seconds takes a number")?, rest),
        rest => (60, rest),
    };
    let only = match rest {
        [] => None,
        [target] => Some(*target),
        _ => bail!("{USAGE}"),
    };
    let mut steps = steps::Steps::new();
    fuzz::run(&mut steps, seconds, only)?;
    Ok(steps.summary())
}

fn fetch() -> Result<()> {
    let cache = Cache::open()?;
    println!("reference engine: {}", programs::reference(&cache)?.display());
    for program in Program::ALL {
        let module = program.module(&cache)?;
        let code = programs::reference_code(&cache, &module)?;
        println!("{program:?}: {} ({})", module.display(), code.display());
    }
    Ok(())
}
