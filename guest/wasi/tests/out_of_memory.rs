//! Memory runs out at every possible place: each call answers with an error code, nothing panics or aborts, and
//! the file system stays consistent. The allocator of this test fails from the n-th allocation on.

use std::{
    alloc::{GlobalAlloc, Layout, System as Heap},
    cell::Cell,
};

use nacre_wasi::{
    BuildError, Builder, Call, Clock, Errno, Fs, Interest, Sockets, Stop, Stream, StreamError, System,
    WasiCtx, abi, fd_allocate, fd_close, fd_filestat_set_size, fd_pwrite, fd_read, path_create_directory,
    path_link, path_open, path_remove_directory, path_rename, path_symlink, path_unlink_file, poll_oneoff,
};

struct Failing;

thread_local! {
    /// How many more allocations of this thread succeed; `None` for all.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

fn allowed() -> bool {
    LEFT.with(|left| match left.get() {
        None => true,
        Some(0) => false,
        Some(n) => {
            left.set(Some(n - 1));
            true
        }
    })
}

// SAFETY: every call is passed on to the system's allocator unchanged, or answered with null, which is allowed.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`, which is the same one.
        if allowed() { unsafe { Heap.alloc(layout) } } else { std::ptr::null_mut() }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `Heap` with this layout.
        unsafe { Heap.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the pointer came from `Heap` with this layout; the caller checked the size.
        if allowed() { unsafe { Heap.realloc(ptr, layout, size) } } else { std::ptr::null_mut() }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

struct Quiet;

impl Sockets for Quiet {}

impl System for Quiet {
    fn clock_ns(&self, _: Clock) -> u64 {
        1
    }
    fn clock_resolution_ns(&self, _: Clock) -> u64 {
        1
    }
    fn random(&mut self, _: &mut [u8]) {}
    fn stream_read(&mut self, _: Stream, _: &mut [u8]) -> Result<usize, StreamError> {
        Ok(0)
    }
    fn stream_write(&mut self, _: Stream, buf: &[u8]) -> Result<usize, StreamError> {
        Ok(buf.len())
    }
    fn stream_readable(&self, _: Stream) -> Option<u64> {
        Some(0)
    }
    fn stream_writable(&self, _: Stream) -> Option<u64> {
        Some(1)
    }
    fn wait(&mut self, _: &[Interest], _: Option<u64>) -> Result<(), Stop> {
        Ok(())
    }
    fn yield_now(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}

/// Names at 100.. and 200.. of the memory, two buffers of 40,000 bytes as an I/O vector at 0.
fn memory() -> Vec<u8> {
    let mut memory = vec![0; 100_000];
    for (at, value) in [(0, 1000), (4, 40_000), (8, 1000), (12, 40_000)] {
        memory[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    // Ten more, so that the vector needs the heap.
    for at in (16..96).step_by(8) {
        memory[at..at + 4].copy_from_slice(&u32::to_le_bytes(1000));
    }
    memory
}

/// A program's life; returns the answers of its calls.
fn life(ctx: &mut WasiCtx<Quiet>, memory: &mut [u8], answers: &mut Vec<Errno>) {
    let rw = abi::rights::FD_READ | abi::rights::FD_WRITE;
    let mut c = Call { ctx, memory };
    for i in 0..25_u8 {
        c.memory[100] = b'a' + i;
        c.memory[200] = b'A' + i;
        c.memory[201] = b'x';
        answers.push(path_create_directory(&mut c, 3, 100, 1).unwrap());
        let opened = path_open(&mut c, 3, 0, 200, 1, abi::oflags::CREAT, rw, 0, 0, 300).unwrap();
        answers.push(opened);
        let fd = u32::from_le_bytes(c.memory[300..304].try_into().unwrap());
        if opened == Errno::Success && i < 4 {
            answers.push(fd_pwrite(&mut c, fd, 0, 12, u64::from(i) << 30, 300).unwrap());
            answers.push(fd_read(&mut c, fd, 0, 12, 300).unwrap());
            answers.push(fd_allocate(&mut c, fd, 1 << 20, 300_000).unwrap());
            answers.push(fd_filestat_set_size(&mut c, fd, 50).unwrap());
        }
        answers.push(path_symlink(&mut c, 100, 1, 3, 200, 2).unwrap());
        answers.push(path_unlink_file(&mut c, 3, 200, 2).unwrap());
        answers.push(path_link(&mut c, 3, 0, 200, 1, 3, 200, 2).unwrap());
        c.memory[202] = b'y';
        answers.push(path_rename(&mut c, 3, 200, 2, 3, 200, 3).unwrap());
        answers.push(poll_oneoff(&mut c, 400, 500, 1, 300).unwrap());
        if opened == Errno::Success {
            answers.push(fd_close(&mut c, fd).unwrap());
        }
        if i % 2 == 0 {
            answers.push(path_remove_directory(&mut c, 3, 100, 1).unwrap());
        }
    }
}

#[test]
fn every_allocation_may_fail() {
    let mut failed = 0;
    for n in 0..700 {
        let mut memory = memory();
        let mut answers = Vec::with_capacity(2000);
        let (preopens, args) = (vec![("/".into(), "/".into())], vec!["prog".into()]);
        LEFT.set(Some(n));
        let ctx = match Fs::new(0) {
            Ok(fs) => Builder::new().args(args).preopens(preopens).build(Quiet, fs),
            Err(_) => Err(BuildError::OutOfMemory),
        };
        let Ok(mut ctx) = ctx else {
            LEFT.set(None);
            failed += 1;
            continue;
        };
        life(&mut ctx, &mut memory, &mut answers);
        LEFT.set(None);
        failed += u64::from(answers.iter().any(|e| matches!(e, Errno::Nospc | Errno::Nomem)));
        let known = [
            Errno::Success,
            Errno::Nospc,
            Errno::Nomem,
            // What follows when an earlier step failed.
            Errno::Noent,
            Errno::Exist,
        ];
        assert!(answers.iter().all(|errno| known.contains(errno)), "{answers:?}");
        // With memory again, everything that is there can be removed, and nothing is left.
        let mut cursor = ctx.fs().export("/").unwrap();
        let mut names = Vec::new();
        while let Some(entry) = cursor.next(ctx.fs()).unwrap() {
            names.push(entry.path.to_string());
        }
        for name in names {
            memory[100..100 + name.len()].copy_from_slice(name.as_bytes());
            let mut c = Call { ctx: &mut ctx, memory: &mut memory };
            let len = name.len() as u32;
            if path_unlink_file(&mut c, 3, 100, len) != Ok(Errno::Success) {
                assert_eq!(path_remove_directory(&mut c, 3, 100, len), Ok(Errno::Success), "{name}");
            }
        }
        assert_eq!((ctx.fs().inode_count(), ctx.fs().allocated_bytes()), (1, 0));
    }
    // The loop went far enough that the last lives saw no failure, and every earlier one did.
    assert!((100..690).contains(&failed), "{failed}");
}
