// What the groups of checks share: the reporting macros and a few helpers over the raw WASI calls.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

// The preopened directory all file checks work in. It must be empty at the start and is left as the checks leave it.
extern __wasi_fd_t dir_fd;
extern int failures;

void report(const char *name, bool ok, const char *file, int line);

// One check: prints "ok NAME" or "FAIL NAME"; where it failed goes to stderr.
#define CHECK(name, condition) report(name, condition, __FILE__, __LINE__)
// A call that must return this errno.
#define EXPECT(name, errno_name, call)                                                          \
    do {                                                                                        \
        __wasi_errno_t got_ = (call);                                                           \
        if (got_ != __WASI_ERRNO_##errno_name) fprintf(stderr, "%s: errno %d\n", name, got_);   \
        CHECK(name, got_ == __WASI_ERRNO_##errno_name);                                         \
    } while (0)
#define OK(name, call) EXPECT(name, SUCCESS, call)

#define READ_WRITE                                                                                            \
    (__WASI_RIGHTS_FD_READ | __WASI_RIGHTS_FD_WRITE | __WASI_RIGHTS_FD_SEEK | __WASI_RIGHTS_FD_TELL |         \
     __WASI_RIGHTS_FD_FILESTAT_GET | __WASI_RIGHTS_FD_FILESTAT_SET_SIZE | __WASI_RIGHTS_FD_FILESTAT_SET_TIMES | \
     __WASI_RIGHTS_FD_FDSTAT_SET_FLAGS | __WASI_RIGHTS_FD_SYNC | __WASI_RIGHTS_FD_DATASYNC |                  \
     __WASI_RIGHTS_FD_ADVISE | __WASI_RIGHTS_FD_ALLOCATE | __WASI_RIGHTS_POLL_FD_READWRITE)

__wasi_errno_t open_at(const char *path, __wasi_oflags_t how, __wasi_fdflags_t flags, __wasi_fd_t *fd);
__wasi_errno_t open_dir(const char *path, __wasi_fd_t *fd);
__wasi_errno_t write_all(__wasi_fd_t fd, const void *data, size_t len);
// Reads at the cursor, once; the number of bytes, or -1.
long read_some(__wasi_fd_t fd, void *data, size_t len);
// Makes a file with this text.
bool make_file(const char *path, const char *text);
// Whether the file has exactly this text.
bool has_text(const char *path, const char *text);
__wasi_filestat_t stat_of(const char *path);

void check_files(void);
void check_dirs(void);
void check_links(void);
void check_waits(void);
void check_process(int argc, char **argv);
