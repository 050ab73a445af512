// Checks of directories, renaming, hard and symbolic links, and listing with cookies.
#include "checks.h"

static void making(void) {
    __wasi_fd_t fd;
    OK("mkdir", __wasi_path_create_directory(dir_fd, "sub"));
    EXPECT("mkdir-existing", EXIST, __wasi_path_create_directory(dir_fd, "sub"));
    EXPECT("mkdir-no-parent", NOENT, __wasi_path_create_directory(dir_fd, "none/sub"));
    CHECK("stat-directory", stat_of("sub").filetype == __WASI_FILETYPE_DIRECTORY);
    EXPECT("unlink-missing", NOENT, __wasi_path_unlink_file(dir_fd, "missing"));
    EXPECT("rmdir-file", NOTDIR, __wasi_path_remove_directory(dir_fd, "a"));
    CHECK("dotdot-inside", make_file("sub/x", "x") && has_text("sub/../sub/./x", "x"));
    EXPECT("rmdir-not-empty", NOTEMPTY, __wasi_path_remove_directory(dir_fd, "sub"));
    OK("open-directory", open_dir("sub", &fd));
    __wasi_fdstat_t stat;
    OK("fdstat-directory", __wasi_fd_fdstat_get(fd, &stat));
    CHECK("fdstat-directory-type", stat.fs_filetype == __WASI_FILETYPE_DIRECTORY);
    __wasi_filestat_t inner;
    OK("stat-relative", __wasi_path_filestat_get(fd, 0, "x", &inner));
    CHECK("stat-same-file", inner.ino == stat_of("sub/x").ino && inner.dev == stat_of("sub/x").dev);
    EXPECT("escape-from-subdirectory", PERM, __wasi_path_filestat_get(fd, 0, "../a", &inner));
    OK("close-directory", __wasi_fd_close(fd));
}

static void renaming(void) {
    CHECK("rename-make", make_file("r1", "one") && make_file("r2", "two"));
    OK("rename", __wasi_path_rename(dir_fd, "r1", dir_fd, "sub/r1"));
    CHECK("rename-moved", has_text("sub/r1", "one") && stat_of("r1").filetype == __WASI_FILETYPE_UNKNOWN);
    OK("rename-over", __wasi_path_rename(dir_fd, "sub/r1", dir_fd, "r2"));
    CHECK("rename-replaced", has_text("r2", "one"));
    EXPECT("rename-missing", NOENT, __wasi_path_rename(dir_fd, "missing", dir_fd, "r3"));
    EXPECT("rename-file-over-directory", ISDIR, __wasi_path_rename(dir_fd, "r2", dir_fd, "sub"));
    EXPECT("rename-directory-over-file", NOTDIR, __wasi_path_rename(dir_fd, "sub", dir_fd, "r2"));
    EXPECT("rename-into-itself", INVAL, __wasi_path_rename(dir_fd, "sub", dir_fd, "sub/inner"));
    OK("rename-same", __wasi_path_rename(dir_fd, "r2", dir_fd, "r2"));
    OK("rename-directory", __wasi_path_rename(dir_fd, "sub", dir_fd, "sub2"));
    CHECK("rename-directory-moved", has_text("sub2/x", "x"));
    OK("rename-directory-back", __wasi_path_rename(dir_fd, "sub2", dir_fd, "sub"));
}

enum { ENTRIES = 100 };

// Lists "many" with a buffer of `size` bytes per call, following cookies; the number of names seen exactly once, -1 on error.
static int list_many(__wasi_fd_t fd, size_t size) {
    static uint8_t buffer[8192];
    int seen[ENTRIES] = {0}, once = 0, dots = 0;
    __wasi_dircookie_t cookie = 0;
    for (;;) {
        __wasi_size_t used = 0, at = 0;
        if (__wasi_fd_readdir(fd, buffer, size, cookie, &used) || used > size) return -1;
        while (used - at >= sizeof(__wasi_dirent_t)) {
            __wasi_dirent_t entry;
            memcpy(&entry, buffer + at, sizeof entry);
            at += sizeof entry;
            if (used - at < entry.d_namlen) break;
            char name[64] = "";
            int number = -1;
            if (entry.d_namlen >= sizeof name) return -1;
            memcpy(name, buffer + at, entry.d_namlen);
            at += entry.d_namlen;
            cookie = entry.d_next;
            if (!strcmp(name, ".") || !strcmp(name, "..")) dots++;
            else if (sscanf(name, "entry-%d", &number) != 1 || number < 0 || number >= ENTRIES) return -1;
            else if (entry.d_type != __WASI_FILETYPE_REGULAR_FILE) return -1;
            else seen[number]++;
        }
        if (used < size) break;
    }
    for (int i = 0; i < ENTRIES; i++) once += seen[i] == 1;
    return dots == 2 ? once : -1;
}

static void listing(void) {
    __wasi_fd_t fd;
    char name[32];
    bool ok = __wasi_path_create_directory(dir_fd, "many") == 0;
    for (int i = 0; i < ENTRIES; i++) {
        snprintf(name, sizeof name, "many/entry-%d", i);
        ok = ok && make_file(name, "");
    }
    CHECK("list-make", ok);
    OK("list-open", open_dir("many", &fd));
    CHECK("list-at-once", list_many(fd, 8192) == ENTRIES);
    CHECK("list-in-pieces", list_many(fd, 100) == ENTRIES);
    CHECK("list-again", list_many(fd, 1000) == ENTRIES);
    OK("list-close", __wasi_fd_close(fd));
    for (int i = 0; i < ENTRIES; i++) {
        snprintf(name, sizeof name, "many/entry-%d", i);
        ok = ok && __wasi_path_unlink_file(dir_fd, name) == 0;
    }
    CHECK("list-unlink", ok);
    OK("rmdir", __wasi_path_remove_directory(dir_fd, "many"));
    EXPECT("rmdir-missing", NOENT, __wasi_path_remove_directory(dir_fd, "many"));
}

void check_dirs(void) {
    making();
    renaming();
    listing();
}

void check_links(void) {
    char buffer[64] = "";
    __wasi_size_t used = 0;
    __wasi_fd_t fd;
    __wasi_filestat_t stat;
    CHECK("link-make", make_file("target", "aim"));
    OK("symlink", __wasi_path_symlink("target", dir_fd, "soft"));
    EXPECT("symlink-existing", EXIST, __wasi_path_symlink("target", dir_fd, "soft"));
    OK("readlink", __wasi_path_readlink(dir_fd, "soft", (uint8_t *)buffer, sizeof buffer, &used));
    CHECK("readlink-text", used == 6 && !memcmp(buffer, "target", 6));
    EXPECT("readlink-of-a-file", INVAL, __wasi_path_readlink(dir_fd, "target", (uint8_t *)buffer, sizeof buffer, &used));
    OK("lstat", __wasi_path_filestat_get(dir_fd, 0, "soft", &stat));
    CHECK("lstat-type", stat.filetype == __WASI_FILETYPE_SYMBOLIC_LINK);
    OK("stat-follow", __wasi_path_filestat_get(dir_fd, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, "soft", &stat));
    CHECK("stat-follow-type", stat.filetype == __WASI_FILETYPE_REGULAR_FILE && stat.size == 3);
    EXPECT("open-symlink-unfollowed", LOOP, open_at("soft", 0, 0, &fd));
    OK("open-follow", __wasi_path_open(dir_fd, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, "soft", 0, READ_WRITE, 0, 0, &fd));
    CHECK("open-follow-read", read_some(fd, buffer, sizeof buffer) == 3 && !memcmp(buffer, "aim", 3));
    OK("open-follow-close", __wasi_fd_close(fd));
    OK("symlink-in-the-middle", __wasi_path_symlink("sub", dir_fd, "way"));
    CHECK("symlink-followed-inside", has_text("way/x", "x"));
    OK("symlink-out", __wasi_path_symlink("../outside", dir_fd, "out"));
    EXPECT("symlink-cannot-escape", PERM,
           __wasi_path_open(dir_fd, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, "out", 0, READ_WRITE, 0, 0, &fd));
    OK("symlink-circle", __wasi_path_symlink("circle", dir_fd, "circle"));
    EXPECT("symlink-circle-open", LOOP,
           __wasi_path_open(dir_fd, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, "circle", 0, READ_WRITE, 0, 0, &fd));
    OK("symlink-dangling", __wasi_path_symlink("nowhere", dir_fd, "dangling"));
    EXPECT("symlink-dangling-open", NOENT,
           __wasi_path_open(dir_fd, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, "dangling", 0, READ_WRITE, 0, 0, &fd));
    OK("hard-link", __wasi_path_link(dir_fd, 0, "target", dir_fd, "hard"));
    CHECK("hard-link-count", stat_of("target").nlink == 2 && stat_of("target").ino == stat_of("hard").ino);
    OK("hard-link-unlink", __wasi_path_unlink_file(dir_fd, "target"));
    CHECK("hard-link-stays", has_text("hard", "aim") && stat_of("hard").nlink == 1);
    EXPECT("hard-link-existing", EXIST, __wasi_path_link(dir_fd, 0, "hard", dir_fd, "a"));
    OK("unlink-symlink", __wasi_path_unlink_file(dir_fd, "soft"));
    OK("unlink-way", __wasi_path_unlink_file(dir_fd, "way"));
    CHECK("unlink-symlink-only", has_text("sub/x", "x"));
}
