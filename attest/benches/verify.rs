//! tmp
use criterion::{Criterion, criterion_group, criterion_main};
use der::{Decode,Encode};
use ring::signature::*;
fn b(c: &mut Criterion) {
    let vcek = include_bytes!("../tests/vectors/vcek_milan.der");
    let ask = include_bytes!("../src/roots/milan-ask.der");
    let cert = x509_cert::Certificate::from_der(vcek).unwrap();
    let askc = x509_cert::Certificate::from_der(ask).unwrap();
    let report: Vec<u8> = { let t = include_str!("../tests/vectors/report_milan.hex").trim().as_bytes(); t.chunks(2).map(|c| u8::from_str_radix(std::str::from_utf8(c).unwrap(),16).unwrap()).collect() };
    let key = cert.tbs_certificate().subject_public_key_info().subject_public_key.as_bytes().unwrap();
    let mut r: [u8;48] = report[0x2a0..0x2a0+48].try_into().unwrap(); r.reverse();
    let mut s: [u8;48] = report[0x2e8..0x2e8+48].try_into().unwrap(); s.reverse();
    let sig = [r, s].concat();
    c.bench_function("p384", |b| b.iter(|| UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key).verify(&report[..0x2a0], &sig).unwrap()));
    let vk = askc.tbs_certificate().subject_public_key_info().subject_public_key.as_bytes().unwrap();
    let tbs = cert.tbs_certificate().to_der().unwrap();
    c.bench_function("rsa verify", |b| b.iter(|| UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, vk).verify(&tbs, cert.signature().as_bytes().unwrap()).unwrap()));
    c.bench_function("cert parse", |b| b.iter(|| x509_cert::Certificate::from_der(vcek).unwrap()));
}
criterion_group!(g, b);
criterion_main!(g);
