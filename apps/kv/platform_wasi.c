// platform_wasi.c: the platform layer on WASI preview 1. The listening socket is inherited: the first descriptor from 3 on
// that is a socket. The subscriptions of all connections stay in one array between calls of poll_oneoff; starting and
// ending one is O(1), by a swap with the last.
#include "platform.h"

#include <stdlib.h>
#include <unistd.h>
#include <wasi/api.h>

#include "alloc.h"

#define FIRST_FD 3
#define LAST_FD 64
#define MAX_SUBSCRIPTIONS 65536u  // Nacre's limit for one call
#define NONE UINT32_MAX

// subscriptions[0] is the clock, left out of the call when nothing has to be done at a certain time.
static __wasi_subscription_t *subscriptions;
static __wasi_event_t *events;
static uint32_t count = 1, capacity;
static __wasi_size_t event_count, event_next;

bool platform_listen(Endpoint endpoint, Watch *watch) {
    (void)endpoint;
    for (int fd = FIRST_FD; fd < LAST_FD; fd++) {
        __wasi_fdstat_t stat;
        if (__wasi_fd_fdstat_get(fd, &stat) != 0 || stat.fs_filetype != __WASI_FILETYPE_SOCKET_STREAM) continue;
        if (__wasi_fd_fdstat_set_flags(fd, __WASI_FDFLAGS_NONBLOCK) != 0) {
            platform_say("kv: the listening socket cannot be made non-blocking");
            return false;
        }
        *watch = (Watch){.fd = fd, .read_slot = NONE, .write_slot = NONE};
        return true;
    }
    platform_say("kv: no listening socket: deploy it as a service (nacre deploy NAME kv.wasm --service --port P)");
    return false;
}

Accepted platform_accept(Watch *listener, int *fd) {
    __wasi_fd_t accepted;
    switch (__wasi_sock_accept(listener->fd, __WASI_FDFLAGS_NONBLOCK, &accepted)) {
    case 0:
        *fd = (int)accepted;
        return ACCEPT_OK;
    case __WASI_ERRNO_MFILE:
    case __WASI_ERRNO_NFILE:
    case __WASI_ERRNO_NOMEM:
        return ACCEPT_FULL;
    default:
        return ACCEPT_AGAIN;
    }
}

static int64_t result(__wasi_errno_t error, size_t n) {
    return error == 0 ? (int64_t)n : error == __WASI_ERRNO_AGAIN || error == __WASI_ERRNO_INTR ? IO_AGAIN : IO_FAILED;
}

int64_t platform_receive(int fd, void *buffer, size_t size) {
    __wasi_iovec_t piece = {buffer, size};
    __wasi_size_t n = 0;
    __wasi_roflags_t flags;
    return result(__wasi_sock_recv(fd, &piece, 1, 0, &n, &flags), n);
}

int64_t platform_send(int fd, Str first, Str second) {
    __wasi_ciovec_t pieces[2] = {{(const uint8_t *)first.p, first.n}, {(const uint8_t *)second.p, second.n}};
    __wasi_size_t n = 0;
    return result(__wasi_sock_send(fd, pieces, second.n ? 2 : 1, 0, &n), n);
}

void platform_close(int fd) {
    if (__wasi_fd_close(fd) != 0) platform_say("kv: a connection could not be closed");
}

static bool reserve(uint32_t wanted) {
    if (wanted <= capacity) return true;
    uint32_t bigger = capacity ? capacity * 2 : 64;
    void *grown = mem_resize(HEAP_CONN, subscriptions, bigger * sizeof *subscriptions);
    if (!grown) return false;
    subscriptions = grown;
    // One more event than subscriptions is never written; the array has no content to keep.
    void *fresh = mem_alloc(HEAP_CONN, bigger * sizeof *events);
    if (!fresh) return false;
    mem_free(events);
    events = fresh;
    event_count = event_next = 0;
    capacity = bigger;
    return true;
}

static Watch *watch_at(uint32_t slot) {
    return (Watch *)(uintptr_t)subscriptions[slot].userdata;
}

static uint32_t *slot_of(uint32_t slot) {
    Watch *watch = watch_at(slot);
    return subscriptions[slot].u.tag == __WASI_EVENTTYPE_FD_READ ? &watch->read_slot : &watch->write_slot;
}

static void subscribe(Watch *watch, uint8_t type) {
    __wasi_subscription_t *s = &subscriptions[count];
    memset(s, 0, sizeof *s);
    s->userdata = (uintptr_t)watch;
    s->u.tag = type;
    s->u.u.fd_read.file_descriptor = (__wasi_fd_t)watch->fd;
    *slot_of(count) = count;
    count++;
}

static void unsubscribe(uint32_t *slot) {
    uint32_t hole = *slot, last = --count;
    *slot = NONE;
    if (hole == last) return;
    subscriptions[hole] = subscriptions[last];
    *slot_of(hole) = hole;
}

bool platform_watch(Watch *watch, bool reads, bool writes) {
    if ((reads || writes) && !reserve(count + 2)) return false;
    if (reads && !watch->reads) subscribe(watch, __WASI_EVENTTYPE_FD_READ);
    if (!reads && watch->reads) unsubscribe(&watch->read_slot);
    if (writes && !watch->writes) subscribe(watch, __WASI_EVENTTYPE_FD_WRITE);
    if (!writes && watch->writes) unsubscribe(&watch->write_slot);
    watch->reads = reads;
    watch->writes = writes;
    return true;
}

void platform_unwatch(Watch *watch) {
    platform_watch(watch, false, false);
}

void platform_wait(int64_t timeout_ms) {
    uint32_t first = 1;
    if (timeout_ms >= 0) {
        subscriptions[0] = (__wasi_subscription_t){0};
        subscriptions[0].u.tag = __WASI_EVENTTYPE_CLOCK;
        subscriptions[0].u.u.clock.id = __WASI_CLOCKID_MONOTONIC;
        subscriptions[0].u.u.clock.timeout = (uint64_t)timeout_ms * 1000000;
        first = 0;
    }
    event_next = event_count = 0;
    if (__wasi_poll_oneoff(&subscriptions[first], events, count - first, &event_count) != 0) {
        platform_say("kv: poll_oneoff failed");
        abort();
    }
}

bool platform_ready(Ready *ready) {
    while (event_next < event_count) {
        const __wasi_event_t *event = &events[event_next++];
        if (event->type == __WASI_EVENTTYPE_CLOCK) continue;
        bool read = event->type == __WASI_EVENTTYPE_FD_READ;
        // An event with an error is a broken connection: using it tells.
        *ready = (Ready){(Watch *)(uintptr_t)event->userdata, read, !read};
        return true;
    }
    return false;
}

static uint64_t nanos(__wasi_clockid_t clock) {
    __wasi_timestamp_t time = 0;
    return __wasi_clock_time_get(clock, 1000, &time) == 0 ? time : 0;
}

int64_t platform_now(void) {
    return (int64_t)(nanos(__WASI_CLOCKID_REALTIME) / 1000000);
}

uint64_t platform_micros(void) {
    return nanos(__WASI_CLOCKID_MONOTONIC) / 1000;
}

void platform_random(void *bytes, size_t n) {
    if (__wasi_random_get(bytes, n) != 0) abort();
}

void platform_say(const char *line) {
    __wasi_ciovec_t pieces[2] = {{(const uint8_t *)line, strlen(line)}, {(const uint8_t *)"\n", 1}};
    __wasi_size_t n;
    (void)!__wasi_fd_write(STDERR_FILENO, pieces, 2, &n);
}

uint32_t platform_watch_limit(void) {
    // A connection may wait for reading and writing at once.
    return MAX_SUBSCRIPTIONS / 2 - 2;
}
