/* SPDX-License-Identifier: Apache-2.0 */
/* A connected socket as an `io`. Edge-triggered: pausing and resuming cost no system call. */
#ifndef ZT_IO_FD_H
#define ZT_IO_FD_H

#include "io.h"
#include "loop.h"

struct worker;

struct io_fd {
    struct io io;
    struct watch watch; /* `watch.fd` is the socket, owned; -1: not open */
    struct deferred again;
    struct worker *worker;
    void (*connected)(struct io_fd *io); /* while it connects: it is over, see sock_error */
    int error;                           /* errno that broke it, reported to the sink in `again` */
    bool can_read;                       /* the kernel may have something */
    bool saw_hup;                        /* an end or an error is behind what can be read */
    bool is_paused;
    bool has_ended;  /* the end was read */
    bool is_blocked; /* an offer was short: `writable` is owed */
    bool must_fail;  /* a failure is to be reported */
};

/* Takes over a connected socket; nothing is read before a sink is set and `resume`. False if it
 * cannot be watched: the socket is still the caller's. */
bool io_fd_open(struct io_fd *io, struct worker *worker, int fd);

/* Whether it holds a socket. */
bool io_fd_is_open(const struct io_fd *io);

#endif
