// hello: the smallest useful WASI command. It shows that arguments, environment, standard input, standard output,
// standard error and the exit code pass through the CVM unchanged. Each word on the command line is one action:
//
//   hello [WORD...]          greeting, then one line per argument
//   hello --env NAME...      the value of each environment variable, or "NAME is not set"
//   hello --cat              answers each line of stdin at once with "N: LINE" (flushed), "end after N lines" at the end
//   hello --count            reads all of stdin, prints the number of bytes and a checksum
//   hello --stderr TEXT      TEXT to stderr
//   hello --exit N           exits with N
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int answer_lines(void) {
    char line[4096];
    long lines = 0;
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        printf("%ld: %s\n", ++lines, line);
        fflush(stdout);
    }
    printf("end after %ld lines\n", lines);
    return 0;
}

// Counts stdin and sums it up with FNV-1a, so that a lost, doubled or reordered byte shows.
static int count_bytes(void) {
    static unsigned char buffer[1 << 16];
    uint64_t bytes = 0, sum = 0xcbf29ce484222325u;
    ssize_t n;
    while ((n = read(0, buffer, sizeof buffer)) > 0) {
        for (ssize_t i = 0; i < n; i++) sum = (sum ^ buffer[i]) * 0x100000001b3u;
        bytes += (uint64_t)n;
    }
    printf("%llu bytes, fnv1a %016llx\n", (unsigned long long)bytes, (unsigned long long)sum);
    return n < 0 ? 1 : 0;
}

int main(int argc, char **argv) {
    const char *action = argc > 1 ? argv[1] : "";
    if (!strcmp(action, "--cat")) return answer_lines();
    if (!strcmp(action, "--count")) return count_bytes();
    if (!strcmp(action, "--exit") && argc > 2) return atoi(argv[2]);
    if (!strcmp(action, "--stderr") && argc > 2) return fprintf(stderr, "%s\n", argv[2]) < 0;
    if (!strcmp(action, "--env")) {
        for (int i = 2; i < argc; i++) {
            const char *value = getenv(argv[i]);
            if (value) printf("%s=%s\n", argv[i], value);
            else printf("%s is not set\n", argv[i]);
        }
        return 0;
    }
    printf("Hello from WebAssembly!\n");
    for (int i = 1; i < argc; i++) printf("argument %d: %s\n", i, argv[i]);
    return 0;
}
