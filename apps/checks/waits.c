// Checks of clocks, random numbers, waiting (poll_oneoff), stdin, arguments and sockets that are not there.
#include "checks.h"

static __wasi_timestamp_t now(__wasi_clockid_t clock) {
    __wasi_timestamp_t time = 0;
    return __wasi_clock_time_get(clock, 1, &time) ? 0 : time;
}

static void clocks(void) {
    __wasi_timestamp_t resolution = 0, time;
    OK("clock-resolution", __wasi_clock_res_get(__WASI_CLOCKID_MONOTONIC, &resolution));
    CHECK("clock-resolution-positive", resolution > 0);
    OK("clock-realtime", __wasi_clock_time_get(__WASI_CLOCKID_REALTIME, 1, &time));
    CHECK("clock-realtime-plausible", time > 1700000000ull * 1000000000ull);
    __wasi_timestamp_t last = now(__WASI_CLOCKID_MONOTONIC);
    bool forward = true;
    for (int i = 0; i < 10000; i++) {
        time = now(__WASI_CLOCKID_MONOTONIC);
        forward = forward && time >= last;
        last = time;
    }
    CHECK("clock-monotonic", forward);
}

static __wasi_subscription_t after(uint64_t nanoseconds, uint64_t id) {
    __wasi_subscription_t wait = {.userdata = id};
    wait.u.tag = __WASI_EVENTTYPE_CLOCK;
    wait.u.u.clock.id = __WASI_CLOCKID_MONOTONIC;
    wait.u.u.clock.timeout = nanoseconds;
    return wait;
}

static __wasi_subscription_t ready(__wasi_eventtype_t type, __wasi_fd_t fd, uint64_t id) {
    __wasi_subscription_t wait = {.userdata = id};
    wait.u.tag = type;
    wait.u.u.fd_read.file_descriptor = fd;
    return wait;
}

static void waiting(void) {
    __wasi_event_t events[3];
    __wasi_size_t count = 0;
    char buffer[32] = "";
    EXPECT("poll-nothing", INVAL, __wasi_poll_oneoff(NULL, events, 0, &count));

    __wasi_subscription_t sleep = after(20 * 1000000, 41);
    __wasi_timestamp_t before = now(__WASI_CLOCKID_MONOTONIC);
    OK("poll-clock", __wasi_poll_oneoff(&sleep, events, 1, &count));
    CHECK("poll-clock-event", count == 1 && events[0].userdata == 41 && events[0].type == __WASI_EVENTTYPE_CLOCK);
    CHECK("poll-clock-waited", now(__WASI_CLOCKID_MONOTONIC) - before >= 20 * 1000000);

    sleep.u.u.clock.flags = __WASI_SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME;
    sleep.u.u.clock.timeout = before;
    OK("poll-absolute-past", __wasi_poll_oneoff(&sleep, events, 1, &count));
    CHECK("poll-absolute-past-event", count == 1);

    __wasi_subscription_t two[2] = {after(30ull * 1000000000, 1), after(1000000, 2)};
    OK("poll-two-clocks", __wasi_poll_oneoff(two, events, 2, &count));
    CHECK("poll-two-clocks-first", count == 1 && events[0].userdata == 2);

    __wasi_subscription_t input[2] = {ready(__WASI_EVENTTYPE_FD_READ, 0, 7), after(30ull * 1000000000, 8)};
    OK("poll-stdin", __wasi_poll_oneoff(input, events, 2, &count));
    CHECK("poll-stdin-event", count == 1 && events[0].userdata == 7 && events[0].type == __WASI_EVENTTYPE_FD_READ &&
                                  events[0].error == 0);
    CHECK("read-stdin", read_some(0, buffer, sizeof buffer) == 6 && !memcmp(buffer, "ready\n", 6));
    OK("poll-stdin-end", __wasi_poll_oneoff(input, events, 2, &count));
    CHECK("read-stdin-end", count == 1 && read_some(0, buffer, sizeof buffer) == 0);

    __wasi_subscription_t output = ready(__WASI_EVENTTYPE_FD_WRITE, 1, 9);
    OK("poll-stdout", __wasi_poll_oneoff(&output, events, 1, &count));
    CHECK("poll-stdout-event", count == 1 && events[0].userdata == 9);
    OK("yield", __wasi_sched_yield());
}

void check_waits(void) {
    uint8_t bytes[4096] = {0}, again[4096] = {0};
    int seen[256] = {0}, different = 0;
    clocks();
    waiting();
    OK("random", __wasi_random_get(bytes, sizeof bytes));
    OK("random-again", __wasi_random_get(again, sizeof again));
    for (size_t i = 0; i < sizeof bytes; i++) seen[bytes[i]] = 1;
    for (int i = 0; i < 256; i++) different += seen[i];
    CHECK("random-differs", memcmp(bytes, again, sizeof bytes) != 0);
    CHECK("random-spread", different > 200);
    EXPECT("socket-on-a-directory", NOTSOCK, __wasi_sock_shutdown(dir_fd, __WASI_SDFLAGS_RD));
    EXPECT("socket-nonsense", BADF, __wasi_sock_shutdown(9999, __WASI_SDFLAGS_RD));
}

void check_process(int argc, char **argv) {
    __wasi_size_t count = 0, bytes = 0;
    OK("args-sizes", __wasi_args_sizes_get(&count, &bytes));
    size_t length = 0;
    for (int i = 0; i < argc; i++) length += strlen(argv[i]) + 1;
    CHECK("args-agree", count == (__wasi_size_t)argc && bytes == length);
    CHECK("args-text", !strcmp(argv[2], "w\xc3\xb6rd with spaces"));
    OK("environ-sizes", __wasi_environ_sizes_get(&count, &bytes));
    CHECK("environ-value", getenv("CHECKS") && !strcmp(getenv("CHECKS"), "a=b c"));
    __wasi_fdstat_t stat;
    OK("stdout-fdstat", __wasi_fd_fdstat_get(1, &stat));
    __wasi_filesize_t at;
    EXPECT("stdout-no-seek", SPIPE, __wasi_fd_seek(1, 0, __WASI_WHENCE_CUR, &at));
    __wasi_prestat_t prestat;
    EXPECT("prestat-of-stdin", BADF, __wasi_fd_prestat_get(0, &prestat));
    CHECK("stdin-fdstat", __wasi_fd_fdstat_get(0, &stat) == 0);
}
