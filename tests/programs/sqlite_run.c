// sqlite_run: runs an SQL script against a database file and prints every row, columns separated by '|'.
// It is the whole program around SQLite's amalgamation that the tests compile to Wasm.
//
//   sqlite_run DATABASE SCRIPT
#include <stdio.h>
#include <stdlib.h>
#include "sqlite3.h"

static char *read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    size_t size = 0, room = 1 << 16;
    char *text = malloc(room);
    for (size_t n; text && (n = fread(text + size, 1, room - size - 1, file)) > 0;) {
        size += n;
        if (room - size < 2) text = realloc(text, room *= 2);
    }
    fclose(file);
    if (text) text[size] = 0;
    return text;
}

static int print_row(void *rows, int columns, char **values, char **names) {
    (void)names;
    for (int i = 0; i < columns; i++) printf("%s%s", i ? "|" : "", values[i] ? values[i] : "NULL");
    putchar('\n');
    ++*(long *)rows;
    return 0;
}

int main(int argc, char **argv) {
    sqlite3 *db = NULL;
    char *error = NULL;
    long rows = 0;
    if (argc != 3) return 2;
    char *script = read_text(argv[2]);
    if (!script) return fprintf(stderr, "sqlite_run: cannot read %s\n", argv[2]), 2;
    if (sqlite3_open(argv[1], &db) != SQLITE_OK || sqlite3_exec(db, script, print_row, &rows, &error) != SQLITE_OK) {
        fprintf(stderr, "sqlite_run: %s\n", error ? error : sqlite3_errmsg(db));
        return 1;
    }
    printf("%ld rows, SQLite %s\n", rows, sqlite3_libversion());
    free(script);
    return sqlite3_close(db) == SQLITE_OK ? 0 : 1;
}
