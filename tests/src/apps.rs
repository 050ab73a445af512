//! Our own programs in `apps/`: where their modules are, and how a freshly built module is made small.

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// The committed module of the program `name` in `apps/`, or of `features/NAME`.
///
/// # Panics
/// If it is not there: it is part of the repository.
pub fn app(name: &str) -> PathBuf {
    let apps = crate::repository().join("apps");
    let path = match name.split_once('/') {
        Some((folder, file)) => apps.join(folder).join(format!("{file}.wasm")),
        None => apps.join(name).join(format!("{name}.wasm")),
    };
    assert!(path.is_file(), "{} is missing: cargo xtask apps", path.display());
    path
}

/// A module without its custom sections but for `name`, which backtraces need.
pub fn without_debug_sections(module: &[u8]) -> Result<Vec<u8>> {
    let header = module.get(..8).context("too short for a module")?;
    ensure!(header == b"\0asm\x01\0\0\0", "not a core module");
    let mut slim = header.to_vec();
    let mut at = 8;
    while let Some(&id) = module.get(at) {
        let (size, body) = leb(module, at + 1)?;
        let end = body.checked_add(size).context("a section is too long")?;
        let section = module.get(body..end).context("a section is cut off")?;
        let keep = id != 0 || {
            let (length, start) = leb(section, 0)?;
            start.checked_add(length).and_then(|end| section.get(start..end)) == Some(b"name".as_slice())
        };
        if keep {
            slim.extend_from_slice(&module[at..end]);
        }
        at = end;
    }
    Ok(slim)
}

/// An unsigned LEB128 number of at most 32 bits at `at`, and where it ends.
fn leb(bytes: &[u8], mut at: usize) -> Result<(usize, usize)> {
    let mut value = 0u64;
    for shift in (0..35).step_by(7) {
        let byte = *bytes.get(at).context("a number is cut off")?;
        at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((usize::try_from(value)?, at));
        }
    }
    anyhow::bail!("a number is too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &[u8] = b"\0asm\x01\0\0\0";

    #[test]
    fn only_names_survive_of_the_custom_sections() {
        let data = b"\x0b\x01\x00".as_slice();
        let names = b"\x00\x06\x04nameX".as_slice();
        let debug = b"\x00\x08\x06.debugX".as_slice();
        let whole = [HEADER, debug, names, data, debug].concat();
        assert_eq!(without_debug_sections(&whole).unwrap(), [HEADER, names, data].concat());
        assert!(without_debug_sections(&whole[..whole.len() - 1]).is_err());
    }

    #[test]
    fn broken_modules_are_refused() {
        assert!(without_debug_sections(b"\0asm").is_err());
        assert!(without_debug_sections(&[HEADER, b"\x01\x7f"].concat()).is_err());
        assert!(without_debug_sections(&[HEADER, b"\x01\xff\xff\xff\xff\xff\xff"].concat()).is_err());
        assert_eq!(without_debug_sections(HEADER).unwrap(), HEADER);
    }
}
