//! Connections to a real service in a real CVM, through the VMM's interface: `apps/echo` in all its modes.

use crate::connections::{Client, Service, pattern};
use nacre_abi::socket::{BACKLOG, WINDOW};
use nacre_vmm::program::{ConnectError, Exit};
use std::io::ErrorKind;

/// How many connections at once.
const MANY: usize = 2_000;

#[test]
fn megabytes_come_back_whatever_the_pieces() {
    let Some(service) = Service::start(2, &["echo"]) else { return };
    let program = service.program();
    let sent = pattern(6 << 20);
    let client = Client::connect(&program);
    let (mut reader, mut writer) = client.split();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 0;
            // Lengths from one byte to more than a window.
            for step in 0u64.. {
                if at == sent.len() {
                    break;
                }
                let len = match step % 7 {
                    0..4 => 1 + (step * 2_654_435_761 % 5000) as usize,
                    4 => 1,
                    5 => 40_000,
                    _ => 300_000,
                };
                let end = (at + len).min(sent.len());
                writer.write_all(&sent[at..end]).unwrap();
                at = end;
            }
            writer.shutdown_write();
        });
        let mut got = Vec::new();
        for step in 0u64.. {
            let mut buf = vec![0; 1 + (step * 40_503 % 70_000) as usize];
            match reader.read(&mut buf).unwrap() {
                0 => break,
                count => got.extend_from_slice(&buf[..count]),
            }
        }
        assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
    });
    assert_eq!(reader.offsets(), (sent.len() as u64, sent.len() as u64));
    drop((reader, writer));
    service.wait_until_open(&program, 0);
}

#[test]
fn a_blocking_service_serves_one_client_after_the_other() {
    let Some(service) = Service::start(1, &["blocking"]) else { return };
    let program = service.program();
    for round in 0..20 {
        let mut client = Client::connect(&program);
        let text = vec![round as u8; 10_000 + round];
        client.write_all(&text).unwrap();
        let mut back = vec![0; text.len()];
        client.read_exact(&mut back).unwrap();
        assert!(back == text);
    }
    service.wait_until_open(&program, 0);
}

#[test]
fn a_cvm_without_workers_serves_too() {
    let Some(service) = Service::start(0, &["echo"]) else { return };
    let program = service.program();
    let mut clients: Vec<Client> = (0..50).map(|_| Client::connect(&program)).collect();
    for round in 0..20u8 {
        for client in &mut clients {
            client.write_all(&vec![round; 3000]).unwrap();
        }
        for client in &mut clients {
            let mut back = vec![0; 3000];
            client.read_exact(&mut back).unwrap();
            assert!(back.iter().all(|byte| *byte == round));
        }
    }
}

#[test]
fn both_halves_end_on_their_own() {
    let Some(service) = Service::start(1, &["chargen", "1000000"]) else { return };
    let program = service.program();
    let mut client = Client::connect(&program);
    let got = client.read_to_end().unwrap();
    assert!(got == pattern(1_000_000));
    // The program has ended its half and reads on.
    assert!(service.is_running(&program));
    client.write_all(&pattern(700_000)).unwrap();
    client.shutdown_write();
    assert_eq!(client.write_all(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(service.exit(&program), Exit::Code(0));
}

#[test]
fn a_slow_reader_makes_the_client_wait_and_no_memory_grow() {
    let Some(service) = Service::start(1, &["slow", "4096", "1"]) else { return };
    let program = service.program();
    let mut client = Client::connect(&program);
    let sent = 3 << 20;
    let mut stalls = 0;
    let (mut at, mut before) = (0, 0);
    while at < sent {
        match client.try_write(&vec![7; (sent - at).min(100_000)]) {
            Some(count) => at += count.unwrap(),
            None => {
                stalls += 1;
                // The program runs, and its window was full more than once.
                if stalls == 4 {
                    before = service.committed_bytes();
                }
                client.wait_for_room();
            }
        }
    }
    assert!(stalls > 5, "{stalls} stalls: the client never had to wait");
    let grown = service.committed_bytes().saturating_sub(before);
    client.shutdown_write();
    assert_eq!(client.read_to_end().unwrap(), sent.to_string().as_bytes());
    assert_eq!(service.exit(&program), Exit::Code(0));
    // Two megabytes more have gone through than the window holds.
    assert!(grown < 1 << 20, "{} KiB", grown >> 10);
}

#[test]
fn a_client_that_does_not_read_makes_the_service_wait() {
    let Some(service) = Service::start(1, &["chargen", "20000000"]) else { return };
    let program = service.program();
    let mut client = Client::connect(&program);
    // Until the window is full; the last message may be any shorter than what is left.
    while program.connector().stats().kept_bytes < WINDOW - (48 << 10) {
        std::thread::yield_now();
    }
    // Time in which an unbounded service would send more.
    service.exchange_stats();
    assert!(program.connector().stats().kept_bytes <= WINDOW);
    let got = client.read_to_end().unwrap();
    assert!(got == pattern(20_000_000));
    drop(client);
    assert_eq!(service.exit(&program), Exit::Code(0));
}

#[test]
fn thousands_of_connections_at_once() {
    let Some(service) = Service::start(2, &["echo"]) else { return };
    let program = service.program();
    let mut clients = Vec::new();
    while clients.len() < MANY {
        match Client::try_connect(&program) {
            Ok(client) => clients.push(client),
            // It accepts as fast as it can.
            Err(ConnectError::BacklogFull) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    for round in 0..5u32 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.write_all(format!("{round} of {number}").as_bytes()).unwrap();
        }
        for (number, client) in clients.iter_mut().enumerate().rev() {
            let expected = format!("{round} of {number}");
            let mut got = vec![0; expected.len()];
            client.read_exact(&mut got).unwrap();
            assert_eq!(got, expected.as_bytes());
        }
    }
    assert_eq!(program.connector().stats().open, MANY);
    assert_eq!(program.connector().stats().waiting, 0);
    drop(clients);
    service.wait_until_open(&program, 0);
}

#[test]
fn a_full_backlog_refuses() {
    let Some(service) = Service::start(1, &["deaf"]) else { return };
    let program = service.program();
    let mut clients: Vec<Client> = (0..BACKLOG).map(|_| Client::connect(&program)).collect();
    assert_eq!(Client::try_connect(&program).unwrap_err(), ConnectError::BacklogFull);
    clients[0].write_all(b"nobody reads this").unwrap();
    program.stdin().end().unwrap();
    // The program never accepted anybody.
    assert_eq!(service.exit(&program), Exit::Code(0));
    for client in &mut clients {
        assert_eq!(client.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(Client::try_connect(&program).unwrap_err(), ConnectError::Ended);
}

#[test]
fn a_program_that_does_not_listen_cannot_be_connected_to() {
    let Some(service) = Service::start_with(1, &["deaf"], false) else { return };
    let program = service.program();
    assert_eq!(Client::try_connect(&program).unwrap_err(), ConnectError::NotListening);
    program.stdin().end().unwrap();
    assert_eq!(service.exit(&program), Exit::Code(0));
}

#[test]
fn a_program_that_exits_leaves_what_it_said() {
    let Some(service) = Service::start(2, &["exit", "8"]) else { return };
    let program = service.program();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(&program)).collect();
    for client in &mut clients {
        client.write_all(b"!").unwrap();
    }
    assert_eq!(service.exit(&program), Exit::Code(7));
    for client in &mut clients {
        assert_eq!(client.read_to_end().unwrap(), b"hello");
        assert_eq!(client.write_all(b"?").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

#[test]
fn polls_see_times_clients_bytes_and_ends() {
    let Some(service) = Service::start(1, &["wait"]) else { return };
    let program = service.program();
    service.expect_output(&program, "timeout\n");
    let mut client = Client::connect(&program);
    service.expect_output(&program, "client\n");
    client.write_all(b"four").unwrap();
    service.expect_output(&program, "4 bytes, 4 read, hangup 0\n");
    client.shutdown_write();
    service.expect_output(&program, "0 bytes, 0 read, hangup 1\n");
    assert_eq!(client.read_to_end().unwrap(), b"");
    assert_eq!(service.exit(&program), Exit::Code(0));
}

#[test]
fn flags_and_errors_are_as_documented() {
    let Some(service) = Service::start(1, &["flags"]) else { return };
    let program = service.program();
    let mut client = Client::connect(&program);
    client.write_all(b"abc").unwrap();
    client.read_exact(&mut [0; 3]).unwrap();
    client.write_all(b"de").unwrap();
    client.write_all(b"fgh").unwrap();
    let mut done = [0; 4];
    client.read_exact(&mut done).unwrap();
    assert_eq!(&done, b"done");
    client.reset();
    service.expect_output(&program, "all fine\n");
    assert_eq!(service.exit(&program), Exit::Code(0));
}

#[test]
fn one_busy_connection_does_not_starve_another() {
    let Some(service) = Service::start(2, &["echo"]) else { return };
    let program = service.program();
    let busy = Client::connect(&program);
    let (mut reader, mut writer) = busy.split();
    let mut quiet = Client::connect(&program);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&pattern(16 << 20)).unwrap();
            writer.shutdown_write();
        });
        let counter = scope.spawn(|| {
            let mut total = 0;
            let mut buf = vec![0; 1 << 16];
            loop {
                match reader.read(&mut buf).unwrap() {
                    0 => return total,
                    count => total += count,
                }
            }
        });
        // Every answer comes, while the other one goes on.
        let mut answered = 0;
        while !counter.is_finished() || answered < 10 {
            quiet.write_all(b"ping").unwrap();
            quiet.read_exact(&mut [0; 4]).unwrap();
            answered += 1;
        }
        assert_eq!(counter.join().unwrap(), 16 << 20);
        assert!(answered >= 10, "{answered} answers");
    });
}
