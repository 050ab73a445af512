//! `nacre-hostile`: runs CVMs under a host that misbehaves on a seed.
//!
//! ```text
//! nacre-hostile --seed N [--repeat K]           one seed, K times
//! nacre-hostile --from N --count M [--threads T]  many
//! nacre-hostile --probe                         what this machine's KVM lets a host inject
//! ```
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use nacre_hostile::plan::Plan;
use nacre_hostile::{MARK, probe, sweep};
use std::process::ExitCode;

const USAGE: &str = "usage: nacre-hostile --seed N [--repeat K] | --from N --count M [--threads T] | --probe";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nacre-hostile: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().map(String::as_str).eq(["--probe"]) {
        print!("{}", probe::probe()?);
        return Ok(true);
    }
    let (mut seed, mut repeat, mut from, mut count, mut threads) = (None, 1, 0, 100, 2);
    for pair in words.chunks(2) {
        let [name, value] = pair else { bail!("{USAGE}") };
        let number: u64 = value.parse().with_context(|| format!("{name} takes a number; {USAGE}"))?;
        match name.as_str() {
            "--seed" => seed = Some(number),
            "--repeat" => repeat = number.max(1),
            "--from" => from = number,
            "--count" => count = number,
            "--threads" => threads = number.clamp(1, 64) as usize,
            _ => bail!("{USAGE}"),
        }
    }
    println!("{MARK}");
    let seeds = match seed {
        Some(seed) => {
            println!("{}", Plan::from_seed(seed));
            threads = 1;
            seed..seed.saturating_add(1)
        }
        None => from..from.saturating_add(count),
    };
    let summary = sweep::sweep(seeds, repeat, threads)?;
    println!("{summary}");
    Ok(summary.failures.is_empty())
}
