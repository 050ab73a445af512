//! What TLS costs the guest: a handshake's work on the server, a certificate, and bytes sealed and opened.
//!
//! `cargo bench -p nacre-tls --features client`

#[path = "../tests/common/mod.rs"]
mod common;

use common::*;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nacre_tls::{Certificate, Nonce, Read, TlsConnection, TlsIdentity, TlsServer};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// As long as genuine evidence: a report, a chain of three certificates, a manifest.
const EVIDENCE_BYTES: usize = 8 << 10;

fn identity_and_certificate(bench: &mut Criterion) {
    bench.bench_function("identity", |bench| bench.iter(|| TlsIdentity::generate(&CRYPTO).unwrap()));
    let evidence = pattern(EVIDENCE_BYTES);
    bench.bench_function("certificate", |bench| {
        bench.iter(|| identity().certificate(black_box(&evidence)).unwrap())
    });
}

/// The server's part of one handshake.
fn server_time(server: &TlsServer, certificate: &Certificate, nonce: Nonce, fresh: bool) -> Duration {
    let name = if fresh {
        nacre_tls::client::server_name(&nonce).unwrap()
    } else {
        "kv.example".try_into().unwrap()
    };
    let mut client = rustls::ClientConnection::new(trusting(), name).unwrap();
    let hello = from_client(&mut client);
    let start = Instant::now();
    let mut connection = TlsConnection::new(server).unwrap();
    connection.feed(&hello).unwrap();
    if fresh {
        connection.provide_evidence(certificate).unwrap();
    }
    let mut spent = start.elapsed();
    to_client(&mut client, &from_server(&mut connection)).unwrap();
    let finished = from_client(&mut client);
    let start = Instant::now();
    connection.feed(&finished).unwrap();
    spent += start.elapsed();
    assert_eq!(connection.state(), nacre_tls::TlsState::Open);
    spent
}

/// A client that takes any certificate.
fn trusting() -> std::sync::Arc<rustls::ClientConfig> {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    #[derive(Debug)]
    struct Trusting;
    impl ServerCertVerifier for Trusting {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(std::sync::Arc::new(Trusting))
        .with_no_client_auth();
    config.into()
}

fn handshakes(bench: &mut Criterion) {
    let evidence = pattern(EVIDENCE_BYTES);
    let certificate = identity().certificate(&evidence).unwrap();
    let server = TlsServer::new(&CRYPTO, certificate.clone());
    for (name, fresh) in [("handshake, default certificate", false), ("handshake, nonce", true)] {
        bench.bench_function(name, |bench| {
            bench.iter_custom(|count| {
                (0..count).map(|_| server_time(&server, &certificate, nonce(), fresh)).sum()
            })
        });
    }
}

fn bulk(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("bulk");
    for size in [1 << 10, 16 << 10] {
        let (mut client, mut server) = connected();
        let text = pattern(size);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("seal {size}"), |bench| {
            bench.iter(|| {
                assert_eq!(server.write_plaintext(&text).unwrap(), size);
                let length = server.ciphertext().len();
                server.ciphertext_sent(length);
            })
        });
        let mut target = vec![0; size];
        group.bench_function(format!("open {size}"), |bench| {
            bench.iter_batched(
                || sealed(&mut client, &text),
                |wire| {
                    let mut at = 0;
                    let mut read = 0;
                    while read < size {
                        at += server.feed(&wire[at..]).unwrap();
                        if let Read::Bytes(count) = server.read_plaintext(&mut target).unwrap() {
                            read += count;
                        }
                    }
                },
                BatchSize::PerIteration,
            )
        });
    }
    group.finish();
}

criterion_group!(benches, identity_and_certificate, handshakes, bulk);
criterion_main!(benches);
