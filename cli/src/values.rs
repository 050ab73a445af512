//! Values of command-line options: sizes, directory mappings, environment variables. Each is parsed into a type that
//! can not be wrong afterwards; messages name the remedy after "; ".

use std::{ffi::OsStr, path::PathBuf, time::Duration};

use nacre_compile::size::UNITS;
pub use nacre_compile::size::{MAX_MEMORY_BYTES, MIN_MEMORY_BYTES, format_size};

/// Longest `--spin-limit`.
const MAX_SPIN_LIMIT: Duration = Duration::from_millis(10);
/// Most Worker vCPUs of a CVM.
pub const MAX_WORKERS: u8 = 63;

/// Guest memory comes in pages of this size.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Memory of a CVM in bytes: within [`MIN_MEMORY_BYTES`] and [`MAX_MEMORY_BYTES`], a multiple of 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

impl MemorySize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Parses `--memory`: "512MiB", "4G", "4GiB" or bytes; rounded up to 2 MiB.
///
/// # Errors
/// A sentence for the user.
pub fn parse_memory(text: &str) -> Result<MemorySize, String> {
    let bytes = parse_size(text)?;
    if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&bytes) {
        let (min, max) = (format_size(MIN_MEMORY_BYTES), format_size(MAX_MEMORY_BYTES));
        return Err(format!("a CVM has {min} to {max} of memory"));
    }
    Ok(MemorySize(bytes.next_multiple_of(HUGE_PAGE_BYTES)))
}

/// Parses `--fill`: what a service of 32 bits can hold, and is worth moving.
///
/// # Errors
/// A sentence for the user.
pub fn parse_fill(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if (1 << 20..=2 << 30).contains(&bytes) { Ok(bytes) } else { Err("1MiB to 2GiB".to_owned()) }
}

/// Parses a size in bytes with an optional binary unit: K, M, G, T, each also with "iB".
///
/// # Errors
/// A sentence for the user.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| "write a whole number with a unit, such as 512MiB or 4GiB")?;
    let unit = unit.trim_start();
    if unit.is_empty() || unit.eq_ignore_ascii_case("B") {
        return Ok(number);
    }
    let shift = UNITS.iter().find(|(letter, _)| {
        let rest =
            unit.get(..1).filter(|first| first.eq_ignore_ascii_case(letter)).and_then(|_| unit.get(1..));
        rest.is_some_and(|rest| rest.is_empty() || rest.eq_ignore_ascii_case("iB"))
    });
    let Some((_, shift)) = shift else {
        return Err(format!("unknown unit {unit:?}: use KiB, MiB, GiB or TiB"));
    };
    number.checked_mul(1 << shift).ok_or_else(|| "the size is too large".to_owned())
}

/// Parses a duration: a number with ns, us, ms or s; 0 needs no unit.
///
/// # Errors
/// A sentence for the user.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("{text:?} is no duration: write a number with a unit, such as 150us or 2ms");
    let seconds = match unit.trim_start() {
        "ns" => 1e-9,
        "us" | "\u{b5}s" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "" if number == "0" => 0.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// Parses `--spin-limit`.
///
/// # Errors
/// A sentence for the user.
pub fn parse_spin_limit(text: &str) -> Result<Duration, String> {
    let limit = parse_duration(text)?;
    if limit > MAX_SPIN_LIMIT { Err("workers spin for 10ms at most".to_owned()) } else { Ok(limit) }
}

/// `--dir HOST[::GUEST]`: a host directory copied into the CVM before the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirMapping {
    /// Directory on this machine.
    pub host: PathBuf,
    /// The name the program sees it under (its WASI preopen).
    pub guest: String,
}

/// `--export GUEST[::HOST]`: a file or directory copied out after the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportMapping {
    /// Path inside the CVM.
    pub guest: String,
    /// Where it goes on this machine.
    pub host: PathBuf,
}

/// `--env K=V`, or `K` for this process's own value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Not empty, without "=" and NUL.
    pub name: String,
    /// Without NUL; `None` takes this process's value.
    pub value: Option<String>,
}

/// Longest time limit: a year, in seconds.
const MAX_TIME_LIMIT_SECONDS: u64 = 366 * 24 * 3600;

/// Parses `--time-limit`: "500ms", "30s", "1h 30m"; a millisecond to a year.
///
/// # Errors
/// A sentence for the user.
pub fn parse_time_limit(text: &str) -> Result<Duration, String> {
    let limit = humantime::parse_duration(text)
        .map_err(|_| "write a number with a unit, such as 500ms, 30s, 5m or 1h30m")?;
    if !(Duration::from_millis(1)..=Duration::from_secs(MAX_TIME_LIMIT_SECONDS)).contains(&limit) {
        return Err("a time limit is between 1ms and a year".to_owned());
    }
    Ok(limit)
}

/// Parses `--dir`. Without GUEST the program sees the directory under the name given for the host, as with other Wasm
/// engines.
///
/// # Errors
/// A sentence for the user.
pub fn parse_dir(text: &str) -> Result<DirMapping, String> {
    let (host, guest) = text.split_once("::").unwrap_or((text, text));
    check_path("HOST", host)?;
    check_path("GUEST", guest)?;
    Ok(DirMapping { host: host.into(), guest: guest.to_owned() })
}

/// Parses `--export`. Without HOST the result goes into the current directory under its own name.
///
/// # Errors
/// A sentence for the user.
pub fn parse_export(text: &str) -> Result<ExportMapping, String> {
    let (guest, host) = match text.split_once("::") {
        Some((guest, host)) => (guest, PathBuf::from(host)),
        None => {
            let name = PathBuf::from(text).file_name().map(OsStr::to_owned);
            (text, name.ok_or("say where it goes: GUEST::HOST")?.into())
        }
    };
    check_path("GUEST", guest)?;
    check_path("HOST", host.to_str().unwrap_or_default())?;
    Ok(ExportMapping { guest: guest.to_owned(), host })
}

fn check_path(which: &str, path: &str) -> Result<(), String> {
    match path {
        "" => Err(format!("{which} is empty")),
        _ if path.contains('\0') => Err(format!("{which} contains a NUL character")),
        _ => Ok(()),
    }
}

/// Parses `--env`.
///
/// # Errors
/// A sentence for the user.
pub fn parse_env(text: &str) -> Result<EnvVar, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    match name {
        "" => Err("the variable has no name: write NAME=VALUE".to_owned()),
        _ if text.contains('\0') => Err("contains a NUL character".to_owned()),
        _ => Ok(EnvVar { name: name.to_owned(), value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let us = Duration::from_micros;
        let parsed = ["150us", "0", "2ms", "1.5ms", "1s", "500ns"].map(|text| parse_duration(text).unwrap());
        assert_eq!(parsed, [us(150), us(0), us(2000), us(1500), us(1_000_000), Duration::from_nanos(500)]);
        for text in ["", "5", "us", "-1us", "1h", "1..2s", "99999999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_spin_limit("10ms").is_ok() && parse_spin_limit("11ms").is_err());
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("1K", 1 << 10),
            ("512MiB", 512 << 20),
            ("512mib", 512 << 20),
            ("512 MiB", 512 << 20),
            ("4G", 4 << 30),
            ("4GiB", 4 << 30),
            ("1t", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "MiB", "-1G", "1.5G", "4GB", "4MB", "4Gi", "4X", "4é", "99999999999999999999", "99999999T"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_size("4GB").unwrap_err().contains("GiB"));
    }

    #[test]
    fn memory_has_bounds_and_whole_pages() {
        assert_eq!(parse_memory("64MiB").unwrap().bytes(), 64 << 20);
        assert_eq!(parse_memory("64GiB").unwrap().bytes(), 64 << 30);
        assert_eq!(parse_memory("67108865").unwrap().bytes(), 66 << 20);
        for text in ["63MiB", "67108863", "65GiB", "68719476737", "0"] {
            assert!(parse_memory(text).unwrap_err().contains("64MiB to 64GiB"), "{text}");
        }
    }

    #[test]
    fn time_limits_need_a_unit_and_have_bounds() {
        for (text, ms) in [("1ms", 1), ("500ms", 500), ("2s", 2000), ("1h30m", 5_400_000), ("1m 1s", 61_000)]
        {
            assert_eq!(parse_time_limit(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "-1s", "1.5x", "0s", "999us", "2y", "99999999999999999999s"] {
            assert!(parse_time_limit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1 << 10, "1KiB"),
            (512 << 20, "512MiB"),
            ((5 << 30) + (1 << 29), "5.5GiB"),
            (u64::MAX, "16777215.9TiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn directories() {
        let dir = |host: &str, guest: &str| Ok(DirMapping { host: host.into(), guest: guest.into() });
        assert_eq!(parse_dir("data"), dir("data", "data"));
        assert_eq!(parse_dir("."), dir(".", "."));
        assert_eq!(parse_dir("data::/db"), dir("data", "/db"));
        assert_eq!(parse_dir("a::b::c"), dir("a", "b::c"));
        for text in ["", "::", "a::", "::b", "a\0b"] {
            assert!(parse_dir(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn exports() {
        let export = |guest: &str, host: &str| Ok(ExportMapping { guest: guest.into(), host: host.into() });
        assert_eq!(parse_export("/db/out.db"), export("/db/out.db", "out.db"));
        assert_eq!(parse_export("/db/::result"), export("/db/", "result"));
        assert_eq!(parse_export("/::all"), export("/", "all"));
        for text in ["", "/", "..", "a::", "::b"] {
            assert!(parse_export(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn environment() {
        let var =
            |name: &str, value: Option<&str>| Ok(EnvVar { name: name.into(), value: value.map(Into::into) });
        assert_eq!(parse_env("A=b=c"), var("A", Some("b=c")));
        assert_eq!(parse_env("A="), var("A", Some("")));
        assert_eq!(parse_env("A"), var("A", None));
        for text in ["", "=x", "A=\0", "\0=a"] {
            assert!(parse_env(text).is_err(), "{text:?}");
        }
    }
}
