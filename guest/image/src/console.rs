//! Last words: text to the host's operator through the vCPU's mailbox, without allocating.

use crate::link;
use crate::vcpu;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering;
use nacre_abi::hypercall::{self, ExitReason, PRINT_MAX_BYTES};

/// A text of bounded length; what does not fit is cut.
pub struct Text {
    bytes: [u8; PRINT_MAX_BYTES],
    len: usize,
}

impl Text {
    const fn new() -> Text {
        Text { bytes: [0; PRINT_MAX_BYTES], len: 0 }
    }

    /// The text of `what`.
    pub fn of(what: fmt::Arguments<'_>) -> Text {
        let mut text = Text::new();
        let _ = text.write_fmt(what);
        text
    }

    /// What was written so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let take = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + take].copy_from_slice(&text.as_bytes()[..take]);
        self.len += take;
        Ok(())
    }
}

/// Prints one line. Only for defects: what a program says goes over its streams.
fn print(text: &Text) {
    let Some(window) = link::try_window() else { return };
    let mailbox = window.mailbox(vcpu::id());
    for (word, chunk) in mailbox.iter().zip(text.as_bytes().chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    }
    // At most PRINT_MAX_BYTES, so nothing is cut here.
    crate::arch::hypercall(hypercall::PRINT, text.len as u32);
}

/// Ends the CVM with a reason for its operator.
pub fn fatal(reason: ExitReason, what: fmt::Arguments<'_>) -> ! {
    print(&Text::of(what));
    crate::arch::exit(reason)
}
