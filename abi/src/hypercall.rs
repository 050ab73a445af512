//! Hypercalls: operations a guest asks its host for, as port writes straight from ring 3.
//!
//! An `out` to the port is the call. Ports up to [`EXIT_PORTS_END`] end in the VMM's exit handler; [`DOORBELL`] and the
//! [`wake`] ports are bound to event descriptors and never leave the kernel. Arguments that do not fit the 32 bits of
//! the port write are in the caller's [mailbox](crate::window::MAILBOX_BYTES). No call returns a value the guest must
//! trust: park may return early, everything else only asks.

use crate::VcpuId;

/// End of this CVM: the 32-bit value is a code for the operator (see [`ExitReason`]).
pub const EXIT: u16 = 0x10;
/// Put this vCPU to sleep until it is woken. Mailbox word 0: deadline in nanoseconds of guest monotonic time from now
/// ([`PARK_FOREVER`] for none). Word 1: the number of a vCPU to wake then, plus one; 0 for none. A worker that must park
/// lets its task go on elsewhere that way: a wake before the park would compete with it for the CPU it is to give back.
pub const PARK: u16 = 0x11;
/// Give memory back: mailbox word 0 is a guest-physical address, word 1 a length, both multiples of a large page.
/// The content is lost; the next touch gets a fresh page.
pub const RELEASE: u16 = 0x12;
/// Print the text in the mailbox (only in images that are measured as debug images, and for fatal errors).
pub const PRINT: u16 = 0x13;
/// Ask the host to ring nothing and do nothing: measures the cost of an exit.
pub const NOP: u16 = 0x14;
/// The demand on the shared page is higher than the host knows (see [`elastic`](crate::elastic)).
pub const DEMAND: u16 = 0x15;
/// Last port of those that end in the VMM's exit handler.
pub const EXIT_PORTS_END: u16 = 0x1f;
/// "There is something on my rings": rung by any vCPU.
pub const DOORBELL: u16 = 0x20;
/// First of the ports that tell of a migration's pipes, two for each channel: see [`pipe`].
pub const PIPE_BASE: u16 = 0x22;
/// First of the ports that wake a vCPU.
pub const WAKE_BASE: u16 = 0x40;
/// Ports up to and including this one may be written from ring 3; the I/O bitmap of each TSS ends there.
pub const LAST_PORT: u16 = 0x7f;

const _: () = assert!(
    WAKE_BASE as u32 + crate::MAX_VCPUS - 1 == LAST_PORT as u32,
    "the wake ports must fill the I/O bitmap: read guest/image/src/arch before changing them"
);

/// The port that wakes `vcpu`.
pub const fn wake(vcpu: VcpuId) -> u16 {
    WAKE_BASE + vcpu.index() as u16
}

const _: () = assert!(
    PIPE_BASE as u32 + 2 * crate::migrate::MAX_CHANNELS <= WAKE_BASE as u32,
    "the ports of pipes reach the wake ports"
);

/// What a guest tells the host about a channel's pipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipeNews {
    /// There is something in the pipe to the host.
    Written = 0,
    /// There is room in the pipe to the guest.
    Room = 1,
}

/// The port that tells of a channel's pipes; bound to event descriptors, as [`DOORBELL`].
pub const fn pipe(channel: u32, news: PipeNews) -> u16 {
    PIPE_BASE + 2 * channel as u16 + news as u16
}

/// Park without a deadline.
pub const PARK_FOREVER: u64 = u64::MAX;
/// Longest text of one [`PRINT`] in bytes.
pub const PRINT_MAX_BYTES: usize = 1024;

/// Why a guest ended itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The host asked it to.
    Shutdown,
    /// An internal error of the guest; the reason was printed before.
    Panic,
    /// An exception in the guest's own code.
    Exception,
    /// The launch parameters or the shared window are not what this image expects.
    BadLaunch,
    /// A code this version does not know.
    Unknown(u32),
}

impl ExitReason {
    /// The value written to the [`EXIT`] port.
    pub const fn code(self) -> u32 {
        match self {
            ExitReason::Shutdown => 0,
            ExitReason::Panic => 1,
            ExitReason::Exception => 2,
            ExitReason::BadLaunch => 3,
            ExitReason::Unknown(code) => code,
        }
    }

    /// The reason that has this code.
    pub const fn from_code(code: u32) -> ExitReason {
        match code {
            0 => ExitReason::Shutdown,
            1 => ExitReason::Panic,
            2 => ExitReason::Exception,
            3 => ExitReason::BadLaunch,
            code => ExitReason::Unknown(code),
        }
    }
}
