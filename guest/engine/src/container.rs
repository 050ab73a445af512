//! The `.cwasm` container: a fixed header of ours, then wasmtime's precompiled ELF at [`PAYLOAD_OFFSET`], which is a
//! page boundary so that the guest can map the code in place.
//!
//! The header is readable alone: [`Header::parse`] needs the first [`HEADER_LEN`] bytes and nothing else. All numbers
//! are little-endian.
//!
//! ```text
//! offset size
//!      0    8  magic "NACRECWA"
//!      8    4  header version, 1
//!     12    4  payload offset, 4096
//!     16    8  payload length in bytes
//!     24    8  length of the source module in bytes
//!     32   32  SHA-256 of the payload
//!     64   32  SHA-256 of the source module (binary form)
//!     96   32  fingerprint of the engine settings, see `settings`
//!    128    8  CPU features the code uses, see `CpuFeatures`
//!    136    1  CPU target: 0 x86-64-v3, 1 native
//!    137    1  flags: bit 0 the module exports a `_start` function
//!    138    6  zero
//!    144    8  sum of the initial sizes of the module's memories in bytes
//!    152   16  wasmtime version, ASCII, padded with zeros
//!    168   56  zero
//!    224   32  SHA-256 of bytes 0 to 223
//!    256       zero up to the payload offset
//! ```
//!
//! Version rule: a reader accepts exactly its own header version. Files are a cache of the source, so there is no
//! migration: the remedy is always to compile again.
//!
//! The digests find damage and mix-ups. They are no signature: who may provide native code is decided elsewhere.

use core::fmt;

use sha2::{Digest, Sha256};

use crate::{CpuFeatures, CpuTarget, WASMTIME_VERSION, fingerprint};

/// The first eight bytes of every `.cwasm`.
pub const MAGIC: [u8; 8] = *b"NACRECWA";
/// The header version this code reads and writes.
pub const HEADER_VERSION: u32 = 1;
/// Bytes [`Header::parse`] needs.
pub const HEADER_LEN: usize = 256;
/// Where the payload starts in the file, in bytes.
pub const PAYLOAD_OFFSET: usize = 4096;
/// The longest payload accepted, in bytes. CPython compiles to about a tenth of it.
pub const MAX_PAYLOAD_BYTES: u64 = 1 << 30;

const VERSION_LEN: usize = 16;
const FLAG_COMMAND: u8 = 1;

const _: () =
    assert!(PAYLOAD_OFFSET.is_multiple_of(4096), "the guest maps the payload in place: keep it on a page");
const _: () = assert!(WASMTIME_VERSION.len() <= VERSION_LEN, "the version field of the header is too short");

/// Why a `.cwasm` can not be used, with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CwasmError {
    /// The magic is missing.
    #[error("not a .cwasm file; compile the program with `nacre compile app.wasm -o app.cwasm`")]
    NotCwasm,
    /// Fewer or more bytes than the header promises.
    #[error(
        "{have} bytes long where its header says {need}: truncated or damaged; compile the program again"
    )]
    WrongLength {
        /// Bytes the header promises.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// A header of another version.
    #[error("header version {0}, this version of nacre reads {HEADER_VERSION}; compile the program again")]
    HeaderVersion(u32),
    /// The header's digest does not fit its bytes.
    #[error("its header is damaged (checksum mismatch); compile the program again")]
    HeaderDamaged,
    /// A header field with an impossible value.
    #[error("its header is invalid ({0}); compile the program again")]
    InvalidField(&'static str),
    /// The payload's digest does not fit its bytes.
    #[error("its code is damaged (checksum mismatch); compile the program again")]
    PayloadDamaged,
    /// Compiled by another wasmtime.
    #[error(
        "compiled by wasmtime {0}, this version of nacre uses {WASMTIME_VERSION}; compile the program again"
    )]
    WasmtimeVersion(VersionText),
    /// Compiled with other engine settings.
    #[error("compiled with other engine settings than this version of nacre uses; compile the program again")]
    Settings,
    /// The CPU lacks features of the x86-64-v3 level.
    #[error("needs a CPU of the x86-64-v3 level, this one lacks {0}; run it on a newer CPU")]
    CpuTooOld(CpuFeatures),
    /// Compiled with `--cpu native` on a CPU with more features.
    #[error(
        "compiled for a CPU with {0}, which this host has not; compile the program again without --cpu native"
    )]
    CpuFeaturesMissing(CpuFeatures),
}

/// A version as stored in a header: printable ASCII, at most 16 characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VersionText {
    bytes: [u8; VERSION_LEN],
    len: usize,
}

impl VersionText {
    /// The version of the wasmtime this crate is built with.
    #[must_use]
    pub fn current() -> Self {
        let mut bytes = [0; VERSION_LEN];
        bytes[..WASMTIME_VERSION.len()].copy_from_slice(WASMTIME_VERSION.as_bytes());
        Self { bytes, len: WASMTIME_VERSION.len() }
    }

    fn decode(bytes: [u8; VERSION_LEN]) -> Option<Self> {
        let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(VERSION_LEN);
        let (text, padding) = bytes.split_at(len);
        let valid = len > 0 && text.iter().all(u8::is_ascii_graphic) && padding.iter().all(|&byte| byte == 0);
        valid.then_some(Self { bytes, len })
    }

    /// The version as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or_default()
    }
}

impl fmt::Display for VersionText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for VersionText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// What the header of a `.cwasm` says; every field is in range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Length of the precompiled ELF in bytes: above 0, at most [`MAX_PAYLOAD_BYTES`].
    pub payload_len: u64,
    /// SHA-256 of the precompiled ELF.
    pub payload_sha256: [u8; 32],
    /// Length of the source module in bytes.
    pub source_len: u64,
    /// SHA-256 of the source module in binary form.
    pub source_sha256: [u8; 32],
    /// Fingerprint of the engine settings it was compiled with.
    pub settings: [u8; 32],
    /// The target, with the CPU features the code uses.
    pub target: CpuTarget,
    /// Whether the module exports a `_start` function, that is, can be run as a program.
    pub is_command: bool,
    /// Sum of the initial sizes of the memories the module defines, in bytes.
    pub min_memory_bytes: u64,
    /// The wasmtime that compiled it.
    pub wasmtime_version: VersionText,
}

impl Header {
    /// The header for a payload this build's compiler made with this build's settings.
    ///
    /// `source` is the module in binary form.
    ///
    /// # Errors
    /// [`CwasmError::InvalidField`] when the payload is empty or longer than [`MAX_PAYLOAD_BYTES`].
    pub fn describe(
        source: &[u8],
        payload: &[u8],
        target: CpuTarget,
        is_command: bool,
        min_memory_bytes: u64,
    ) -> Result<Self, CwasmError> {
        Ok(Self {
            payload_len: checked_payload_len(payload.len() as u64)?,
            payload_sha256: sha256(payload),
            source_len: source.len() as u64,
            source_sha256: sha256(source),
            settings: fingerprint(),
            target,
            is_command,
            min_memory_bytes,
            wasmtime_version: VersionText::current(),
        })
    }

    /// The first [`PAYLOAD_OFFSET`] bytes of the file; the payload follows.
    #[must_use]
    pub fn encode(&self) -> [u8; PAYLOAD_OFFSET] {
        let mut page = [0; PAYLOAD_OFFSET];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &HEADER_VERSION.to_le_bytes());
        put(12, &(PAYLOAD_OFFSET as u32).to_le_bytes());
        put(16, &self.payload_len.to_le_bytes());
        put(24, &self.source_len.to_le_bytes());
        put(32, &self.payload_sha256);
        put(64, &self.source_sha256);
        put(96, &self.settings);
        put(128, &self.target.features().bits().to_le_bytes());
        put(136, &[u8::from(matches!(self.target, CpuTarget::Native(_)))]);
        put(137, &[if self.is_command { FLAG_COMMAND } else { 0 }]);
        put(144, &self.min_memory_bytes.to_le_bytes());
        put(152, &self.wasmtime_version.bytes);
        let digest = sha256(&page[..224]);
        page[224..HEADER_LEN].copy_from_slice(&digest);
        page
    }

    /// Decodes and validates the header at the start of `file`, which may hold the payload or not.
    ///
    /// It says nothing about whether this build can load the code: see [`Header::check_compatible`].
    ///
    /// # Errors
    /// Every variant of [`CwasmError`] up to `InvalidField`.
    pub fn parse(file: &[u8]) -> Result<Self, CwasmError> {
        if file.get(..MAGIC.len()) != Some(&MAGIC[..]) {
            return Err(CwasmError::NotCwasm);
        }
        let too_short = CwasmError::WrongLength { need: PAYLOAD_OFFSET as u64, have: file.len() as u64 };
        let head: &[u8; HEADER_LEN] = file.first_chunk().ok_or(too_short)?;

        let version = u32::from_le_bytes(field(head, 8));
        if version != HEADER_VERSION {
            return Err(CwasmError::HeaderVersion(version));
        }
        if sha256(&head[..224]) != field(head, 224) {
            return Err(CwasmError::HeaderDamaged);
        }
        if u32::from_le_bytes(field(head, 12)) as usize != PAYLOAD_OFFSET {
            return Err(CwasmError::InvalidField("payload offset"));
        }
        let zeros = [&head[138..144], &head[168..224]];
        if zeros.iter().any(|area| area.iter().any(|&byte| byte != 0)) {
            return Err(CwasmError::InvalidField("reserved bytes"));
        }
        let features = CpuFeatures::from_bits(u64::from_le_bytes(field(head, 128)))
            .ok_or(CwasmError::InvalidField("CPU features"))?;
        let target = match head[136] {
            0 if features == CpuFeatures::X86_64_V3 => CpuTarget::X86_64V3,
            1 => CpuTarget::Native(features),
            _ => return Err(CwasmError::InvalidField("CPU target")),
        };
        let flags = head[137];
        if flags & !FLAG_COMMAND != 0 {
            return Err(CwasmError::InvalidField("flags"));
        }
        Ok(Self {
            payload_len: checked_payload_len(u64::from_le_bytes(field(head, 16)))?,
            payload_sha256: field(head, 32),
            source_len: u64::from_le_bytes(field(head, 24)),
            source_sha256: field(head, 64),
            settings: field(head, 96),
            target,
            is_command: flags & FLAG_COMMAND != 0,
            min_memory_bytes: u64::from_le_bytes(field(head, 144)),
            wasmtime_version: VersionText::decode(field(head, 152))
                .ok_or(CwasmError::InvalidField("wasmtime version"))?,
        })
    }

    /// Whether this build, on a CPU with the features `host`, may load the code. Call it before deserialising.
    ///
    /// # Errors
    /// [`CwasmError::WasmtimeVersion`], [`CwasmError::Settings`], [`CwasmError::CpuTooOld`] or
    /// [`CwasmError::CpuFeaturesMissing`].
    pub fn check_compatible(&self, host: CpuFeatures) -> Result<(), CwasmError> {
        if self.wasmtime_version != VersionText::current() {
            return Err(CwasmError::WasmtimeVersion(self.wasmtime_version));
        }
        if self.settings != fingerprint() {
            return Err(CwasmError::Settings);
        }
        let missing = self.target.features().missing_from(host);
        match self.target {
            _ if missing.is_empty() => Ok(()),
            CpuTarget::X86_64V3 => Err(CwasmError::CpuTooOld(missing)),
            CpuTarget::Native(_) => Err(CwasmError::CpuFeaturesMissing(missing)),
        }
    }

    /// Length of the whole file in bytes.
    #[must_use]
    pub const fn file_len(&self) -> u64 {
        // No overflow: `payload_len` is at most `MAX_PAYLOAD_BYTES`.
        PAYLOAD_OFFSET as u64 + self.payload_len
    }

    /// The precompiled ELF inside `file`, which starts with this header. More bytes may follow it, such as the rest
    /// of a page.
    ///
    /// # Errors
    /// [`CwasmError::WrongLength`] when `file` ends early.
    pub fn payload<'a>(&self, file: &'a [u8]) -> Result<&'a [u8], CwasmError> {
        usize::try_from(self.file_len())
            .ok()
            .and_then(|end| file.get(PAYLOAD_OFFSET..end))
            .ok_or(CwasmError::WrongLength { need: self.file_len(), have: file.len() as u64 })
    }

    /// Checks the payload against its digest: about 0.6 ms per MiB.
    ///
    /// # Errors
    /// [`CwasmError::PayloadDamaged`].
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), CwasmError> {
        if payload.len() as u64 == self.payload_len && sha256(payload) == self.payload_sha256 {
            Ok(())
        } else {
            Err(CwasmError::PayloadDamaged)
        }
    }
}

/// SHA-256 of `bytes`, as used for both digests of a header.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn checked_payload_len(len: u64) -> Result<u64, CwasmError> {
    if (1..=MAX_PAYLOAD_BYTES).contains(&len) {
        Ok(len)
    } else {
        Err(CwasmError::InvalidField("payload length"))
    }
}

/// `N` bytes of the header at a constant offset; all offsets used here lie inside it.
fn field<const N: usize>(head: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&head[at..at + N]);
    bytes
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
