/* SPDX-License-Identifier: Apache-2.0 */
/* A pair of bare relays: what redirection and two copies cost when nothing else is done.
 *
 *   relay out HOST PORT   on 15001: to the relay at HOST:PORT, first the original destination
 *   relay in              on 15008: to the destination that the first six bytes name
 *
 * No TLS, no pool, no policy: a connection in is a connection out. One line is printed for each.
 * It ends with the programs around it, or by itself after an hour. */
#include "net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter_ipv4.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OUT_PORT = 15001, IN_PORT = 15008, MARK = 1337, TARGET_SIZE = 6 };

/* One of the two sockets of a connection. */
struct side {
    struct side *other; /* where its bytes go; NULL until dialled */
    char *rest;         /* bytes for this socket that it did not take; owned; NULL if none */
    size_t rest_len;    /* of them */
    uint64_t received;  /* bytes read from this socket */
    int fd;             /* owned; -1 if closed */
    bool is_connecting;
    bool is_finished; /* has sent its last byte */
};

static char scratch[NET_CHUNK];
static struct side *dead[4 * NET_BATCH]; /* freed after the batch, whose events may name them */
static size_t n_dead;

static struct side *side_open(int fd, bool is_connecting)
{
    struct side *side = calloc(1, sizeof *side);
    if (side == NULL) {
        net_die("calloc");
    }
    *side = (struct side){.fd = fd, .is_connecting = is_connecting};
    return side;
}

static void side_close(struct side *side)
{
    if (side != NULL && side->fd >= 0) {
        close(side->fd);
        side->fd = -1;
        dead[n_dead++] = side;
    }
}

static void conn_end(struct side *side)
{
    if (side->fd >= 0) {
        uint64_t back = side->other != NULL ? side->other->received : 0;
        (void)printf("closed %ju %ju\n", (uintmax_t)side->received, (uintmax_t)back);
    }
    side_close(side->other);
    side_close(side);
}

/* Reads only while the other socket has taken everything; writes only what is left. */
static void side_watch(int epoll, int op, struct side *side)
{
    bool may_read = !side->is_finished && !side->is_connecting &&
                    (side->other == NULL || (side->other->rest == NULL && !side->other->is_connecting));
    bool must_write = side->is_connecting || side->rest != NULL;
    uint32_t events = (may_read ? (uint32_t)EPOLLIN : 0U) | (must_write ? (uint32_t)EPOLLOUT : 0U);
    net_watch(epoll, op, side->fd, events, side);
}

/* Keeps `len` bytes until `side` takes them. */
static void side_keep(struct side *side, const char *bytes, size_t len)
{
    char *copy = malloc(len);
    if (copy == NULL) {
        net_die("malloc");
    }
    memcpy(copy, bytes, len);
    free(side->rest);
    side->rest = copy;
    side->rest_len = len;
}

/* Returns false if the connection is broken. */
static bool side_flush(int epoll, struct side *side)
{
    if (side->rest != NULL) {
        ssize_t n = send(side->fd, side->rest, side->rest_len, MSG_NOSIGNAL);
        if (n < 0) {
            return errno == EAGAIN;
        }
        if ((size_t)n < side->rest_len) {
            side_keep(side, side->rest + n, side->rest_len - (size_t)n);
            return true;
        }
        free(side->rest);
        side->rest = NULL;
    }
    if (side->other->is_finished) {
        (void)shutdown(side->fd, SHUT_WR);
    }
    side_watch(epoll, EPOLL_CTL_MOD, side);
    side_watch(epoll, EPOLL_CTL_MOD, side->other);
    return true;
}

static bool dial(int epoll, struct side *side, const struct sockaddr_in *to, const char *first)
{
    int fd = net_dial(to, MARK);
    if (fd < 0) {
        return false;
    }
    side->other = side_open(fd, true);
    side->other->other = side;
    if (first != NULL) {
        side_keep(side->other, first, TARGET_SIZE);
    }
    side_watch(epoll, EPOLL_CTL_ADD, side->other);
    side_watch(epoll, EPOLL_CTL_MOD, side);
    return true;
}

static bool read_target(int epoll, struct side *side)
{
    char first[TARGET_SIZE];
    struct sockaddr_in to = {.sin_family = AF_INET};
    if (recv(side->fd, first, sizeof first, 0) != TARGET_SIZE) {
        return false;
    }
    memcpy(&to.sin_addr, first, 4);
    memcpy(&to.sin_port, first + 4, 2);
    return dial(epoll, side, &to, NULL);
}

/* Moves what can be read at once; returns false when the connection is over. */
static bool forward(int epoll, struct side *side)
{
    if (side->other == NULL) {
        return read_target(epoll, side);
    }
    ssize_t n = recv(side->fd, scratch, sizeof scratch, 0);
    if (n < 0) {
        return errno == EAGAIN;
    }
    if (n == 0) {
        side->is_finished = true;
        return !side->other->is_finished && side_flush(epoll, side->other);
    }
    side->received += (uint64_t)n;
    ssize_t sent = send(side->other->fd, scratch, (size_t)n, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        return false;
    }
    if (sent < n) {
        size_t taken = sent < 0 ? 0 : (size_t)sent;
        side_keep(side->other, scratch + taken, (size_t)n - taken);
        side_watch(epoll, EPOLL_CTL_MOD, side->other);
        side_watch(epoll, EPOLL_CTL_MOD, side);
    }
    return true;
}

/* Returns false when the connection is over. */
static bool advance(int epoll, struct side *side, uint32_t events)
{
    if (side->is_connecting) {
        if (net_error(side->fd) != 0) {
            return false;
        }
        side->is_connecting = false;
        return side_flush(epoll, side);
    }
    if ((events & EPOLLOUT) != 0 && !side_flush(epoll, side)) {
        return false;
    }
    if ((events & EPOLLIN) != 0 && !side->is_finished) {
        return forward(epoll, side);
    }
    return (events & EPOLLERR) == 0;
}

static void accept_all(int epoll, int listener, const struct sockaddr_in *next)
{
    int fd = -1;
    for (int i = 0; i < NET_BATCH && (fd = net_accept(listener)) >= 0; i++) {
        struct side *side = side_open(fd, false);
        net_watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, side);
        if (next == NULL) {
            continue;
        }
        struct sockaddr_in target = {0};
        socklen_t len = sizeof target;
        char first[TARGET_SIZE];
        bool is_open = getsockopt(fd, SOL_IP, SO_ORIGINAL_DST, &target, &len) == 0;
        memcpy(first, &target.sin_addr, 4);
        memcpy(first + 4, &target.sin_port, 2);
        if (!is_open || !dial(epoll, side, next, first)) {
            side_close(side);
        }
    }
}

static void free_dead(void)
{
    while (n_dead > 0) {
        struct side *side = dead[--n_dead];
        free(side->rest);
        free(side);
    }
}

int main(int argc, char **argv)
{
    bool is_out = argc == 4 && strcmp(argv[1], "out") == 0;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if ((!is_out && (argc != 2 || strcmp(argv[1], "in") != 0)) || epoll < 0) {
        (void)fprintf(stderr, "usage: relay out HOST PORT | relay in\n");
        return 2;
    }
    net_bound(3600);
    net_raise_files();
    struct sockaddr_in next = {0};
    if (is_out) {
        next = net_address(argv[2], argv[3]);
    }
    int listener = net_listen(is_out ? OUT_PORT : IN_PORT, MARK);
    net_watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        struct epoll_event events[NET_BATCH];
        int n = epoll_wait(epoll, events, NET_BATCH, -1);
        for (int i = 0; i < n; i++) {
            struct side *side = events[i].data.ptr;
            if (side == NULL) {
                accept_all(epoll, listener, is_out ? &next : NULL);
            } else if (side->fd >= 0 && !advance(epoll, side, events[i].events)) {
                conn_end(side);
            }
            if (n_dead > NET_BATCH) {
                break; /* level-triggered: the rest is reported again */
            }
        }
        free_dead();
    }
}
