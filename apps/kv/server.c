// server.c: the event loop. Per ready connection: one receive into a buffer that all share, all requests in it executed
// where they lie, one send of their replies. A connection has buffers of its own only while a request is incomplete or
// replies wait to be sent, so an idle one costs a few hundred bytes.
//
// A client that does not take its replies is not read any more (TCP slows it down); what all such clients make the server
// hold is bounded. A client whose request does not fit into the memory gets an error when the request has ended.
#include "server.h"

#include "commands.h"
#include "store.h"

#define SHARED_IN (64u << 10)
#define SHARED_OUT (64u << 10)
#define FLUSH_AT (48u << 10)      // replies are sent when there are that many bytes of them
#define JOIN_MAX 4096u            // an unfinished request up to this length continues in the shared buffer
#define IN_MAX ((size_t)1 << 30)  // length of an unfinished request
#define ARGS_KEPT 1024u           // arguments that the shared array keeps room for
#define READS 4                   // receives for one connection before the next one's turn
#define ACCEPTS 256
#define PAUSE_OUT (32u << 20)     // unsent replies of one client that stop it from being read
#define CROWD_OUT (128u << 20)    // unsent replies of all clients above which PAUSE_CROWDED applies
#define PAUSE_CROWDED (16u << 10)
#define OUT_MAX ((size_t)1 << 30)  // unsent replies of all clients: a reply beyond it becomes an error
#define ACCEPT_PAUSE_MS 100        // when the system has no descriptor for another connection
#define EXPIRE_US 1000

Server server;

static Buf shared_in, shared_out;
static Args shared_args;
static Watch listener;
static Conn *doomed;
static uint64_t next_id = 1;
static int64_t accept_at;  // when accepting goes on, 0: it has not stopped

static void buf_free(Buf *buf) {
    mem_free(buf->data);
    *buf = (Buf){0};
}

static void shrink(Buf *buf) {
    char *small = mem_resize(HEAP_CONN, buf->data, buf->len);
    if (!small) return;
    buf->data = small;
    buf->cap = mem_usable(small);
}

static void out_free(Conn *c) {
    server.out_bytes -= c->out.cap;
    buf_free(&c->out);
}

// Closes now; freed at the end of the round, because events of this one may still be handed out.
static void doom(Conn *c) {
    if (c->doomed) return;
    c->doomed = true;
    platform_unwatch(&c->watch);
    platform_close(c->watch.fd);
    if (c->next) c->next->prev = c->prev;
    if (c->prev) {
        c->prev->next = c->next;
    } else {
        server.conns = c->next;
    }
    c->next = doomed;
    doomed = c;
    server.clients--;
}

static void free_doomed(void) {
    while (doomed) {
        Conn *c = doomed;
        doomed = c->next;
        buf_free(&c->in);
        out_free(c);
        args_free(&c->args);
        mem_free(c->name);
        mem_free(c);
        accept_at = accept_at ? store.now : 0;
    }
}

static size_t unsent(const Conn *c) {
    return c->out.len - c->out.sent;
}

static bool too_much_output(const Conn *c) {
    return unsent(c) > (server.out_bytes > CROWD_OUT ? PAUSE_CROWDED : PAUSE_OUT);
}

// Waits for what the connection's state asks for, or closes it if that is nothing.
static void update_watch(Conn *c) {
    if (c->doomed) return;
    bool reads = !c->stalled && !c->ended && !c->closing, writes = unsent(c) > 0;
    if (!reads && !writes) {
        doom(c);
    } else if ((reads != c->watch.reads || writes != c->watch.writes) && !platform_watch(&c->watch, reads, writes)) {
        doom(c);
    }
}

// Keeps the replies in the shared buffer that could not be sent with the connection.
static void keep_output(Conn *c, size_t sent) {
    size_t rest = shared_out.len - sent;
    if (rest > JOIN_MAX) {
        // The buffer changes its owner; the next one to share is made now.
        char *fresh = mem_alloc(HEAP_CONN, SHARED_OUT);
        if (!fresh) {
            doom(c);
            return;
        }
        c->out = shared_out;
        c->out.sent = sent;
        shared_out = (Buf){.data = fresh, .cap = SHARED_OUT};
    } else {
        c->out.data = mem_alloc(HEAP_CONN, rest);
        if (!c->out.data) {
            doom(c);
            return;
        }
        copy_bytes(c->out.data, shared_out.data + sent, rest);
        c->out.len = rest;
        c->out.cap = mem_usable(c->out.data);
    }
    server.out_bytes += c->out.cap;
    reply.to = &c->out;
}

// Sends what is in the shared buffer. What waits in the connection's own goes when it becomes writable.
static void flush(Conn *c) {
    if (reply.to != &shared_out || shared_out.len == 0) return;
    int64_t sent = platform_send(c->watch.fd, (Str){shared_out.data, shared_out.len}, (Str){0});
    if (sent == IO_FAILED) {
        doom(c);
    } else {
        if (sent == IO_AGAIN) sent = 0;
        server.sent += (uint64_t)sent;
        if ((size_t)sent < shared_out.len) keep_output(c, (size_t)sent);
    }
    shared_out.len = 0;
    if (shared_out.cap > SHARED_OUT) {
        char *small = mem_resize(HEAP_CONN, shared_out.data, SHARED_OUT);
        if (small) shared_out = (Buf){.data = small, .cap = mem_usable(small)};
    }
}

static void execute_request(Conn *c, const Buf *in, const Args *args) {
    size_t before = reply.to->cap;
    reply.version = c->version;
    reply.budget = reply.to->cap + (server.out_bytes < OUT_MAX ? OUT_MAX - server.out_bytes : 0);
    if (!reply_begin()) {
        doom(c);
        return;
    }
    c->last = store.now;
    execute(c, in->data, args);
    reply_end();
    if (reply.to == &c->out) server.out_bytes += c->out.cap - before;
    if (reply.to->len > FLUSH_AT) flush(c);
}

static void answer_error(Conn *c, const char *before, const char *what) {
    size_t cap = reply.to->cap;
    reply.budget = SIZE_MAX;
    if (reply_begin()) reply_error_about(before, str(what), "");
    reply_end();
    if (reply.to == &c->out) server.out_bytes += c->out.cap - cap;
}

// Executes the complete requests in `in`; returns how many bytes they took.
static size_t run_requests(Conn *c, Buf *in) {
    Args *args = &shared_args;
    size_t done = 0;
    for (;;) {
        if (c->doomed || c->closing) return in->len;
        c->stalled = too_much_output(c);
        if (unlikely(c->stalled)) return done;
        const char *error;
        switch (resp_parse(&c->parser, in->data, in->len, args, &error)) {
        case PARSE_COMMAND:
            execute_request(c, in, args);
            break;
        case PARSE_DISCARDED:
            answer_error(c, "", error_memory);
            break;
        case PARSE_ERROR:
            answer_error(c, "ERR Protocol error: ", error);
            c->closing = true;
            break;
        case PARSE_NO_MEMORY:
            if (!c->parser.left) {
                doom(c);
                break;
            }
            parser_discard(&c->parser, args);
            continue;
        case PARSE_MORE:
            return c->parser.discard || !c->parser.left ? c->parser.at : done;
        }
        done = c->parser.at;
    }
}

// Executes what has come and keeps the rest for later, with the arguments of an unfinished request.
static void process(Conn *c, Buf *in) {
    if (c->args.v) {
        args_free(&shared_args);
        shared_args = c->args;
        c->args = (Args){0};
    }
    size_t done = run_requests(c, in);
    if (c->doomed) return;
    size_t rest = in->len - done;
    parser_shift(&c->parser, &shared_args, done);
    if (c->parser.left && !c->parser.discard) {
        c->args = shared_args;
        shared_args = (Args){0};
    } else if (shared_args.cap > ARGS_KEPT) {
        args_free(&shared_args);
    }
    if (in != &shared_in) {
        if (rest && done) memmove(in->data, in->data + done, rest);
        in->len = rest;
        if (!rest) buf_free(in);
        // After a long argument little is left in much memory.
        if (in->cap > 4 * rest + JOIN_MAX) shrink(in);
    } else if (rest) {
        c->in.data = mem_alloc(HEAP_CONN, rest);
        if (!c->in.data) {
            doom(c);
            return;
        }
        copy_bytes(c->in.data, in->data + done, rest);
        c->in.len = rest;
        c->in.cap = mem_usable(c->in.data);
    }
}

// Room for more of an unfinished request that is too long for the shared buffer; NULL if the connection is gone.
static Buf *grow_input(Conn *c) {
    Buf *in = &c->in;
    size_t wanted = parser_wants(&c->parser), doubled = in->len * 2;
    if (wanted <= in->len) wanted = in->len + 1;
    if (wanted > doubled) wanted = doubled;
    if (wanted < in->len + SHARED_IN / 4) wanted = in->len + SHARED_IN / 4;
    if (wanted <= in->cap) return in;
    char *data = in->len < IN_MAX ? mem_resize(HEAP_CONN, in->data, wanted) : NULL;
    if (data) {
        in->data = data;
        in->cap = mem_usable(data);
        return in;
    }
    if (in->len < in->cap) return in;
    // What cannot be kept is dropped as it comes.
    if (!c->parser.left || in->len >= IN_MAX) {
        doom(c);
        return NULL;
    }
    parser_discard(&c->parser, &c->args);
    args_free(&c->args);
    process(c, in);
    return c->doomed || c->in.len ? NULL : &shared_in;
}

// Where the next bytes of a connection go.
static Buf *input(Conn *c) {
    shared_in.len = 0;
    if (c->in.len == 0) return &shared_in;
    if (c->in.len <= JOIN_MAX && parser_wants(&c->parser) <= SHARED_IN) {
        copy_bytes(shared_in.data, c->in.data, c->in.len);
        shared_in.len = c->in.len;
        buf_free(&c->in);
        return &shared_in;
    }
    return grow_input(c);
}

static void on_readable(Conn *c) {
    for (int i = 0; i < READS && !c->doomed && !c->stalled && !c->closing && !c->ended; i++) {
        Buf *in = input(c);
        if (!in) return;
        size_t room = in->cap - in->len;
        int64_t n = platform_receive(c->watch.fd, in->data + in->len, room);
        if (n > 0) {
            in->len += (size_t)n;
            server.received += (uint64_t)n;
        } else if (n == IO_FAILED) {
            doom(c);
            return;
        } else if (n == 0) {
            c->ended = true;
        }
        // Also when nothing has come: an unfinished request must go back to the connection.
        process(c, in);
        if (n < (int64_t)room) break;
    }
}

static void on_writable(Conn *c) {
    Buf *out = &c->out;
    int64_t n = platform_send(c->watch.fd, (Str){out->data + out->sent, unsent(c)}, (Str){0});
    if (n == IO_AGAIN) return;
    if (n == IO_FAILED) {
        doom(c);
        return;
    }
    server.sent += (uint64_t)n;
    out->sent += (size_t)n;
    if (unsent(c) == 0) out_free(c);
    if (c->stalled && !too_much_output(c)) {
        reply.to = unsent(c) ? &c->out : &shared_out;
        process(c, &c->in);
    }
}

static void on_ready(Conn *c, const Ready *ready) {
    if (c->doomed) return;
    if (ready->writable && unsent(c)) on_writable(c);
    reply.to = unsent(c) ? &c->out : &shared_out;
    if (ready->readable && !c->doomed) on_readable(c);
    if (!c->doomed) flush(c);
    shared_out.len = 0;
    update_watch(c);
}

static void add_client(int fd) {
    server.accepted++;
    Conn *c = server.clients < server.options.max_clients ? mem_alloc(HEAP_CONN, sizeof *c) : NULL;
    if (!c) {
        server.rejected++;
        (void)platform_send(fd, STR("-ERR max number of clients reached\r\n"), (Str){0});
        platform_close(fd);
        return;
    }
    memset(c, 0, sizeof *c);
    c->watch.fd = fd;
    c->watch.owner = c;
    if (!platform_watch(&c->watch, true, false)) {
        platform_close(fd);
        mem_free(c);
        return;
    }
    parser_init(&c->parser);
    c->id = next_id++;
    c->since = c->last = store.now;
    c->version = 2;
    c->next = server.conns;
    if (c->next) c->next->prev = c;
    server.conns = c;
    server.clients++;
}

static void on_listener(void) {
    for (int i = 0; i < ACCEPTS; i++) {
        int fd;
        Accepted accepted = platform_accept(&listener, &fd);
        if (accepted == ACCEPT_AGAIN) return;
        if (accepted == ACCEPT_FULL) {
            accept_at = store.now + ACCEPT_PAUSE_MS;
            platform_unwatch(&listener);
            return;
        }
        add_client(fd);
    }
}

static int64_t time_to_wait(void) {
    int64_t wait = store_expire_wait();
    if (accept_at) {
        int64_t until = accept_at > store.now ? accept_at - store.now : 0;
        if (wait < 0 || until < wait) wait = until;
    }
    return wait;
}

bool server_start(Endpoint endpoint) {
    shared_in = (Buf){.data = mem_alloc(HEAP_CONN, SHARED_IN), .cap = SHARED_IN};
    shared_out = (Buf){.data = mem_alloc(HEAP_CONN, SHARED_OUT), .cap = SHARED_OUT};
    server.started = platform_now();
    if (!shared_in.data || !shared_out.data || !store_init(server.started)) {
        platform_say("kv: not enough memory to start: 4 MiB are needed");
        return false;
    }
    commands_init();
    uint32_t watches = platform_watch_limit();
    if (server.options.max_clients > watches) server.options.max_clients = watches;
    return platform_listen(endpoint, &listener) && platform_watch(&listener, true, false);
}

void server_turn(void) {
    platform_wait(time_to_wait());
    store.now = platform_now();
    for (Ready ready; platform_ready(&ready);) {
        if (ready.watch->owner) {
            on_ready(ready.watch->owner, &ready);
        } else {
            on_listener();
        }
    }
    free_doomed();
    if (accept_at && accept_at <= store.now) accept_at = platform_watch(&listener, true, false) ? 0 : store.now + 1;
    store_expire(EXPIRE_US);
}
