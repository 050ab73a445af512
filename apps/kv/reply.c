// reply.c: replies in both versions of the protocol, as declared in reply.h.
#include "reply.h"

#include "alloc.h"

#define SLACK 256  // always free when a command starts: an error fits

struct Reply reply;

const char error_syntax[] = "ERR syntax error";
const char error_integer[] = "ERR value is not an integer or out of range";
const char error_memory[] = "OOM command not allowed when used memory > 'maxmemory'.";

static bool make_room(size_t n) {
    Buf *buf = reply.to;
    if (likely(buf->cap - buf->len >= n)) return true;
    size_t need = buf->len + n;
    if (need < n || need > reply.budget) return false;
    size_t cap = buf->cap * 2 > need ? buf->cap * 2 : need;
    char *data = mem_resize(HEAP_CONN, buf->data, cap);
    if (!data) data = mem_resize(HEAP_CONN, buf->data, need);
    if (!data) return false;
    buf->data = data;
    buf->cap = mem_usable(data);
    return true;
}

bool reply_begin(void) {
    reply.failed = false;
    reply.mark = reply.to->len;
    return make_room(SLACK);
}

void reply_end(void) {
    if (likely(!reply.failed)) return;
    reply.to->len = reply.mark;
    reply.failed = false;
    reply_error("OOM the reply needs more memory than is left for it");
}

char *reply_room(size_t n) {
    if (likely(make_room(n))) return reply.to->data + reply.to->len;
    reply.failed = true;
    return NULL;
}

void reply_raw(Str bytes) {
    char *to = reply_room(bytes.n);
    if (unlikely(!to)) return;
    copy_bytes(to, bytes.p, bytes.n);
    reply_advance(bytes.n);
}

static void number_line(char kind, int64_t value) {
    char *to = reply_room(24);
    if (unlikely(!to)) return;
    *to = kind;
    size_t n = 1 + format_int(to + 1, value);
    to[n] = '\r';
    to[n + 1] = '\n';
    reply_advance(n + 2);
}

void reply_status(const char *text) {
    reply_raw(STR("+"));
    reply_raw(str(text));
    reply_raw(STR("\r\n"));
}

void reply_error(const char *text) {
    reply_error_about(text, (Str){"", 0}, "");
}

// What a client sent comes back without its line ends, and not all of it.
void reply_error_about(const char *before, Str about, const char *after) {
    reply.errors++;
    reply_raw(STR("-"));
    reply_raw(str(before));
    if (about.n > 128) about.n = 128;
    for (size_t i = 0; i < about.n; i++) {
        char c = about.p[i];
        if (c == 0) break;
        if (c == '\r' || c == '\n') c = ' ';
        reply_raw((Str){&c, 1});
    }
    reply_raw(str(after));
    reply_raw(STR("\r\n"));
}

void reply_int(int64_t value) {
    number_line(':', value);
}

void reply_bulk(Str bytes) {
    char *to = reply_room(bytes.n + 24);
    if (unlikely(!to)) return;
    *to = '$';
    size_t n = 1 + format_int(to + 1, (int64_t)bytes.n);
    to[n] = '\r';
    to[n + 1] = '\n';
    copy_bytes(to + n + 2, bytes.p, bytes.n);
    n += 2 + bytes.n;
    to[n] = '\r';
    to[n + 1] = '\n';
    reply_advance(n + 2);
}

void reply_text(const char *text) {
    reply_bulk(str(text));
}

void reply_verbatim(Str text) {
    if (reply.version == 2) {
        reply_bulk(text);
        return;
    }
    number_line('=', (int64_t)text.n + 4);
    reply_raw(STR("txt:"));
    reply_raw(text);
    reply_raw(STR("\r\n"));
}

void reply_null(void) {
    if (reply.version == 2) {
        reply_raw(STR("$-1\r\n"));
    } else {
        reply_raw(STR("_\r\n"));
    }
}

void reply_array(int64_t n) {
    number_line('*', n);
}

void reply_map(int64_t pairs) {
    if (reply.version == 2) {
        number_line('*', pairs * 2);
    } else {
        number_line('%', pairs);
    }
}

void reply_set(int64_t n) {
    number_line(reply.version == 2 ? '*' : '~', n);
}

size_t reply_open(void) {
    return reply.to->len;
}

void reply_insert(size_t start, Str bytes) {
    if (!reply_room(bytes.n)) return;
    char *data = reply.to->data + start;
    memmove(data + bytes.n, data, reply.to->len - start);
    memcpy(data, bytes.p, bytes.n);
    reply_advance(bytes.n);
}

void reply_close(size_t start, int64_t n) {
    char header[24] = "*";
    size_t length = 1 + format_int(header + 1, n);
    memcpy(header + length, "\r\n", 2);
    reply_insert(start, (Str){header, length + 2});
}
