//! Standard output and error of the process, for a program's streams.

use crate::failure::Failure;
use std::io::{self, ErrorKind, Write};

/// One of the two.
pub struct Output {
    name: &'static str,
    to: Box<dyn Write>,
}

impl Output {
    /// Standard output, then standard error.
    pub fn both() -> [Output; 2] {
        [
            Output { name: "standard output", to: Box::new(io::stdout()) },
            Output { name: "standard error", to: Box::new(io::stderr()) },
        ]
    }

    /// Writes and flushes, so that a program's output appears while it runs. False if nobody reads any more.
    ///
    /// # Errors
    /// Any other failure, such as a full disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        match self.to.write_all(bytes).and_then(|()| self.to.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Failure::new(self.name, format_args!("{error}; the program was ended"))),
        }
    }
}
