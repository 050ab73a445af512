//! Services in real CVMs, `apps/echo` in all its modes: through the VMM's own connections, and through real TCP sockets.
#![forbid(unsafe_code)]

mod connections;
mod direct;
mod relay;
