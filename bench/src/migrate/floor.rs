//! What the bytes of a migration cost at least: each is sealed once, goes through one loopback connection, and is opened once. Both ends share
//! the CPUs of this machine, so the CPU time of all that, divided by the CPUs, is the floor. Copies between private memory, window and
//! sockets' buffers are not in it, but for the two of the connection itself.

use super::journey::failed;
use crate::BenchError;
use crate::machine::process_cpu;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Bytes of a record: a large page in eight pieces is what travels.
const RECORD_BYTES: usize = 256 << 10;
/// Records of each kind.
const RECORDS: usize = 1024;

/// CPU time per byte, in nanoseconds.
pub(super) struct Floor {
    /// Encryption.
    pub(super) sealing: f64,
    /// Decryption.
    pub(super) opening: f64,
    /// One connection, both ends.
    pub(super) sending: f64,
    cpus: f64,
}

impl Floor {
    /// Bytes a second that both ends' CPUs allow.
    pub(super) fn bytes_per_second(&self) -> f64 {
        self.cpus * 1e9 / (self.sealing + self.opening + self.sending)
    }
}

fn per_byte(cpu: Duration) -> f64 {
    cpu.as_nanos() as f64 / (RECORD_BYTES * RECORDS) as f64
}

fn nonce(record: usize) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&(record as u64).to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Measures all parts, one after the other.
pub(super) fn measure() -> Result<Floor, BenchError> {
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(failed("AES-256-GCM"))?;
    let key = LessSafeKey::new(key);
    let mut record = vec![1; RECORD_BYTES];
    let mut cpu = [Duration::ZERO; 2];
    for number in 0..RECORDS {
        let begin = process_cpu();
        let sealed = key.seal_in_place_append_tag(nonce(number), Aad::empty(), &mut record);
        let between = process_cpu();
        sealed.map_err(failed("AES-256-GCM"))?;
        key.open_in_place(nonce(number), Aad::empty(), &mut record).map_err(failed("AES-256-GCM"))?;
        cpu[0] += between - begin;
        cpu[1] += process_cpu() - between;
        record.truncate(RECORD_BYTES);
    }
    Ok(Floor {
        sealing: per_byte(cpu[0]),
        opening: per_byte(cpu[1]),
        sending: per_byte(sent().map_err(BenchError::system("a loopback connection"))?),
        cpus: std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64),
    })
}

/// CPU time for sending all records over loopback, of both ends.
fn sent() -> std::io::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut here = TcpStream::connect(listener.local_addr()?)?;
    let (mut there, _) = listener.accept()?;
    let begin = process_cpu();
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; RECORD_BYTES];
        while there.read(&mut buffer)? != 0 {}
        std::io::Result::Ok(())
    });
    let record = vec![1; RECORD_BYTES];
    for _ in 0..RECORDS {
        here.write_all(&record)?;
    }
    drop(here);
    reader.join().map_err(|_| std::io::Error::other("the reader panicked"))??;
    Ok(process_cpu() - begin)
}
