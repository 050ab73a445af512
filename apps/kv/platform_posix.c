// platform_posix.c: the platform layer on Linux, for development and tests: epoll, level-triggered.
#define _GNU_SOURCE
#include "platform.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 512

static int epoll_fd = -1;
static struct epoll_event events[EVENTS];
static int event_count, event_next;

bool platform_listen(Endpoint endpoint, Watch *watch) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)endpoint.port)};
    if (inet_pton(AF_INET, endpoint.address, &address.sin_addr) != 1) {
        fprintf(stderr, "kv: --bind takes an IPv4 address, not %s\n", endpoint.address);
        return false;
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    socklen_t size = sizeof address;
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) || listen(fd, 1024) ||
        getsockname(fd, (struct sockaddr *)&address, &size) || (epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) {
        perror("kv: cannot listen");
        return false;
    }
    *watch = (Watch){.fd = fd};
    printf("listening on %s:%d\n", endpoint.address, ntohs(address.sin_port));
    fflush(stdout);
    return true;
}

Accepted platform_accept(Watch *listener, int *fd) {
    *fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (*fd >= 0) {
        int on = 1;
        setsockopt(*fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        return ACCEPT_OK;
    }
    return errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM ? ACCEPT_FULL : ACCEPT_AGAIN;
}

static int64_t result(ssize_t n) {
    return n >= 0 ? n : errno == EAGAIN || errno == EINTR ? IO_AGAIN : IO_FAILED;
}

int64_t platform_receive(int fd, void *buffer, size_t size) {
    return result(recv(fd, buffer, size, 0));
}

int64_t platform_send(int fd, Str first, Str second) {
    struct iovec pieces[2] = {{(void *)first.p, first.n}, {(void *)second.p, second.n}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = second.n ? 2 : 1};
    return result(sendmsg(fd, &message, MSG_NOSIGNAL));
}

void platform_close(int fd) {
    close(fd);
}

bool platform_watch(Watch *watch, bool reads, bool writes) {
    struct epoll_event event = {.events = (reads ? EPOLLIN : 0u) | (writes ? EPOLLOUT : 0u), .data.ptr = watch};
    bool known = watch->reads || watch->writes;
    if (epoll_ctl(epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, watch->fd, &event)) return false;
    watch->reads = reads;
    watch->writes = writes;
    return true;
}

void platform_unwatch(Watch *watch) {
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    watch->reads = watch->writes = false;
}

void platform_wait(int64_t timeout_ms) {
    int timeout = timeout_ms < 0 ? -1 : timeout_ms > 60000 ? 60000 : (int)timeout_ms;
    event_count = epoll_wait(epoll_fd, events, EVENTS, timeout);
    event_next = 0;
}

bool platform_ready(Ready *ready) {
    if (event_next >= event_count) return false;
    const struct epoll_event *event = &events[event_next++];
    bool broken = (event->events & (EPOLLERR | EPOLLHUP)) != 0;
    *ready = (Ready){event->data.ptr, broken || event->events & EPOLLIN, broken || event->events & EPOLLOUT};
    return true;
}

int64_t platform_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

uint64_t platform_micros(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void platform_random(void *bytes, size_t n) {
    if (getrandom(bytes, n, 0) != (ssize_t)n) perror("kv: getrandom");
}

void platform_say(const char *line) {
    fprintf(stderr, "%s\n", line);
}

uint32_t platform_watch_limit(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) || files.rlim_max == RLIM_INFINITY) return 60000;
    return files.rlim_max > 60032 ? 60000 : (uint32_t)files.rlim_max - 32;
}
