//! The guest's table of connections under a hostile host and a hostile program at once.
//!
//! Input: messages from the host, mostly about a few numbers and with offsets that nearly fit, and calls of the program.
//! Checked: no panic; what the guest says keeps to the rules whatever it hears: offsets without gaps, never more than the
//! host's limits allow, limits that only rise, one last word for each number and nothing after it; what it keeps for a
//! connection is within the window.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use nacre_abi::message::Kind;
use nacre_abi::socket::{ConnectionId, INITIAL_LIMIT, MAX_DATA, MESSAGE_COST, WINDOW};
use nacre_sockets::{Link, Message, Table};
use nacre_wasi::SocketId;
use std::collections::HashMap;

const KINDS: [Kind; 9] = [
    Kind::SocketOpen,
    Kind::SocketData,
    Kind::SocketData,
    Kind::SocketData,
    Kind::SocketEnd,
    Kind::SocketCredit,
    Kind::SocketClose,
    Kind::SocketReset,
    Kind::ProgramDrop,
];
const MAX_STEPS: usize = 2000;

/// What both sides have said about a number since it was opened.
#[derive(Default)]
struct Seen {
    /// From the host: the offset it would go on at, and the highest limit it ever said.
    next: u64,
    limit: u64,
    /// From the guest.
    sent: u64,
    cost: u64,
    told: u64,
    ended: bool,
    over: bool,
}

#[derive(Default)]
struct Watch(HashMap<u32, Seen>);

impl Link for Watch {
    fn send(&mut self, kind: Kind, id: ConnectionId, arg: u64, body: &[u8]) {
        if kind == Kind::SocketRefused {
            return;
        }
        let seen = self.0.get_mut(&id.0).expect("the guest speaks of numbers that were opened");
        assert!(!seen.over, "{kind:?} after the last word");
        match kind {
            Kind::SocketData => {
                assert!(!seen.ended && arg == seen.sent && !body.is_empty() && body.len() <= MAX_DATA);
                seen.sent += body.len() as u64;
                seen.cost += body.len() as u64 + MESSAGE_COST;
                assert!(seen.cost <= seen.limit, "more than the limit");
            }
            Kind::SocketEnd => {
                assert!(!std::mem::replace(&mut seen.ended, true) && arg == seen.sent);
            }
            Kind::SocketAccepted | Kind::SocketCredit => {
                assert!(arg >= seen.told.max(INITIAL_LIMIT), "limits only rise");
                seen.told = arg;
            }
            Kind::SocketClose => {
                assert_eq!(arg, seen.sent);
                seen.over = true;
            }
            Kind::SocketReset => seen.over = true,
            other => panic!("{other:?} is not the guest's to say"),
        }
    }
}

fn hear(table: &mut Table, watch: &mut Watch, input: &mut Unstructured<'_>) -> Result<()> {
    let id =
        ConnectionId::new(u32::from(input.arbitrary::<u8>()? % 6), u32::from(input.arbitrary::<u8>()? % 3));
    let kind = *input.choose(&KINDS)?;
    let len = match input.arbitrary::<u8>()? % 8 {
        0 => usize::from(input.arbitrary::<u16>()?),
        1 => MAX_DATA,
        small => usize::from(small),
    };
    let seen = watch.0.entry(id.0).or_default();
    if kind == Kind::SocketOpen && seen.over {
        *seen = Seen::default();
    }
    let arg = match (input.arbitrary::<u8>()? % 8, kind) {
        (0, _) => input.arbitrary()?,
        (1, _) => seen.next.wrapping_sub(1),
        (_, Kind::SocketOpen | Kind::SocketCredit) => seen.cost + u64::from(input.arbitrary::<u16>()?),
        _ => seen.next,
    };
    match kind {
        Kind::SocketData => seen.next = seen.next.wrapping_add(len as u64),
        Kind::SocketOpen | Kind::SocketCredit => seen.limit = seen.limit.max(arg),
        _ => {}
    }
    let body = vec![1; if kind == Kind::SocketData { len } else { 0 }];
    table.receive(Message { kind, id, arg, body }, watch);
    Ok(())
}

fn call(table: &mut Table, watch: &mut Watch, input: &mut Unstructured<'_>) -> Result<()> {
    let id = SocketId(u32::from(input.arbitrary::<u8>()? % 7));
    let len = usize::from(input.arbitrary::<u16>()?);
    match input.arbitrary::<u8>()? % 8 {
        0 => drop(table.accept(watch)),
        1 => drop(table.send(id, &vec![2; len], watch)),
        2 | 3 => {
            let held = table.readable(id).map_or(0, |ready| ready.bytes);
            if let Ok(count) = table.recv(id, &mut vec![0; len], watch) {
                assert_eq!(count as u64, held.min(len as u64));
            }
        }
        4 => {
            let mut buf = vec![0; len];
            if let Ok(count) = table.peek(id, u64::from(input.arbitrary::<u8>()?), &mut buf) {
                assert!(count <= len);
            }
        }
        5 => table.shutdown(id, len % 2 == 0, len % 3 == 0, watch),
        6 => table.close(id, watch),
        _ if len == 77 => table.break_all(watch),
        _ => {}
    }
    assert!(table.readable(id).is_none_or(|ready| ready.bytes <= WINDOW));
    let _ = table.writable(id);
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let (mut table, mut watch) =
        (Table::new(u64::from(input.arbitrary::<u32>().unwrap_or(0))), Watch::default());
    for _ in 0..MAX_STEPS {
        let done = match input.arbitrary::<u8>() {
            Ok(step) if step % 2 == 0 => hear(&mut table, &mut watch, &mut input),
            Ok(_) => call(&mut table, &mut watch, &mut input),
            Err(error) => Err(error),
        };
        if done.is_err() || input.is_empty() {
            break;
        }
    }
    table.close_all(&mut watch);
    assert_eq!((table.live(), table.acceptable()), (0, 0));
});
