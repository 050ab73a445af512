//! What several fuzz targets share: a maker of ELF files, and a program with a WASI context
//! and clients.
#![forbid(unsafe_code)]

pub mod elf;
pub mod program;
pub mod sockets;
