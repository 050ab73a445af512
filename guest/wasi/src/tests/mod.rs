//! Tests of the functions of preview 1 through linear memory, as a program would call them.
//!
//! `TestSystem` stands in for the guest kernel: settable clocks, scripted streams, and a record of every wait.

mod env_poll;
mod files;
mod fuzz;
mod model;
mod paths;
mod tree;

use std::{collections::VecDeque, string::String, vec, vec::Vec};

use crate::*;

/// A kernel whose clocks stand still unless someone waits for a deadline.
#[derive(Debug, Default)]
pub struct TestSystem {
    pub monotonic: u64,
    pub realtime: u64,
    pub stdin: VecDeque<u8>,
    pub stdin_open: bool,
    pub stdout: Vec<u8>,
    pub stdout_closed: bool,
    /// Bytes that stdout takes before it would block.
    pub stdout_room: usize,
    pub waits: Vec<(Vec<Interest>, Option<u64>)>,
    pub yields: u64,
    /// Stops the program at the next wait or yield.
    pub stop: Option<Stop>,
}

impl TestSystem {
    fn check_stop(&self) -> Result<(), Stop> {
        self.stop.map_or(Ok(()), Err)
    }
}

impl Sockets for TestSystem {}

impl System for TestSystem {
    fn clock_ns(&self, clock: Clock) -> u64 {
        match clock {
            Clock::Realtime => self.realtime,
            Clock::Monotonic => self.monotonic,
            Clock::ProcessCpu => 77,
            Clock::ThreadCpu => 78,
        }
    }
    fn clock_resolution_ns(&self, clock: Clock) -> u64 {
        if clock == Clock::Realtime { 1000 } else { 1 }
    }
    fn random(&mut self, buf: &mut [u8]) {
        buf.fill(0xa5);
    }
    fn stream_read(&mut self, stream: Stream, buf: &mut [u8]) -> Result<usize, StreamError> {
        assert_eq!(stream, Stream::Stdin);
        if self.stdin.is_empty() && self.stdin_open && !buf.is_empty() {
            return Err(StreamError::WouldBlock);
        }
        let n = buf.len().min(self.stdin.len());
        for (to, from) in buf.iter_mut().zip(self.stdin.drain(..n)) {
            *to = from;
        }
        Ok(n)
    }
    fn stream_write(&mut self, _stream: Stream, buf: &[u8]) -> Result<usize, StreamError> {
        if self.stdout_closed {
            return Err(StreamError::Closed);
        }
        if self.stdout_room == 0 {
            return Err(StreamError::WouldBlock);
        }
        let n = buf.len().min(self.stdout_room);
        self.stdout.extend_from_slice(&buf[..n]);
        self.stdout_room -= n;
        Ok(n)
    }
    fn stream_readable(&self, _stream: Stream) -> Option<u64> {
        if self.stdin.is_empty() && self.stdin_open { None } else { Some(self.stdin.len() as u64) }
    }
    fn stream_writable(&self, _stream: Stream) -> Option<u64> {
        match (self.stdout_closed, self.stdout_room) {
            (true, _) => Some(0),
            (false, 0) => None,
            (false, room) => Some(room as u64),
        }
    }
    fn wait(&mut self, interest: &[Interest], deadline: Option<u64>) -> Result<(), Stop> {
        self.check_stop()?;
        self.waits.push((interest.to_vec(), deadline));
        if let Some(deadline) = deadline {
            let passed = deadline.saturating_sub(self.monotonic);
            self.monotonic += passed;
            self.realtime = self.realtime.saturating_add(passed);
            return Ok(());
        }
        match interest.first() {
            Some(Interest::Readable(_)) => self.stdin.extend(*b"typed"),
            Some(Interest::Writable(_)) => self.stdout_room += 3,
            _ => return Err(Stop::Killed),
        }
        Ok(())
    }
    fn yield_now(&mut self) -> Result<(), Stop> {
        self.yields += 1;
        self.check_stop()
    }
}

/// A program: a context and one page of memory.
pub struct Program {
    pub ctx: WasiCtx<TestSystem>,
    pub memory: Vec<u8>,
}

/// The preopened directory.
pub const DIR: u32 = 3;
/// Where strings and results are put by default.
const PATH1: u32 = 1024;
const PATH2: u32 = 16384;
pub const OUT: u32 = 64;

impl Program {
    pub fn new() -> Self {
        let mut fs = Fs::new(100).unwrap();
        fs.create_dir_all("/data", 100).unwrap();
        let system =
            TestSystem { monotonic: 1000, realtime: 5000, stdout_room: 1 << 20, ..TestSystem::default() };
        let ctx = Builder::new()
            .args(vec!["prog".into(), "-x".into()])
            .env(vec![("HOME".into(), "/".into()), ("A".into(), "b=c".into())])
            .preopens(vec![("/data".into(), "data".into())])
            .tty(true, false, false)
            .build(system, fs)
            .unwrap();
        Self { ctx, memory: vec![0; 65536] }
    }

    pub fn call(&mut self) -> Call<'_, TestSystem> {
        Call { ctx: &mut self.ctx, memory: &mut self.memory }
    }

    pub fn put(&mut self, at: u32, data: &[u8]) -> (u32, u32) {
        self.memory[at as usize..at as usize + data.len()].copy_from_slice(data);
        (at, data.len() as u32)
    }

    pub fn u32_at(&self, at: u32) -> u32 {
        u32::from_le_bytes(self.memory[at as usize..][..4].try_into().unwrap())
    }

    pub fn u64_at(&self, at: u32) -> u64 {
        u64::from_le_bytes(self.memory[at as usize..][..8].try_into().unwrap())
    }

    pub fn path1(&mut self, path: &str) -> (u32, u32) {
        self.put(PATH1, path.as_bytes())
    }

    pub fn path2(&mut self, path: &str) -> (u32, u32) {
        self.put(PATH2, path.as_bytes())
    }

    pub fn open_with(
        &mut self,
        path: &str,
        lookup: u32,
        oflag: u32,
        base: u64,
        flags: u32,
    ) -> Result<u32, Errno> {
        let (p, n) = self.path1(path);
        match path_open(&mut self.call(), DIR, lookup, p, n, oflag, base, 0, flags, OUT).unwrap() {
            Errno::Success => Ok(self.u32_at(OUT)),
            error => Err(error),
        }
    }

    /// Opens for reading and writing, creating.
    pub fn create(&mut self, path: &str) -> u32 {
        let rw = abi::rights::FD_READ | abi::rights::FD_WRITE;
        self.open_with(path, 0, abi::oflags::CREAT, rw, 0).unwrap()
    }

    pub fn iovs(&mut self, at: u32, list: &[(u32, u32)]) -> (u32, u32) {
        for (i, (ptr, len)) in list.iter().enumerate() {
            self.put(at + 8 * i as u32, &ptr.to_le_bytes());
            self.put(at + 8 * i as u32 + 4, &len.to_le_bytes());
        }
        (at, list.len() as u32)
    }

    pub fn write(&mut self, fd: u32, data: &[u8]) -> Result<u32, Errno> {
        let buf = self.put(32768, data);
        let (iovs, n) = self.iovs(0, &[buf]);
        match fd_write(&mut self.call(), fd, iovs, n, OUT).unwrap() {
            Errno::Success => Ok(self.u32_at(OUT)),
            error => Err(error),
        }
    }

    pub fn read(&mut self, fd: u32, len: u32) -> Result<Vec<u8>, Errno> {
        let (iovs, n) = self.iovs(0, &[(32768, len)]);
        match fd_read(&mut self.call(), fd, iovs, n, OUT).unwrap() {
            Errno::Success => Ok(self.memory[32768..][..self.u32_at(OUT) as usize].to_vec()),
            error => Err(error),
        }
    }

    pub fn seek(&mut self, fd: u32, to: i64, whence: u32) -> Result<u64, Errno> {
        match fd_seek(&mut self.call(), fd, to as u64, whence, OUT).unwrap() {
            Errno::Success => Ok(self.u64_at(OUT)),
            error => Err(error),
        }
    }

    pub fn close(&mut self, fd: u32) -> Errno {
        fd_close(&mut self.call(), fd).unwrap()
    }

    pub fn mkdir(&mut self, path: &str) -> Errno {
        let (p, n) = self.path1(path);
        path_create_directory(&mut self.call(), DIR, p, n).unwrap()
    }

    pub fn rmdir(&mut self, path: &str) -> Errno {
        let (p, n) = self.path1(path);
        path_remove_directory(&mut self.call(), DIR, p, n).unwrap()
    }

    pub fn unlink(&mut self, path: &str) -> Errno {
        let (p, n) = self.path1(path);
        path_unlink_file(&mut self.call(), DIR, p, n).unwrap()
    }

    pub fn symlink(&mut self, target: &str, path: &str) -> Errno {
        let ((p, n), (q, m)) = (self.path1(target), self.path2(path));
        path_symlink(&mut self.call(), p, n, DIR, q, m).unwrap()
    }

    pub fn rename(&mut self, old: &str, new: &str) -> Errno {
        let ((p, n), (q, m)) = (self.path1(old), self.path2(new));
        path_rename(&mut self.call(), DIR, p, n, DIR, q, m).unwrap()
    }

    pub fn link(&mut self, old: &str, follow: u32, new: &str) -> Errno {
        let ((p, n), (q, m)) = (self.path1(old), self.path2(new));
        path_link(&mut self.call(), DIR, follow, p, n, DIR, q, m).unwrap()
    }

    /// (filetype, nlink, size, ino) of a path.
    pub fn stat(&mut self, path: &str, follow: u32) -> Result<(u8, u64, u64, u64), Errno> {
        let (p, n) = self.path1(path);
        match path_filestat_get(&mut self.call(), DIR, follow, p, n, OUT).unwrap() {
            Errno::Success => {
                let kind = self.memory[OUT as usize + 16];
                Ok((kind, self.u64_at(OUT + 24), self.u64_at(OUT + 32), self.u64_at(OUT + 8)))
            }
            error => Err(error),
        }
    }

    /// One call of `fd_readdir`: (next cookie, name) of each whole entry, and whether the buffer was full.
    pub fn readdir(
        &mut self,
        fd: u32,
        cookie: u64,
        buf_len: u32,
    ) -> Result<(Vec<(u64, String)>, bool), Errno> {
        match fd_readdir(&mut self.call(), fd, 32768, buf_len, cookie, OUT).unwrap() {
            Errno::Success => {}
            error => return Err(error),
        }
        let used = self.u32_at(OUT);
        let (mut at, mut list) = (32768, Vec::new());
        while at + 24 <= 32768 + used {
            let name = self.u32_at(at + 16);
            if at + 24 + name > 32768 + used {
                break;
            }
            let bytes = &self.memory[at as usize + 24..][..name as usize];
            list.push((self.u64_at(at), String::from_utf8(bytes.to_vec()).unwrap()));
            at += 24 + name;
        }
        Ok((list, used == buf_len))
    }
}

/// What the witx of `wasi_snapshot_preview1` declares, by its lowering: parameters and result as core types
/// (`i` for i32, `I` for i64), from the specification and not from the code under test.
const WITX: &str = "args_get ii:i args_sizes_get ii:i environ_get ii:i environ_sizes_get ii:i clock_res_get ii:i \
    clock_time_get iIi:i fd_advise iIIi:i fd_allocate iII:i fd_close i:i fd_datasync i:i fd_fdstat_get ii:i \
    fd_fdstat_set_flags ii:i fd_fdstat_set_rights iII:i fd_filestat_get ii:i fd_filestat_set_size iI:i \
    fd_filestat_set_times iIIi:i fd_pread iiiIi:i fd_prestat_get ii:i fd_prestat_dir_name iii:i fd_pwrite iiiIi:i \
    fd_read iiii:i fd_readdir iiiIi:i fd_renumber ii:i fd_seek iIii:i fd_sync i:i fd_tell ii:i fd_write iiii:i \
    path_create_directory iii:i path_filestat_get iiiii:i path_filestat_set_times iiiiIIi:i path_link iiiiiii:i \
    path_open iiiiiIIii:i path_readlink iiiiii:i path_remove_directory iii:i path_rename iiiiii:i \
    path_symlink iiiii:i path_unlink_file iii:i poll_oneoff iiii:i proc_exit i: proc_raise i:i sched_yield :i \
    random_get ii:i sock_accept iii:i sock_recv iiiiii:i sock_send iiiii:i sock_shutdown ii:i";

#[test]
fn the_list_is_the_witx() {
    let words: Vec<&str> = WITX.split_whitespace().collect();
    let mut rest = words.as_slice();
    for (name, params, result) in PREVIEW1 {
        let [want_name, want, left @ ..] = rest else { panic!("{name} is not in the witx") };
        rest = left;
        let params: String = params.iter().map(|ty| if *ty == "u32" { 'i' } else { 'I' }).collect();
        let result = if result == "errno" { "i" } else { "" };
        assert_eq!((name, std::format!("{params}:{result}").as_str()), (*want_name, *want));
    }
    assert!(rest.is_empty());
}

/// Every name of the list is a function with exactly these parameter types.
#[test]
fn the_list_matches_the_functions() {
    macro_rules! typed {
        ($($name:ident($($arg:ident: $ty:ty),*) -> $result:ident;)*) => {
            $(let _: fn(&mut Call<'_, TestSystem>, $($ty),*) -> Result<Errno, Stop> = $name::<TestSystem>;)*
        };
    }
    for_each_preview1!(typed);
}
