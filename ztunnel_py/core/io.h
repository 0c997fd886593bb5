/* SPDX-License-Identifier: Apache-2.0 */
/* A byte stream with two independent ends: what a relay joins.
 *
 * An `io` is a socket (io_fd.c) or a CONNECT stream of a tunnel (stream in tunnel.c). It keeps no
 * bytes. What it reads it pushes to its sink, which has to take everything. Whoever writes
 * *offers*: the io takes what can leave now, and if that was not all it says `writable` to its sink
 * once more will go. So nothing is copied unless somebody is slow, and an idle connection holds no
 * buffer.
 *
 * A sink may close the io from inside any of its calls; the io's memory lives to the end of the
 * turn.
 */
#ifndef ZT_IO_H
#define ZT_IO_H

#include <sys/uio.h>

#include "base.h"

#define IO_HEADROOM \
    64 /* writable bytes in front of what a socket pushes: room for a frame header */
#define IO_READ_MAX ((size_t)(16 * 16384 - 9)) /* a frame of that size fills 16 TLS records */

/* Why a stream of bytes broke: an errno, or the code of a reset (if `is_reset`). */
struct io_error {
    int number;
    uint32_t code;
    bool is_reset;
};

struct io;
struct sink;

struct sink_ops {
    /* How many bytes the sink would like at most, SIZE_MAX if it does not care. With 0 the source
     * pushes nothing until it is resumed. */
    size_t (*room)(struct sink *sink);
    void (*received)(struct sink *sink, const struct iovec *iov, int n, size_t total);
    void (*ended)(struct sink *sink); /* no more will come; writing may go on */
    void (*failed)(struct sink *sink, struct io_error error); /* broken both ways; the last call */
    void (*writable)(struct sink *sink);                      /* a short offer may be repeated */
};

struct sink {
    const struct sink_ops *ops;
};

struct io_ops {
    size_t (*offer)(struct io *io, const struct iovec *iov, int n, size_t total);
    size_t (*room)(struct io *io); /* bytes that an offer would take; SIZE_MAX: not known */
    void (*consumed)(struct io *io, size_t n); /* bytes pushed earlier have been passed on */
    /* Half-close behind what was taken; `is_closing`: it is closed right after this. */
    void (*end)(struct io *io, bool is_closing);
    void (*pause)(struct io *io);
    void (*resume)(struct io *io); /* pushes again, not before this call returns */
    void (*close)(struct io *io);  /* gives it up; what is half open breaks */
};

struct io {
    const struct io_ops *ops;
    struct sink *sink; /* NULL: nothing is pushed */
    bool is_broken;    /* nothing can be written any more */
    bool is_at_end;    /* while it pushes: nothing comes behind that but the end */
    bool end_follows;  /* hint for an offer: if all of it is taken, the end comes next */
};

#endif
