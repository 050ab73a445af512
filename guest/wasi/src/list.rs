//! The list of all functions of preview 1, for embedders that bind them.

/// Calls a macro with every function of `wasi_snapshot_preview1`, in the order of the witx:
/// `name(parameter: type, ...) -> errno;`, where `u32` is the core type i32 and `u64` is i64. The one function
/// without a result, `proc_exit`, is marked `-> never`: its Rust function always returns `Err(Stop)`.
///
/// ```
/// macro_rules! count {
///     ($($name:ident($($arg:ident: $ty:ty),*) -> $result:ident;)*) => { [$(stringify!($name)),*].len() };
/// }
/// assert_eq!(nacre_wasi::for_each_preview1!(count), 46);
/// ```
#[macro_export]
macro_rules! for_each_preview1 {
    ($m:ident) => {
        $m! {
            args_get(argv: u32, argv_buf: u32) -> errno;
            args_sizes_get(count: u32, bytes: u32) -> errno;
            environ_get(environ: u32, environ_buf: u32) -> errno;
            environ_sizes_get(count: u32, bytes: u32) -> errno;
            clock_res_get(id: u32, resolution: u32) -> errno;
            clock_time_get(id: u32, precision: u64, time: u32) -> errno;
            fd_advise(fd: u32, offset: u64, len: u64, advice: u32) -> errno;
            fd_allocate(fd: u32, offset: u64, len: u64) -> errno;
            fd_close(fd: u32) -> errno;
            fd_datasync(fd: u32) -> errno;
            fd_fdstat_get(fd: u32, stat: u32) -> errno;
            fd_fdstat_set_flags(fd: u32, flags: u32) -> errno;
            fd_fdstat_set_rights(fd: u32, base: u64, inheriting: u64) -> errno;
            fd_filestat_get(fd: u32, stat: u32) -> errno;
            fd_filestat_set_size(fd: u32, size: u64) -> errno;
            fd_filestat_set_times(fd: u32, atim: u64, mtim: u64, fst_flags: u32) -> errno;
            fd_pread(fd: u32, iovs: u32, iovs_len: u32, offset: u64, nread: u32) -> errno;
            fd_prestat_get(fd: u32, prestat: u32) -> errno;
            fd_prestat_dir_name(fd: u32, path: u32, path_len: u32) -> errno;
            fd_pwrite(fd: u32, iovs: u32, iovs_len: u32, offset: u64, nwritten: u32) -> errno;
            fd_read(fd: u32, iovs: u32, iovs_len: u32, nread: u32) -> errno;
            fd_readdir(fd: u32, buf: u32, buf_len: u32, cookie: u64, bufused: u32) -> errno;
            fd_renumber(fd: u32, to: u32) -> errno;
            fd_seek(fd: u32, offset: u64, whence: u32, newoffset: u32) -> errno;
            fd_sync(fd: u32) -> errno;
            fd_tell(fd: u32, offset: u32) -> errno;
            fd_write(fd: u32, iovs: u32, iovs_len: u32, nwritten: u32) -> errno;
            path_create_directory(fd: u32, path: u32, path_len: u32) -> errno;
            path_filestat_get(fd: u32, lookup: u32, path: u32, path_len: u32, stat: u32) -> errno;
            path_filestat_set_times(fd: u32, lookup: u32, path: u32, path_len: u32, atim: u64, mtim: u64,
                fst_flags: u32) -> errno;
            path_link(old_fd: u32, old_lookup: u32, old_path: u32, old_path_len: u32, new_fd: u32,
                new_path: u32, new_path_len: u32) -> errno;
            path_open(fd: u32, dirflags: u32, path: u32, path_len: u32, oflag: u32, base: u64,
                inheriting: u64, fdflag: u32, opened_fd: u32) -> errno;
            path_readlink(fd: u32, path: u32, path_len: u32, buf: u32, buf_len: u32, bufused: u32) -> errno;
            path_remove_directory(fd: u32, path: u32, path_len: u32) -> errno;
            path_rename(fd: u32, old_path: u32, old_path_len: u32, new_fd: u32, new_path: u32,
                new_path_len: u32) -> errno;
            path_symlink(old_path: u32, old_path_len: u32, fd: u32, new_path: u32, new_path_len: u32) -> errno;
            path_unlink_file(fd: u32, path: u32, path_len: u32) -> errno;
            poll_oneoff(subscriptions: u32, events: u32, nsubscriptions: u32, nevents: u32) -> errno;
            proc_exit(code: u32) -> never;
            proc_raise(sig: u32) -> errno;
            sched_yield() -> errno;
            random_get(buf: u32, buf_len: u32) -> errno;
            sock_accept(fd: u32, fdflag: u32, accepted: u32) -> errno;
            sock_recv(fd: u32, iovs: u32, iovs_len: u32, riflags: u32, nread: u32, roflags: u32) -> errno;
            sock_send(fd: u32, iovs: u32, iovs_len: u32, siflags: u32, nwritten: u32) -> errno;
            sock_shutdown(fd: u32, how: u32) -> errno;
        }
    };
}

macro_rules! names {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $result:ident;)*) => {
        [$((stringify!($name), &[$(stringify!($ty)),*] as &[&str], stringify!($result))),*]
    };
}

/// Every function: its name, the types of its parameters (`u32`, `u64`) and its result (`errno` or `never`).
pub const PREVIEW1: [(&str, &[&str], &str); 46] = for_each_preview1!(names);
