//! A running program that a test talks to over pipes: it says a line and waits for the answer. What happens while the
//! program runs is proven by such handshakes, never by waiting for some time.

use crate::job::{LIMIT, code_of, wait_at_most};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

/// A running program. It is killed when this is dropped.
#[derive(Debug)]
pub struct Live {
    child: Child,
    stdin: Option<ChildStdin>,
    /// In a lock only so that threads may share a program that none of them hears.
    lines: Mutex<Receiver<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl Live {
    /// Starts the command in a process group of its own.
    pub fn start(command: &mut Command) -> Result<Live> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("can't start {command:?}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a piped stdout")?;
        let mut errors = child.stderr.take().context("a piped stderr")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            // What could be read is all there is to show.
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok(Live { child, stdin, lines: Mutex::new(lines), stderr: Some(stderr) })
    }

    /// Writes a line to the program's stdin.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is closed")?;
        stdin.write_all(format!("{line}\n").as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// The next line of the program's stdout, waited for.
    pub fn hear(&mut self) -> Result<String> {
        let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
        match lines.recv_timeout(LIMIT) {
            Ok(line) => Ok(line),
            Err(error) => {
                let _ = self.child.kill();
                bail!("no line came ({error}); stderr: {}", self.take_stderr());
            }
        }
    }

    /// Closes the program's stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The process's id, which is its group's too.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid(), signal)?)
    }

    /// Closes stdin and waits for the end: exit code (128 + N for signal N), the lines not heard yet, and stderr.
    pub fn end(mut self) -> Result<(i32, Vec<String>, String)> {
        self.close_stdin();
        self.end_with_open_stdin()
    }

    /// The same, but leaves stdin open until the program has ended.
    pub fn end_with_open_stdin(mut self) -> Result<(i32, Vec<String>, String)> {
        if !wait_at_most(&self.child, LIMIT)? {
            let _ = self.child.kill();
            bail!("it did not end within {LIMIT:?}; stderr: {}", self.take_stderr());
        }
        let code = code_of(self.child.wait()?);
        let rest = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner).iter().collect();
        Ok((code, rest, self.take_stderr()))
    }

    fn take_stderr(&mut self) -> String {
        self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let ended = self.child.wait();
        // What it said is the best there is about why the test failed.
        if std::thread::panicking() {
            eprintln!("a process of the test ({ended:?}) has said:\n{}", self.take_stderr());
        }
    }
}

/// The processes of a group that are still there, zombies not counted.
pub fn left_in_group(group: Pid) -> Result<Vec<i32>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process may end while we look.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // After the name in parentheses: state, parent, group.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        if fields.get(2) == Some(&group.as_raw_nonzero().to_string().as_str()) && fields.first() != Some(&"Z")
        {
            left.push(pid);
        }
    }
    Ok(left)
}
