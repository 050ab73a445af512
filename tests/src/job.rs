//! One program with its input, run to its end under Nacre and under the reference engine, and what came out of it.
//! Directories are given as [`Tree`]s: each run gets a fresh copy on disk and what it left there is read back.

use crate::cache::Cache;
use crate::programs;
use crate::skip::Unavailable;
use crate::tree::{self, Tree};
use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How long one program may take before it counts as hung. Generous: compiling CPython takes most of a minute on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(300);

/// The nacre binary under test.
#[derive(Clone, Debug)]
pub struct Nacre {
    binary: PathBuf,
}

impl Nacre {
    /// `$NACRE_BIN`, or the release build beside the running test. Unavailable without a usable `/dev/kvm`.
    pub fn find() -> Result<Nacre> {
        let binary = match std::env::var_os("NACRE_BIN") {
            Some(path) => PathBuf::from(path),
            None => {
                let test = std::env::current_exe()?;
                test.ancestors().nth(3).context("a test lies in TARGET/PROFILE/deps")?.join("release/nacre")
            }
        };
        ensure!(binary.is_file(), "{} is missing: cargo build --release --bin nacre", binary.display());
        if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            return Err(Unavailable(format!("/dev/kvm can't be opened: {error}")).into());
        }
        Ok(Nacre { binary: binary.canonicalize()? })
    }

    /// The binary's path.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A call of `nacre` without arguments yet.
    pub fn command(&self) -> Command {
        Command::new(&self.binary)
    }

    /// A call of `nacre run` on a program, with options before it; the program's own arguments can be added.
    pub fn run(&self, options: &[&str], program: &Path) -> Command {
        let mut command = self.command();
        command.arg("run").args(options).arg(program);
        command
    }
}

/// How a process ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit code; 128 plus the signal's number if one ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
}

impl Ended {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// The exit code, or 128 plus the number of the signal that ended the process.
pub fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Waits for the end of a child for at most `limit`; `false` if it is still running then.
pub fn wait_at_most(child: &Child, limit: Duration) -> Result<bool> {
    let pid = Pid::from_child(child);
    let fd = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec::try_from(limit)?;
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&limit)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs a command with this standard input to its end.
pub fn finish(command: &mut Command, stdin: &[u8]) -> Result<Ended> {
    let what = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("can't start {what}"))?;
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut input, output, errors) = (
        input.context("a piped stdin")?,
        output.context("a piped stdout")?,
        errors.context("a piped stderr")?,
    );
    std::thread::scope(|scope| {
        // A program may end without reading all its input.
        scope.spawn(move || input.write_all(stdin).ok());
        let output = scope.spawn(move || read_all(output));
        let errors = scope.spawn(move || read_all(errors));
        let in_time = wait_at_most(&child, LIMIT)?;
        if !in_time {
            child.kill()?;
        }
        let status = child.wait()?;
        let stdout = output.join().map_err(|_| anyhow::anyhow!("reading stdout of {what}"))??;
        let errors = errors.join().map_err(|_| anyhow::anyhow!("reading stderr of {what}"))??;
        let stderr = String::from_utf8_lossy(&errors).into_owned();
        if !in_time {
            bail!("{what} did not end within {LIMIT:?}; stderr: {stderr}");
        }
        Ok(Ended { code: code_of(status), stdout, stderr })
    })
}

fn read_all(mut from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    from.read_to_end(&mut all)?;
    Ok(all)
}

/// A program and its whole input.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The Wasm module.
    pub program: PathBuf,
    /// Its arguments (without its name).
    pub args: Vec<String>,
    /// Its environment, whole.
    pub env: Vec<(String, String)>,
    /// Guest paths and what lies there at the start.
    pub dirs: Vec<(String, Tree)>,
    /// Its standard input.
    pub stdin: Vec<u8>,
    /// Options for `nacre run` alone, such as `--memory`.
    pub options: Vec<String>,
}

/// What a job gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit code and output.
    pub ended: Ended,
    /// By guest path: what lay there at the end.
    pub dirs: BTreeMap<String, Tree>,
}

impl Job {
    /// A job without directories, environment or input.
    pub fn new(program: impl Into<PathBuf>, args: &[&str]) -> Job {
        Job {
            program: program.into(),
            args: args.iter().map(|arg| arg.to_string()).collect(),
            ..Job::default()
        }
    }

    /// With a directory at this guest path.
    pub fn dir(mut self, guest: &str, tree: Tree) -> Job {
        self.dirs.push((guest.to_string(), tree));
        self
    }

    /// With an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Job {
        self.env.push((name.to_string(), value.to_string()));
        self
    }

    /// With this standard input.
    pub fn stdin(mut self, stdin: &[u8]) -> Job {
        self.stdin = stdin.to_vec();
        self
    }

    /// With options of `nacre run`.
    pub fn options(mut self, options: &[&str]) -> Job {
        self.options.extend(options.iter().map(|option| option.to_string()));
        self
    }

    /// Runs it under Nacre: directories go in by `--dir` and come out by `--export`. What was brought in must be
    /// unchanged on disk afterwards.
    pub fn under_nacre(&self, nacre: &Nacre) -> Result<Outcome> {
        let work = tempfile::tempdir()?;
        let mut command = nacre.command();
        command.arg("run").args(&self.options);
        for (name, value) in &self.env {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        for (i, (guest, tree)) in self.dirs.iter().enumerate() {
            let (inside, outside) =
                (work.path().join(format!("in-{i}")), work.path().join(format!("out-{i}")));
            tree::write(tree, &inside)?;
            command.arg("--dir").arg(format!("{}::{guest}", inside.display()));
            command.arg("--export").arg(format!("{guest}::{}", outside.display()));
        }
        let ended = finish(command.arg(&self.program).args(&self.args), &self.stdin)?;
        let mut dirs = BTreeMap::new();
        for (i, (guest, tree)) in self.dirs.iter().enumerate() {
            let changed = tree::difference(tree, &tree::read(&work.path().join(format!("in-{i}")))?);
            ensure!(changed.is_empty(), "the run changed the host's directory: {changed:?}");
            let exported = tree::read(&work.path().join(format!("out-{i}")));
            dirs.insert(guest.clone(), exported.with_context(|| format!("after {ended:?}"))?);
        }
        Ok(Outcome { ended, dirs })
    }

    /// Runs it under the reference engine.
    pub fn under_reference(&self, cache: &Cache) -> Result<Outcome> {
        let work = tempfile::tempdir()?;
        let mut command = Command::new(programs::reference(cache)?);
        command.args(["run", "--allow-precompiled", programs::REFERENCE_FEATURES]).env("RUST_BACKTRACE", "0");
        for (name, value) in &self.env {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        for (i, (guest, tree)) in self.dirs.iter().enumerate() {
            let dir = work.path().join(format!("dir-{i}"));
            tree::write(tree, &dir)?;
            command.arg("--dir").arg(format!("{}::{guest}", dir.display()));
        }
        // The program's name as it would be under Nacre: some programs print it.
        let name = self.program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
        command
            .arg("--argv0")
            .arg(name)
            .arg(programs::reference_code(cache, &self.program)?)
            .args(&self.args);
        let ended = finish(&mut command, &self.stdin)?;
        let mut dirs = BTreeMap::new();
        for (i, (guest, _)) in self.dirs.iter().enumerate() {
            dirs.insert(guest.clone(), tree::read(&work.path().join(format!("dir-{i}")))?);
        }
        Ok(Outcome { ended, dirs })
    }

    /// Runs it under both and returns Nacre's outcome.
    ///
    /// # Panics
    /// If exit code, standard output or a directory differ.
    pub fn same_under_both(&self, nacre: &Nacre, cache: &Cache) -> Result<Outcome> {
        let reference = self.under_reference(cache)?;
        let ours = self.under_nacre(nacre)?;
        let (a, b) = (&ours.ended, &reference.ended);
        let program = self.program.display();
        assert_eq!(
            a.code, b.code,
            "{program}: exit code, Nacre's stderr:\n{}\nreference:\n{}",
            a.stderr, b.stderr
        );
        assert!(a.stdout == b.stdout, "{program}: Nacre printed\n{}\nthe reference\n{}", a.text(), b.text());
        for (guest, tree) in &reference.dirs {
            let different = tree::difference(&ours.dirs[guest], tree);
            assert!(different.is_empty(), "{program}: {guest} differs: {different:#?}");
        }
        Ok(ours)
    }
}
