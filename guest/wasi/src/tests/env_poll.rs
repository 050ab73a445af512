//! Arguments, environment, clocks, random, the end of the program, sockets, polling.

use std::{vec, vec::Vec};

use super::*;
use crate::abi::{clockid, eventtype, fdflags, signal};

#[test]
fn args_and_environment() {
    let mut p = Program::new();
    assert_eq!(args_sizes_get(&mut p.call(), 0, 4), Ok(Errno::Success));
    assert_eq!((p.u32_at(0), p.u32_at(4)), (2, 8));
    assert_eq!(args_get(&mut p.call(), 16, 100), Ok(Errno::Success));
    assert_eq!((p.u32_at(16), p.u32_at(20)), (100, 105));
    assert_eq!(&p.memory[100..108], b"prog\0-x\0");
    assert_eq!(environ_sizes_get(&mut p.call(), 0, 4), Ok(Errno::Success));
    assert_eq!((p.u32_at(0), p.u32_at(4)), (2, 13));
    assert_eq!(environ_get(&mut p.call(), 16, 200), Ok(Errno::Success));
    assert_eq!(&p.memory[200..213], b"HOME=/\0A=b=c\0");
    // A list that crosses the end of memory writes nothing at all.
    let before = p.memory.clone();
    assert_eq!(args_get(&mut p.call(), 16, 65530), Ok(Errno::Fault));
    assert_eq!(args_get(&mut p.call(), 65530, 16), Ok(Errno::Fault));
    assert_eq!(args_get(&mut p.call(), u32::MAX, u32::MAX), Ok(Errno::Fault));
    assert_eq!(args_sizes_get(&mut p.call(), 0, 65533), Ok(Errno::Fault));
    assert_eq!(environ_sizes_get(&mut p.call(), 65533, 0), Ok(Errno::Fault));
    assert!(p.memory == before);
    // The last bytes of memory are usable.
    assert_eq!(args_get(&mut p.call(), 65520, 65528), Ok(Errno::Success));
}

#[test]
fn builder_refuses_bad_strings_and_directories() {
    let fs = || Fs::new(0).unwrap();
    let build = |b: Builder| b.build(TestSystem::default(), fs()).map(|_| ()).unwrap_err();
    assert_eq!(build(Builder::new().args(vec!["a\0".into()])), BuildError::BadString("a\0".into()));
    assert_eq!(build(Builder::new().env(vec![("".into(), "x".into())])), BuildError::BadString("".into()));
    assert_eq!(
        build(Builder::new().env(vec![("A=".into(), "x".into())])),
        BuildError::BadString("A=".into())
    );
    let error = build(Builder::new().preopens(vec![("/x".into(), "x".into())]));
    assert_eq!(error, BuildError::Preopen { path: "x".into(), error: Errno::Noent });
    assert_eq!(std::format!("{error}"), "cannot preopen x: no such file or directory");
}

#[test]
fn clocks() {
    let mut p = Program::new();
    for (id, time, resolution) in [(0, 5000, 1000), (1, 1000, 1), (2, 77, 1), (3, 78, 1)] {
        assert_eq!(clock_time_get(&mut p.call(), id, 1, 8), Ok(Errno::Success));
        assert_eq!(p.u64_at(8), time);
        assert_eq!(clock_res_get(&mut p.call(), id, 9), Ok(Errno::Success));
        assert_eq!(p.u64_at(9), resolution);
    }
    assert_eq!(clock_time_get(&mut p.call(), 4, 0, 8), Ok(Errno::Inval));
    assert_eq!(clock_res_get(&mut p.call(), u32::MAX, 8), Ok(Errno::Inval));
    assert_eq!(clock_time_get(&mut p.call(), 0, 0, 65529), Ok(Errno::Fault));
}

#[test]
fn random_fills_exactly_and_in_pieces() {
    let mut p = Program::new();
    p.memory = vec![0; 300_000];
    assert_eq!(random_get(&mut p.call(), 10, 200_000), Ok(Errno::Success));
    assert!(p.memory[10..200_010].iter().all(|b| *b == 0xa5));
    assert_eq!((p.memory[9], p.memory[200_010], p.ctx.system.yields), (0, 0, 3));
    assert_eq!(random_get(&mut p.call(), 300_000, 0), Ok(Errno::Success));
    assert_eq!(random_get(&mut p.call(), 10, u32::MAX), Ok(Errno::Fault));
    p.ctx.system.stop = Some(Stop::Killed);
    assert_eq!(random_get(&mut p.call(), 10, 200_000), Err(Stop::Killed));
}

#[test]
fn ends() {
    let mut p = Program::new();
    assert_eq!(proc_exit(&mut p.call(), 300), Err(Stop::Exit(300)));
    let raise = |p: &mut Program, sig| proc_raise(&mut p.call(), sig);
    assert_eq!(raise(&mut p, signal::NONE), Ok(Errno::Success));
    assert_eq!(raise(&mut p, signal::CHLD), Ok(Errno::Success));
    assert_eq!(raise(&mut p, signal::PIPE), Err(Stop::BrokenPipe));
    assert_eq!(raise(&mut p, signal::KILL), Err(Stop::Killed));
    assert_eq!(raise(&mut p, signal::ABRT), Err(Stop::Exit(134)));
    assert_eq!(raise(&mut p, signal::TERM), Err(Stop::Exit(143)));
    assert_eq!(raise(&mut p, signal::SYS), Err(Stop::Exit(159)));
    assert_eq!(raise(&mut p, signal::STOP), Ok(Errno::Notsup));
    assert_eq!(raise(&mut p, 31), Ok(Errno::Inval));
    assert_eq!(sched_yield(&mut p.call()), Ok(Errno::Success));
    assert_eq!(p.ctx.system.yields, 1);
}

#[test]
fn nothing_is_a_socket() {
    let mut p = Program::new();
    for (fd, error) in [(0, Errno::Notsock), (DIR, Errno::Notsock), (9, Errno::Badf)] {
        assert_eq!(sock_accept(&mut p.call(), fd, 0, 0), Ok(error));
        assert_eq!(sock_recv(&mut p.call(), fd, 0, 0, 0, 0, 4), Ok(error));
        assert_eq!(sock_send(&mut p.call(), fd, 0, 0, 0, 0), Ok(error));
        assert_eq!(sock_shutdown(&mut p.call(), fd, 1), Ok(error));
    }
    assert_eq!(sock_shutdown(&mut p.call(), 0, 4), Ok(Errno::Inval));
    assert_eq!(sock_recv(&mut p.call(), 0, 0, 0, 8, 0, 4), Ok(Errno::Inval));
    assert_eq!(sock_accept(&mut p.call(), 0, 0, 65534), Ok(Errno::Fault));
}

fn clock_sub(userdata: u64, id: u32, timeout: u64, flags: u16) -> [u8; 48] {
    let mut sub = [0; 48];
    sub[..8].copy_from_slice(&userdata.to_le_bytes());
    sub[16..20].copy_from_slice(&id.to_le_bytes());
    sub[24..32].copy_from_slice(&timeout.to_le_bytes());
    sub[40..42].copy_from_slice(&flags.to_le_bytes());
    sub
}

fn fd_sub(userdata: u64, kind: u8, fd: u32) -> [u8; 48] {
    let mut sub = [0; 48];
    sub[..8].copy_from_slice(&userdata.to_le_bytes());
    sub[8] = kind;
    sub[16..20].copy_from_slice(&fd.to_le_bytes());
    sub
}

/// (userdata, error, type, nbytes, flags)
type Seen = (u64, u16, u8, u64, u16);

fn poll(p: &mut Program, subs: &[[u8; 48]]) -> Result<Vec<Seen>, Errno> {
    for (i, sub) in subs.iter().enumerate() {
        p.put(4096 + 48 * i as u32, sub);
    }
    match poll_oneoff(&mut p.call(), 4096, 8192, subs.len() as u32, OUT).unwrap() {
        Errno::Success => {}
        error => return Err(error),
    }
    let n = p.u32_at(OUT);
    let u16_at = |at: u32| u16::from_le_bytes([p.memory[at as usize], p.memory[at as usize + 1]]);
    Ok((0..n)
        .map(|i| 8192 + 32 * i)
        .map(|at| {
            (p.u64_at(at), u16_at(at + 8), p.memory[at as usize + 10], p.u64_at(at + 16), u16_at(at + 24))
        })
        .collect())
}

#[test]
fn poll_sleeps_until_the_earliest_deadline() {
    let mut p = Program::new();
    let subs = [
        clock_sub(1, clockid::MONOTONIC, 900, 0),
        clock_sub(2, clockid::REALTIME, 300, 0),
        clock_sub(3, 1, 1300, 1),
    ];
    assert_eq!(poll(&mut p, &subs), Ok(vec![(2, 0, 0, 0, 0), (3, 0, 0, 0, 0)]));
    assert_eq!(p.ctx.system.waits, vec![(vec![], Some(1300))]);
    // An absolute wall time is converted, and one that has passed does not wait.
    assert_eq!(poll(&mut p, &[clock_sub(4, clockid::REALTIME, 5400, 1)]), Ok(vec![(4, 0, 0, 0, 0)]));
    assert_eq!(p.ctx.system.waits.last(), Some(&(vec![], Some(1400))));
    assert_eq!(poll(&mut p, &[clock_sub(5, clockid::MONOTONIC, 7, 1)]), Ok(vec![(5, 0, 0, 0, 0)]));
    assert_eq!(p.ctx.system.waits.len(), 2);
    // A timeout that would overflow waits for ever, until it is stopped.
    p.ctx.system.stop = Some(Stop::Killed);
    p.put(4096, &clock_sub(6, clockid::MONOTONIC, u64::MAX, 0));
    assert_eq!(poll_oneoff(&mut p.call(), 4096, 8192, 1, OUT), Err(Stop::Killed));
}

#[test]
fn poll_streams_and_files() {
    let mut p = Program::new();
    p.ctx.system.stdin_open = true;
    // Nothing typed: it parks on stdin with the timeout, which passes.
    let subs = [fd_sub(1, eventtype::FD_READ, 0), clock_sub(2, clockid::MONOTONIC, 50, 0)];
    assert_eq!(poll(&mut p, &subs), Ok(vec![(2, 0, 0, 0, 0)]));
    assert_eq!(p.ctx.system.waits, vec![(vec![Interest::Readable(Stream::Stdin)], Some(1050))]);
    // Without a timeout it parks until there is something.
    assert_eq!(poll(&mut p, &subs[..1]), Ok(vec![(1, 0, eventtype::FD_READ, 5, 0)]));
    p.ctx.system.stdin.clear();
    p.ctx.system.stdin_open = false;
    assert_eq!(poll(&mut p, &subs[..1]), Ok(vec![(1, 0, eventtype::FD_READ, 0, 1)]));
    p.ctx.system.stdout_room = 0;
    assert_eq!(
        poll(&mut p, &[fd_sub(3, eventtype::FD_WRITE, 1)]),
        Ok(vec![(3, 0, eventtype::FD_WRITE, 3, 0)])
    );
    p.ctx.system.stdout_closed = true;
    assert_eq!(
        poll(&mut p, &[fd_sub(3, eventtype::FD_WRITE, 1)]),
        Ok(vec![(3, 0, eventtype::FD_WRITE, 0, 1)])
    );
    let fd = p.create("f");
    p.write(fd, b"12345").unwrap();
    p.seek(fd, 2, 0).unwrap();
    assert_eq!(
        poll(&mut p, &[fd_sub(4, eventtype::FD_READ, fd)]),
        Ok(vec![(4, 0, eventtype::FD_READ, 3, 0)])
    );
    p.seek(fd, 0, 2).unwrap();
    assert_eq!(
        poll(&mut p, &[fd_sub(4, eventtype::FD_READ, fd)]),
        Ok(vec![(4, 0, eventtype::FD_READ, 0, 1)])
    );
    let events =
        poll(&mut p, &[fd_sub(5, eventtype::FD_WRITE, fd), fd_sub(6, eventtype::FD_READ, fd)]).unwrap();
    assert_eq!(events.iter().map(|e| (e.0, e.1)).collect::<Vec<_>>(), vec![(5, 0), (6, 0)]);
}

#[test]
fn poll_errors() {
    let mut p = Program::new();
    assert_eq!(poll(&mut p, &[]), Err(Errno::Inval));
    assert_eq!(poll_oneoff(&mut p.call(), 0, 0, u32::MAX, OUT), Ok(Errno::Inval));
    assert_eq!(poll_oneoff(&mut p.call(), 65500, 0, 1, OUT), Ok(Errno::Fault));
    assert_eq!(poll_oneoff(&mut p.call(), 0, 65510, 1, OUT), Ok(Errno::Fault));
    assert_eq!(poll_oneoff(&mut p.call(), 0, 0, 1, 65533), Ok(Errno::Fault));
    assert_eq!(poll(&mut p, &[fd_sub(1, 3, 0)]), Err(Errno::Inval));
    assert_eq!(poll(&mut p, &[clock_sub(1, 1, 5, 2)]), Err(Errno::Inval));
    // What is wrong with one subscription is its own event's error; nothing is waited for.
    let subs = [
        clock_sub(1, clockid::MONOTONIC, 1 << 40, 0),
        fd_sub(2, eventtype::FD_READ, 99),
        fd_sub(3, eventtype::FD_WRITE, 0),
        fd_sub(4, eventtype::FD_READ, DIR),
        clock_sub(5, clockid::PROCESS_CPUTIME_ID, 1, 0),
    ];
    let events = poll(&mut p, &subs).unwrap();
    let (badf, inval) = (Errno::Badf.raw(), Errno::Inval.raw());
    assert_eq!(
        events.iter().map(|e| (e.0, e.1)).collect::<Vec<_>>(),
        vec![(2, badf), (3, badf), (4, badf), (5, inval)]
    );
    assert!(p.ctx.system.waits.is_empty());
}

#[test]
fn streams_block_and_end() {
    let mut p = Program::new();
    p.ctx.system.stdin_open = true;
    assert_eq!(p.read(0, 100).unwrap(), b"typed");
    assert_eq!(p.ctx.system.waits, vec![(vec![Interest::Readable(Stream::Stdin)], None)]);
    // What is there is returned although more was asked for; zero bytes never wait.
    p.ctx.system.stdin.extend(*b"abc");
    let (iovs, n) = p.iovs(0, &[(500, 2), (600, 4)]);
    assert_eq!(fd_read(&mut p.call(), 0, iovs, n, OUT), Ok(Errno::Success));
    assert_eq!((p.u32_at(OUT), &p.memory[500..502], &p.memory[600..601]), (3, &b"ab"[..], &b"c"[..]));
    assert_eq!(p.read(0, 0).unwrap(), b"");
    assert_eq!(fd_fdstat_set_flags(&mut p.call(), 0, fdflags::NONBLOCK), Ok(Errno::Success));
    assert_eq!(p.read(0, 10), Err(Errno::Again));
    p.ctx.system.stdin_open = false;
    assert_eq!(p.read(0, 10).unwrap(), b"");
    // Writing waits for room, three bytes at a time.
    p.ctx.system.stdout_room = 2;
    p.ctx.system.waits.clear();
    assert_eq!(p.write(1, b"hello world"), Ok(11));
    assert_eq!(p.ctx.system.stdout, b"hello world");
    assert_eq!(p.ctx.system.waits, vec![(vec![Interest::Writable(Stream::Stdout)], None); 3]);
    assert_eq!(fd_fdstat_set_flags(&mut p.call(), 2, fdflags::NONBLOCK), Ok(Errno::Success));
    p.ctx.system.stdout_room = 4;
    assert_eq!((p.write(2, b"hello"), p.write(2, b"o")), (Ok(4), Err(Errno::Again)));
    assert_eq!((p.read(1, 1), p.write(0, b"x")), (Err(Errno::Badf), Err(Errno::Badf)));
    p.ctx.system.stdout_closed = true;
    let (iovs, n) = p.iovs(0, &[(500, 2)]);
    assert_eq!(fd_write(&mut p.call(), 1, iovs, n, OUT), Err(Stop::BrokenPipe));
    p.ctx.system.stdin_open = true;
    p.ctx.system.stop = Some(Stop::Killed);
    assert_eq!(fd_fdstat_set_flags(&mut p.call(), 0, 0), Ok(Errno::Success));
    assert_eq!(fd_read(&mut p.call(), 0, iovs, n, OUT), Err(Stop::Killed));
}
