//! What a client hears from the node in place of its CVM.
//!
//! Input: a byte that says what of the header is set right, then a message. Checked: no panic; it is refused, and the genuine
//! answer is accepted afterwards.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_fuzz::session::{ask, message, offered};
use nacre_session::{CvmSessions, Reply};
use std::cell::RefCell;

struct World {
    cvm: CvmSessions,
    client: nacre_session::ClientSession,
    next: u64,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new({
        let mut cvm = CvmSessions::with_limits(1, 1);
        let client = offered(&mut cvm, 1);
        World { cvm, client, next: 0 }
    });
}

fuzz_target!(|data: &[u8]| {
    WORLD.with_borrow_mut(|World { cvm, client, next }| {
        let request = cvm.accept(ask(client)).expect("it is genuine");
        for kind in [5, 6] {
            client.open_response(message(data, kind, client.id(), *next)).expect_err("nobody sealed it");
            assert_eq!(client.unanswered(), 1);
        }
        let answer = request.responder.seal(&Reply::Removed { version: *next });
        let response = client.open_response(answer).expect("it is genuine");
        assert_eq!(response.reply(), Ok(Reply::Removed { version: *next }));
        *next += 1;
    });
});
