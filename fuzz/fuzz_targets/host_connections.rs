//! The host's side of connections under a hostile guest.
//!
//! Input: messages from the guest, mostly about numbers that are in use and with offsets that nearly fit, and what the
//! connections' users do. Checked: no panic; what is kept for a connection is within its window; what the host says keeps
//! to the rules: offsets without gaps, never more than the guest's limits allow, one last word; and each number is free
//! again when both sides are done.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use nacre_abi::message::{Header, Kind};
use nacre_abi::socket::{INITIAL_LIMIT, MAX_DATA, MESSAGE_COST, WINDOW};
use nacre_vmm::link::SendError;
use nacre_vmm::program::{Connection, Connector, ProgramId};
use nacre_vmm::socket::{Connections, Intake, Outlet};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use vmm_sys_util::eventfd::EventFd;

const PROGRAM: u32 = 1;
const KINDS: [Kind; 9] = [
    Kind::SocketAccepted,
    Kind::SocketRefused,
    Kind::SocketData,
    Kind::SocketData,
    Kind::SocketData,
    Kind::SocketEnd,
    Kind::SocketCredit,
    Kind::SocketClose,
    Kind::SocketReset,
];
const MAX_STEPS: usize = 1000;

/// What was said about a number.
struct Seen {
    sent: u64,
    cost: u64,
    limit: u64,
    over: bool,
    /// The guest's next offset.
    next: u64,
}

#[derive(Default)]
struct Watch(Mutex<HashMap<u32, Seen>>);

impl Outlet for Watch {
    fn try_post(&self, header: Header, body: &[u8], _: &Waker) -> std::result::Result<bool, SendError> {
        self.post(header, body).map(|()| true)
    }

    fn post(&self, header: Header, body: &[u8]) -> std::result::Result<(), SendError> {
        let mut all = self.0.lock().unwrap();
        if header.kind == Kind::SocketOpen {
            all.insert(header.stream, Seen { sent: 0, cost: 0, limit: INITIAL_LIMIT, over: false, next: 0 });
        }
        let seen = all.get_mut(&header.stream).expect("opened before");
        assert!(!seen.over, "{:?} after the last word", header.kind);
        match header.kind {
            Kind::SocketData => {
                assert!(header.arg == seen.sent && body.len() <= MAX_DATA);
                seen.sent += body.len() as u64;
                seen.cost += body.len() as u64 + MESSAGE_COST;
                assert!(seen.cost <= seen.limit);
            }
            Kind::SocketClose | Kind::SocketReset => seen.over = true,
            _ => {}
        }
        Ok(())
    }

    fn kick(&self) {}
}

struct World {
    watch: Arc<Watch>,
    connections: Arc<Connections>,
    connector: Connector,
    open: Vec<(u32, Connection)>,
    last: Option<u32>,
}

impl World {
    fn hear(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let mut all = self.watch.0.lock().unwrap();
        let numbers: Vec<u32> = all.keys().copied().collect();
        let number = match input.arbitrary::<u8>()? {
            0 => input.arbitrary()?,
            which if !numbers.is_empty() => numbers[usize::from(which) % numbers.len()],
            _ => 0,
        };
        let kind = *input.choose(&KINDS)?;
        let (next, cost) = all.get(&number).map_or((0, 0), |seen| (seen.next, seen.cost));
        let len = match input.arbitrary::<u8>()? % 8 {
            0 => usize::from(input.arbitrary::<u16>()?),
            small => usize::from(small) * 500,
        };
        let arg = match (input.arbitrary::<u8>()? % 8, kind) {
            (0, _) => input.arbitrary()?,
            (1, _) => next + u64::from(input.arbitrary::<u16>()?),
            (_, Kind::SocketAccepted | Kind::SocketCredit) => cost + u64::from(input.arbitrary::<u16>()?),
            _ => next,
        };
        let body = vec![1; if kind == Kind::SocketData { len } else { 0 }];
        if let Some(seen) = all.get_mut(&number) {
            match kind {
                Kind::SocketData => seen.next += body.len() as u64,
                Kind::SocketAccepted | Kind::SocketCredit => seen.limit = seen.limit.max(arg),
                _ => {}
            }
        }
        drop(all);
        let header = Header { len: body.len() as u32, ..Header::new(kind, PROGRAM).stream(number).arg(arg) };
        assert!(self.connections.receive(header, &body));
        Ok(())
    }

    fn act(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let mut context = Context::from_waker(Waker::noop());
        let len = usize::from(input.arbitrary::<u16>()?);
        let action = input.arbitrary::<u8>()? % 8;
        if action == 0 && self.open.len() < 20 {
            let before: Vec<u32> = self.watch.0.lock().unwrap().keys().copied().collect();
            if let Ok(connection) = self.connector.connect("127.0.0.1:9".parse().unwrap()) {
                let new =
                    self.watch.0.lock().unwrap().keys().copied().find(|number| !before.contains(number));
                self.last = new.or(self.last);
                self.open.push((self.last.unwrap_or(0), connection));
            }
        }
        if self.open.is_empty() {
            return Ok(());
        }
        let at = usize::from(input.arbitrary::<u8>()?) % self.open.len();
        let connection = &mut self.open[at].1;
        match action {
            1 | 2 => drop(connection.poll_read(&mut context, &mut vec![0; len])),
            3 | 4 => drop(connection.poll_write(&mut context, &vec![0; len])),
            5 => connection.shutdown_write(),
            6 => drop(self.open.swap_remove(at)),
            7 if len % 4 == 0 => self.open.swap_remove(at).1.reset(),
            _ => {}
        }
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let (watch, connections) = (Arc::new(Watch::default()), Arc::new(Connections::default()));
    let intake = Arc::new(Intake::new(Arc::new(EventFd::new(0).expect("a descriptor"))));
    let connector = Connector::new(ProgramId(PROGRAM), watch.clone(), connections.clone(), intake);
    connections.provide(PROGRAM);
    let mut world = World { watch, connections, connector, open: Vec::new(), last: None };
    for _ in 0..MAX_STEPS {
        let done = match input.arbitrary::<u8>() {
            Ok(step) if step % 2 == 0 => world.hear(&mut input),
            Ok(_) => world.act(&mut input),
            Err(error) => Err(error),
        };
        if done.is_err() || input.is_empty() {
            break;
        }
        let stats = world.connector.stats();
        assert!(stats.kept_bytes <= stats.open as u64 * 2 * WINDOW, "{stats:?}");
    }
    world.connections.program_over(PROGRAM);
    world.open.clear();
    assert_eq!(world.connector.stats().open, 0);
});
