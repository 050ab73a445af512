//! Debug images only: measurements that only the guest can make of itself.

use crate::arch::clock;
use crate::program::Program;
use crate::task::{Begin, Spec};
use crate::{link, task, wasm};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use nacre_abi::message::{Header, Kind};

/// Instances measured.
const COUNT: usize = 2000;

/// A message with this argument makes a worker take a lock: a check of the check.
const TAKE_A_LOCK: u64 = 1;

/// Measures instances of the program that is loaded under the message's number; sends the result as text, nanoseconds
/// separated by spaces.
pub fn start(header: Header) {
    let Some(program) = Program::find(header.program) else { return };
    let entry = move |begin| {
        if begin != Begin::Now {
            return;
        }
        let text = match header.arg {
            TAKE_A_LOCK => {
                wasm::hooks::lock_here();
                String::from("taken")
            }
            _ => measure(&program),
        };
        link::send(Header::new(Kind::SelfTest, header.program), text.as_bytes());
    };
    if let Ok(task) = task::create(Spec::helper(header.program), Box::new(entry)) {
        task::start(&task);
    }
}

fn measure(program: &Arc<Program>) -> String {
    match wasm::measure_instances(program, COUNT) {
        Ok(cycles) => cycles
            .iter()
            .fold(String::new(), |text, cycles| text + &format!("{} ", clock::cycles_to_ns(*cycles))),
        Err(_) => String::from("failed"),
    }
}
