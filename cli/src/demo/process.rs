//! Nodes as child processes, with their state in a directory of the demo. All of that is gone when the demo is, however it ends: at the
//! end, after an error or a panic and on Ctrl-C here; when the demo is killed, the end of its standard input ends each
//! node, and only the directory stays.

use crate::failure::Failure;
use nacre_bench::pair::End;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

/// How long the node may take to serve.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to end before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// How much of what it complains about is kept, in bytes.
const MAX_COMPLAINTS: u64 = 64 << 10;
/// Exit code after Ctrl-C.
const EXIT_INTERRUPTED: u8 = 130;

/// What Ctrl-C ends and removes.
static HOME: Mutex<Option<Belongings>> = Mutex::new(None);
/// Ctrl-C came: whatever fails from here on fails because of it.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Nodes, and the directory in which their state is: that is removed after they have ended.
struct Belongings {
    nodes: Vec<Running>,
    _directory: TempDir,
}

impl Drop for Belongings {
    fn drop(&mut self) {
        // All end at the same time, and are waited for then.
        self.nodes.iter_mut().for_each(|node| drop(node.child.stdin.take()));
    }
}

/// A child.
struct Running {
    child: Child,
    /// Tells nothing and is closed when the child closes its output: at its end.
    ended: Receiver<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // The node takes this as a wish to end.
        drop(self.child.stdin.take());
        let _ = self.ended.recv_timeout(END_PATIENCE);
        // Both fail only when it has ended, and then all is well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn belongings() -> MutexGuard<'static, Option<Belongings>> {
    HOME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on Ctrl-C (and a polite kill) ends the nodes, then this process.
///
/// # Errors
/// If the system refuses.
pub fn end_on_interrupt() -> Result<(), Failure> {
    let installed = ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::SeqCst);
        // The lock is kept meanwhile: see `interrupted`.
        drop(belongings().take());
        crate::top::publish::forget_all();
        std::process::exit(EXIT_INTERRUPTED.into());
    });
    installed.map_err(|error| Failure::new("signal handler", error))
}

/// The exit code if Ctrl-C came; then the nodes have ended.
pub fn interrupted() -> Option<ExitCode> {
    if !INTERRUPTED.load(Ordering::SeqCst) {
        return None;
    }
    drop(belongings().take());
    Some(ExitCode::from(EXIT_INTERRUPTED))
}

/// A directory for nodes. It is removed when this is dropped, and its nodes end.
#[derive(Debug)]
pub struct Home {
    /// Where it is.
    pub directory: PathBuf,
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(belongings().take());
    }
}

impl Home {
    /// Makes one; there is one at a time.
    ///
    /// # Errors
    /// If there is no place for it.
    pub fn new() -> Result<Self, Failure> {
        let made = tempfile::Builder::new().prefix("nacre-demo-").tempdir();
        let made = made.map_err(|error| {
            let reason = crate::program::io_reason(&error);
            Failure::new(
                "temporary directory",
                format_args!("can't be made: {reason}; set TMPDIR to a writable one"),
            )
        })?;
        let directory = made.path().to_owned();
        *belongings() = Some(Belongings { nodes: Vec::new(), _directory: made });
        Ok(Self { directory })
    }
}

/// A node that serves, for as long as its home is there.
#[derive(Debug)]
pub struct Node {
    /// Where clients and other nodes find it.
    pub end: End,
    /// Its process.
    pid: u32,
}

impl Node {
    /// Starts one at this address of the loopback, on ports that the kernel chooses.
    ///
    /// # Errors
    /// Why it does not serve, in its own words.
    pub fn start(home: &Home, state: &Path, address: Ipv4Addr) -> Result<Self, Failure> {
        let system =
            |what: &str, error: std::io::Error| Failure::new(what, crate::program::io_reason(&error));
        // Held until all is in its place, so that Ctrl-C finds either nothing or everything.
        let mut slot = belongings();
        let Some(belongings) = slot.as_mut() else {
            return Err(Failure::new(home.directory.display(), "is gone; run the demo again"));
        };
        // This very binary, also when its file has been replaced since.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("nacre");
        let listen = format!("{address}:0");
        command.args(["node", "start", "--json", "--listen", &listen, "--peer-listen", &listen]);
        command.args(["--until-stdin-ends", "--drain", "1s", "--state-dir"]).arg(state);
        command.env("NACRE_LOG", "error").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C on the terminal is for the demo, which ends the node.
        let mut child = command.process_group(0).spawn().map_err(|error| system("node", error))?;
        let pid = child.id();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (tell, ended) = channel();
        let (say, said) = channel();
        std::thread::spawn(move || {
            let _tell = tell;
            let mut lines = stdout.map(BufReader::new).into_iter().flat_map(BufRead::lines);
            if let Some(Ok(line)) = lines.next() {
                // Nobody waits any more if it came too late.
                let _ = say.send(line);
            }
            drop(say);
            lines.for_each(drop);
        });
        let (complain, complaints) = channel();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = stderr.by_ref().take(MAX_COMPLAINTS).read_to_end(&mut text);
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            }
            let _ = complain.send(String::from_utf8_lossy(&text).into_owned());
        });
        belongings.nodes.push(Running { child, ended });
        drop(slot);
        let line = said.recv_timeout(START_PATIENCE).unwrap_or_default();
        if let Some(end) = End::parse(&line) {
            return Ok(Self { end, pid });
        }
        // One that hangs ends, and so its complaints do.
        drop(self::belongings().take());
        Err(complaint(&complaints.recv().unwrap_or_default()))
    }

    /// CPU time of all its threads, by the kernel's count.
    pub fn cpu_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        // A thread may end while we look.
        let text = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
        let ns: u64 = text.filter_map(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok()).sum();
        Duration::from_nanos(ns)
    }
}

/// Why it does not serve, from what it wrote to standard error.
fn complaint(text: &str) -> Failure {
    let unknown = || {
        let last = text.lines().next_back().unwrap_or("it says nothing").to_owned();
        Failure::new("node", format_args!("does not start: {last}; try nacre node start"))
    };
    let told = || {
        let told: Value = serde_json::from_str(text.lines().next_back()?).ok()?;
        let part = |name: &str| told["error"][name].as_str();
        let remedy = part("remedy").map(|remedy| format!("; {remedy}")).unwrap_or_default();
        Some(Failure::new(part("what")?, format_args!("{}{remedy}", part("why")?)))
    };
    told().unwrap_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_complaint_is_the_demo_s() {
        let failure = Failure::new("node", "/dev/kvm can't be opened: no; load the kvm module");
        let text = format!("a warning\n{}\n", serde_json::json!({ "error": failure }));
        assert_eq!(complaint(&text), failure);
        assert_eq!(complaint("").to_string(), "node: does not start: it says nothing; try nacre node start");
        assert!(complaint("{\"error\":7}").why.contains("error"));
    }
}
