// resp.c: the parser declared in resp.h. Limits and the texts of protocol errors are those of redis.
#include "resp.h"

#include "alloc.h"

#define FIRST_ARGS 16u

void parser_init(Parser *parser) {
    *parser = (Parser){.bulk = -1};
}

bool args_reserve(Args *args, uint32_t wanted) {
    if (wanted <= args->cap) return true;
    uint32_t cap = args->cap ? args->cap * 2 : FIRST_ARGS;
    if (cap < wanted) cap = wanted;
    Arg *grown = mem_resize(HEAP_CONN, args->v, (size_t)cap * sizeof(Arg));
    if (!grown) return false;
    args->v = grown;
    args->cap = cap;
    return true;
}

void args_free(Args *args) {
    mem_free(args->v);
    *args = (Args){0};
}

void parser_discard(Parser *parser, Args *args) {
    parser->discard = true;
    args->n = 0;
    if (parser->left && parser->bulk >= 0) {
        parser->skip = parser->bulk + 2;
        parser->bulk = -1;
    }
}

size_t parser_wants(const Parser *parser) {
    return parser->at + (parser->left && parser->bulk >= 0 ? (size_t)parser->bulk + 2 : 0);
}

void parser_shift(Parser *parser, Args *args, size_t n) {
    parser->at -= n;
    for (uint32_t i = 0; i < args->n; i++) args->v[i].at -= (uint32_t)n;
}

typedef enum { LINE_OK, LINE_MORE, LINE_TOO_LONG } Line;

// The text between parser->at + 1 and the next CR LF; moves parser->at behind it.
static Line header(Parser *parser, const char *buffer, size_t length, Str *text) {
    const char *start = buffer + parser->at, *end = buffer + length;
    const char *cr = start + 1;
    // Nearly all headers are a few digits.
    while (cr < end && *cr >= '0' && *cr <= '9') cr++;
    if (unlikely(cr < end && *cr != '\r')) {
        cr = memchr(cr, '\r', (size_t)(end - cr));
        if (!cr) cr = end;
    }
    if (unlikely(cr == end)) return (size_t)(end - start) > MAX_LINE ? LINE_TOO_LONG : LINE_MORE;
    if (unlikely(cr + 1 == end)) return LINE_MORE;
    *text = (Str){start + 1, (size_t)(cr - start) - 1};
    parser->at = (size_t)(cr - buffer) + 2;
    return LINE_OK;
}

static bool blank(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static int hex(char c) {
    c = lower(c);
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// Unquotes one word of a line in place: "..." with escapes, '...' with \' only. Sets *from behind it; the new end of the
// word, or NULL if the quotes are unbalanced.
static char *unquote(char **from, char *end) {
    char *p = *from, *out = p, quote = 0;
    while (p < end) {
        char c = *p++;
        if (!quote) {
            if (c == 0 || blank(c)) break;
            if (c == '"' || c == '\'') {
                quote = c;
            } else {
                *out++ = c;
            }
        } else if (c == quote) {
            if (p < end && !blank(*p)) return NULL;
            quote = 0;
            break;
        } else if (c == '\\' && quote == '\'' && p < end && *p == '\'') {
            *out++ = *p++;
        } else if (c == '\\' && quote == '"' && p < end) {
            if (*p == 'x' && end - p >= 3 && hex(p[1]) >= 0 && hex(p[2]) >= 0) {
                *out++ = (char)(hex(p[1]) * 16 + hex(p[2]));
                p += 3;
                continue;
            }
            c = *p++;
            *out++ = c == 'n' ? '\n' : c == 'r' ? '\r' : c == 't' ? '\t' : c == 'b' ? '\b' : c == 'a' ? '\a' : c;
        } else {
            *out++ = c;
        }
    }
    *from = p;
    return quote ? NULL : out;
}

// A request that is a line of words.
static Parsed inline_request(Parser *parser, char *buffer, size_t length, Args *args, const char **error) {
    char *start = buffer + parser->at, *end = memchr(start, '\n', length - parser->at);
    if (!end) {
        *error = "too big inline request";
        return length - parser->at > MAX_LINE ? PARSE_ERROR : PARSE_MORE;
    }
    parser->at = (size_t)(end - buffer) + 1;
    if (end > start && end[-1] == '\r') end--;
    for (char *p = start;;) {
        while (p < end && blank(*p)) p++;
        if (p == end || *p == 0) return PARSE_COMMAND;
        if (!args_reserve(args, args->n + 1)) return PARSE_NO_MEMORY;
        char *word = p, *word_end = unquote(&p, end);
        if (!word_end) {
            *error = "unbalanced quotes in request";
            return PARSE_ERROR;
        }
        args->v[args->n++] = (Arg){(uint32_t)(word - buffer), (uint32_t)(word_end - word)};
    }
}

// The "*N" of an array. Sets parser->left.
static Parsed array_header(Parser *parser, const char *buffer, size_t length, const char **error) {
    Str text;
    Line line = header(parser, buffer, length, &text);
    if (line == LINE_MORE) return PARSE_MORE;
    *error = line == LINE_TOO_LONG ? "too big mbulk count string" : "invalid multibulk length";
    int64_t n;
    if (line == LINE_TOO_LONG || !parse_int(text, &n) || n > MAX_ARGS) return PARSE_ERROR;
    parser->left = n > 0 ? (uint32_t)n : 0;
    parser->bulk = -1;
    return PARSE_COMMAND;
}

// The "$N" of an argument. Sets parser->bulk.
static Parsed bulk_header(Parser *parser, const char *buffer, size_t length, const char **error) {
    if (parser->at == length) return PARSE_MORE;
    static char expected[] = "expected '$', got '?'";
    char first = buffer[parser->at];
    Str text;
    // As redis does: it looks at the whole line before its first byte.
    size_t before = parser->at;
    Line line = header(parser, buffer, length, &text);
    if (line == LINE_MORE) return PARSE_MORE;
    *error = line == LINE_TOO_LONG ? "too big bulk count string" : "invalid bulk length";
    if (line == LINE_TOO_LONG) return PARSE_ERROR;
    if (first != '$') {
        parser->at = before;
        expected[sizeof expected - 3] = first;
        *error = expected;
        return PARSE_ERROR;
    }
    int64_t n;
    if (!parse_int(text, &n) || n < 0 || n > MAX_BULK) return PARSE_ERROR;
    parser->bulk = n;
    return PARSE_COMMAND;
}

// Drops what is there of the argument that is to be skipped; whether it is all gone.
static bool drop(Parser *parser, size_t length) {
    size_t there = length - parser->at;
    size_t n = there < (uint64_t)parser->skip ? there : (size_t)parser->skip;
    parser->at += n;
    parser->skip -= (int64_t)n;
    return parser->skip == 0;
}

static Parsed rest_of_array(Parser *parser, const char *buffer, size_t length, Args *args, const char **error) {
    while (parser->left) {
        if (parser->discard && parser->skip) {
            if (!drop(parser, length)) return PARSE_MORE;
            parser->left--;
            continue;
        }
        if (parser->bulk < 0) {
            Parsed got = bulk_header(parser, buffer, length, error);
            if (got != PARSE_COMMAND) return got;
            if (parser->discard) {
                parser->skip = parser->bulk + 2;
                parser->bulk = -1;
                continue;
            }
        }
        if (length - parser->at < (uint64_t)parser->bulk + 2) return PARSE_MORE;
        if (unlikely(!args_reserve(args, args->n + 1))) return PARSE_NO_MEMORY;
        args->v[args->n++] = (Arg){(uint32_t)parser->at, (uint32_t)parser->bulk};
        parser->at += (size_t)parser->bulk + 2;
        parser->bulk = -1;
        parser->left--;
    }
    if (!parser->discard) return PARSE_COMMAND;
    parser->discard = false;
    return PARSE_DISCARDED;
}

Parsed resp_parse(Parser *parser, char *buffer, size_t length, Args *args, const char **error) {
    for (;;) {
        if (!parser->left) {
            args->n = 0;
            if (parser->at == length) return PARSE_MORE;
            Parsed got;
            if (likely(buffer[parser->at] == '*')) {
                got = array_header(parser, buffer, length, error);
                if (got == PARSE_COMMAND && !parser->left) continue;
            } else {
                got = inline_request(parser, buffer, length, args, error);
                if (got == PARSE_COMMAND && args->n == 0) continue;
                return got;
            }
            if (got != PARSE_COMMAND) return got;
        }
        return rest_of_array(parser, buffer, length, args, error);
    }
}
