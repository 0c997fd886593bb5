/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets, time and failure; see net.h. */
#include "net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void net_die(const char *what)
{
    (void)fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

uint64_t net_now(void)
{
    struct timespec t = {0};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

unsigned long net_number(const char *text, unsigned long max, const char *what)
{
    char *end = NULL;
    unsigned long n = strtoul(text, &end, 10);
    if (end == text || *end != '\0' || n > max) {
        errno = EINVAL;
        net_die(what);
    }
    return n;
}

struct sockaddr_in net_address(const char *host, const char *port)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)net_number(port, UINT16_MAX, "port"));
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1) {
        errno = EINVAL;
        net_die(host);
    }
    return to;
}

static void set(int fd, int level, int option, int value, const char *what)
{
    if (setsockopt(fd, level, option, &value, sizeof value) != 0) {
        net_die(what);
    }
}

static int open_socket(uint32_t mark)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && mark != 0) {
        set(fd, SOL_SOCKET, SO_MARK, (int)mark, "SO_MARK");
    }
    return fd;
}

int net_listen(uint16_t port, uint32_t mark)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = open_socket(mark);
    if (fd < 0) {
        net_die("socket");
    }
    set(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
    if (bind(fd, (const struct sockaddr *)&at, sizeof at) != 0 || listen(fd, 4096) != 0) {
        net_die("listen");
    }
    return fd;
}

int net_dial(const struct sockaddr_in *to, uint32_t mark)
{
    int fd = open_socket(mark);
    if (fd < 0) {
        return -1;
    }
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
    if (connect(fd, (const struct sockaddr *)to, sizeof *to) != 0 && errno != EINPROGRESS) {
        int failure = errno;
        close(fd);
        errno = failure;
        return -1;
    }
    return fd;
}

int net_accept(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        set(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
    } else if (errno != EAGAIN && errno != ECONNABORTED) {
        net_die("accept");
    }
    return fd;
}

int net_error(int fd)
{
    int failure = 0;
    socklen_t len = sizeof failure;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &len) == 0 ? failure : errno;
}

void net_watch(int epoll, int op, int fd, uint32_t events, void *owner)
{
    struct epoll_event event = {.events = events, .data.ptr = owner};
    if (epoll_ctl(epoll, op, fd, &event) != 0) {
        net_die("epoll_ctl");
    }
}

void net_bound(unsigned seconds)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) {
        net_die("prctl");
    }
    alarm(seconds);
}

void net_raise_files(void)
{
    struct rlimit limit = {0};
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit); /* too few shows later, as an error of its own */
    }
}
