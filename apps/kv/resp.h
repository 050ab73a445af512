// resp.h: the request side of the Redis protocol: a parser that works on a connection's bytes where they lie, goes on where
// it stopped when more have come, and does no I/O. A request is an array of bulk strings or a line of words.
#ifndef KV_RESP_H
#define KV_RESP_H

#include "base.h"

#define MAX_BULK (INT64_C(512) << 20)
#define MAX_ARGS (INT64_C(1) << 20)
#define MAX_LINE (64u << 10)

// An argument, relative to the start of the buffer.
typedef struct {
    uint32_t at, len;
} Arg;

typedef struct {
    Arg *v;
    uint32_t n, cap;
} Args;

typedef struct {
    size_t at;       // where in the buffer parsing goes on
    uint32_t left;   // arguments that the current request still lacks; 0: between requests
    int64_t bulk;    // length of the argument whose bytes are next, -1: its length is next
    int64_t skip;    // bytes of an argument still to be dropped
    bool discard;    // the current request cannot be kept: its bytes are dropped as they come
} Parser;

typedef enum {
    PARSE_MORE,       // the request is not complete
    PARSE_COMMAND,    // args holds it; everything before parser->at has been used
    PARSE_DISCARDED,  // the end of a request that was dropped
    PARSE_ERROR,      // *error says why; the connection cannot go on
    PARSE_NO_MEMORY,  // no room for its arguments
} Parsed;

void parser_init(Parser *parser);

// Takes the next request from `buffer`. Requests without arguments are passed over. Lines are unquoted in place.
Parsed resp_parse(Parser *parser, char *buffer, size_t length, Args *args, const char **error);

// From now on drops the request that is being read.
void parser_discard(Parser *parser, Args *args);

// The length that the buffer must have for the argument that is being read, as far as is known.
size_t parser_wants(const Parser *parser);

// Moves the state along when the first `n` bytes of the buffer are taken away.
void parser_shift(Parser *parser, Args *args, size_t n);

// Room for at least one more argument.
bool args_reserve(Args *args, uint32_t wanted);
void args_free(Args *args);

#endif
