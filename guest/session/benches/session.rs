//! Criterion benchmarks of both ends of a session: the handshake's parts, requests and answers.
//!
//! `cargo bench -p nacre-session`; to compare two versions, `-- --save-baseline NAME` and `-- --baseline NAME`.
#![forbid(unsafe_code)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nacre_session::command::{Invoke, Limits};
use nacre_session::reply::{ExitKind, Outcome};
use nacre_session::{
    ClaimsHash, ClientHandshake, ClientSession, Command, CvmSessions, Draft, Reply, SigningKey,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::hint::black_box;

const CLAIMS: ClaimsHash = ClaimsHash([7; 32]);

fn invoke(stdin: &[u8]) -> Command<'_> {
    let (args, env, limits) = (Vec::new(), Vec::new(), Limits::default());
    Command::Invoke(Invoke { action: "hash", args, env, limits, stdin })
}

fn outcome(stdout: &[u8]) -> Reply<'_> {
    Reply::Outcome(Outcome {
        exit: ExitKind::Code,
        code: 0,
        stdout_cut: false,
        stderr_cut: false,
        cold: false,
        cpu_ns: 1,
        queued_ns: 2,
        ran_ns: 3,
        text: "",
        stdout,
        stderr: b"",
    })
}

fn handshaken(rng: &mut ChaCha20Rng) -> (CvmSessions, ClientSession) {
    let (mut cvm, draft) = (CvmSessions::new(), Draft::new(rng));
    let (id, public_key) = (draft.id(), *draft.public_key());
    cvm.publish(draft, CLAIMS, 7);
    let client = ClientHandshake::new(rng).accept(id, &public_key, CLAIMS, rng).expect("the key is good");
    (cvm, client)
}

fn handshake(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("handshake");
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    group.bench_function("CVM: key pair of an offer", |bencher| {
        bencher.iter(|| Draft::new(rng));
    });
    group.bench_function("client: keys and first request", |bencher| {
        let draft = Draft::new(rng);
        bencher.iter(|| {
            let handshake = ClientHandshake::new(rng);
            let session = handshake.accept(draft.id(), draft.public_key(), CLAIMS, rng);
            session.expect("the key is good").seal_request(&invoke(b"")).expect("it fits").bytes
        });
    });
    group.bench_function("CVM: open", |bencher| {
        let opening = || {
            let (cvm, mut client) = handshaken(rng);
            (cvm, client.seal_request(&invoke(b"")).expect("it fits").bytes)
        };
        bencher.iter_batched_ref(
            opening,
            |(cvm, record)| cvm.accept(std::mem::take(record)).expect("it is genuine"),
            BatchSize::SmallInput,
        );
    });
    let key = SigningKey::from_bytes(&[3; 32]);
    let (mut cvm, mut client) = handshaken(rng);
    let signed = client.seal_signed(&Command::Status, &key).expect("it fits");
    let request = cvm.accept(signed.bytes).expect("it is genuine");
    let allowed = [key.verifying_key().to_bytes()];
    group.bench_function("CVM: authority of a command", |bencher| {
        bencher.iter(|| request.body.authority(&allowed).expect("it is signed"));
    });
    group.finish();
}

fn records(criterion: &mut Criterion) {
    for bytes in [1 << 10, 64 << 10, 1 << 20] {
        let mut group = criterion.benchmark_group(format!("records of {} KiB", bytes >> 10));
        group.throughput(Throughput::Bytes(bytes as u64));
        let rng = &mut ChaCha20Rng::seed_from_u64(2);
        let (mut cvm, mut client) = handshaken(rng);
        let payload = vec![7; bytes];
        group.bench_function("seal and accept a request, seal and open its answer", |bencher| {
            bencher.iter(|| {
                let sealed = client.seal_request(&invoke(black_box(&payload))).expect("it fits");
                let request = cvm.accept(sealed.bytes).expect("it is genuine");
                assert!(request.body.command().is_ok());
                let answer = request.responder.seal(&outcome(&payload));
                client.open_response(answer).expect("it is genuine")
            });
        });
        group.bench_function("client seals a request", |bencher| {
            bencher.iter(|| client.seal_request(&invoke(black_box(&payload))).expect("it fits").bytes);
        });
        let (mut cvm, mut client) = handshaken(rng);
        group.bench_function("CVM accepts a request", |bencher| {
            bencher.iter_batched(
                || client.seal_request(&invoke(&payload)).expect("it fits").bytes,
                |record| cvm.accept(record).expect("it is genuine").responder,
                BatchSize::PerIteration,
            );
        });
        let (mut cvm, mut client) = handshaken(rng);
        group.bench_function("CVM seals an answer", |bencher| {
            bencher.iter_batched(
                || {
                    let sealed = client.seal_request(&invoke(b"")).expect("it fits");
                    cvm.accept(sealed.bytes).expect("it is genuine").responder
                },
                |responder| responder.seal(&outcome(black_box(&payload))),
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, handshake, records);
criterion_main!(benches);
