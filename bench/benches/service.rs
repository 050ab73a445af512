//! `cargo bench -p nacre-bench --bench service`: requests to a service in a CVM against a native server.
#![forbid(unsafe_code)]

use nacre_bench::service::{Options, run};

fn main() {
    // Under `cargo test` only that it works.
    let options = match std::env::args().any(|arg| arg == "--bench") {
        true => Options::default(),
        false => Options { rounds: 1, requests: 200, bulk_bytes: 1 << 20 },
    };
    match run(&options, &()) {
        Ok(report) => print!("{}", report.table()),
        Err(error) => println!("SKIPPED service: {error}"),
    }
}
