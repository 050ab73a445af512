//! What a CVM hears from the node in place of its clients, before and after a session opens.
//!
//! Input: a byte that says what of the header is set right, then a message. Checked: no panic; it is turned away, what is said
//! about it can be read by a client, and the genuine message is accepted afterwards as if nothing had been.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_fuzz::session::{ask, message, offered};
use nacre_session::{CvmSessions, Rejected};
use std::cell::RefCell;

struct World {
    cvm: CvmSessions,
    offered: nacre_session::SessionId,
    open: (nacre_session::ClientSession, u64),
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new({
        let mut cvm = CvmSessions::with_limits(2, 2);
        let mut client = offered(&mut cvm, 1);
        cvm.accept(ask(&mut client)).expect("it is genuine");
        World { offered: offered(&mut cvm, 2).id(), cvm, open: (client, 1) }
    });
}

fuzz_target!(|data: &[u8]| {
    WORLD.with_borrow_mut(|world| {
        let (client, next) = &mut world.open;
        for bytes in [message(data, 4, client.id(), *next), message(data, 3, world.offered, 0)] {
            let rejected = world.cvm.accept(bytes).expect_err("nobody sealed it");
            assert_eq!(Rejected::decode(&rejected.encode()), Some(rejected));
            assert_eq!(world.cvm.counts(), (1, 1));
        }
        let accepted = world.cvm.accept(ask(client)).expect("it is genuine");
        assert_eq!(accepted.body.seq(), *next);
        *next += 1;
    });
});
