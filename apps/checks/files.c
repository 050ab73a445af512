// Checks of plain files: open flags, cursors, positioned access, sizes, times, descriptors.
#include "checks.h"

static void opening(void) {
    __wasi_fd_t fd, other;
    EXPECT("open-missing", NOENT, open_at("missing", 0, 0, &fd));
    OK("open-create", open_at("a", __WASI_OFLAGS_CREAT, 0, &fd));
    EXPECT("open-exclusive-existing", EXIST, open_at("a", __WASI_OFLAGS_CREAT | __WASI_OFLAGS_EXCL, 0, &other));
    EXPECT("open-file-as-directory", NOTDIR, open_at("a", __WASI_OFLAGS_DIRECTORY, 0, &other));
    EXPECT("open-below-a-file", NOTDIR, open_at("a/b", __WASI_OFLAGS_CREAT, 0, &other));
    EXPECT("open-escape-dotdot", PERM, open_at("../a", 0, 0, &other));
    EXPECT("open-escape-absolute", PERM, open_at("/etc/passwd", 0, 0, &other));
    EXPECT("open-empty-path", NOENT, open_at("", 0, 0, &other));
    OK("write", write_all(fd, "hello, file", 11));
    OK("close", __wasi_fd_close(fd));
    EXPECT("close-twice", BADF, __wasi_fd_close(fd));
    EXPECT("close-nonsense", BADF, __wasi_fd_close(0x7fffffff));
    CHECK("read-back", has_text("a", "hello, file"));
    CHECK("truncate-on-open", make_file("a", "short") && has_text("a", "short"));
}

static void cursors(void) {
    char buffer[32] = "";
    __wasi_fd_t fd;
    __wasi_filesize_t at = 0;
    OK("cursor-open", open_at("c", __WASI_OFLAGS_CREAT | __WASI_OFLAGS_TRUNC, 0, &fd));
    OK("cursor-write", write_all(fd, "0123456789", 10));
    OK("tell", __wasi_fd_tell(fd, &at));
    CHECK("tell-after-write", at == 10);
    CHECK("read-at-end", read_some(fd, buffer, 4) == 0);
    OK("seek-set", __wasi_fd_seek(fd, 3, __WASI_WHENCE_SET, &at));
    CHECK("read-after-seek", at == 3 && read_some(fd, buffer, 2) == 2 && !memcmp(buffer, "34", 2));
    OK("seek-current", __wasi_fd_seek(fd, -1, __WASI_WHENCE_CUR, &at));
    CHECK("seek-current-place", at == 4);
    OK("seek-end", __wasi_fd_seek(fd, -2, __WASI_WHENCE_END, &at));
    CHECK("seek-end-place", at == 8 && read_some(fd, buffer, 9) == 2 && !memcmp(buffer, "89", 2));
    EXPECT("seek-negative", INVAL, __wasi_fd_seek(fd, -1, __WASI_WHENCE_SET, &at));
    OK("seek-past-end", __wasi_fd_seek(fd, 5, __WASI_WHENCE_END, &at));
    OK("write-past-end", write_all(fd, "x", 1));
    CHECK("hole-size", stat_of("c").size == 16);
    __wasi_iovec_t part = {(uint8_t *)buffer, 7};
    __wasi_size_t done = 0;
    OK("pread", __wasi_fd_pread(fd, &part, 1, 9, &done));
    CHECK("hole-reads-zero", done == 7 && !memcmp(buffer, "9\0\0\0\0\0x", 7));
    __wasi_ciovec_t out = {(const uint8_t *)"AB", 2};
    OK("pwrite", __wasi_fd_pwrite(fd, &out, 1, 1, &done));
    OK("tell-again", __wasi_fd_tell(fd, &at));
    CHECK("positioned-keeps-cursor", at == 16 && done == 2);
    OK("seek-start", __wasi_fd_seek(fd, 0, __WASI_WHENCE_SET, &at));
    CHECK("pwrite-seen", read_some(fd, buffer, 4) == 4 && !memcmp(buffer, "0AB3", 4));
    OK("cursor-close", __wasi_fd_close(fd));
}

static void appending(void) {
    __wasi_fd_t fd;
    __wasi_fdstat_t stat;
    __wasi_filesize_t at;
    CHECK("append-make", make_file("d", "one"));
    OK("append-open", open_at("d", 0, __WASI_FDFLAGS_APPEND, &fd));
    OK("append-seek", __wasi_fd_seek(fd, 0, __WASI_WHENCE_SET, &at));
    OK("append-write", write_all(fd, "two", 3));
    CHECK("append-goes-to-end", has_text("d", "onetwo"));
    OK("append-fdstat", __wasi_fd_fdstat_get(fd, &stat));
    CHECK("append-flag", (stat.fs_flags & __WASI_FDFLAGS_APPEND) && stat.fs_filetype == __WASI_FILETYPE_REGULAR_FILE);
    OK("append-clear", __wasi_fd_fdstat_set_flags(fd, 0));
    OK("append-seek-again", __wasi_fd_seek(fd, 0, __WASI_WHENCE_SET, &at));
    OK("plain-write", write_all(fd, "ONE", 3));
    CHECK("plain-goes-to-cursor", has_text("d", "ONEtwo"));
    OK("sync", __wasi_fd_sync(fd));
    OK("datasync", __wasi_fd_datasync(fd));
    OK("advise", __wasi_fd_advise(fd, 0, 6, __WASI_ADVICE_SEQUENTIAL));
    OK("append-close", __wasi_fd_close(fd));
}

static void sizes_and_times(void) {
    __wasi_fd_t fd;
    __wasi_filestat_t stat;
    CHECK("size-make", make_file("e", "0123456789"));
    OK("size-open", open_at("e", 0, 0, &fd));
    OK("size-shrink", __wasi_fd_filestat_set_size(fd, 4));
    CHECK("size-shrunk", has_text("e", "0123"));
    OK("size-grow", __wasi_fd_filestat_set_size(fd, 5000));
    OK("size-stat", __wasi_fd_filestat_get(fd, &stat));
    CHECK("size-grown", stat.size == 5000 && stat.filetype == __WASI_FILETYPE_REGULAR_FILE && stat.nlink == 1);
    const __wasi_timestamp_t atim = 1000000000u * 1000000000ull, mtim = 1234567890u * 1000000000ull;
    OK("times-fd", __wasi_fd_filestat_set_times(fd, atim, mtim, __WASI_FSTFLAGS_ATIM | __WASI_FSTFLAGS_MTIM));
    CHECK("times-fd-seen", stat_of("e").atim == atim && stat_of("e").mtim == mtim);
    OK("times-path", __wasi_path_filestat_set_times(dir_fd, 0, "e", atim + 5, 0, __WASI_FSTFLAGS_ATIM));
    CHECK("times-path-seen", stat_of("e").atim == atim + 5 && stat_of("e").mtim == mtim);
    EXPECT("times-contradiction", INVAL,
           __wasi_fd_filestat_set_times(fd, 0, 0, __WASI_FSTFLAGS_MTIM | __WASI_FSTFLAGS_MTIM_NOW));
    OK("times-now", __wasi_fd_filestat_set_times(fd, 0, 0, __WASI_FSTFLAGS_MTIM_NOW));
    CHECK("times-now-seen", stat_of("e").mtim > mtim);
    OK("size-close", __wasi_fd_close(fd));
}

static void descriptors(void) {
    __wasi_fd_t first, second;
    char buffer[8] = "";
    CHECK("renumber-make", make_file("f", "first") && make_file("g", "second"));
    OK("renumber-open", open_at("f", 0, 0, &first));
    OK("renumber-open-other", open_at("g", 0, 0, &second));
    OK("renumber", __wasi_fd_renumber(first, second));
    EXPECT("renumber-old-gone", BADF, __wasi_fd_close(first));
    CHECK("renumber-moved", read_some(second, buffer, 8) == 5 && !memcmp(buffer, "first", 5));
    EXPECT("renumber-nonsense", BADF, __wasi_fd_renumber(first, second));
    OK("unlink-open-file", __wasi_path_unlink_file(dir_fd, "f"));
    __wasi_filesize_t at;
    OK("unlinked-seek", __wasi_fd_seek(second, 0, __WASI_WHENCE_SET, &at));
    CHECK("unlinked-still-there", read_some(second, buffer, 8) == 5);
    OK("renumber-close", __wasi_fd_close(second));
    EXPECT("unlinked-gone", NOENT, open_at("f", 0, 0, &first));
}

// A file larger than any buffer on the way, written and read in pieces of an odd size.
static void big_file(void) {
    enum { PIECE = 10007, PIECES = 800 };
    static uint8_t out[PIECE], in[PIECE];
    __wasi_fd_t fd;
    __wasi_filesize_t at;
    bool ok = true;
    OK("big-open", open_at("big", __WASI_OFLAGS_CREAT, 0, &fd));
    for (uint32_t i = 0; ok && i < PIECES; i++) {
        memset(out, (int)(i * 31 + 7), PIECE);
        ok = write_all(fd, out, PIECE) == 0;
    }
    CHECK("big-write", ok && stat_of("big").size == (uint64_t)PIECE * PIECES);
    OK("big-seek", __wasi_fd_seek(fd, 0, __WASI_WHENCE_SET, &at));
    for (uint32_t i = 0; ok && i < PIECES; i++) {
        long got = 0, n;
        while (got < PIECE && (n = read_some(fd, in + got, (size_t)(PIECE - got))) > 0) got += n;
        memset(out, (int)(i * 31 + 7), PIECE);
        ok = got == PIECE && !memcmp(in, out, PIECE);
    }
    CHECK("big-read", ok);
    OK("big-close", __wasi_fd_close(fd));
    OK("big-unlink", __wasi_path_unlink_file(dir_fd, "big"));
}

void check_files(void) {
    opening();
    cursors();
    appending();
    sizes_and_times();
    descriptors();
    big_file();
}
