//! What a process has in its memory: for tests that look for what must not be there.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Pieces in which memory is read, in bytes.
const PIECE: usize = 1 << 20;
/// Longest text that is looked for, in bytes: so far do pieces overlap.
const LONGEST: usize = 256;

/// A mapping of a process.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Its addresses.
    pub range: Range<u64>,
    /// Whether large pages were asked for: so it is with memory of CVMs.
    pub large_pages: bool,
    /// Its name or file, empty for anonymous memory.
    pub name: String,
}

impl Mapping {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// The readable mappings of a process that have any memory. The kernel's own are left out.
///
/// # Errors
/// If there is no such process.
pub fn mappings(pid: Pid) -> Result<Vec<Mapping>> {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps", pid.as_raw_nonzero()))?;
    let mut mappings = Vec::<Mapping>::new();
    let mut readable = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if line.starts_with("Rss:") && words.next() == Some("0") && readable {
            readable = false;
            mappings.pop();
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(mapping) = mappings.last_mut().filter(|_| readable) {
                mapping.large_pages = flags.split_whitespace().any(|flag| flag == "hg");
            }
        } else if let Some((start, end)) = first.split_once('-') {
            let range = u64::from_str_radix(start, 16)?..u64::from_str_radix(end, 16)?;
            let name = words.clone().nth(4).unwrap_or_default().to_string();
            readable = words.next().is_some_and(|rights| rights.starts_with('r'))
                && !["[vvar]", "[vvar_vclock]", "[vsyscall]", "[vdso]"].contains(&name.as_str());
            if readable {
                mappings.push(Mapping { range, large_pages: false, name });
            }
        }
    }
    Ok(mappings)
}

/// Looks for texts in the mappings of a process: for each text, where it was found first. Memory that goes away meanwhile
/// is left out.
///
/// # Errors
/// If the process's memory can't be read, or nearly nothing of it was.
pub fn find(pid: Pid, mappings: &[Mapping], texts: &[&str]) -> Result<Vec<Option<Mapping>>> {
    ensure!(texts.iter().all(|text| (1..=LONGEST).contains(&text.len())), "texts of 1 to {LONGEST} bytes");
    let path = format!("/proc/{}/mem", pid.as_raw_nonzero());
    let memory = File::open(&path).context(path)?;
    let mut found = vec![None; texts.len()];
    let (mut piece, mut read) = (vec![0; PIECE + LONGEST], 0);
    for mapping in mappings {
        let mut at = mapping.range.start;
        while at < mapping.range.end {
            let wanted = piece.len().min((mapping.range.end - at) as usize);
            let bytes = memory.read_at(&mut piece[..wanted], at).unwrap_or(0);
            read += bytes;
            for (text, place) in texts.iter().zip(&mut found) {
                if place.is_none() && contains(&piece[..bytes], text.as_bytes()) {
                    *place = Some(mapping.clone());
                }
            }
            at += PIECE as u64;
        }
    }
    ensure!(read > PIECE, "only {read} bytes of the process could be read");
    Ok(found)
}

/// Whether bytes have a text in them.
pub fn contains(bytes: &[u8], text: &[u8]) -> bool {
    let Some(first) = text.first() else { return true };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        if rest[at..].starts_with(text) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpid;

    #[test]
    fn what_a_process_has_is_found_where_it_is() {
        // Made at run time, so that it is nowhere else.
        let text: String = "dnuof-eb-tsum-siht".chars().rev().collect();
        let mut place = vec![0_u8; 3 * PIECE];
        // Across the border of two pieces.
        for start in [10, PIECE - 5, 2 * PIECE + 77] {
            place.fill(0);
            place[start..start + text.len()].copy_from_slice(text.as_bytes());
            let address = place.as_ptr() as u64;
            let all = mappings(getpid()).unwrap();
            let here: Vec<_> = all.into_iter().filter(|one| one.range.contains(&address)).collect();
            let found = find(getpid(), &here, &[&text, "this-is-not-there-at-all"]).unwrap();
            assert!(found[0].as_ref().is_some_and(|one| one.range.contains(&address)), "{start}: {found:?}");
            assert!(found[1].is_none());
        }
    }
}
