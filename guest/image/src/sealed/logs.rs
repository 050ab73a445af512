//! What sealed services write to their streams, and how they ended. The last of it is kept for the owner and brokers, who ask for it in
//! a session: [`super::sessions`]. It is on vCPU 0, where a service that writes goes for it.

use crate::normal::NormalCell;
use crate::program::Program;
use crate::{memory, task};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use nacre_abi::message::ExitKind;

/// So much of each service's log is kept, in bytes.
const KEPT_BYTES: usize = 64 << 10;

/// Logs by the name of the service: one that is started again goes on in its log.
static LOGS: NormalCell<BTreeMap<String, Log>> = NormalCell::new(BTreeMap::new());
/// Which service a program is, and SHA-256 of the code it was started with, by the host's number.
static SERVICES: NormalCell<BTreeMap<u32, (String, [u8; 32])>> = NormalCell::new(BTreeMap::new());

/// The end of what was written.
#[derive(Default)]
struct Log {
    /// Bytes written since the beginning.
    written: u64,
    kept: VecDeque<u8>,
}

impl Log {
    fn put(&mut self, bytes: &[u8]) {
        self.written += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(KEPT_BYTES)..];
        let too_many = (self.kept.len() + bytes.len()).saturating_sub(KEPT_BYTES);
        self.kept.drain(..too_many);
        // Without memory for it there is a gap in a log, and nothing else goes wrong.
        if self.kept.try_reserve(bytes.len()).is_ok() {
            self.kept.extend(bytes);
        }
    }

    /// Where what is kept begins.
    fn first(&self) -> u64 {
        self.written - self.kept.len() as u64
    }
}

/// Program `id` is the service `name` from now on, with this code.
pub fn begin(id: u32, name: &str, code: [u8; 32]) {
    SERVICES.with(|services| services.insert(id, (name.to_string(), code)));
    LOGS.with(|logs| {
        logs.entry(name.to_string()).or_default();
    });
}

/// SHA-256 of the code of all services that the host has started and not dropped: also of one that was replaced or removed since.
pub fn running() -> Vec<[u8; 32]> {
    SERVICES.with(|services| services.values().map(|(_, code)| *code).collect())
}

/// There is no program `id` any more. What it has written stays.
pub fn end(id: u32) {
    SERVICES.with(|services| services.remove(&id));
}

/// A service was removed, with all it has written.
pub fn forget(name: &str) {
    LOGS.with(|logs| logs.remove(name));
}

/// A service writes. From its task, which goes to vCPU 0 for it.
pub fn write(program: &Program, bytes: &[u8]) {
    if !bytes.is_empty() {
        memory::touch(bytes);
        task::on_normal(|| put(program.id, bytes));
    }
}

/// A service has ended. From its task.
pub fn ended(program: &Program, kind: ExitKind, code: u64, text: &str) {
    let how = match kind {
        ExitKind::Code => format!("[ended with exit code {code}]\n"),
        _ => format!("[ended: {text}]\n"),
    };
    write(program, how.as_bytes());
}

fn put(id: u32, bytes: &[u8]) {
    SERVICES.with(|services| {
        let Some((name, _)) = services.get(&id) else { return };
        LOGS.with(|logs| {
            if let Some(log) = logs.get_mut(name) {
                log.put(bytes);
            }
        });
    });
}

/// What is kept of a service's log from offset `from` on, and the offset where that begins; `None` if it has none.
pub fn read(name: &str, from: u64) -> Option<(u64, Vec<u8>)> {
    LOGS.with(|logs| {
        let log = logs.get(name)?;
        let begin = from.clamp(log.first(), log.written);
        let skipped = (begin - log.first()) as usize;
        Some((begin, log.kept.iter().skip(skipped).copied().collect()))
    })
}
