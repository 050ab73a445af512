// reply.h: replies. They are appended to one buffer while a connection's requests are executed and sent together. A reply
// that there is no memory for makes the whole command's reply an error instead.
#ifndef KV_REPLY_H
#define KV_REPLY_H

#include "base.h"

typedef struct {
    char *data;
    size_t len, cap, sent;
} Buf;

// Where replies go now, and in which version of the protocol (2 or 3).
extern struct Reply {
    Buf *to;
    int version;
    bool failed;     // something could not be appended since reply_begin
    size_t mark;     // where the current command's reply starts
    size_t budget;   // length that the buffer must not exceed
    uint64_t errors; // error replies ever
} reply;

// Starts a command's reply; false if there is not even room for an error.
bool reply_begin(void);

// Ends it: an error takes its place if it failed.
void reply_end(void);

// Room for `n` more bytes, or NULL.
char *reply_room(size_t n);
static inline void reply_advance(size_t n) {
    reply.to->len += n;
}

void reply_raw(Str bytes);
void reply_status(const char *text);  // +text
void reply_error(const char *text);   // -text, code included
void reply_error_about(const char *before, Str about, const char *after);
void reply_int(int64_t value);
void reply_bulk(Str bytes);
void reply_text(const char *text);
void reply_verbatim(Str text);  // a bulk string that is marked as text in version 3
void reply_null(void);
void reply_array(int64_t n);
void reply_map(int64_t pairs);
void reply_set(int64_t n);

// An array whose length is known only after its elements: from reply_open on they are appended, reply_close puts the
// header before them.
size_t reply_open(void);
void reply_close(size_t start, int64_t n);
void reply_insert(size_t start, Str bytes);

static inline void reply_ok(void) {
    reply_raw(STR("+OK\r\n"));
}

extern const char error_syntax[], error_integer[], error_memory[];

#endif
