// platform.h: what the store needs from the system it runs on: one listening socket, its connections, waiting, and two
// clocks. platform_wasi.c has it from WASI preview 1, platform_posix.c from Linux (development and tests).
#ifndef KV_PLATFORM_H
#define KV_PLATFORM_H

#include "base.h"

// Results of receiving and sending besides numbers of bytes.
#define IO_AGAIN (-1)
#define IO_FAILED (-2)

// Errors of accepting.
typedef enum { ACCEPT_OK, ACCEPT_AGAIN, ACCEPT_FULL } Accepted;

// A descriptor that is waited for. The owner embeds it; the other fields are the platform's.
typedef struct {
    void *owner;  // NULL: the listening socket
    int fd;
    bool reads, writes;  // what is waited for
    uint32_t read_slot, write_slot;
} Watch;

typedef struct {
    Watch *watch;
    bool readable, writable;
} Ready;

// Where to listen: WASI programs inherit their socket and ignore it.
typedef struct {
    const char *address;
    int port;
} Endpoint;

// Opens or finds the listening socket; says why on stderr if it cannot.
bool platform_listen(Endpoint endpoint, Watch *watch);

Accepted platform_accept(Watch *listener, int *fd);
int64_t platform_receive(int fd, void *buffer, size_t size);

// Sends from one or two pieces, as much as goes at once.
int64_t platform_send(int fd, Str first, Str second);
void platform_close(int fd);

// Starts, changes and ends waiting for a descriptor; starting and changing fail without memory.
bool platform_watch(Watch *watch, bool reads, bool writes);
void platform_unwatch(Watch *watch);

// Waits for readiness or `timeout_ms` (-1: for ever). Then platform_ready hands out what is ready, one by one, until it
// returns false. A watch that is unwatched meanwhile may still be handed out.
void platform_wait(int64_t timeout_ms);
bool platform_ready(Ready *ready);

int64_t platform_now(void);      // Unix time, milliseconds
uint64_t platform_micros(void);  // monotonic
void platform_random(void *bytes, size_t n);
void platform_say(const char *line);  // one line for whoever runs the program

// Descriptors that can be watched at once.
uint32_t platform_watch_limit(void);

#endif
