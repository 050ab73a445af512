//! What judging and making evidence costs: a genuine report with its chain, whole evidence of a software platform, signing
//! a report, parsing alone, and opening a package.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nacre_attest::chain::{BUILT_IN, Chain};
use nacre_attest::code::{CodeStatement, Kind};
use nacre_attest::evidence::Evidence;
use nacre_attest::launch::{LaunchDigest, PAGE_BYTES};
use nacre_attest::package;
use nacre_attest::report::Report;
use nacre_attest::verify::{Verifier, verify, verify_report};
use std::hint::black_box;

#[path = "../tests/common/mod.rs"]
mod common;

fn genuine(c: &mut Criterion) {
    let (report, chain, policy) = (common::milan_report(), common::milan_chain(), common::milan_policy());
    assert!(verify_report(&report, &chain, &policy, Some(common::NOW)).accepted());
    c.bench_function("report with chain, Milan", |b| {
        b.iter(|| verify_report(black_box(&report), &chain, &policy, Some(common::NOW)).accepted());
    });
    c.bench_function("chain, Milan", |b| b.iter(|| Chain::verify(black_box(&chain)).is_ok()));
    // An authority that is not built in costs one more RSA verification, as every VLEK's does.
    let ark = nacre_attest::certificate::Certificate::parse(BUILT_IN[0].ark).unwrap();
    let ask = nacre_attest::certificate::Certificate::parse(BUILT_IN[0].ask).unwrap();
    c.bench_function("link ASK <- ARK", |b| b.iter(|| black_box(&ask).is_signed_by(&ark)));
    c.bench_function("parse a report", |b| b.iter(|| Report::parse(black_box(&report)).is_ok()));
}

fn software(c: &mut Criterion) {
    let mut bench = common::Bench::new();
    let bytes = bench.sign().encode();
    let (policy, expect) = (common::policy(), common::expect());
    c.bench_function("whole evidence, software platform", |b| {
        b.iter(|| verify(&Evidence::decode(black_box(&bytes)).unwrap(), &policy, &expect).accepted());
    });
    let mut verifier = Verifier::new();
    c.bench_function("whole evidence, software platform, known chain", |b| {
        b.iter(|| {
            verifier.verify(&Evidence::decode(black_box(&bytes)).unwrap(), &policy, &expect).accepted()
        });
    });
    c.bench_function("decode evidence", |b| b.iter(|| Evidence::decode(black_box(&bytes)).is_ok()));
    c.bench_function("sign a report", |b| b.iter(|| bench.signer.sign(black_box(&bench.fields)).unwrap()));
}

fn bulk(c: &mut Criterion) {
    let mut group = c.benchmark_group("bulk");
    let code = CodeStatement {
        name: "bench".to_string(),
        version: 1,
        module_sha256: [0; 32],
        cwasm_sha256: [0; 32],
        fingerprint: [0; 32],
        kind: Kind::Action,
    };
    let code = code.sign(&common::compiler()).unwrap();
    let cwasm = vec![7; 4 << 20];
    let sealed = package::seal(&[1; 32], [2; 16], &code, &cwasm).unwrap();
    group.throughput(Throughput::Bytes(cwasm.len() as u64));
    group.bench_function("open a package of 4 MiB", |b| {
        b.iter_batched(
            || sealed.clone(),
            |mut package| package::open_in_place(&[1; 32], &mut package).is_ok(),
            criterion::BatchSize::LargeInput,
        );
    });
    group.throughput(Throughput::Bytes(PAGE_BYTES as u64));
    let mut digest = LaunchDigest::new();
    group.bench_function("measure a page", |b| b.iter(|| digest.normal_page(0, black_box(&[5; PAGE_BYTES]))));
    group.finish();
}

criterion_group!(benches, genuine, software, bulk);
criterion_main!(benches);
