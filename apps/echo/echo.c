// A service in every style that the tests need: it listens on the first descriptor behind its directories.
//
//   echo               one loop over poll_oneoff: sends back what comes, ends its half when the client does
//   blocking           one client after the other, with calls that wait
//   slow BYTES MS      reads BYTES every MS milliseconds, and sends back how much it was when the client ends its half
//   chargen BYTES      sends BYTES of a known pattern, ends its half, reads to the end
//   deaf               never accepts; ends when standard input does
//   exit N             accepts N clients, reads a byte of each, says hello, and exits with code 7
//   wait               says on standard output what a poll with a timeout shows, until the client ends
//   flags              checks peeking, waiting for all, descriptor flags and errors with one client
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wasi/api.h>

enum { LISTENER = 3, MAX_CLIENTS = 4096, BUFFER = 16 << 10 };

struct client {
    __wasi_fd_t fd;
    uint8_t open, ended;
    uint32_t start, end;
    uint8_t *bytes;
};

static struct client clients[MAX_CLIENTS];
static __wasi_subscription_t wanted[MAX_CLIENTS + 2];
static __wasi_event_t happened[MAX_CLIENTS + 2];
static uint32_t count;

static void check(int fine, const char *what) {
    if (!fine) {
        fprintf(stderr, "echo: %s\n", what);
        exit(1);
    }
}

static void want(uint8_t tag, __wasi_fd_t fd, uint64_t userdata) {
    __wasi_subscription_t *one = &wanted[count++];
    memset(one, 0, sizeof *one);
    one->userdata = userdata;
    one->u.tag = tag;
    if (tag == __WASI_EVENTTYPE_FD_READ)
        one->u.u.fd_read.file_descriptor = fd;
    else
        one->u.u.fd_write.file_descriptor = fd;
}

static void want_time(uint64_t ms, uint64_t userdata) {
    __wasi_subscription_t *one = &wanted[count++];
    memset(one, 0, sizeof *one);
    one->userdata = userdata;
    one->u.tag = __WASI_EVENTTYPE_CLOCK;
    one->u.u.clock.id = __WASI_CLOCKID_MONOTONIC;
    one->u.u.clock.timeout = ms * 1000000;
}

static __wasi_size_t wait_for_it(void) {
    __wasi_size_t n = 0;
    check(__wasi_poll_oneoff(wanted, happened, count, &n) == 0, "poll failed");
    count = 0;
    return n;
}

// What a call moved, or minus its error number.
static int32_t receive(__wasi_fd_t fd, void *bytes, size_t len, __wasi_riflags_t flags) {
    __wasi_iovec_t iov = {bytes, len};
    __wasi_size_t got = 0;
    __wasi_roflags_t out = 0xff;
    __wasi_errno_t error = __wasi_sock_recv(fd, &iov, 1, flags, &got, &out);
    check(error || out == 0, "flags of a receive");
    return error ? -(int32_t)error : (int32_t)got;
}

static int32_t transmit(__wasi_fd_t fd, const void *bytes, size_t len) {
    __wasi_ciovec_t iov = {bytes, len};
    __wasi_size_t sent = 0;
    __wasi_errno_t error = __wasi_sock_send(fd, &iov, 1, 0, &sent);
    return error ? -(int32_t)error : (int32_t)sent;
}

static __wasi_fd_t accept_one(__wasi_fdflags_t flags) {
    __wasi_fd_t fd = 0;
    check(__wasi_sock_accept(LISTENER, flags, &fd) == 0, "accept failed");
    return fd;
}

static void close_client(struct client *client) {
    check(__wasi_fd_close(client->fd) == 0, "close failed");
    client->open = 0;
}

static void accept_all(void) {
    for (;;) {
        __wasi_fd_t fd;
        __wasi_errno_t error = __wasi_sock_accept(LISTENER, __WASI_FDFLAGS_NONBLOCK, &fd);
        if (error == __WASI_ERRNO_AGAIN)
            return;
        check(error == 0, "accept failed");
        int at = 0;
        while (at < MAX_CLIENTS && clients[at].open)
            at++;
        check(at < MAX_CLIENTS, "too many clients");
        struct client *client = &clients[at];
        if (!client->bytes)
            check((client->bytes = malloc(BUFFER)) != NULL, "no memory");
        *client = (struct client){.fd = fd, .open = 1, .bytes = client->bytes};
    }
}

// Reads, and sends back what it can.
static void serve(struct client *client) {
    if (!client->ended && client->start == client->end) {
        int32_t got = receive(client->fd, client->bytes, BUFFER, 0);
        if (got == -__WASI_ERRNO_AGAIN)
            return;
        if (got < 0)
            return close_client(client);
        client->ended = got == 0;
        client->start = 0;
        client->end = got;
    }
    while (client->start < client->end) {
        int32_t sent = transmit(client->fd, client->bytes + client->start, client->end - client->start);
        if (sent == -__WASI_ERRNO_AGAIN)
            return;
        if (sent < 0)
            return close_client(client);
        client->start += sent;
    }
    if (client->ended)
        close_client(client);
}

static void echo(void) {
    check(__wasi_fd_fdstat_set_flags(LISTENER, __WASI_FDFLAGS_NONBLOCK) == 0, "flags of the listener");
    for (;;) {
        want(__WASI_EVENTTYPE_FD_READ, LISTENER, MAX_CLIENTS);
        for (int at = 0; at < MAX_CLIENTS; at++)
            if (clients[at].open)
                want(clients[at].start < clients[at].end ? __WASI_EVENTTYPE_FD_WRITE : __WASI_EVENTTYPE_FD_READ,
                     clients[at].fd, at);
        __wasi_size_t n = wait_for_it();
        for (__wasi_size_t at = 0; at < n; at++) {
            if (happened[at].userdata == MAX_CLIENTS)
                accept_all();
            else
                serve(&clients[happened[at].userdata]);
        }
    }
}

static void blocking(void) {
    static uint8_t bytes[BUFFER];
    for (;;) {
        __wasi_fd_t fd = accept_one(0);
        int32_t got;
        while ((got = receive(fd, bytes, sizeof bytes, 0)) > 0)
            if (transmit(fd, bytes, got) != got)
                break;
        check(__wasi_fd_close(fd) == 0, "close failed");
    }
}

static void slow(size_t bytes, uint64_t ms) {
    static uint8_t buffer[BUFFER];
    check(bytes <= sizeof buffer, "too many bytes at once");
    __wasi_fd_t fd = accept_one(0);
    uint64_t total = 0;
    int32_t got;
    while ((got = receive(fd, buffer, bytes, 0)) > 0) {
        total += got;
        want_time(ms, 0);
        wait_for_it();
    }
    char text[32];
    int len = snprintf(text, sizeof text, "%llu", (unsigned long long)total);
    check(transmit(fd, text, len) == len, "the sum can't be sent");
    check(__wasi_fd_close(fd) == 0, "close failed");
}

static void chargen(uint64_t bytes) {
    static uint8_t buffer[BUFFER];
    __wasi_fd_t fd = accept_one(0);
    for (uint64_t at = 0; at < bytes;) {
        size_t len = bytes - at < sizeof buffer ? bytes - at : sizeof buffer;
        for (size_t i = 0; i < len; i++)
            buffer[i] = (uint8_t)((at + i) % 251);
        int32_t sent = transmit(fd, buffer, len);
        if (sent < 0) {
            printf("error %d\n", -sent);
            exit(3);
        }
        at += sent;
    }
    check(__wasi_sock_shutdown(fd, __WASI_SDFLAGS_WR) == 0, "shutdown failed");
    check(transmit(fd, "x", 1) == -__WASI_ERRNO_PIPE, "sent after a shutdown");
    while (receive(fd, buffer, sizeof buffer, 0) > 0) {
    }
    check(__wasi_fd_close(fd) == 0, "close failed");
}

static void deaf(void) {
    while (getchar() != EOF) {
    }
}

static void exits(int clients_wanted) {
    for (int n = 0; n < clients_wanted; n++) {
        __wasi_fd_t fd = accept_one(0);
        char byte;
        check(receive(fd, &byte, 1, 0) == 1 && transmit(fd, "hello", 5) == 5, "a client is gone");
    }
    exit(7);
}

static void show(const char *text) {
    puts(text);
    fflush(stdout);
}

static void waits(void) {
    want(__WASI_EVENTTYPE_FD_READ, LISTENER, 1);
    want_time(20, 2);
    check(wait_for_it() == 1 && happened[0].userdata == 2, "a timeout without clients");
    show("timeout");
    want(__WASI_EVENTTYPE_FD_READ, LISTENER, 1);
    want_time(600000, 2);
    check(wait_for_it() == 1 && happened[0].userdata == 1 && happened[0].fd_readwrite.nbytes == 1, "a client");
    show("client");
    __wasi_fd_t fd = accept_one(__WASI_FDFLAGS_NONBLOCK);
    for (;;) {
        want(__WASI_EVENTTYPE_FD_READ, fd, 1);
        want(__WASI_EVENTTYPE_FD_READ, LISTENER, 3);
        want_time(600000, 2);
        check(wait_for_it() == 1 && happened[0].userdata == 1, "bytes");
        char bytes[100];
        int32_t got = receive(fd, bytes, sizeof bytes, 0);
        int hangup = happened[0].fd_readwrite.flags & __WASI_EVENTRWFLAGS_FD_READWRITE_HANGUP;
        printf("%d bytes, %d read, hangup %d\n", (int)happened[0].fd_readwrite.nbytes, (int)got, hangup);
        fflush(stdout);
        if (got <= 0)
            break;
    }
    check(__wasi_fd_close(fd) == 0, "close failed");
}

static void flags(void) {
    __wasi_fd_t other;
    __wasi_fdstat_t stat;
    check(__wasi_fd_fdstat_get(LISTENER, &stat) == 0 && stat.fs_filetype == __WASI_FILETYPE_SOCKET_STREAM, "type");
    check(receive(LISTENER, &other, 1, 0) == -__WASI_ERRNO_NOTCONN, "received from the listener");
    __wasi_fd_t fd = accept_one(0);
    check(fd == LISTENER + 1, "number of the client");
    check(__wasi_sock_accept(fd, 0, &other) == __WASI_ERRNO_INVAL, "accepted from a client");
    check(__wasi_sock_accept(1, 0, &other) == __WASI_ERRNO_NOTSOCK, "accepted from a stream");
    uint8_t bytes[8] = {0};
    // The client sends "abc", and "defgh" when it has got "abc" back.
    check(receive(fd, bytes, 8, __WASI_RIFLAGS_RECV_PEEK) > 0 && bytes[0] == 'a', "peek");
    check(receive(fd, bytes, 3, __WASI_RIFLAGS_RECV_WAITALL) == 3 && !memcmp(bytes, "abc", 3), "the first three");
    check(__wasi_fd_fdstat_set_flags(fd, __WASI_FDFLAGS_NONBLOCK) == 0, "set flags");
    check(__wasi_fd_fdstat_get(fd, &stat) == 0 && stat.fs_flags == __WASI_FDFLAGS_NONBLOCK, "get flags");
    check(receive(fd, bytes, 8, 0) == -__WASI_ERRNO_AGAIN, "nothing yet");
    check(read(fd, bytes, 8) < 0 && errno == EAGAIN, "nothing yet by read");
    check(__wasi_fd_fdstat_set_flags(fd, 0) == 0, "clear flags");
    check(write(fd, "abc", 3) == 3, "write");
    check(receive(fd, bytes, 5, __WASI_RIFLAGS_RECV_WAITALL) == 5 && !memcmp(bytes, "defgh", 5), "the rest");
    // The client resets the connection when it has got this.
    check(transmit(fd, "done", 4) == 4, "send");
    check(receive(fd, bytes, 8, 0) == -__WASI_ERRNO_CONNRESET, "a reset");
    check(transmit(fd, "x", 1) == -__WASI_ERRNO_CONNRESET, "a reset when sending");
    check(__wasi_fd_close(fd) == 0 && __wasi_fd_close(fd) == __WASI_ERRNO_BADF, "close");
    puts("all fine");
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "echo";
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    uint64_t second = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    if (!strcmp(mode, "echo"))
        echo();
    else if (!strcmp(mode, "blocking"))
        blocking();
    else if (!strcmp(mode, "slow"))
        slow(first, second);
    else if (!strcmp(mode, "chargen"))
        chargen(first);
    else if (!strcmp(mode, "deaf"))
        deaf();
    else if (!strcmp(mode, "exit"))
        exits((int)first);
    else if (!strcmp(mode, "wait"))
        waits();
    else if (!strcmp(mode, "flags"))
        flags();
    else
        check(0, "no such mode");
    return 0;
}
