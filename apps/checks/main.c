// checks: exercises WASI preview 1 call by call and checks what comes back. One line per check, "ok NAME" or "FAIL NAME";
// the exit code is 1 if any failed. It prints nothing that depends on the time, the host or the engine, so its output
// must be the same under every engine that follows the specification.
//
//   checks DIR WORD          DIR: a preopened, empty directory; stdin: "ready\n" and then the end of file
#include "checks.h"

__wasi_fd_t dir_fd;
int failures;
static int total;

void report(const char *name, bool ok, const char *file, int line) {
    printf("%s %s\n", ok ? "ok" : "FAIL", name);
    total++;
    if (ok) return;
    failures++;
    fprintf(stderr, "%s:%d: failed: %s\n", file, line, name);
}

__wasi_errno_t open_at(const char *path, __wasi_oflags_t how, __wasi_fdflags_t flags, __wasi_fd_t *fd) {
    return __wasi_path_open(dir_fd, 0, path, how, READ_WRITE, READ_WRITE, flags, fd);
}

__wasi_errno_t open_dir(const char *path, __wasi_fd_t *fd) {
    __wasi_fdstat_t rights;
    __wasi_errno_t error = __wasi_fd_fdstat_get(dir_fd, &rights);
    if (error) return error;
    return __wasi_path_open(dir_fd, 0, path, __WASI_OFLAGS_DIRECTORY, rights.fs_rights_base, rights.fs_rights_inheriting, 0, fd);
}

__wasi_errno_t write_all(__wasi_fd_t fd, const void *data, size_t len) {
    const uint8_t *at = data;
    while (len > 0) {
        __wasi_ciovec_t part = {at, len};
        __wasi_size_t done = 0;
        __wasi_errno_t error = __wasi_fd_write(fd, &part, 1, &done);
        if (error) return error;
        if (done == 0 || done > len) return __WASI_ERRNO_IO;
        at += done;
        len -= done;
    }
    return 0;
}

long read_some(__wasi_fd_t fd, void *data, size_t len) {
    __wasi_iovec_t part = {data, len};
    __wasi_size_t done = 0;
    return __wasi_fd_read(fd, &part, 1, &done) ? -1 : (long)done;
}

bool make_file(const char *path, const char *text) {
    __wasi_fd_t fd;
    if (open_at(path, __WASI_OFLAGS_CREAT | __WASI_OFLAGS_TRUNC, 0, &fd)) return false;
    bool ok = write_all(fd, text, strlen(text)) == 0;
    return __wasi_fd_close(fd) == 0 && ok;
}

bool has_text(const char *path, const char *text) {
    char buffer[256];
    __wasi_fd_t fd;
    if (open_at(path, 0, 0, &fd)) return false;
    long n = read_some(fd, buffer, sizeof buffer);
    return __wasi_fd_close(fd) == 0 && n == (long)strlen(text) && !memcmp(buffer, text, (size_t)n);
}

__wasi_filestat_t stat_of(const char *path) {
    __wasi_filestat_t stat;
    memset(&stat, 0xff, sizeof stat);
    if (__wasi_path_filestat_get(dir_fd, 0, path, &stat)) stat.filetype = __WASI_FILETYPE_UNKNOWN;
    return stat;
}

// Finds the preopened directory called `name`, as a C library does: by asking for each descriptor from 3 on.
static bool find_preopen(const char *name) {
    for (__wasi_fd_t fd = 3;; fd++) {
        __wasi_prestat_t prestat;
        char found[256] = "";
        if (__wasi_fd_prestat_get(fd, &prestat)) return false;
        if (prestat.u.dir.pr_name_len >= sizeof found) continue;
        if (__wasi_fd_prestat_dir_name(fd, (uint8_t *)found, prestat.u.dir.pr_name_len)) return false;
        dir_fd = fd;
        if (!strcmp(found, name)) return true;
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc != 3 || !find_preopen(argv[1])) {
        fprintf(stderr, "usage: checks DIR WORD, with DIR a preopened directory\n");
        return 2;
    }
    check_process(argc, argv);
    check_files();
    check_dirs();
    check_links();
    check_waits();
    printf("%d checks, %d failed\n", total, failures);
    return failures ? 1 : 0;
}
