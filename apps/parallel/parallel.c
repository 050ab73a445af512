// parallel: computes the Mandelbrot set with tasks of its own (nacre.spawn), as many as the CVM has workers.
//
//   parallel [SIZE [TASKS]]      SIZE x SIZE points (default 768), TASKS tasks (default: one per worker)
//
// Task k of n computes the rows k, k + n, k + 2n, ...: about the same work each. What a row gives does not depend on who
// computed it, and the checksum is a sum over the rows, so it is the same for any number of tasks. With 0 tasks the main
// function computes all of it.
#include <time.h>

#include "nacre.h"

enum { ITERATIONS = 1000 };

struct part {
    uint32_t size, first, step;
};

struct result {
    uint64_t inside, checksum;
};

// Iterations until the point (x, y) is known to leave the circle of radius 2; ITERATIONS if it stays.
static uint32_t escape(double x, double y) {
    double a = 0, b = 0;
    for (uint32_t n = 0; n < ITERATIONS; n++) {
        double a2 = a * a, b2 = b * b;
        if (a2 + b2 > 4) return n;
        b = 2 * a * b + y;
        a = a2 - b2 + x;
    }
    return ITERATIONS;
}

static struct result compute(const struct part *part) {
    struct result all = {0, 0};
    for (uint32_t row = part->first; row < part->size; row += part->step) {
        uint64_t hash = 0xcbf29ce484222325u ^ row;
        for (uint32_t column = 0; column < part->size; column++) {
            uint32_t n = escape(-2.2 + 3.0 * column / part->size, -1.5 + 3.0 * row / part->size);
            all.inside += n == ITERATIONS;
            hash = (hash ^ n) * 0x100000001b3u;
        }
        all.checksum += hash ^ hash >> 31;
    }
    return all;
}

NACRE_TASK(rows) {
    struct part part;
    if (message_len != sizeof part) return 1;
    memcpy(&part, message, sizeof part);
    struct result result = compute(&part);
    return nacre_result_write(&result, sizeof result);
}

static double milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

int main(int argc, char **argv) {
    uint32_t workers = nacre_parallelism();
    uint32_t size = argc > 1 ? strtoul(argv[1], NULL, 10) : 768;
    uint32_t tasks = argc > 2 ? strtoul(argv[2], NULL, 10) : workers;
    uint32_t *handles = calloc(tasks + 1, sizeof *handles);
    if (!handles) return 2;
    double begin = milliseconds(), cpu = 0;
    struct result all = {0, 0};
    for (uint32_t k = 0; k < tasks; k++) {
        struct part part = {size, k, tasks};
        uint32_t error = nacre_start("rows", &part, sizeof part, NULL, &handles[k]);
        if (error) return fprintf(stderr, "task %u can't be spawned: error %u\n", k, error), 1;
    }
    for (uint32_t k = 0; k < tasks; k++) {
        struct result result;
        nacre_report report;
        uint32_t len, error = nacre_finish(handles[k], &result, sizeof result, &len, &report);
        if (error || report.status || report.code || len != sizeof result)
            return fprintf(stderr, "task %u failed: error %u, status %u\n", k, error, report.status), 1;
        all.inside += result.inside;
        all.checksum += result.checksum;
        cpu += report.cpu_ns / 1e6;
    }
    if (!tasks) {
        struct part part = {size, 0, 1};
        all = compute(&part);
    }
    double elapsed = milliseconds() - begin;
    printf("%u x %u points, %u iterations: %llu inside, checksum %016llx\n", size, size, ITERATIONS,
           (unsigned long long)all.inside, (unsigned long long)all.checksum);
    if (tasks)
        printf("%u tasks on %u workers: %.1f ms for %.1f ms of CPU time, %.2f at once\n", tasks, workers, elapsed, cpu,
               cpu / elapsed);
    else
        printf("no tasks: %.1f ms\n", elapsed);
    return 0;
}
