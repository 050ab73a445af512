// main.c: an in-memory key-value store that speaks the Redis protocol, for `nacre deploy NAME kv.wasm --service --port P`.
// README.md beside it says what it can do; the options are below.
#include <stdio.h>

#include "commands.h"

static const char usage[] =
    "kv [--maxmemory SIZE] [--maxclients N] [--arena SIZE] [--bind ADDRESS] [--port N]\n"
    "  --maxmemory SIZE   refuse writes above this (default 0: until the system gives no more); 512mb, 2gb, ...\n"
    "  --maxclients N     connections at once (default 10000)\n"
    "  --arena SIZE       the most memory ever to get from the system\n"
    "  --bind, --port     where to listen, outside of WASI (default 127.0.0.1, port 0: any)\n"
    "example: nacre deploy cache kv.wasm --service --port 6379";

static int64_t size_option(const char *text) {
    return text ? parse_size(str(text)) : -1;
}

int main(int argc, char **argv) {
    Endpoint endpoint = {"127.0.0.1", 0};
    int64_t max_memory = 0, max_clients = 10000, arena = 0, port = 0;
    for (int i = 1; i < argc; i += 2) {
        Str name = str(argv[i]);
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (is_word(name, "--maxmemory")) {
            max_memory = size_option(value);
        } else if (is_word(name, "--maxclients")) {
            max_clients = size_option(value);
        } else if (is_word(name, "--arena")) {
            arena = size_option(value);
        } else if (is_word(name, "--port")) {
            port = size_option(value);
        } else if (is_word(name, "--bind") && value) {
            endpoint.address = value;
        } else {
            max_clients = -1;
        }
        if (max_memory < 0 || arena < 0 || max_clients < 1 || max_clients > 1000000 || port < 0 || port > 65535) {
            platform_say(usage);
            return 2;
        }
    }
    server.options = (Options){.max_clients = (uint32_t)max_clients, .max_memory = (uint64_t)max_memory};
    endpoint.port = (int)port;
    if (!mem_init((uint64_t)arena)) {
        platform_say("kv: not enough memory to start: 4 MiB are needed");
        return 1;
    }
    if (!server_start(endpoint)) return 1;
    for (;;) server_turn();
}
