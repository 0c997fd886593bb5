/* SPDX-License-Identifier: Apache-2.0 */
/* The application behind the proxies.
 *
 *   sink PORT:MODE ...
 *
 * discard  reads to the end, then answers with the number of bytes, 8 of them, and closes
 * echo     sends back what it reads until the client closes
 * once     sends the first bytes back and closes first
 * http     answers each request with NET_HTTP_ANSWER bytes; requests have no bodies
 * source   sends without end until the client closes
 *
 * It ends with the programs around it, or by itself after an hour. */
#include "net.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum mode { DISCARD, ECHO, ONCE, HTTP, SOURCE, N_MODES };

static const char *const MODES[N_MODES] = {"discard", "echo", "once", "http", "source"};

/* A listener or a connection. */
struct conn {
    uint64_t received;  /* bytes so far */
    int fd;             /* owned */
    enum mode mode;     /* fixed by the port */
    bool is_listener;
    unsigned char line_ends; /* of the bytes "\r\n\r\n", how many were just read (http) */
};

static char scratch[NET_CHUNK];
static char http_answer[NET_HTTP_ANSWER];

static void add(int epoll, int fd, enum mode mode, bool is_listener)
{
    struct conn *conn = calloc(1, sizeof *conn);
    if (conn == NULL) {
        net_die("calloc");
    }
    *conn = (struct conn){.fd = fd, .mode = mode, .is_listener = is_listener};
    bool is_writer = mode == SOURCE && !is_listener;
    net_watch(epoll, EPOLL_CTL_ADD, fd, is_writer ? EPOLLIN | EPOLLOUT : EPOLLIN, conn);
}

/* Frees `conn`; at most one event of a batch names it, because it has one descriptor. */
static void end(struct conn *conn)
{
    close(conn->fd);
    free(conn);
}

/* Answers are small and the client waits for each, so that they always fit the send buffer. */
static bool answer(const struct conn *conn, const void *bytes, size_t n_bytes)
{
    return send(conn->fd, bytes, n_bytes, MSG_NOSIGNAL) == (ssize_t)n_bytes;
}

/* Answers the requests that end in the `len` bytes of scratch. */
static bool answer_http(struct conn *conn, size_t len)
{
    bool is_alive = true;
    for (size_t i = 0; i < len; i++) {
        char wanted = conn->line_ends % 2 == 0 ? '\r' : '\n';
        if (scratch[i] == wanted) {
            conn->line_ends++;
        } else {
            conn->line_ends = scratch[i] == '\r' ? 1 : 0;
        }
        if (conn->line_ends == 4) {
            conn->line_ends = 0;
            is_alive = is_alive && answer(conn, http_answer, sizeof http_answer);
        }
    }
    return is_alive;
}

/* Sends what fits; returns whether the connection goes on. */
static bool pour(const struct conn *conn)
{
    char byte = 0;
    ssize_t n = recv(conn->fd, &byte, sizeof byte, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        return false;
    }
    return send(conn->fd, scratch, sizeof scratch, MSG_NOSIGNAL) >= 0 || errno == EAGAIN;
}

/* Returns whether the connection goes on. */
static bool serve(struct conn *conn)
{
    if (conn->mode == SOURCE) {
        return pour(conn);
    }
    /* MSG_TRUNC drops the bytes in the kernel: no copy, so that the sink is never the limit. */
    int flags = conn->mode == DISCARD ? MSG_TRUNC : 0;
    size_t size = conn->mode == DISCARD ? 1U << 20 : sizeof scratch;
    ssize_t n = recv(conn->fd, scratch, size, flags);
    if (n < 0) {
        return errno == EAGAIN;
    }
    if (n == 0) {
        if (conn->mode == DISCARD) {
            (void)answer(conn, &conn->received, sizeof conn->received);
        }
        return false;
    }
    conn->received += (uint64_t)n;
    switch (conn->mode) {
    case ECHO:
        return answer(conn, scratch, (size_t)n);
    case ONCE:
        (void)answer(conn, scratch, (size_t)n);
        return false;
    case HTTP:
        return answer_http(conn, (size_t)n);
    case DISCARD:
    case SOURCE:
    case N_MODES:
        break;
    }
    return true;
}

static void listen_as(int epoll, char *text)
{
    char *colon = strchr(text, ':');
    if (colon == NULL) {
        errno = EINVAL;
        net_die(text);
    }
    *colon = '\0';
    enum mode mode = DISCARD;
    while (mode < N_MODES && strcmp(MODES[mode], colon + 1) != 0) {
        mode++;
    }
    if (mode == N_MODES) {
        errno = EINVAL;
        net_die(colon + 1);
    }
    add(epoll, net_listen((uint16_t)net_number(text, UINT16_MAX, "port"), 0), mode, true);
}

int main(int argc, char **argv)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Length: ";
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (argc < 2 || epoll < 0) {
        (void)fprintf(stderr, "usage: sink PORT:discard|echo|once|http|source ...\n");
        return 2;
    }
    net_bound(3600);
    net_raise_files();
    memset(http_answer, 'x', sizeof http_answer);
    size_t body = sizeof http_answer - strlen(head) - strlen("123\r\n\r\n"); /* has 3 digits */
    int len = snprintf(http_answer, sizeof http_answer, "%s%zu\r\n\r\n", head, body);
    http_answer[len] = 'x';
    for (int i = 1; i < argc; i++) {
        listen_as(epoll, argv[i]);
    }
    for (;;) {
        struct epoll_event events[NET_BATCH];
        int n = epoll_wait(epoll, events, NET_BATCH, -1);
        for (int i = 0; i < n; i++) {
            struct conn *conn = events[i].data.ptr;
            if (!conn->is_listener) {
                if (!serve(conn)) {
                    end(conn);
                }
                continue;
            }
            for (int fd; (fd = net_accept(conn->fd)) >= 0;) {
                add(epoll, fd, conn->mode, false);
            }
        }
    }
}
