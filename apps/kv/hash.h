// hash.h: SipHash-1-2 (Aumasson and Bernstein), as redis uses it: keyed by a random secret, so that nobody outside can
// choose keys that fall into one bucket.
#ifndef KV_HASH_H
#define KV_HASH_H

#include "base.h"

extern uint64_t hash_secret[2];

#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIP_ROUND                                                                  \
    do {                                                                           \
        v0 += v1, v1 = ROTL(v1, 13), v1 ^= v0, v0 = ROTL(v0, 32);                  \
        v2 += v3, v3 = ROTL(v3, 16), v3 ^= v2;                                     \
        v0 += v3, v3 = ROTL(v3, 21), v3 ^= v0;                                     \
        v2 += v1, v1 = ROTL(v1, 17), v1 ^= v2, v2 = ROTL(v2, 32);                  \
    } while (0)

static inline uint64_t hash_bytes(const void *bytes, size_t n) {
    uint64_t v0 = hash_secret[0] ^ UINT64_C(0x736f6d6570736575), v1 = hash_secret[1] ^ UINT64_C(0x646f72616e646f6d);
    uint64_t v2 = hash_secret[0] ^ UINT64_C(0x6c7967656e657261), v3 = hash_secret[1] ^ UINT64_C(0x7465646279746573);
    const unsigned char *p = bytes, *end = p + (n & ~(size_t)7);
    for (; p != end; p += 8) {
        uint64_t word = load64(p);
        v3 ^= word;
        SIP_ROUND;
        v0 ^= word;
    }
    uint64_t last = (uint64_t)n << 56;
    for (size_t i = 0; i < (n & 7); i++) last |= (uint64_t)p[i] << (8 * i);
    v3 ^= last;
    SIP_ROUND;
    v0 ^= last;
    v2 ^= 0xff;
    SIP_ROUND;
    SIP_ROUND;
    return v0 ^ v1 ^ v2 ^ v3;
}

#endif
