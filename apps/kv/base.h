// base.h: what every file of the store uses: byte strings, unaligned loads, short copies and comparisons without a call
// (in Wasm memcpy is one instruction that leaves the program, too dear for 16 bytes), and strict number parsing.
#ifndef KV_BASE_H
#define KV_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// Bytes that somebody else owns; they may hold anything, zeros too.
typedef struct {
    const char *p;
    size_t n;
} Str;

#define STR(literal) ((Str){(literal), sizeof(literal) - 1})
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

static inline uint64_t load64(const void *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t load32(const void *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store64(void *p, uint64_t v) {
    memcpy(p, &v, sizeof v);
}

static inline void store32(void *p, uint32_t v) {
    memcpy(p, &v, sizeof v);
}

static inline bool same_bytes(const void *left, const void *right, size_t n) {
    const char *a = left, *b = right;
    if (n >= 8) {
        for (size_t i = 0; i + 8 < n; i += 8) {
            if (load64(a + i) != load64(b + i)) return false;
        }
        return load64(a + n - 8) == load64(b + n - 8);
    }
    if (n >= 4) return load32(a) == load32(b) && load32(a + n - 4) == load32(b + n - 4);
    for (size_t i = 0; i < n; i++) {
        if (a[i] != b[i]) return false;
    }
    return true;
}

// Copies between buffers that do not overlap.
static inline void copy_bytes(void *to, const void *from, size_t n) {
    char *d = to;
    const char *s = from;
    if (n > 128) {
        memcpy(d, s, n);
    } else if (n >= 8) {
        for (size_t i = 0; i + 8 < n; i += 8) {
            store64(d + i, load64(s + i));
            __asm__ volatile("" ::: "memory");  // or the compiler makes the loop a call of memcpy again
        }
        store64(d + n - 8, load64(s + n - 8));
    } else if (n >= 4) {
        uint32_t first = load32(s), last = load32(s + n - 4);
        store32(d, first);
        store32(d + n - 4, last);
    } else {
        for (size_t i = 0; i < n; i++) {
            d[i] = s[i];
            __asm__ volatile("" ::: "memory");
        }
    }
}

static inline Str str(const char *zero_ended) {
    return (Str){zero_ended, strlen(zero_ended)};
}

static inline bool same(Str a, Str b) {
    return a.n == b.n && same_bytes(a.p, b.p, a.n);
}

static inline char lower(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

// Compares with a literal in lower case, whatever the case of `a`.
static inline bool is_word(Str a, const char *word) {
    size_t i = 0;
    for (; i < a.n && word[i]; i++) {
        if (lower(a.p[i]) != word[i]) return false;
    }
    return i == a.n && !word[i];
}

// Reads a signed decimal number as redis does: no blanks, no plus sign, no leading zeros, no "-0", nothing behind it.
static inline bool parse_int(Str text, int64_t *value) {
    const char *p = text.p, *end = text.p + text.n;
    if (text.n == 0 || text.n > 20) return false;
    bool negative = *p == '-';
    if (negative && ++p == end) return false;
    if (*p == '0') {
        *value = 0;
        return text.n == 1;
    }
    uint64_t v = 0;
    for (; p < end; p++) {
        unsigned digit = (unsigned)(unsigned char)*p - '0';
        if (digit > 9 || v > (UINT64_MAX - digit) / 10) return false;
        v = v * 10 + digit;
    }
    if (v > (uint64_t)INT64_MAX + negative) return false;
    *value = (int64_t)(negative ? 0 - v : v);
    return true;
}

// Writes a number in decimal (at most 20 bytes, no end mark) and returns how many bytes that took.
static inline size_t format_int(char *to, int64_t value) {
    char digits[20];
    size_t n = 0, at = 0;
    uint64_t v = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do {
        digits[n++] = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    if (value < 0) to[at++] = '-';
    while (n) to[at++] = digits[--n];
    return at;
}

#endif
