//! A process with a CVM listens on `<directory>/<pid>-<number>.sock` and answers each connection with one [`Sample`] as
//! JSON. The directory belongs to the user and nobody else may enter it.

use super::{SAMPLE_VERSION, Sample};
use nacre_vmm::Cvm;
use std::fs::{self, DirBuilder, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Sockets of this process: what a handler of signals removes before it ends the process.
static SOCKETS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Somebody who asks has to read within this time.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where CVMs are listed: `$XDG_RUNTIME_DIR/nacre`, else `run` in the directory of the cache. Made if it is not there;
/// `None` if others could get in.
#[must_use]
pub fn directory() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let directory = from("XDG_RUNTIME_DIR")
        .filter(|path| path.is_dir())
        .map(|path| path.join("nacre"))
        .or_else(|| from("XDG_CACHE_HOME").map(|path| path.join("nacre/run")))
        .or_else(|| from("HOME").map(|path| path.join(".cache/nacre/run")))?;
    private(&directory).then_some(directory)
}

/// Makes the directory if it is not there; whether it is a directory of this user alone.
fn private(directory: &Path) -> bool {
    // What went wrong shows below.
    let _ = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    let (Ok(found), Ok(process)) = (fs::symlink_metadata(directory), fs::metadata("/proc/self")) else {
        return false;
    };
    found.is_dir() && found.uid() == process.uid() && found.mode() & 0o077 == 0
}

/// Answers for one CVM until it is dropped.
#[derive(Debug)]
pub struct Publisher {
    path: PathBuf,
    over: Arc<AtomicBool>,
}

impl Publisher {
    /// Lists `cvm` under `name`. Without a place to be listed at, it is not: that fails nothing else.
    #[must_use]
    pub fn start(name: &str, cvm: Arc<Cvm>) -> Option<Publisher> {
        Publisher::start_in(&directory()?, name, cvm)
    }

    /// The same in a directory of the caller's choice.
    #[must_use]
    pub fn start_in(directory: &Path, name: &str, cvm: Arc<Cvm>) -> Option<Publisher> {
        let pid = std::process::id();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{pid}-{number}.sock"));
        // A process that had this number before may have left it.
        let _ = fs::remove_file(&path);
        let bound = UnixListener::bind(&path).and_then(|listener| {
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            Ok(listener)
        });
        let listener = bound
            .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "not listed for nacre top"))
            .ok()?;
        SOCKETS.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        let (over, name) = (Arc::new(AtomicBool::new(false)), name.to_owned());
        let seen = over.clone();
        let body = move || {
            for stream in listener.incoming() {
                if seen.load(Ordering::SeqCst) {
                    return;
                }
                if let (Ok(mut stream), Some(sample)) = (stream, sample(&name, &cvm)) {
                    // Whoever asked may have gone.
                    let _ = answer(&mut stream, &sample);
                }
            }
        };
        let publisher = Publisher { path, over };
        std::thread::Builder::new().name("top".into()).spawn(body).ok()?;
        Some(publisher)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Gets the thread out of its wait.
        let _ = UnixStream::connect(&self.path);
        let _ = fs::remove_file(&self.path);
        SOCKETS.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.path);
    }
}

/// Removes the sockets of this process, which ends without dropping anything.
pub fn forget_all() {
    for path in SOCKETS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = fs::remove_file(path);
    }
}

fn answer(stream: &mut UnixStream, sample: &Sample) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(serde_json::to_string(sample)?.as_bytes())
}

fn sample(name: &str, cvm: &Cvm) -> Option<Sample> {
    let cpu = cvm.cpu().ok()?;
    Some(Sample {
        version: SAMPLE_VERSION,
        pid: std::process::id(),
        name: name.to_owned(),
        workers: cpu.workers,
        active: cpu.active.count_ones(),
        waiting: cpu.waiting.count_ones(),
        grant: cpu.grant,
        demand: cpu.demand,
        cpu_ns: u64::try_from(cpu.cpu_time().as_nanos()).unwrap_or(u64::MAX),
        memory_bytes: cvm.resident_bytes().unwrap_or(0),
        wakes: cpu.sum(|vcpu| vcpu.wakes),
        reclaims: cpu.sum(|vcpu| vcpu.reclaims),
        forced: cpu.sum(|vcpu| vcpu.forced),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_can_enter_is_not_used() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("nacre");
        assert!(private(&inner));
        fs::set_permissions(&inner, Permissions::from_mode(0o755)).unwrap();
        assert!(!private(&inner));
        let (file, link) = (outer.path().join("file"), outer.path().join("link"));
        fs::write(&file, "").unwrap();
        assert!(!private(&file));
        fs::set_permissions(&inner, Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&inner, &link).unwrap();
        assert!(!private(&link));
    }
}
