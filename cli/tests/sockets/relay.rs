//! Clients' real TCP sockets relayed to a real service.

use crate::connections::{Service, pattern};
use nacre_vmm::program::{Connector, Exit, Program};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

/// Clients at once.
const MANY: usize = 500;

/// A port whose clients go to a program.
struct Port {
    listener: TcpListener,
    connector: Connector,
}

impl Port {
    fn new(program: &Program<'_>) -> Port {
        Port { listener: TcpListener::bind("127.0.0.1:0").unwrap(), connector: program.connector() }
    }

    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (stream, peer) = self.listener.accept().unwrap();
        self.connector.relay(stream, peer).unwrap();
        client
    }
}

#[test]
fn megabytes_go_both_ways_and_halves_end() {
    let Some(service) = Service::start(2, &["echo"]) else { return };
    let program = service.program();
    let client = Port::new(&program).client();
    let sent = pattern(8 << 20);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (number, piece) in sent.chunks(77_777).enumerate() {
                (&client).write_all(piece).unwrap();
                if number % 3 == 0 {
                    std::thread::yield_now();
                }
            }
            client.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        (&client).read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
    });
    service.wait_until_open(&program, 0);
}

#[test]
fn a_program_that_ends_its_half_is_still_sent_to() {
    let Some(service) = Service::start(1, &["chargen", "3000000"]) else { return };
    let program = service.program();
    let mut client = Port::new(&program).client();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == pattern(3_000_000));
    assert!(service.is_running(&program));
    client.write_all(&got).unwrap();
    drop(client);
    assert_eq!(service.exit(&program), Exit::Code(0));
}

#[test]
fn a_client_that_does_not_read_stops_the_service_and_keeps_no_memory() {
    let Some(service) = Service::start(1, &["chargen", "30000000"]) else { return };
    let program = service.program();
    let port = Port::new(&program);
    let mut client = port.client();
    // The kernel's buffers and the window fill up.
    while port.connector.stats().kept_bytes < 100 << 10 {
        std::thread::yield_now();
    }
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == pattern(30_000_000));
    drop(client);
    assert_eq!(service.exit(&program), Exit::Code(0));
}

#[test]
fn resets_reach_the_other_side() {
    let Some(service) = Service::start(1, &["flags"]) else { return };
    let program = service.program();
    let mut client = Port::new(&program).client();
    client.write_all(b"abc").unwrap();
    client.read_exact(&mut [0; 3]).unwrap();
    client.write_all(b"defgh").unwrap();
    // Until its answer is here, unread: then a close is a reset.
    assert_eq!(client.peek(&mut [0]).unwrap(), 1);
    while client.peek(&mut [0; 8]).unwrap() < 4 {
        std::thread::yield_now();
    }
    drop(client);
    service.expect_output(&program, "all fine\n");
    assert_eq!(service.exit(&program), Exit::Code(0));
}

#[test]
fn a_program_that_fails_resets_its_clients() {
    let Some(service) = Service::start(1, &["deaf"]) else { return };
    let program = service.program();
    let port = Port::new(&program);
    let mut clients: Vec<TcpStream> = (0..20).map(|_| port.client()).collect();
    program.stdin().end().unwrap();
    assert_eq!(service.exit(&program), Exit::Code(0));
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn many_clients_at_once() {
    let Some(service) = Service::start(2, &["echo"]) else { return };
    let program = service.program();
    let port = Port::new(&program);
    let mut clients: Vec<TcpStream> = (0..MANY).map(|_| port.client()).collect();
    for round in 0..10u32 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.write_all(format!("{round} of {number:05}").as_bytes()).unwrap();
        }
        for (number, client) in clients.iter_mut().enumerate() {
            let mut got = [0; 10];
            client.read_exact(&mut got).unwrap();
            assert_eq!(&got, format!("{round} of {number:05}").as_bytes());
        }
    }
    drop(clients);
    service.wait_until_open(&program, 0);
}
