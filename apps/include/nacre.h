// nacre.h: tasks of a program of its own, in C. docs/spawn.md explains the calls; this header declares them and adds
// NACRE_TASK, which writes the function that a task calls, and two shorthands.
//
//   #include "nacre.h"
//   NACRE_TASK(square) {                       // message, message_len: what it was given
//       int64_t n = *(const int64_t *)message;
//       n *= n;
//       nacre_result_write(&n, sizeof n);      // what whoever joins it reads
//       return 0;                              // report.code
//   }
//   int main(void) {
//       int64_t n = 12;
//       uint32_t task, len;
//       nacre_report report;
//       if (nacre_start("square", &n, sizeof n, NULL, &task)) return 1;
//       if (nacre_finish(task, &n, sizeof n, &len, &report)) return 1;
//       return report.status == NACRE_RETURNED && n == 144 ? 0 : 1;
//   }
#ifndef NACRE_H
#define NACRE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NACRE_CALL(name) __attribute__((import_module("nacre"), import_name(#name)))

// Classes of tasks.
enum { NACRE_INHERIT = 0, NACRE_HIGH = 1, NACRE_NORMAL = 2, NACRE_LOW = 3 };

// Ends of tasks.
enum {
    NACRE_RETURNED = 0,
    NACRE_EXITED = 1,
    NACRE_TRAPPED = 2,
    NACRE_CANCELLED = 3,
    NACRE_TIME_LIMIT = 4,
    NACRE_OUT_OF_MEMORY = 5,
    NACRE_FAILED = 6,
};

#define NACRE_FOREVER UINT64_MAX

typedef struct {
    uint32_t priority;       // NACRE_INHERIT: the caller's
    uint32_t reserved;       // 0
    uint64_t wall_limit_ns;  // from the spawn on; 0: none
    uint64_t cpu_limit_ns;   // 0: none
} nacre_options;

typedef struct {
    uint32_t status;      // NACRE_RETURNED and so on
    uint32_t code;        // what the function returned, or the exit code
    uint64_t result_len;  // bytes
    uint64_t cpu_ns;      // CPU time it had
} nacre_report;

_Static_assert(sizeof(nacre_options) == 24 && sizeof(nacre_report) == 24, "the host's layout");

// All but the first return 0 or an error number of WASI (errno.h).
NACRE_CALL(parallelism) uint32_t nacre_parallelism(void);
NACRE_CALL(spawn)
uint32_t nacre_spawn(const char *name, uint32_t name_len, const void *message, uint32_t message_len,
                     const nacre_options *options, uint32_t *task);
NACRE_CALL(join) uint32_t nacre_join(uint32_t task, uint64_t timeout_ns, nacre_report *report);
NACRE_CALL(result_read)
uint32_t nacre_result_read(uint32_t task, uint32_t offset, void *buffer, uint32_t len, uint32_t *nread);
NACRE_CALL(cancel) uint32_t nacre_cancel(uint32_t task);
NACRE_CALL(drop) uint32_t nacre_drop(uint32_t task);
NACRE_CALL(message_read) uint32_t nacre_message_read(uint32_t offset, void *buffer, uint32_t len, uint32_t *nread);
NACRE_CALL(result_write) uint32_t nacre_result_write(const void *bytes, uint32_t len);

// Spawns the task that NACRE_TASK(name) defines.
static inline uint32_t nacre_start(const char *name, const void *message, uint32_t message_len,
                                   const nacre_options *options, uint32_t *task) {
    return nacre_spawn(name, strlen(name), message, message_len, options, task);
}

// Waits for a task, reads its result (as much as fits) and drops it.
static inline uint32_t nacre_finish(uint32_t task, void *result, uint32_t size, uint32_t *len, nacre_report *report) {
    uint32_t error = nacre_join(task, NACRE_FOREVER, report);
    if (!error) error = nacre_result_read(task, 0, result, size, len);
    uint32_t dropped = nacre_drop(task);
    return error ? error : dropped;
}

// Part of wasi-libc: runs the constructors. A task is a fresh instance, in which nobody has done so.
void __wasm_call_ctors(void);

static inline int32_t nacre_run_task(int32_t (*body)(const void *, uint32_t), uint32_t message_len) {
    __wasm_call_ctors();
    uint32_t len = 0;
    void *message = malloc(message_len ? message_len : 1);
    if (!message || nacre_message_read(0, message, message_len, &len)) abort();
    int32_t code = body(message, len);
    fflush(NULL);
    free(message);
    return code;
}

// Defines a task: a function with the parameters (const void *message, uint32_t message_len) that returns a code.
#define NACRE_TASK(name)                                                                       \
    static int32_t name##_body(const void *message, uint32_t message_len);                     \
    __attribute__((export_name(#name))) int32_t name##_exported(uint32_t message_len) {        \
        return nacre_run_task(name##_body, message_len);                                       \
    }                                                                                          \
    static int32_t name##_body(__attribute__((unused)) const void *message,                    \
                               __attribute__((unused)) uint32_t message_len)

#endif
