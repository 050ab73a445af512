//! A host that does not run one of its threads for a while: what freezes a vCPU wherever it is, in the middle of anything. It is done as debuggers
//! do, so it works on any process of ours and needs nothing from that.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::process::Pid;
use std::marker::PhantomData;

/// A thread that does not run. Dropping this thaws it.
#[derive(Debug)]
pub struct Frozen {
    thread: nix::unistd::Pid,
    /// Only the thread that froze it can thaw it.
    _stays: PhantomData<*const ()>,
}

impl Frozen {
    /// Freezes a thread: when this returns, it does not run. None if it has ended.
    ///
    /// # Errors
    /// If this process may not trace it.
    pub fn new(thread: Pid) -> Result<Option<Frozen>> {
        let thread = nix::unistd::Pid::from_raw(thread.as_raw_nonzero().get());
        match ptrace::seize(thread, ptrace::Options::empty()) {
            Err(Errno::ESRCH) => return Ok(None),
            seized => seized.with_context(|| format!("tracing thread {thread}"))?,
        }
        let frozen = Frozen { thread, _stays: PhantomData };
        if let Err(Errno::ESRCH) = ptrace::interrupt(thread) {
            return Ok(None);
        }
        match waitpid(thread, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..) => Ok(Some(frozen)),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => Ok(None),
            other => bail!("instead of stopping, the thread is {other:?}"),
        }
    }

    /// Lets it go on, as dropping does.
    pub fn thaw(self) {}
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Its process may have been killed.
        let _ = ptrace::detach(self.thread, None);
    }
}

/// The threads of a process that run vCPUs, by the names the VMM gives them (`vcpu-0`, `worker-1`...), by name.
///
/// # Errors
/// If there is no such process.
pub fn vcpus(process: Pid) -> Result<Vec<(String, Pid)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero()))? {
        let entry = entry?;
        // It may have ended meanwhile.
        let Ok(name) = std::fs::read_to_string(entry.path().join("comm")) else { continue };
        let number = entry.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        let name = name.trim_end();
        if let Some(number) = number
            && (name == "vcpu-0" || name.starts_with("worker-"))
        {
            found.push((name.to_owned(), number));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The state of a process, as `/proc` tells it.
    fn state(pid: Pid) -> char {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
        let after = text.rsplit(')').next().unwrap();
        after.trim_start().chars().next().unwrap()
    }

    #[test]
    fn what_is_frozen_stands_still_until_it_is_thawed() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let frozen = Frozen::new(pid).unwrap().unwrap();
        assert_eq!(state(pid), 't');
        frozen.thaw();
        crate::cluster::until("it runs", || (state(pid) == 'R').then_some(())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
