//! What several fuzz targets share: a maker of ELF files, a program with a WASI context and clients, and two ends of a
//! session.
#![forbid(unsafe_code)]

pub mod elf;
pub mod program;
pub mod session;
pub mod sockets;
