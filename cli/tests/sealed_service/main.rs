//! Services behind TLS that ends in the CVM: real programs in real CVMs, clients over real sockets that verify the evidence in the
//! certificate, and hosts and clients that misbehave.
#![forbid(unsafe_code)]

mod clients;
#[path = "../sealed_support/mod.rs"]
#[allow(dead_code)]
mod sealed_support;

use clients::{Cut, Duplex, Service, Shown, kv, pattern, serve, serve_on};
use nacre_attest::policy::Policy;
use nacre_attest::verify::rule;
use nacre_session::command::ModuleKind;
use nacre_vmm::program::Exit;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ECHO: &[u8] = include_bytes!("../../../apps/echo/echo.wasm");
const KV: &[u8] = include_bytes!("../../../apps/kv/kv.wasm");

/// Clients at once.
const MANY: usize = 120;

/// What must not be seen outside.
const SECRET: &[u8] = b"planted-plaintext-of-the-connection";

fn echoes(service: &Service<'_>, text: &[u8]) {
    let mut client = service.dial().unwrap();
    client.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    client.read_exact(&mut back).unwrap();
    assert!(back == text);
}

#[test]
fn a_client_verifies_whom_it_talks_to_and_halves_end_on_their_own() {
    serve("verified", ECHO, ModuleKind::TlsService, |service| {
        let mut client = service.dial().unwrap();
        client.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
        client.write_all(b"last words").unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        // The end of what echo sends is close_notify: anything else would be an error here.
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"last words");
        service.wait_until_open(0);

        // Fresh evidence each time, also for one key.
        let (first, second) = (service.evidence(), service.evidence());
        assert_eq!(first.claims.key, second.claims.key);
        assert_ne!(first.claims.nonce, second.claims.nonce);
        assert_ne!(first.report, second.report);
        assert_eq!(first.code.len(), 1);
    });
}

#[test]
fn a_client_that_names_no_nonce_sees_evidence_without_one() {
    serve("default certificate", ECHO, ModuleKind::TlsService, |service| {
        for name in ["kv.example", "localhost"] {
            let (mut client, evidence) = service.dial_anonymous(name).unwrap();
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
            assert_eq!(evidence.claims.nonce, [0; 32]);
            let verdict = service.judge(&evidence, [0; 32], &service.policy);
            assert!(verdict.accepted(), "{:?}", verdict.failed().collect::<Vec<_>>());
            assert_eq!(evidence.claims.key, service.evidence().claims.key, "of the same key");
        }
    });
}

#[test]
fn a_client_rejects_what_its_policy_does_not_accept() {
    serve("wrong policy", ECHO, ModuleKind::TlsService, |service| {
        let stricter = Policy { allow_software_platform: false, ..service.policy.clone() };
        let unknown = Policy { measurements: vec![], ..service.policy.clone() };
        for (policy, broken) in [(stricter, rule::SOFTWARE_PLATFORM), (unknown, rule::MEASUREMENT)] {
            let error = service.dial_with(&policy).unwrap_err().to_string();
            assert!(error.contains("Rejected") && error.contains(broken), "{error}");
        }
        echoes(service, b"others go on");
    });
}

#[test]
fn megabytes_go_both_ways_at_once() {
    serve("megabytes", ECHO, ModuleKind::TlsService, |service| {
        let sent = pattern(6 << 20);
        let duplex = Duplex::new(service.dial().unwrap());
        let got = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                // Lengths from one byte to more than a window.
                let (mut at, mut step) = (0, 0u64);
                while at < sent.len() {
                    step += 1;
                    let len = match step % 7 {
                        0..4 => 1 + (step * 2_654_435_761 % 5000) as usize,
                        4 => 1,
                        5 => 40_000,
                        _ => 300_000,
                    };
                    let end = (at + len).min(sent.len());
                    duplex.write_all(&sent[at..end]).unwrap();
                    at = end;
                }
                duplex.close().unwrap();
            });
            let got = duplex.read_to_end().unwrap();
            writer.join().unwrap();
            got
        });
        assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
        service.wait_until_open(0);
    });
}

#[test]
fn a_client_that_does_not_read_stops_the_service_and_keeps_no_memory() {
    serve("backpressure", ECHO, ModuleKind::TlsService, |service| {
        let sent = pattern(40 << 20);
        let duplex = Duplex::new(service.dial().unwrap());
        echoes(service, b"once, so that what one connection needs is there");
        let committed = || service.cvm.stats().unwrap().guest.committed_bytes;
        let before = committed();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                duplex.write_all(&sent).unwrap();
                duplex.close().unwrap();
            });
            // The kernel's buffers and all windows fill up: then nothing moves any more.
            let (mut at, mut still) = (0, 0);
            while still < 100 {
                let now = duplex.sent_bytes();
                still = if now == at && now > 1 << 20 { still + 1 } else { 0 };
                at = now;
                echoes(service, b"another client is served");
            }
            assert!(!writer.is_finished() && at < sent.len(), "{at}");
            let grown = committed().saturating_sub(before);
            assert!(grown < 2 << 20, "{} KiB", grown >> 10);
            assert!(duplex.read_to_end().unwrap() == sent);
        });
    });
}

#[test]
fn many_clients_at_once() {
    serve("many", ECHO, ModuleKind::TlsService, |service| {
        let dial = |count: usize| {
            std::thread::scope(|scope| {
                let policy = &service.policy;
                let sockets: Vec<_> = (0..count).map(|_| service.tcp()).collect();
                let dial = |tcp| scope.spawn(|| Service::dial_over(policy, tcp, &Shown::default()).unwrap());
                let threads: Vec<_> = sockets.into_iter().map(dial).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            })
        };
        // More at once than reports are on their way.
        let mut clients: Vec<_> = (0..MANY / 40).flat_map(|_| dial(40)).collect();
        for round in 0..5u32 {
            for (number, client) in clients.iter_mut().enumerate() {
                client.write_all(format!("{round} of {number:05}").as_bytes()).unwrap();
            }
            for (number, client) in clients.iter_mut().enumerate() {
                let mut got = [0; 10];
                client.read_exact(&mut got).unwrap();
                assert_eq!(&got, format!("{round} of {number:05}").as_bytes());
            }
        }
        // Half of them go without a word, the others in order.
        for (number, mut client) in clients.into_iter().enumerate() {
            if number % 2 == 0 {
                client.conn.send_close_notify();
                client.flush().unwrap();
            }
        }
        service.wait_until_open(0);
        echoes(service, b"and on");
    });
}

#[test]
fn a_store_is_used_through_tls() {
    serve("kv", KV, ModuleKind::TlsService, |service| {
        let mut client = service.dial().unwrap();
        assert_eq!(kv(&mut client, "PING\r\n", 7), "+PONG\r\n");
        assert_eq!(kv(&mut client, "SET greeting hello\r\n", 5), "+OK\r\n");
        let mut other = service.dial().unwrap();
        assert_eq!(kv(&mut other, "GET greeting\r\n", 11), "$5\r\nhello\r\n");
        // Pipelined, and longer than any record.
        let value = "v".repeat(900_000);
        let set = format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n{value}\r\n", value.len());
        assert_eq!(kv(&mut client, &set, 5), "+OK\r\n");
        let got = kv(&mut client, "GET big\r\n", 2 + 6 + 2 + value.len() + 1);
        assert_eq!(got, format!("${}\r\n{value}\r\n", value.len()));
        let many = "INCR n\r\n".repeat(500);
        let replies: String = (1..=500).map(|n| format!(":{n}\r\n")).collect();
        assert_eq!(kv(&mut client, &many, replies.len()), replies);
        // It answers and closes: the answer arrives, and an end in order.
        client.write_all(b"QUIT\r\n").unwrap();
        let mut last = String::new();
        client.read_to_string(&mut last).unwrap();
        assert_eq!(last, "+OK\r\n");
    });
}

#[test]
fn who_stops_in_the_handshake_is_closed_after_a_while() {
    serve("slow handshakes", ECHO, ModuleKind::TlsService, |service| {
        let hello = service.hello();
        let mut silent = service.tcp();
        let mut half = service.tcp();
        half.write_all(&hello[..hello.len() / 2]).unwrap();
        let mut whole = service.tcp();
        whole.write_all(&hello).unwrap();
        let (mut buf, mut answer) = ([0; 64], Vec::new());
        while answer.len() < 1000 {
            let count = whole.read(&mut buf).unwrap();
            assert!(count > 0, "it was answered");
            answer.extend_from_slice(&buf[..count]);
        }
        echoes(service, b"others are served meanwhile");
        service.wait_until_open(3);
        for client in [&mut silent, &mut half, &mut whole] {
            client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut rest = Vec::new();
            match client.read_to_end(&mut rest) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            }
        }
        service.wait_until_open(0);
    });
}

#[test]
fn more_handshakes_than_there_may_be_wait_their_turn() {
    serve("handshakes", ECHO, ModuleKind::TlsService, |service| {
        let mut open = service.dial().unwrap();
        let idle: Vec<_> = (0..260).map(|_| service.tcp()).collect();
        // Who is served goes on being served.
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
        // This one comes when the first of the idle ones are given up.
        echoes(service, b"at last");
        drop(idle);
    });
}

#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    serve("garbage", ECHO, ModuleKind::TlsService, |service| {
        let mut broken = service.hello();
        // No kind of handshake message. (Most of a hello is random, or in any order.)
        broken[5] = 99;
        let long = [&[22, 3, 1, 0x40, 1][..], &[1; 0x4001]].concat();
        let garbage: [&[u8]; 5] =
            [b"GET / HTTP/1.1\r\n\r\n", &[0; 3000], &[0xff; 40_000], &long, &[broken, vec![7; 500]].concat()];
        for bytes in garbage {
            let mut client = service.tcp();
            client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            // It may be closed before all of it is written.
            let _ = client.write_all(bytes);
            let mut answer = Vec::new();
            let ended = client.read_to_end(&mut answer);
            if let Err(error) = &ended {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
            assert!(
                answer.is_empty() || answer.starts_with(&[21, 3]),
                "an alert or nothing: {:?}",
                &answer[..answer.len().min(60)]
            );
        }
        service.wait_until_open(0);
        echoes(service, b"and on");
    });
}

#[test]
fn a_stream_that_was_cut_or_changed_is_no_end() {
    serve("cut", ECHO, ModuleKind::TlsService, |service| {
        let text = vec![5; 3000];
        // On its way to the client.
        let mut client = service.dial_through(Cut::ToClient(6000)).unwrap();
        client.write_all(&text).unwrap();
        client.write_all(&text).unwrap();
        let error = client.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
        drop(client);
        // On its way to the service: echo ends its half in order only if the client has.
        let mut client = service.dial_through(Cut::ToService(6000)).unwrap();
        client.write_all(&text).unwrap();
        client.write_all(&text).unwrap();
        client.write_all(&text).unwrap();
        let error = client.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
        drop(client);
        // Changed.
        let mut client = service.dial_through(Cut::Flip(6000)).unwrap();
        client.write_all(&text).unwrap();
        client.write_all(&text).unwrap();
        client.write_all(&text).unwrap();
        let error = client.read_to_end(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("BadRecordMac"), "{error}");
        drop(client);
        service.wait_until_open(0);
        echoes(service, b"and on");
    });
}

#[test]
fn what_is_relayed_holds_no_plaintext() {
    let relayed = |kind: ModuleKind| {
        let mut all = Vec::new();
        serve("plaintext", ECHO, kind, |service| {
            let mut back = vec![0; SECRET.len()];
            match kind {
                ModuleKind::TlsService => {
                    let mut client = service.dial().unwrap();
                    client.write_all(SECRET).unwrap();
                    client.read_exact(&mut back).unwrap();
                    all = client.sock.seen.clone();
                }
                _ => {
                    let mut client = service.wire();
                    client.write_all(SECRET).unwrap();
                    client.read_exact(&mut back).unwrap();
                    all = client.seen.clone();
                }
            }
            assert_eq!(back, SECRET);
        });
        all
    };
    let holds = |bytes: &[u8]| bytes.windows(SECRET.len()).filter(|part| *part == SECRET).count();
    let plain = relayed(ModuleKind::Service);
    if !plain.is_empty() {
        assert_eq!(holds(&plain), 2, "there and back");
        let sealed = relayed(ModuleKind::TlsService);
        assert!(sealed.len() > 2000 && holds(&sealed) == 0, "{}", sealed.len());
    }
}

/// A program in text form that accepts one client and reads a byte of it; then `end`, with memory full of one byte.
fn greeter(end: &str) -> Vec<u8> {
    wat::parse_str(format!(
        r#"(module
          (import "wasi_snapshot_preview1" "sock_accept" (func $accept (param i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
          (memory (export "memory") 32)
          (func (export "_start") (local $left i32)
            (if (call $accept (i32.const 3) (i32.const 0) (i32.const 16)) (then unreachable))
            (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 1))
            (if (call $read (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 24)) (then unreachable))
            (memory.fill (i32.const 65536) (i32.const 33) (i32.const 1000000))
            (local.set $left (i32.const 1000000))
            (loop $more
              (i32.store (i32.const 0) (i32.const 65536)) (i32.store (i32.const 4) (local.get $left))
              (if (call $write (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 24)) (then unreachable))
              (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.load (i32.const 24))))))
            {end}))"#
    ))
    .unwrap()
}

#[test]
fn what_a_program_has_sent_arrives_after_its_end_and_a_trap_is_no_end() {
    for (end, orderly) in [("(call $exit (i32.const 7))", true), ("unreachable", false)] {
        serve("end of the program", &greeter(end), ModuleKind::TlsService, |service| {
            let mut client = service.dial().unwrap();
            client.write_all(b"x").unwrap();
            let mut got = Vec::new();
            let ended = client.read_to_end(&mut got);
            match orderly {
                true => {
                    ended.unwrap();
                    assert!(got == vec![33; 1_000_000], "{} bytes", got.len());
                    assert_eq!(service.exit(), Exit::Code(7));
                }
                false => {
                    ended.unwrap_err();
                    assert!(matches!(service.exit(), Exit::Trap(_)));
                }
            }
        });
    }
}

#[test]
fn without_reports_clients_get_no_evidence_and_no_connection() {
    let silent = Arc::new(AtomicBool::new(false));
    serve_on("without reports", ECHO, silent.clone(), |service| {
        let (mut open, _) = service.dial_anonymous("before").unwrap();
        silent.store(true, Ordering::SeqCst);
        let error = service.dial().unwrap_err().to_string();
        assert!(error.contains("alert"), "{error}");
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
        service.dial_anonymous("after").unwrap();
        silent.store(false, Ordering::SeqCst);
        echoes(service, b"again");
    });
}
