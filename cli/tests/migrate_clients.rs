//! Clients of a service that moves: their connections go on, whoever their hosts are, and new ones find it where it is.
#![forbid(unsafe_code)]

#[allow(dead_code)]
mod migrate_support;
#[allow(dead_code)]
mod sealed_support;

use migrate_support::{Migration, PATIENCE, PIPELINE, Progress, auditor, movable_world, pair};
use nacre_abi::migrate::MoveMode;
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_vmm::Cvm;
use nacre_vmm::migration::MoveNews;
use nacre_vmm::program::{Connector, Program, ProgramSpec};
use nacre_vmm::tunnel::{Kept, Roster};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const KV: &[u8] = include_bytes!("../../apps/kv/kv.wasm");

/// A client's end of a new connection to a service.
fn dial(connector: &Connector) -> TcpStream {
    let (client, served) = pair();
    connector.relay(served, SocketAddr::from(([127, 0, 0, 1], 4000))).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Says one line; returns the first line of the answer.
fn ask(client: &mut TcpStream, line: &str) -> String {
    client.write_all(line.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    String::from_utf8(answer).unwrap()
}

/// Moves a tenant whose clients' hosts are `kept`; `of_destination` are those of the host to which it goes. Returns what the source's host kept and
/// the program where it is now.
fn go<'c>(
    source: &Cvm,
    destination: &'c Cvm,
    kept: &[&Kept],
    of_destination: &[&Kept],
    mode: MoveMode,
) -> (Kept, Program<'c>) {
    let (mut roster, mut left, mut program) = (None, None, None);
    let migration = Migration::begin(source, destination, mode);
    let (here, _) = migration.follow(|_, news| match news {
        MoveNews::Parked => roster = Some(Roster::decode(&source.hold().encode()).unwrap()),
        MoveNews::Commit(..) => {
            let own = source.leave();
            let adopted = destination.adopt(roster.as_ref().unwrap(), of_destination).unwrap();
            assert!(adopted.iter().all(|one| one.listens) && adopted.len() == 1);
            program = adopted.into_iter().next().map(|one| Program::adopted(destination, one));
            for one in kept.iter().copied().chain([&own]).filter(|one| one.is_distant()) {
                let (here, there) = UnixStream::pair().unwrap();
                destination.accept_link(one.origin(), there, |_| ()).unwrap();
                one.attach(here, |_| ()).unwrap();
            }
            left = Some(own);
        }
        _ => {}
    });
    assert!(matches!(here.last(), Some(MoveNews::Complete(_))), "{here:?}");
    (left.unwrap(), program.unwrap())
}

fn start<'c>(cvm: &'c Cvm) -> Program<'c> {
    let code = compile(&Module::parse(KV, Entry::Command).unwrap(), Default::default()).unwrap();
    let spec =
        ProgramSpec { code: code.file(), args: vec!["kv".into()], listens: true, ..ProgramSpec::default() };
    let program = cvm.load(&spec).unwrap();
    program.start().unwrap();
    program
}

fn finish(clients: Vec<(Arc<Progress>, JoinHandle<u64>)>) {
    clients.iter().for_each(|(progress, _)| progress.stop.store(true, Ordering::SeqCst));
    for (_, client) in clients {
        assert!(client.join().unwrap() > 0);
    }
}

#[test]
fn connections_go_on_over_three_hosts_and_back_to_the_first() {
    let Some(world) = movable_world("connections of a service that moves") else { return };
    let [a, b, c, again] = [(); 4].map(|()| world.launch());
    let program = start(&a);
    let mut clients =
        vec![auditor(dial(&program.connector()), "a"), auditor(dial(&program.connector()), "b")];
    clients.iter().for_each(|client| client.0.wait_for(5 * PIPELINE));

    let (kept_a, at_b) = go(&a, &b, &[], &[], MoveMode::Hybrid);
    clients.push(auditor(dial(&at_b.connector()), "c"));
    clients.iter().for_each(|client| client.0.wait_for(5 * PIPELINE));
    let relayed: usize = b.relayed().iter().map(|one| one.connections).sum();
    assert_eq!((relayed, kept_a.counts().0), (2, 2));

    let (kept_b, at_c) = go(&b, &c, &[&kept_a], &[], MoveMode::PostCopy);
    clients.push(auditor(dial(&at_c.connector()), "d"));
    clients.iter().for_each(|client| client.0.wait_for(5 * PIPELINE));

    // The first host's clients reach it without a link now.
    let (kept_c, back) = go(&c, &again, &[&kept_b], &[&kept_a], MoveMode::PreCopy);
    assert!(!kept_a.is_distant() && kept_b.is_distant() && kept_c.is_distant());
    clients.push(auditor(dial(&back.connector()), "e"));
    clients.iter().for_each(|client| client.0.wait_for(5 * PIPELINE));
    finish(clients);
    // Last words are on their way for a moment.
    let begin = Instant::now();
    while [&kept_a, &kept_b, &kept_c].iter().any(|kept| !kept.is_done()) {
        assert!(begin.elapsed() < PATIENCE, "what is over is kept");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(ask(&mut dial(&back.connector()), "PING\r\n"), "+PONG\r\n");
}

#[test]
fn clients_notice_nothing_of_a_migration_that_is_cancelled_when_all_is_parked() {
    let Some(world) = movable_world("connections of a service that stays") else { return };
    let (source, destination) = (world.launch(), world.launch());
    let program = start(&source);
    let clients = vec![auditor(dial(&program.connector()), "a"), auditor(dial(&program.connector()), "b")];
    clients.iter().for_each(|client| client.0.wait_for(5 * PIPELINE));
    let (here, _) =
        Migration::begin(&source, &destination, MoveMode::PreCopy).follow(|migration, news| match news {
            MoveNews::Parked => {
                drop(source.hold());
                migration.source.cancel();
            }
            MoveNews::Aborted(..) => source.go_on(),
            _ => {}
        });
    assert!(matches!(here.last(), Some(MoveNews::Aborted(..))), "{here:?}");
    clients.iter().for_each(|client| client.0.wait_for(5 * PIPELINE));
    let later = auditor(dial(&program.connector()), "c");
    later.0.wait_for(PIPELINE);
    finish(clients.into_iter().chain([later]).collect());
}
