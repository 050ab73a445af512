//! Debug images only: measurements that only the guest can make of itself. The result goes to the host as text: numbers
//! separated by spaces, or "failed".

mod wakes;

use crate::arch::clock;
use crate::program::Program;
use crate::task::{Begin, Spec};
use crate::{link, task, wasm};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use nacre_abi::message::{Header, Kind, SelfTest};

/// Instances measured.
const COUNT: usize = 2000;

/// Makes the measurement that the message asks for; one this image does not know fails.
pub fn start(header: Header, body: &[u8]) {
    match SelfTest::from_number(header.arg) {
        Some(SelfTest::Instances) => instances(header.program),
        Some(SelfTest::WakeFloor) => answer(header.program, wakes::floor(body)),
        Some(SelfTest::Wakes) => answer(header.program, wakes::tasks(body)),
        Some(SelfTest::Audit) => crate::audit::start(header),
        Some(SelfTest::TakeLock) => take_a_lock(header),
        None => answer(header.program, None::<core::iter::Empty<u64>>),
    }
}

fn answer(program: u32, numbers: Option<impl Iterator<Item = u64>>) {
    let text = match numbers {
        Some(numbers) => numbers.fold(String::new(), |text, number| text + &format!("{number} ")),
        None => String::from("failed"),
    };
    link::send(Header::new(Kind::SelfTest, program), text.as_bytes());
}

/// Nanoseconds for an instance of the program that is loaded under this number, many times.
fn instances(number: u32) {
    let Some(program) = Program::find(number) else { return };
    let entry = move |begin| {
        if begin == Begin::Now {
            let cycles = wasm::measure_instances(&program, COUNT).ok();
            answer(number, cycles.map(|cycles| cycles.into_iter().map(clock::cycles_to_ns)));
        }
    };
    if let Ok(task) = task::create(Spec::helper(number), Box::new(entry)) {
        task::start(&task);
    }
}

/// Makes a worker take a lock, and says so.
fn take_a_lock(header: Header) {
    let entry = move |_| {
        wasm::hooks::lock_here();
        link::send(header, b"taken");
    };
    if let Ok(task) = task::create(Spec::helper(header.program), Box::new(entry)) {
        task::start(&task);
    }
}
