//! Files through descriptors: contents, positions, sizes, times, flags, rights, renumbering.

use std::{vec, vec::Vec};

use super::*;
use crate::abi::{fdflags, filetype, fstflags, oflags, rights, whence};

#[test]
fn read_write_seek() {
    let mut p = Program::new();
    let fd = p.create("f");
    assert_eq!((fd, p.write(fd, b"hello world")), (4, Ok(11)));
    assert_eq!(p.seek(fd, -5, whence::END), Ok(6));
    assert_eq!(p.read(fd, 100).unwrap(), b"world");
    assert_eq!(p.read(fd, 100).unwrap(), b"");
    assert_eq!(
        (p.seek(fd, -20, whence::CUR), p.seek(fd, -1, whence::SET)),
        (Err(Errno::Inval), Err(Errno::Inval))
    );
    assert_eq!((p.seek(fd, 0, 3), p.seek(fd, i64::MAX, whence::END)), (Err(Errno::Inval), Err(Errno::Inval)));
    // Beyond the end: a hole that reads as zeros.
    assert_eq!((p.seek(fd, 1 << 40, whence::SET), p.write(fd, b"far")), (Ok(1 << 40), Ok(3)));
    assert_eq!(p.stat("f", 0).unwrap().2, (1 << 40) + 3);
    assert!(p.ctx.fs.allocated_bytes() <= 2 * 65536);
    p.seek(fd, 9, whence::SET).unwrap();
    assert_eq!(p.read(fd, 5).unwrap(), b"ld\0\0\0");
    assert_eq!(fd_tell(&mut p.call(), fd, OUT), Ok(Errno::Success));
    assert_eq!(p.u64_at(OUT), 14);
    // Several buffers, also empty ones, in one call.
    let (iovs, n) = p.iovs(0, &[(500, 2), (0, 0), (510, 3)]);
    assert_eq!(fd_pread(&mut p.call(), fd, iovs, n, 1, OUT), Ok(Errno::Success));
    assert_eq!((p.u32_at(OUT), &p.memory[500..502], &p.memory[510..513]), (5, &b"el"[..], &b"lo "[..]));
    assert_eq!(fd_pwrite(&mut p.call(), fd, iovs, n, 0, OUT), Ok(Errno::Success));
    assert_eq!(fd_tell(&mut p.call(), fd, OUT), Ok(Errno::Success));
    assert_eq!(p.u64_at(OUT), 14);
    p.seek(fd, 0, whence::SET).unwrap();
    assert_eq!(p.read(fd, 6).unwrap(), b"ello  ");
}

#[test]
fn append_goes_to_the_end() {
    let mut p = Program::new();
    let fd = p.create("f");
    p.write(fd, b"abc").unwrap();
    assert_eq!(fd_fdstat_set_flags(&mut p.call(), fd, fdflags::APPEND), Ok(Errno::Success));
    p.seek(fd, 0, whence::SET).unwrap();
    assert_eq!(p.write(fd, b"de"), Ok(2));
    assert_eq!(p.seek(fd, 0, whence::CUR), Ok(5));
    let (iovs, n) = p.iovs(0, &[(500, 1)]);
    assert_eq!(fd_pwrite(&mut p.call(), fd, iovs, n, 0, OUT), Ok(Errno::Success));
    assert_eq!(p.stat("f", 0).unwrap().2, 6);
    assert_eq!(fd_fdstat_set_flags(&mut p.call(), fd, fdflags::SYNC), Ok(Errno::Inval));
    assert_eq!(fd_fdstat_get(&mut p.call(), fd, OUT), Ok(Errno::Success));
    assert_eq!((p.memory[64], p.memory[66]), (filetype::REGULAR_FILE, 1));
}

#[test]
fn pointers_are_checked_before_anything_happens() {
    let mut p = Program::new();
    let fd = p.create("f");
    p.write(fd, b"12345678").unwrap();
    p.seek(fd, 0, whence::SET).unwrap();
    let before = p.memory.clone();
    let (iovs, n) = p.iovs(0, &[(500, 4), (65530, 7)]);
    assert_eq!(fd_read(&mut p.call(), fd, iovs, n, OUT), Ok(Errno::Fault));
    assert_eq!(fd_write(&mut p.call(), fd, iovs, n, OUT), Ok(Errno::Fault));
    let (iovs, n) = p.iovs(0, &[(500, 4)]);
    assert_eq!(fd_read(&mut p.call(), fd, iovs, n, 65533), Ok(Errno::Fault));
    assert_eq!(fd_read(&mut p.call(), fd, 65530, 1, OUT), Ok(Errno::Fault));
    assert_eq!(fd_read(&mut p.call(), fd, 0, 1025, OUT), Ok(Errno::Inval));
    assert_eq!(fd_read(&mut p.call(), fd, 0, u32::MAX, OUT), Ok(Errno::Inval));
    assert_eq!(p.memory[500..65536], before[500..65536]);
    assert_eq!((p.stat("f", 0).unwrap().2, p.seek(fd, 0, whence::CUR)), (8, Ok(0)));
    // 1024 buffers work, and a read over its own table does not change what is read where.
    let (iovs, n) = p.iovs(4096, &[(4096, 8); 1024]);
    assert_eq!(fd_read(&mut p.call(), fd, iovs, n, OUT), Ok(Errno::Success));
    assert_eq!((p.u32_at(OUT), &p.memory[4096..4104]), (8, &b"12345678"[..]));
}

#[test]
fn kinds_of_descriptors_answer_as_under_wasmtime() {
    let mut p = Program::new();
    let fd = p.create("f");
    let (iovs, n) = p.iovs(0, &[(500, 4)]);
    let badf = Ok(Errno::Badf);
    for (fd, seek) in [(DIR, badf), (1, Ok(Errno::Spipe)), (77, badf), (u32::MAX, badf)] {
        assert_eq!(fd_seek(&mut p.call(), fd, 0, 0, OUT), seek);
        assert_eq!(fd_tell(&mut p.call(), fd, OUT), seek);
        assert_eq!(fd_advise(&mut p.call(), fd, 0, 0, 0), badf);
        assert_eq!(fd_allocate(&mut p.call(), fd, 0, 1), badf);
        assert_eq!(fd_datasync(&mut p.call(), fd), badf);
        assert_eq!(fd_sync(&mut p.call(), fd), badf);
        assert_eq!(fd_filestat_set_size(&mut p.call(), fd, 0), badf);
        assert_eq!(fd_pread(&mut p.call(), fd, iovs, n, 0, OUT), badf);
        assert_eq!(fd_read(&mut p.call(), fd, iovs, n, OUT), badf);
    }
    assert_eq!(fd_pread(&mut p.call(), 0, iovs, n, 0, OUT), Ok(Errno::Spipe));
    assert_eq!(fd_pwrite(&mut p.call(), 1, iovs, n, 0, OUT), Ok(Errno::Spipe));
    assert_eq!(fd_pwrite(&mut p.call(), 0, iovs, n, 0, OUT), badf);
    assert_eq!(fd_write(&mut p.call(), DIR, iovs, n, OUT), badf);
    assert_eq!(fd_fdstat_set_flags(&mut p.call(), DIR, 0), badf);
    assert_eq!(fd_filestat_set_times(&mut p.call(), 1, 0, 0, 0), badf);
    assert_eq!(p.readdir(fd, 0, 100), Err(Errno::Badf));
    assert_eq!(fd_advise(&mut p.call(), fd, 0, u64::MAX, 5), Ok(Errno::Success));
    assert_eq!(fd_advise(&mut p.call(), fd, 0, 0, 6), Ok(Errno::Inval));
    assert_eq!(fd_datasync(&mut p.call(), fd), Ok(Errno::Success));
    assert_eq!(fd_sync(&mut p.call(), fd), Ok(Errno::Success));
    // A terminal is a character device, any other stream is unknown; both have device and inode 0.
    for (fd, kind, right) in [(0, filetype::CHARACTER_DEVICE, rights::FD_READ), (1, 0, rights::FD_WRITE)] {
        assert_eq!(fd_fdstat_get(&mut p.call(), fd, OUT), Ok(Errno::Success));
        assert_eq!((p.memory[64], p.u64_at(72), p.u64_at(80)), (kind, right, right));
        assert_eq!(fd_filestat_get(&mut p.call(), fd, OUT), Ok(Errno::Success));
        assert_eq!((p.u64_at(64), p.u64_at(72), p.memory[80]), (0, 0, kind));
    }
}

#[test]
fn preopens_are_found_and_end_with_badf() {
    let mut p = Program::new();
    assert_eq!(fd_prestat_get(&mut p.call(), DIR, OUT), Ok(Errno::Success));
    assert_eq!(p.u64_at(OUT), 5 << 32);
    assert_eq!(fd_prestat_dir_name(&mut p.call(), DIR, OUT, 5), Ok(Errno::Success));
    assert_eq!(&p.memory[64..69], b"/data");
    assert_eq!(fd_prestat_dir_name(&mut p.call(), DIR, OUT, 4), Ok(Errno::Nametoolong));
    assert_eq!(fd_prestat_dir_name(&mut p.call(), DIR, 65533, 9), Ok(Errno::Fault));
    let sub = p.open_with(".", 0, oflags::DIRECTORY, 0, 0).unwrap();
    for fd in [0, sub, 99] {
        assert_eq!(fd_prestat_get(&mut p.call(), fd, OUT), Ok(Errno::Badf));
    }
    assert_eq!(fd_prestat_dir_name(&mut p.call(), sub, OUT, 9), Ok(Errno::Notdir));
    assert_eq!(fd_prestat_dir_name(&mut p.call(), 99, OUT, 9), Ok(Errno::Badf));
}

#[test]
fn size_and_allocation() {
    let mut p = Program::new();
    let fd = p.create("f");
    p.write(fd, &[7; 20_000]).unwrap();
    assert_eq!(fd_filestat_set_size(&mut p.call(), fd, 10), Ok(Errno::Success));
    assert_eq!(fd_filestat_set_size(&mut p.call(), fd, 12), Ok(Errno::Success));
    p.seek(fd, 8, whence::SET).unwrap();
    assert_eq!(p.read(fd, 9).unwrap(), [7, 7, 0, 0]);
    assert_eq!(fd_filestat_set_size(&mut p.call(), fd, 1 << 63), Ok(Errno::Inval));
    assert_eq!(fd_allocate(&mut p.call(), fd, 100, 50), Ok(Errno::Success));
    assert_eq!(p.stat("f", 0).unwrap().2, 150);
    assert_eq!(fd_allocate(&mut p.call(), fd, 0, 10), Ok(Errno::Success));
    assert_eq!(p.stat("f", 0).unwrap().2, 150);
    assert_eq!(fd_allocate(&mut p.call(), fd, 0, 0), Ok(Errno::Inval));
    assert_eq!(fd_allocate(&mut p.call(), fd, u64::MAX, 2), Ok(Errno::Fbig));
    // More than the budget: an error that leaves size and memory as they were.
    p.ctx.fs.set_limit(10 * 65536);
    let before = p.ctx.fs.allocated_bytes();
    assert_eq!(fd_allocate(&mut p.call(), fd, 0, 1 << 40), Ok(Errno::Nospc));
    assert_eq!((p.stat("f", 0).unwrap().2, p.ctx.fs.allocated_bytes()), (150, before));
    let read_only = p.open_with("f", 0, 0, rights::FD_READ, 0).unwrap();
    assert_eq!(fd_allocate(&mut p.call(), read_only, 0, 1), Ok(Errno::Badf));
    assert_eq!(fd_filestat_set_size(&mut p.call(), read_only, 0), Ok(Errno::Inval));
    assert_eq!(p.write(read_only, b"x"), Err(Errno::Badf));
}

#[test]
fn a_full_file_system_is_nospc_and_recovers() {
    let mut p = Program::new();
    p.ctx.fs.set_limit(3 * 65536);
    let fd = p.create("f");
    let data = vec![1; 30_000];
    let written: u32 = (0..20).map_while(|_| p.write(fd, &data).ok()).sum();
    assert_eq!(written, 3 * 65536);
    assert_eq!(p.write(fd, b"x"), Err(Errno::Nospc));
    assert_eq!(p.unlink("f"), Errno::Success);
    // It is still open, and still takes its memory.
    assert_eq!(p.write(fd, b"x"), Err(Errno::Nospc));
    assert_eq!(p.close(fd), Errno::Success);
    assert_eq!(p.ctx.fs.allocated_bytes(), 0);
    let fd = p.create("g");
    assert_eq!(p.write(fd, b"x"), Ok(1));
}

#[test]
fn times() {
    let mut p = Program::new();
    p.ctx.system.realtime = 1_000;
    let fd = p.create("f");
    let times = |p: &mut Program| {
        assert_eq!(fd_filestat_get(&mut p.call(), fd, OUT), Ok(Errno::Success));
        (p.u64_at(OUT + 40), p.u64_at(OUT + 48), p.u64_at(OUT + 56))
    };
    assert_eq!(times(&mut p), (1000, 1000, 1000));
    p.ctx.system.realtime = 2_000;
    p.write(fd, b"abc").unwrap();
    assert_eq!(times(&mut p), (1000, 2000, 2000));
    p.ctx.system.realtime = 3_000;
    p.seek(fd, 0, whence::SET).unwrap();
    p.read(fd, 1).unwrap();
    assert_eq!(times(&mut p), (3000, 2000, 2000));
    let set = |p: &mut Program, flags| fd_filestat_set_times(&mut p.call(), fd, 11, 22, flags);
    assert_eq!(set(&mut p, fstflags::ATIM | fstflags::MTIM), Ok(Errno::Success));
    assert_eq!(times(&mut p), (11, 22, 3000));
    p.ctx.system.realtime = 4_000;
    assert_eq!(set(&mut p, fstflags::MTIM_NOW), Ok(Errno::Success));
    assert_eq!(times(&mut p), (11, 4000, 4000));
    assert_eq!(set(&mut p, fstflags::ATIM | fstflags::ATIM_NOW), Ok(Errno::Inval));
    assert_eq!(set(&mut p, 16), Ok(Errno::Inval));
    // By path: the link itself or what it names.
    assert_eq!(p.symlink("f", "l"), Errno::Success);
    for (follow, changed) in [(0, 4000), (1, 5)] {
        let (path, len) = p.path1("l");
        let r = path_filestat_set_times(&mut p.call(), DIR, follow, path, len, 0, 5, fstflags::MTIM);
        assert_eq!((r, times(&mut p).1), (Ok(Errno::Success), changed));
    }
}

#[test]
fn rights_can_only_be_taken() {
    let mut p = Program::new();
    let fd = p.create("f");
    let get = |p: &mut Program, fd| {
        assert_eq!(fd_fdstat_get(&mut p.call(), fd, OUT), Ok(Errno::Success));
        (p.u64_at(OUT + 8), p.u64_at(OUT + 16))
    };
    assert_eq!(get(&mut p, fd), (rights::ALL, rights::ALL));
    let less = rights::ALL & !rights::FD_WRITE & !rights::FD_SEEK;
    assert_eq!(fd_fdstat_set_rights(&mut p.call(), fd, less, less), Ok(Errno::Success));
    assert_eq!(get(&mut p, fd), (less, less));
    assert_eq!((p.write(fd, b"x"), p.seek(fd, 0, 0)), (Err(Errno::Notcapable), Err(Errno::Notcapable)));
    assert_eq!(p.read(fd, 1).unwrap(), b"");
    assert_eq!(fd_fdstat_set_rights(&mut p.call(), fd, rights::ALL, less), Ok(Errno::Notcapable));
    assert_eq!(fd_fdstat_set_rights(&mut p.call(), 99, 0, 0), Ok(Errno::Badf));
    // What a directory may not hand on is missing from what is opened through it.
    let (base, inheriting) = get(&mut p, DIR);
    assert!(
        base & rights::PATH_OPEN != 0 && base & rights::FD_READ == 0 && inheriting & rights::FD_WRITE != 0
    );
    let r = fd_fdstat_set_rights(&mut p.call(), DIR, base, inheriting & !rights::FD_WRITE);
    assert_eq!(r, Ok(Errno::Success));
    assert_eq!(p.open_with("f", 0, 0, rights::FD_WRITE, 0), Err(Errno::Notcapable));
    assert!(p.open_with("f", 0, 0, rights::FD_READ, 0).is_ok());
    let r = fd_fdstat_set_rights(&mut p.call(), DIR, base & !rights::PATH_CREATE_DIRECTORY, 0);
    assert_eq!((r, p.mkdir("d")), (Ok(Errno::Success), Errno::Notcapable));
}

#[test]
fn numbers_are_lowest_first_and_renumbering_moves() {
    let mut p = Program::new();
    let fds: Vec<u32> = ["a", "b", "c"].iter().map(|name| p.create(name)).collect();
    assert_eq!(fds, [4, 5, 6]);
    assert_eq!((p.close(4), p.close(0), p.close(4)), (Errno::Success, Errno::Success, Errno::Badf));
    assert_eq!((p.create("d"), p.create("e"), p.create("f")), (0, 4, 7));
    p.write(6, b"six").unwrap();
    assert_eq!(p.unlink("b"), Errno::Success);
    let inodes = p.ctx.fs.inode_count();
    assert_eq!(fd_renumber(&mut p.call(), 6, 5), Ok(Errno::Success));
    assert_eq!(p.ctx.fs.inode_count(), inodes - 1);
    assert_eq!((p.seek(5, 0, whence::CUR), p.seek(6, 0, 0)), (Ok(3), Err(Errno::Badf)));
    assert_eq!(fd_renumber(&mut p.call(), 5, 99), Ok(Errno::Badf));
    assert_eq!(fd_renumber(&mut p.call(), 99, 5), Ok(Errno::Badf));
    assert_eq!(fd_renumber(&mut p.call(), 5, 5), Ok(Errno::Success));
    // The limit on descriptors is an error, not the end.
    let mut last = Ok(0);
    for _ in 0..(1 << 16) {
        last = p.open_with("a", 0, 0, 0, 0);
        if last.is_err() {
            break;
        }
    }
    assert_eq!(last, Err(Errno::Mfile));
}

#[test]
fn large_transfers_pass_safe_points() {
    let mut p = Program::new();
    p.memory = vec![3; 32 << 20];
    let fd = p.create("big");
    let (iovs, n) = p.iovs(0, &[(1 << 20, 30 << 20)]);
    assert_eq!(fd_write(&mut p.call(), fd, iovs, n, OUT), Ok(Errno::Success));
    assert_eq!((p.u32_at(OUT), p.ctx.system.yields), (30 << 20, 7));
    assert_eq!(p.ctx.fs.allocated_bytes(), 30 << 20);
    p.memory[1 << 20..].fill(0);
    assert_eq!(fd_pread(&mut p.call(), fd, iovs, n, 0, OUT), Ok(Errno::Success));
    assert!(p.memory[1 << 20..][..30 << 20].iter().all(|b| *b == 3));
    p.ctx.system.stop = Some(Stop::Killed);
    assert_eq!(fd_pread(&mut p.call(), fd, iovs, n, 0, OUT), Err(Stop::Killed));
}
