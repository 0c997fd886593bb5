/* SPDX-License-Identifier: Apache-2.0 */
/* Two byte streams joined: both directions, half-close, back-pressure, counts.
 *
 * Each direction is a pipe, the sink of its source. The directions are independent: one that ends
 * never cancels the other. A direction that ends, in order or not, half-closes its target once
 * everything has left. Resets are how many protocols say goodbye, so they are an end and not an
 * error (spec dataplane, section 8.3). The same rules in Python: ztunnel_py/reference/relay.py.
 *
 * A pipe may have a source before it has a target: what arrives early is held. Bytes held for a
 * stream count against the workload's budget.
 */
#ifndef ZT_RELAY_H
#define ZT_RELAY_H

#include "buf.h"
#include "io.h"

struct relay;

struct pipe {
    struct sink sink;
    struct relay *relay;
    struct io *source;      /* NULL until it is known */
    struct io *target;      /* NULL until it is connected */
    struct queue held;      /* read and not yet taken by the target */
    uint64_t carried;       /* bytes that the target took */
    uint64_t stalled_since; /* when bytes began to wait, loop time; 0: none do */
    struct io_error error;  /* why the source broke, if it is worth a word */
    bool has_error;
    bool has_ended; /* nothing more is taken from the source */
    bool is_over;   /* and everything has left */
};

struct relay_ops {
    void (*carried)(struct relay *relay, struct pipe *pipe, size_t n);    /* bytes that left */
    void (*held)(struct relay *relay, struct pipe *pipe, int64_t change); /* bytes that wait */
    void (*over)(struct relay *relay); /* both directions are over; called once */
};

struct relay {
    const struct relay_ops *ops;
    struct worker *worker;
    struct pipe up;   /* client to upstream */
    struct pipe down; /* upstream to client */
    bool is_over;
};

void relay_init(struct relay *relay, const struct relay_ops *ops, struct worker *worker);

/* Names one end. With a `is_reading` end its bytes are taken from now on, and held. */
void relay_set_client(struct relay *relay, struct io *client);
void relay_set_upstream(struct relay *relay, struct io *upstream);

/* Both ends are there: begins to move bytes. */
void relay_start(struct relay *relay);

/* Closes both ends and drops what waits; `over` is not called any more. */
void relay_close(struct relay *relay);

#endif
