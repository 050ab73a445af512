// traps: ends badly, on purpose, in the way its argument names. Function names are kept in the module, so that the
// backtrace of each trap can be checked: the innermost frame is the function trap_NAME below.
//
//   traps oob | unreachable | overflow | div0 | divmin | null-call | wrong-type | convert      traps
//   traps alloc          allocates and touches memory until that fails, says so and exits with 42
//   traps loop           computes for ever, after printing "looping" (flushed)
//   traps output         prints numbered lines for ever
//   traps exit N         exits with N from a nested call
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define APART __attribute__((noinline))

static volatile int zero = 0;
static volatile int sink;

APART static void trap_oob(void) {
    volatile char *far = (volatile char *)0xfffffff0u;
    sink = *far;
}

APART static void trap_unreachable(void) { __builtin_trap(); }

// Not a tail call, and no address taken: it is the engine's stack that overflows, not the one in linear memory.
APART static int trap_overflow(int depth) { return zero ? depth : trap_overflow(depth + 1) + sink; }

APART static void trap_div0(void) { sink = 7 / zero; }

APART static void trap_divmin(void) {
    volatile int least = INT32_MIN, minus_one = -1;
    sink = least / minus_one;
}

APART static void trap_null_call(void) {
    void (*volatile nothing)(void) = NULL;
    nothing();
}

APART static int two_numbers(int a, int b) { return a + b; }

APART static void trap_wrong_type(void) {
    int (*volatile right)(int, int) = two_numbers;
    double (*volatile wrong)(double) = (double (*)(double))(uintptr_t)right;
    sink = (int)wrong(1.0);
}

// The instruction itself, because C's own conversion saturates on this target.
APART static void trap_convert(void) {
    volatile double big = 1e300;
    int out;
    double in = big;
    __asm__("local.get %1\n\ti32.trunc_f64_s\n\tlocal.set %0" : "=r"(out) : "r"(in));
    sink = out;
}

static int allocate_until_failure(void) {
    enum { STEP = 4 << 20 };
    size_t steps = 0;
    for (char *volatile block; (block = malloc(STEP)) != NULL; steps++) memset(block, (int)steps | 1, STEP);
    fprintf(stderr, "allocated %zu MiB\n", steps * 4);
    puts(steps ? "out of memory, as expected" : "nothing could be allocated");
    return steps ? 42 : 43;
}

APART static void leave(int code) { exit(code); }

static int endless_loop(void) {
    puts("looping");
    fflush(stdout);
    for (uint32_t x = 1;; x = x * 1664525u + 1013904223u) sink = (int)x;
}

static int endless_output(void) {
    for (unsigned long n = 1;; n++)
        if (printf("line %lu of many\n", n) < 0) return 3;
}

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "";
    if (!strcmp(how, "oob")) trap_oob();
    else if (!strcmp(how, "unreachable")) trap_unreachable();
    else if (!strcmp(how, "overflow")) sink = trap_overflow(0);
    else if (!strcmp(how, "div0")) trap_div0();
    else if (!strcmp(how, "divmin")) trap_divmin();
    else if (!strcmp(how, "null-call")) trap_null_call();
    else if (!strcmp(how, "wrong-type")) trap_wrong_type();
    else if (!strcmp(how, "convert")) trap_convert();
    else if (!strcmp(how, "alloc")) return allocate_until_failure();
    else if (!strcmp(how, "loop")) return endless_loop();
    else if (!strcmp(how, "output")) return endless_output();
    else if (!strcmp(how, "exit") && argc > 2) leave(atoi(argv[2]));
    fprintf(stderr, "traps: nothing happened for '%s'\n", how);
    return 2;
}
