/* A function for the tests of the node: what it does is said by its parameter "do". Parameters come as a JSON object on
   standard input; "n" is a number. The search for members is crude: tests give them in this form. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char input[(1 << 20) + 1];

/* The number behind "name": in the input, or a default. */
static long number(const char *name, long other)
{
    char key[64];
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = strstr(input, key);
    return at ? strtol(at + strlen(key), NULL, 10) : other;
}

static int is(const char *what)
{
    char pair[64];
    snprintf(pair, sizeof pair, "\"do\":\"%s\"", what);
    return strstr(input, pair) != NULL;
}

static void environment(void)
{
    static const char *const names[] = { "__OW_ACTION_NAME", "__OW_ACTION_VERSION", "__OW_ACTIVATION_ID",
                                         "__OW_API_HOST", "__OW_DEADLINE", "__OW_NAMESPACE" };
    printf("{");
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        const char *value = getenv(names[i]);
        printf("%s\"%s\":\"%s\"", i ? "," : "", names[i], value ? value : "");
    }
    printf("}\n");
}

static int count(long n)
{
    volatile uint64_t sum = 0;
    for (long i = 0; i < n; i++)
        sum += (uint64_t)i;
    printf("{\"sum\":%llu}\n", (unsigned long long)sum);
    return 0;
}

static int allocate(void)
{
    for (size_t total = 0;; total += 1 << 20) {
        /* Without "volatile" compilers leave the allocation out. */
        volatile char *block = malloc(1 << 20);
        if (!block) {
            printf("{\"error\":\"no memory after %zu MiB\"}\n", total >> 20);
            return 0;
        }
        for (size_t at = 0; at < 1 << 20; at += 4096)
            block[at] = 1;
    }
}

static int flood(long megabytes)
{
    static char line[1024];
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    for (long i = 0; i < megabytes * 1024; i++)
        fwrite(line, 1, sizeof line, i % 2 ? stderr : stdout);
    printf("{\"flooded\":%ld}\n", megabytes);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 1 || !argv[0][0])
        return 99;
    size_t length = fread(input, 1, sizeof input - 1, stdin);
    input[length] = 0;
    if (is("environment")) {
        environment();
    } else if (is("logs")) {
        printf("to stdout\n");
        fprintf(stderr, "to stderr\n");
        printf("{\"logged\":true}\n");
    } else if (is("exit")) {
        fprintf(stderr, "about to fail\n");
        return (int)number("n", 1);
    } else if (is("error")) {
        printf("{\"error\":\"as asked\"}\n");
    } else if (is("nothing")) {
        printf("no object\n");
    } else if (is("trap")) {
        __builtin_trap();
    } else if (is("forever")) {
        for (volatile int i = 0;; i++)
            ;
    } else if (is("count")) {
        return count(number("n", 1000000));
    } else if (is("allocate")) {
        return allocate();
    } else if (is("flood")) {
        return flood(number("n", 1));
    } else if (is("large")) {
        printf("{\"large\":\"");
        for (long i = 0; i < number("n", 1); i++)
            putchar('y');
        printf("\"}\n");
    } else {
        printf("%s\n", length ? input : "{}");
    }
    return 0;
}
