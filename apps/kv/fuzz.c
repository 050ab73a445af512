// fuzz.c: libFuzzer's entry into the whole store without its sockets: the input is cut into pieces as a client's bytes
// would come, and each piece goes through the event loop's code to the parser, the commands and the table. Build:
//   clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all alloc.c dict.c store.c resp.c reply.c
//     commands.c cmd_string.c cmd_keys.c cmd_server.c server.c fuzz.c
// The platform layer below serves one client whose sends take as many bytes as the input says.
#include <stdio.h>
#include <stdlib.h>

#include "commands.h"

static const uint8_t *input;
static size_t input_size, piece;
static Watch *client_watch;
static int state;  // 0: nobody has connected, 1: connected, 2: closed
static int64_t clock_ms = 1000000;
static bool handed_out;

static unsigned next_byte(void) {
    if (!input_size) return 0;
    input_size--;
    return *input++;
}

bool platform_listen(Endpoint endpoint, Watch *watch) {
    (void)endpoint;
    *watch = (Watch){.fd = 3};
    return true;
}

Accepted platform_accept(Watch *listener, int *fd) {
    (void)listener;
    if (state != 0) return ACCEPT_AGAIN;
    state = 1;
    *fd = 4;
    return ACCEPT_OK;
}

// The first byte of a piece says how long it is; a zero, that nothing has come yet.
int64_t platform_receive(int fd, void *buffer, size_t size) {
    (void)fd;
    if (!input_size) return 0;
    if (!piece) {
        unsigned length = next_byte();
        piece = length < 250 ? length : (size_t)(length - 249) * 100;
        if (!piece) return IO_AGAIN;
    }
    size_t n = piece < size ? piece : size;
    if (n > input_size) n = input_size;
    memcpy(buffer, input, n);
    input += n;
    input_size -= n;
    piece -= n;
    return (int64_t)n;
}

int64_t platform_send(int fd, Str first, Str second) {
    (void)fd;
    (void)second;
    unsigned seldom = next_byte();
    for (size_t i = 0; i < first.n; i += 4096) {
        if (first.p[i] == 127) clock_ms++;  // reads what is sent: the sanitizers look at it
    }
    if (seldom == 1) return IO_AGAIN;
    if (seldom == 2 && first.n > 1) return (int64_t)first.n / 2;
    return (int64_t)first.n;
}

void platform_close(int fd) {
    if (fd == 4) state = 2;
}

bool platform_watch(Watch *watch, bool reads, bool writes) {
    watch->reads = reads;
    watch->writes = writes;
    if (watch->owner) client_watch = watch;
    return true;
}

void platform_unwatch(Watch *watch) {
    watch->reads = watch->writes = false;
}

void platform_wait(int64_t timeout_ms) {
    (void)timeout_ms;
    clock_ms += 10;
    handed_out = false;
}

bool platform_ready(Ready *ready) {
    static Watch listening;
    if (handed_out) return false;
    handed_out = true;
    if (state == 0) {
        *ready = (Ready){&listening, true, false};
    } else {
        *ready = (Ready){client_watch, client_watch->reads, client_watch->writes};
    }
    return state != 2;
}

int64_t platform_now(void) {
    return clock_ms;
}

uint64_t platform_micros(void) {
    return (uint64_t)clock_ms * 1000;
}

void platform_random(void *bytes, size_t n) {
    memset(bytes, 7, n);
}

void platform_say(const char *line) {
    puts(line);
}

uint32_t platform_watch_limit(void) {
    return 100;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool started;
    if (!started) {
        server.options = (Options){.max_clients = 10, .max_memory = 16 << 20};
        if (!mem_init(UINT64_C(32) << 20)) abort();
        server_start((Endpoint){"", 0});
        started = true;
    }
    input = data;
    input_size = size;
    piece = 0;
    state = 0;
    while (state != 2) server_turn();
    store_flush();
    return 0;
}
