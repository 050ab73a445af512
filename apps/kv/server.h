// server.h: connections and the event loop.
#ifndef KV_SERVER_H
#define KV_SERVER_H

#include "platform.h"
#include "reply.h"
#include "resp.h"

typedef struct Conn Conn;

struct Conn {
    Watch watch;
    Conn *prev, *next;  // all connections; `next` also links those that are to be freed
    uint64_t id;
    int64_t since;  // Unix time in milliseconds
    int64_t last;   // of its last request
    Buf in;         // the start of a request whose rest has not come; nothing is held between requests
    Buf out;        // replies that could not be sent at once
    Parser parser;
    Args args;  // of the request in `in`
    char *name;
    size_t name_len;
    int version;   // of the protocol: 2 or 3
    bool stalled;  // complete requests wait in `in` until replies have been sent
    bool ended;    // the client sends nothing more
    bool closing;  // close when all replies are sent
    bool doomed;   // closed, to be freed
};

typedef struct {
    uint32_t max_clients;
    uint64_t max_memory;  // bytes, 0: what the system gives
} Options;

typedef struct {
    Options options;
    Conn *conns;
    uint32_t clients, blocked_output;
    uint64_t accepted, rejected, commands, received, sent, out_bytes;
    int64_t started;
    int port;
} Server;

extern Server server;

// Takes what it needs; false, having said why, if that cannot be had.
bool server_start(Endpoint endpoint);

// Waits for something to do and does it.
void server_turn(void);

#endif
