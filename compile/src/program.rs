//! A compiled program: a whole `.cwasm` in this process's memory, checked against its own header.
//!
//! The file is read, not mapped: whoever truncates a mapped file kills the process that maps it, and the VM copies the
//! bytes once more anyway.

use std::{fs::File, io::Read, path::Path};

use nacre_engine::{CpuFeatures, CwasmError, Header, container};

/// Why a `.cwasm` could not be loaded, with the remedy after "; ".
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can not be read.
    #[error("{}; check the path and its permissions", io_reason(.0))]
    Read(#[from] std::io::Error),
    /// The file is damaged or made for something else.
    #[error(transparent)]
    Cwasm(#[from] CwasmError),
}

/// A `.cwasm` whose header is valid and whose payload has the digest the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    header: Header,
    file: Vec<u8>,
}

impl Program {
    /// Checks the bytes of a `.cwasm`. `host` are the CPU features it may use; the guest checks them again.
    ///
    /// # Errors
    /// Every [`CwasmError`].
    pub fn from_bytes(file: Vec<u8>, host: CpuFeatures) -> Result<Self, CwasmError> {
        let header = Header::parse(&file)?;
        header.check_compatible(host)?;
        if file.len() as u64 != header.file_len() {
            return Err(CwasmError::WrongLength { need: header.file_len(), have: file.len() as u64 });
        }
        header.check_payload(header.payload(&file)?)?;
        Ok(Self { header, file })
    }

    /// Reads and checks a `.cwasm`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(path: &Path, host: CpuFeatures) -> Result<Self, LoadError> {
        Ok(Self::from_bytes(read_file(path)?, host)?)
    }

    /// Joins what the compiler made with its header.
    ///
    /// # Errors
    /// [`CwasmError::InvalidField`] when the payload is too long for a `.cwasm`.
    pub fn from_payload(header: Header, payload: &[u8]) -> Result<Self, CwasmError> {
        header.check_payload(payload)?;
        let mut file = Vec::with_capacity(container::PAYLOAD_OFFSET + payload.len());
        file.extend_from_slice(&header.encode());
        file.extend_from_slice(payload);
        Ok(Self { header, file })
    }

    /// What the program says about itself.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The whole file: header page and payload, as the guest gets it.
    #[must_use]
    pub fn file(&self) -> &[u8] {
        &self.file
    }

    /// Wasmtime's precompiled ELF, for an engine in this process.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.file[container::PAYLOAD_OFFSET..]
    }
}

/// Reads a regular file whole, with one allocation.
///
/// # Errors
/// The operating system's, and `IsADirectory`.
pub fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// An I/O error in a few plain words, without the error number.
#[must_use]
pub fn io_reason(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => "no such file or directory".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::IsADirectory => "is a directory".to_owned(),
        ErrorKind::NotADirectory => "is not a directory".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_lowercase()
        }
    }
}

/// Whether the bytes start like a `.cwasm`.
#[must_use]
pub fn is_cwasm(bytes: &[u8]) -> bool {
    bytes.starts_with(&container::MAGIC)
}
