// primes: a compute-bound program. It counts the primes below N (default ten million) with a segmented sieve and prints
// the count and two checksums over them. It touches little memory and makes no system call while it computes, so its time
// is the time of the compiled Wasm code: `nacre demo` and the benchmarks run it.
//
//   primes [N [ROUNDS]]      the same sieve ROUNDS times (default 1), the checksums must agree each time
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEGMENT = 1 << 15 };  // bytes; fits the first-level cache

struct result {
    uint64_t count, sum, mix;
};

static void take(struct result *r, uint64_t prime) {
    r->count++;
    r->sum += prime;
    r->mix = (r->mix ^ prime) * 0x100000001b3u;
    r->mix ^= r->mix >> 29;
}

// Primes up to the square root of n, by the plain sieve; returns their number. The caller frees *out.
static uint32_t small_primes(uint64_t n, uint32_t **out) {
    uint32_t root = 1;
    while ((uint64_t)(root + 1) * (root + 1) <= n) root++;
    char *composite = calloc(root + 1, 1);
    uint32_t *primes = malloc((root + 1) * sizeof *primes), count = 0;
    if (!composite || !primes) exit(2);
    for (uint32_t i = 2; i <= root; i++) {
        if (composite[i]) continue;
        primes[count++] = i;
        for (uint64_t j = (uint64_t)i * i; j <= root; j += i) composite[j] = 1;
    }
    free(composite);
    *out = primes;
    return count;
}

static struct result sieve(uint64_t n) {
    struct result r = {0, 0, 0xcbf29ce484222325u};
    uint32_t *primes, count = small_primes(n, &primes);
    static char composite[SEGMENT];
    for (uint64_t low = 2; low < n; low += SEGMENT) {
        uint64_t high = low + SEGMENT < n ? low + SEGMENT : n;
        memset(composite, 0, sizeof composite);
        for (uint32_t k = 0; k < count; k++) {
            uint64_t p = primes[k], j = p * p;
            if (j >= high) break;
            if (j < low) j = (low + p - 1) / p * p;
            for (; j < high; j += p) composite[j - low] = 1;
        }
        for (uint64_t i = low; i < high; i++)
            if (!composite[i - low]) take(&r, i);
    }
    free(primes);
    return r;
}

int main(int argc, char **argv) {
    uint64_t n = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000000;
    int rounds = argc > 2 ? atoi(argv[2]) : 1;
    struct result first = sieve(n);
    for (int i = 1; i < rounds; i++) {
        struct result again = sieve(n);
        if (memcmp(&again, &first, sizeof first)) {
            printf("round %d differs\n", i + 1);
            return 1;
        }
    }
    printf("primes below %llu: %llu\n", (unsigned long long)n, (unsigned long long)first.count);
    printf("sum %llu, checksum %016llx\n", (unsigned long long)first.sum, (unsigned long long)first.mix);
    return 0;
}
