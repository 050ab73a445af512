/* A function for the node: throws darts at a square and counts those that hit the circle in it, so that four times their
   share is near pi. Parameters come as a JSON object on standard input, {"seed":1,"darts":1000000}; the answer is
   {"darts":1000000,"inside":785142}. The same seed gives the same answer; many calls with seeds of their own
   make one better estimate (`nacre demo`). The search for members is crude: there is nothing between ':' and the number. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DARTS 1000000000L

/* The number behind "name": in the input, or a default. */
static long long number(const char *input, const char *name, long long other)
{
    char key[32];
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = strstr(input, key);
    return at ? strtoll(at + strlen(key), NULL, 10) : other;
}

/* splitmix64 (Steele, Lea and Flood, 2014). */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int main(void)
{
    static char input[4096];
    size_t length = fread(input, 1, sizeof input - 1, stdin);
    input[length] = 0;
    long long darts = number(input, "darts", 1000000), inside = 0;
    if (darts < 1 || darts > MAX_DARTS) {
        printf("{\"error\":\"darts: give 1 to %ld\"}\n", MAX_DARTS);
        return 0;
    }
    uint64_t state = (uint64_t)number(input, "seed", 1) << 32;
    for (long long i = 0; i < darts; i++) {
        /* 31 bits each, so that the sum of the squares fits. */
        uint64_t both = draw(&state), x = both >> 33, y = both & 0x7fffffff;
        inside += x * x + y * y < (uint64_t)1 << 62;
    }
    printf("{\"darts\":%lld,\"inside\":%lld}\n", darts, inside);
    return 0;
}
