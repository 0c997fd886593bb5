/* SPDX-License-Identifier: Apache-2.0 */
/* An application that says what it hears, on a thread of its own; an end is answered with an end.
 */
#ifndef ZT_ECHO_H
#define ZT_ECHO_H

#include <errno.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "tcp_pair.h"

#define ECHO_SIZE 16384

struct echo_conn {
    int fd;
    bool has_ended; /* nothing more is heard */
    size_t at, len; /* what is still to be said */
    char bytes[ECHO_SIZE];
};

struct echo {
    int listener, epoll, stop; /* an eventfd */
    struct sockaddr_in address;
    pthread_t thread;
    _Atomic unsigned n_accepted;
    _Atomic unsigned n_open;
};

static inline void echo_close(struct echo *echo, struct echo_conn *conn) {
    close(conn->fd);
    free(conn);
    echo->n_open--;
}

/* False once the connection is over. */
static inline bool echo_serve(struct echo_conn *conn) {
    for (;;) {
        while (conn->at < conn->len) {
            const ssize_t n =
                send(conn->fd, conn->bytes + conn->at, conn->len - conn->at, MSG_NOSIGNAL);
            if (n < 0) {
                return errno == EAGAIN;
            }
            conn->at += (size_t)n;
        }
        if (conn->has_ended) {
            (void)shutdown(conn->fd, SHUT_WR);
            return false;
        }
        const ssize_t n = recv(conn->fd, conn->bytes, sizeof(conn->bytes), 0);
        if (n < 0) {
            return errno == EAGAIN;
        }
        conn->has_ended = n == 0;
        conn->at = 0;
        conn->len = (size_t)n;
    }
}

static inline void echo_accept(struct echo *echo) {
    int fd;
    while ((fd = accept4(echo->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct echo_conn *const conn = calloc(1, sizeof(*conn));
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = conn};
        CHECK(conn != NULL);
        conn->fd = fd;
        echo->n_accepted++;
        echo->n_open++;
        CHECK(epoll_ctl(echo->epoll, EPOLL_CTL_ADD, fd, &event) == 0);
    }
}

/* What is open in the end is left to the process. */
static inline void *echo_run(void *argument) {
    struct echo *const echo = argument;
    for (;;) {
        struct epoll_event event;
        if (epoll_wait(echo->epoll, &event, 1, -1) != 1) {
            continue;
        }
        if (event.data.ptr == &echo->stop) {
            return NULL;
        }
        if (event.data.ptr == &echo->listener) {
            echo_accept(echo);
        } else if (!echo_serve(event.data.ptr)) {
            echo_close(echo, event.data.ptr);
        }
    }
}

static inline void echo_start(struct echo *echo) {
    memset(echo, 0, sizeof(*echo));
    echo->listener = tcp_listen(&echo->address);
    tcp_set_nonblocking(echo->listener);
    echo->epoll = epoll_create1(EPOLL_CLOEXEC);
    echo->stop = eventfd(0, EFD_CLOEXEC);
    struct epoll_event accept = {.events = EPOLLIN, .data.ptr = &echo->listener};
    struct epoll_event stop = {.events = EPOLLIN, .data.ptr = &echo->stop};
    CHECK(epoll_ctl(echo->epoll, EPOLL_CTL_ADD, echo->listener, &accept) == 0);
    CHECK(epoll_ctl(echo->epoll, EPOLL_CTL_ADD, echo->stop, &stop) == 0);
    CHECK(pthread_create(&echo->thread, NULL, echo_run, echo) == 0);
}

/* Its connections must have ended. */
static inline void echo_stop(struct echo *echo) {
    const uint64_t one = 1;
    CHECK_INT_EQ(write(echo->stop, &one, sizeof(one)), sizeof(one));
    CHECK_INT_EQ(pthread_join(echo->thread, NULL), 0);
    close(echo->listener);
    close(echo->epoll);
    close(echo->stop);
}

#endif
