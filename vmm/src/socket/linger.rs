//! The one socket option that the standard library does not have.

use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Makes the close of a stream a reset. If the kernel refuses, it is an orderly end.
pub fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the descriptor is open, and the option's value is a `linger` that lives through the call.
    unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
    }
}
