//! Arguments, environment, clocks, randomness, and the end of the program.

use alloc::string::String;

use crate::{
    ctx::{Call, Fail, run},
    memory,
    system::{Clock, Stop, System},
    types::{Errno, clockid, signal},
};

/// How many random bytes are made between two safe points.
const RANDOM_CHUNK: usize = 64 * 1024;

/// Writes a list of strings: pointers to `list`, NUL-terminated bytes to `buf`.
fn put_strings(memory: &mut [u8], strings: &[String], list: u32, buf: u32) -> Result<(), Fail> {
    let (count, bytes) = sizes(strings)?;
    memory::check(memory, list, count.checked_mul(4).ok_or(Errno::Fault)?)?;
    memory::check(memory, buf, bytes)?;
    let (mut list, mut buf) = (list, buf);
    for string in strings {
        memory::put_u32(memory, list, buf)?;
        memory::put(memory, buf, string.as_bytes())?;
        // Both stay in bounds, as checked; they may reach the very end of a 4 GiB memory.
        buf = buf.wrapping_add(string.len() as u32);
        memory::put(memory, buf, &[0])?;
        (list, buf) = (list.wrapping_add(4), buf.wrapping_add(1));
    }
    Ok(())
}

/// The number of strings and of their bytes with terminators.
fn sizes(strings: &[String]) -> Result<(u32, u32), Errno> {
    let bytes: usize = strings.iter().map(|string| string.len() + 1).sum();
    let count = u32::try_from(strings.len()).map_err(|_| Errno::Overflow)?;
    Ok((count, u32::try_from(bytes).map_err(|_| Errno::Overflow)?))
}

fn put_sizes(memory: &mut [u8], strings: &[String], count: u32, bytes: u32) -> Result<(), Fail> {
    memory::check(memory, bytes, 4)?;
    let (n, total) = sizes(strings)?;
    memory::put_u32(memory, count, n)?;
    Ok(memory::put_u32(memory, bytes, total)?)
}

/// Writes the arguments.
pub fn args_get<S: System>(c: &mut Call<'_, S>, argv: u32, argv_buf: u32) -> Result<Errno, Stop> {
    run(|| put_strings(c.memory, &c.ctx.args, argv, argv_buf))
}

/// Writes the number of arguments and of their bytes.
pub fn args_sizes_get<S: System>(c: &mut Call<'_, S>, count: u32, bytes: u32) -> Result<Errno, Stop> {
    run(|| put_sizes(c.memory, &c.ctx.args, count, bytes))
}

/// Writes the environment.
pub fn environ_get<S: System>(c: &mut Call<'_, S>, environ: u32, environ_buf: u32) -> Result<Errno, Stop> {
    run(|| put_strings(c.memory, &c.ctx.env, environ, environ_buf))
}

/// Writes the number of variables and of their bytes.
pub fn environ_sizes_get<S: System>(c: &mut Call<'_, S>, count: u32, bytes: u32) -> Result<Errno, Stop> {
    run(|| put_sizes(c.memory, &c.ctx.env, count, bytes))
}

fn clock(id: u32) -> Result<Clock, Errno> {
    match id {
        clockid::REALTIME => Ok(Clock::Realtime),
        clockid::MONOTONIC => Ok(Clock::Monotonic),
        clockid::PROCESS_CPUTIME_ID => Ok(Clock::ProcessCpu),
        clockid::THREAD_CPUTIME_ID => Ok(Clock::ThreadCpu),
        _ => Err(Errno::Inval),
    }
}

/// Writes the resolution of a clock, in nanoseconds.
pub fn clock_res_get<S: System>(c: &mut Call<'_, S>, id: u32, resolution: u32) -> Result<Errno, Stop> {
    run(|| Ok(memory::put_u64(c.memory, resolution, c.ctx.system.clock_resolution_ns(clock(id)?))?))
}

/// Writes the time of a clock, in nanoseconds. The precision asked for changes nothing.
pub fn clock_time_get<S: System>(
    c: &mut Call<'_, S>,
    id: u32,
    _precision: u64,
    time: u32,
) -> Result<Errno, Stop> {
    run(|| Ok(memory::put_u64(c.memory, time, c.ctx.system.clock_ns(clock(id)?))?))
}

/// Ends the program.
pub fn proc_exit<S: System>(_c: &mut Call<'_, S>, code: u32) -> Result<Errno, Stop> {
    Err(Stop::Exit(code))
}

/// Sends a signal to the program itself; there are no handlers, so the default of POSIX happens:
///
/// - none, CHLD, CONT, URG, WINCH: nothing;
/// - PIPE: [`Stop::BrokenPipe`]; KILL: [`Stop::Killed`];
/// - STOP, TSTP, TTIN, TTOU: `ENOTSUP`, nobody could continue it;
/// - any other: it ends with 128 plus the number that Linux gives the signal, what a shell reports.
pub fn proc_raise<S: System>(_c: &mut Call<'_, S>, sig: u32) -> Result<Errno, Stop> {
    match sig {
        signal::NONE | signal::CHLD | signal::CONT | signal::URG | signal::WINCH => Ok(Errno::Success),
        signal::PIPE => Err(Stop::BrokenPipe),
        signal::KILL => Err(Stop::Killed),
        signal::STOP | signal::TSTP | signal::TTIN | signal::TTOU => Ok(Errno::Notsup),
        // Linux has SIGSTKFLT as 16, which preview 1 leaves out.
        signal::HUP..=signal::TERM => Err(Stop::Exit(128 + sig)),
        signal::XCPU..=signal::SYS => Err(Stop::Exit(129 + sig)),
        _ => Ok(Errno::Inval),
    }
}

/// Lets other tasks run.
pub fn sched_yield<S: System>(c: &mut Call<'_, S>) -> Result<Errno, Stop> {
    c.ctx.system.yield_now().map(|()| Errno::Success)
}

/// Fills memory with random bytes, in bounded pieces with a safe point between them.
pub fn random_get<S: System>(c: &mut Call<'_, S>, buf: u32, buf_len: u32) -> Result<Errno, Stop> {
    run(|| {
        let mut pieces = memory::bytes_mut(c.memory, buf, buf_len)?.chunks_mut(RANDOM_CHUNK).peekable();
        while let Some(piece) = pieces.next() {
            c.ctx.system.random(piece);
            if pieces.peek().is_some() {
                c.ctx.system.yield_now()?;
            }
        }
        Ok(())
    })
}
