// spawns: each way to use and to misuse nacre.spawn, one per call; prints what came of it. Run by tests/tests/spawn.rs.
//
//   spawns CASE [N]
#include <errno.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "nacre.h"

static const char *const STATUS[] = {"returned", "exited", "trapped", "cancelled", "time limit", "out of memory", "failed"};
static int main_ran;

// Bytes in reverse order.
NACRE_TASK(reverse) {
    char *reversed = malloc(message_len + 1);
    if (!reversed) return 2;
    for (uint32_t i = 0; i < message_len; i++) reversed[i] = ((const char *)message)[message_len - 1 - i];
    return nacre_result_write(reversed, message_len) ? 3 : 7;
}

// Whether it is a fresh instance: what main has written is not there, arguments and environment are.
NACRE_TASK(fresh) {
    const char *variable = getenv("SPAWNS");
    printf("fresh: main ran here: %d, SPAWNS=%s\n", main_ran, variable ? variable : "(none)");
    FILE *file = fopen("/data/file", "r");
    printf("fresh: a file can%s be opened\n", file ? "" : "not");
    main_ran = 1;
    return 0;
}

NACRE_TASK(trap) {
    nacre_result_write("lost", 4);
    __builtin_trap();
}

NACRE_TASK(leave) {
    nacre_result_write("kept", 4);
    exit(42);
}

NACRE_TASK(loop) {
    for (volatile uint64_t i = 0;; i++) {}
}

NACRE_TASK(nap) {
    struct timespec hour = {3600, 0};
    return nanosleep(&hour, NULL);
}

NACRE_TASK(wait_for_input) {
    struct pollfd in = {.fd = 0, .events = POLLIN};
    return poll(&in, 1, -1);
}

NACRE_TASK(read_input) {
    char c;
    return read(0, &c, 1);
}

// Touches memory until there is no more.
NACRE_TASK(greedy) {
    for (char *volatile *last = NULL;;) {
        char *volatile *block = malloc(1 << 20);
        if (!block) return 12;
        memset((void *)block, 1, 1 << 20);
        *block = (char *)last;
        last = block;
    }
}

static uint32_t start(const char *name, const void *message, uint32_t len, const nacre_options *options) {
    uint32_t task = 0, error = nacre_start(name, message, len, options, &task);
    if (error) printf("%s: error %u\n", name, error);
    return task;
}

static nacre_report finish(const char *what, uint32_t task) {
    nacre_report report = {99, 0, 0, 0};
    char result[64] = "";
    uint32_t len = 0, error = nacre_finish(task, result, sizeof result - 1, &len, &report);
    if (error) printf("%s: error %u\n", what, error);
    else printf("%s: %s %u \"%s\"\n", what, STATUS[report.status], report.code, result);
    return report;
}

// The n-th Fibonacci number, each call a task of its own.
NACRE_TASK(fibonacci) {
    uint32_t n, sum = 0;
    if (message_len != sizeof n) return -1;
    memcpy(&n, message, sizeof n);
    if (n < 2) return n;
    uint32_t tasks[2];
    for (uint32_t k = 0; k < 2; k++) {
        uint32_t less = n - 1 - k;
        if (nacre_start("fibonacci", &less, sizeof less, NULL, &tasks[k])) return -1;
    }
    for (uint32_t k = 0; k < 2; k++) {
        nacre_report report;
        if (nacre_join(tasks[k], NACRE_FOREVER, &report) || report.status != NACRE_RETURNED) return -1;
        sum += report.code;
        nacre_drop(tasks[k]);
    }
    return sum;
}

// Spawns one that computes for ever and ends without it.
NACRE_TASK(careless) {
    start("loop", NULL, 0, NULL);
    return 0;
}

// Computes `chunks` pieces of equal length, and says its letter after each.
NACRE_TASK(chunks) {
    const char *letter = message;
    uint32_t count = message_len > 1 ? (uint8_t)letter[1] : 0;
    for (uint32_t chunk = 0; chunk < count; chunk++) {
        for (volatile uint32_t i = 0; i < 2000000; i++) {}
        if (write(1, letter, 1) != 1) return 1;
    }
    return 0;
}

static void basics(void) {
    nacre_report report;
    uint32_t task = start("reverse", "olleh", 5, NULL), len = 0;
    char part[4] = "";
    printf("join twice: %u", nacre_join(task, NACRE_FOREVER, &report));
    printf(" %u, %llu bytes\n", nacre_join(task, 0, &report), (unsigned long long)report.result_len);
    printf("part: %u", nacre_result_read(task, 1, part, 3, &len));
    printf(" %u \"%s\"\n", len, part);
    printf("beyond: %u", nacre_result_read(task, 9, part, 3, &len));
    printf(" %u\n", len);
    finish("reverse", task);
    printf("dropped: %u %u %u\n", nacre_join(task, 0, &report), nacre_cancel(task), nacre_drop(task));
    main_ran = 1;
    finish("fresh", start("fresh", NULL, 0, NULL));
    finish("empty", start("reverse", NULL, 0, NULL));
    printf("message of main: %u", nacre_message_read(0, part, 3, &len));
    printf(" %u\n", len);
    finish("leave", start("leave", NULL, 0, NULL));
    finish("trap", start("trap", NULL, 0, NULL));
    printf("main goes on\n");
}

static void bad_calls(void) {
    uint32_t task = 0;
    nacre_options bad_class = {4, 0, 0, 0}, reserved = {0, 1, 0, 0};
    nacre_report report;
    char *beyond = (char *)0xfffffff0u;
    printf("no such export: %u\n", nacre_start("nothing", NULL, 0, NULL, &task));
    printf("wrong type: %u\n", nacre_start("_start", NULL, 0, NULL, &task));
    printf("no function: %u\n", nacre_start("memory", NULL, 0, NULL, &task));
    printf("name too long: %u\n", nacre_spawn("reverse", 257, NULL, 0, NULL, &task));
    printf("name beyond: %u\n", nacre_spawn(beyond, 32, NULL, 0, NULL, &task));
    printf("name not UTF-8: %u\n", nacre_spawn("\xff", 1, NULL, 0, NULL, &task));
    printf("message beyond: %u\n", nacre_start("reverse", beyond, 32, NULL, &task));
    printf("message too long: %u\n", nacre_start("reverse", NULL, (16 << 20) + 1, NULL, &task));
    printf("options beyond: %u\n", nacre_start("reverse", NULL, 0, (nacre_options *)beyond, &task));
    printf("bad class: %u, reserved: %u\n", nacre_start("reverse", NULL, 0, &bad_class, &task),
           nacre_start("reverse", NULL, 0, &reserved, &task));
    printf("handle beyond: %u\n", nacre_start("reverse", NULL, 0, NULL, (uint32_t *)beyond + 3));
    printf("unknown handle: %u %u %u\n", nacre_join(77, 0, &report), nacre_cancel(0), nacre_drop(~0u));
    task = start("nap", NULL, 0, NULL);
    printf("report beyond: %u\n", nacre_join(task, NACRE_FOREVER, (nacre_report *)beyond));
    printf("too early: %u %u %u\n", nacre_join(task, 0, &report), nacre_join(task, 1000000, &report),
           nacre_result_read(task, 0, &report, 1, &task));
    printf("result beyond: %u, too long: %u\n", nacre_result_write(beyond, 32), nacre_result_write(NULL, (16 << 20) + 1));
}

static void cancels(void) {
    static const char *const names[] = {"loop", "nap", "wait_for_input", "read_input"};
    for (int k = 0; k < 4; k++) {
        uint32_t task = start(names[k], NULL, 0, NULL);
        struct timespec moment = {0, 20000000};
        // Once while it runs or sleeps, once maybe before it has begun.
        nanosleep(&moment, NULL);
        nacre_cancel(task);
        finish(names[k], task);
        task = start(names[k], NULL, 0, NULL);
        nacre_cancel(task);
        nacre_cancel(task);
        finish(names[k], task);
    }
    finish("careless", start("careless", NULL, 0, NULL));
}

static void limits(void) {
    nacre_options wall = {0, 0, 30000000, 0}, cpu = {0, 0, 0, 30000000}, both = {0, 0, 3600000000000, 3600000000000};
    finish("loop, wall", start("loop", NULL, 0, &wall));
    nacre_report report = finish("loop, CPU", start("loop", NULL, 0, &cpu));
    printf("it had %s\n", report.cpu_ns >= 30000000 ? "its CPU time" : "less");
    finish("nap, wall", start("nap", NULL, 0, &wall));
    finish("read, wall", start("wait_for_input", NULL, 0, &wall));
    finish("reverse, both", start("reverse", "ab", 2, &both));
}

static int many(uint32_t count) {
    uint32_t *tasks = calloc(count, sizeof *tasks);
    uint64_t sum = 0;
    for (uint32_t k = 0; k < count; k++) tasks[k] = start("reverse", &k, sizeof k, NULL);
    for (uint32_t k = 0; k < count; k++) {
        uint32_t reversed = 0, len;
        nacre_report report;
        if (nacre_finish(tasks[k], &reversed, sizeof reversed, &len, &report) || report.code != 7) return 1;
        sum += __builtin_bswap32(reversed);
    }
    printf("%u tasks, sum %llu\n", count, (unsigned long long)sum);
    return 0;
}

// More messages, then more tasks than a program may have, all asleep.
static void too_many(void) {
    uint32_t task, error, count;
    char *large = calloc(16, 1 << 20);
    for (count = 0; !(error = nacre_start("nap", large, 16 << 20, NULL, &task)); count++) {}
    printf("%s large messages, then error %u\n", count < 100 ? "few" : "many", error);
    for (count = 0; !(error = nacre_start("nap", NULL, 0, NULL, &task)); count++) {}
    printf("%s tasks, then error %u\n", count >= 1000 ? "many" : "few", error);
}

// N tasks that compute the same each, interleaved on the workers.
static void fair(uint32_t count, uint32_t priority_of_last) {
    uint32_t tasks[26];
    nacre_options last = {priority_of_last, 0, 0, 0};
    for (uint32_t k = 0; k < count && k < 26; k++) {
        char message[2] = {'a' + k, 250};
        tasks[k] = start("chunks", message, 2, k + 1 == count ? &last : NULL);
    }
    for (uint32_t k = 0; k < count && k < 26; k++) {
        nacre_report report;
        nacre_join(tasks[k], NACRE_FOREVER, &report);
    }
    puts("");
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    uint32_t n = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(what, "basics")) basics();
    else if (!strcmp(what, "bad")) bad_calls();
    else if (!strcmp(what, "cancel")) cancels();
    else if (!strcmp(what, "limits")) limits();
    else if (!strcmp(what, "many")) return many(n);
    else if (!strcmp(what, "too-many")) too_many();
    else if (!strcmp(what, "fair")) fair(n, NACRE_INHERIT);
    else if (!strcmp(what, "high")) fair(n, NACRE_HIGH);
    else if (!strcmp(what, "greedy")) finish("greedy", start("greedy", NULL, 0, NULL));
    else if (!strcmp(what, "nested")) printf("fibonacci %u: %u\n", n, finish("nested", start("fibonacci", &n, 4, NULL)).code);
    else if (!strcmp(what, "orphans")) {
        for (uint32_t k = 0; k < n; k++) start(k % 2 ? "loop" : "nap", NULL, 0, NULL);
        printf("main ends\n");
    } else if (!strcmp(what, "orphans-trap")) {
        for (uint32_t k = 0; k < n; k++) start(k % 2 ? "loop" : "nap", NULL, 0, NULL);
        __builtin_trap();
    } else if (!strcmp(what, "loop")) for (volatile uint64_t i = 0;; i++) {}
    else if (!strcmp(what, "join-loop")) finish("loop", start("loop", NULL, 0, NULL));
    else return fprintf(stderr, "no such case: %s\n", what), 2;
    return 0;
}
