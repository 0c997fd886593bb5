/* SPDX-License-Identifier: Apache-2.0 */
/* Two connected TCP sockets on loopback, for tests. */
#ifndef ZT_TCP_PAIR_H
#define ZT_TCP_PAIR_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include "check.h"

/* A listening socket on a port of the kernel's choice. */
static inline int tcp_listen(struct sockaddr_in *at) {
    socklen_t len = sizeof(*at);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)at, len) == 0 && listen(fd, 1024) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)at, &len) == 0);
    return fd;
}

static inline void tcp_set_nonblocking(int fd) {
    CHECK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0);
}

/* `ends[0]` is not blocking, for the core; `ends[1]` is the test's. */
static inline void tcp_pair(int ends[2]) {
    struct sockaddr_in at;
    const int listener = tcp_listen(&at);
    ends[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(ends[1] >= 0 && connect(ends[1], (struct sockaddr *)&at, sizeof(at)) == 0);
    ends[0] = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    CHECK(ends[0] >= 0);
    close(listener);
}

/* Closes with a RST. */
static inline void tcp_reset(int fd) {
    const struct linger now = {.l_onoff = 1, .l_linger = 0};
    CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)) == 0);
    close(fd);
}

#endif
