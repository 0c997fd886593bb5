/* SPDX-License-Identifier: Apache-2.0 */
/* A worker: one thread, its loop, and all that lives on it. */
#ifndef ZT_WORKER_H
#define ZT_WORKER_H

#include <pthread.h>

#include "buf.h"
#include "churn.h"
#include "core.h"
#include "loop.h"
#include "pool.h"
#include "stats.h"
#include "trace.h"

#define WIRE_SIZE ((size_t)(512 * 1024)) /* bytes read from a tunnel's socket at once, at most */
#define PLAIN_SIZE ((size_t)(256 * 1024))

struct worker {
    struct loop loop;
    struct core *core;
    struct mem *mem;
    size_t index;
    pthread_t thread;
    struct stats stats;
    struct list conns;      /* of struct conn */
    struct list tunnels;    /* of struct tunnel, both directions */
    struct list handshakes; /* of struct tunnel: accepted, not yet identified */
    uint32_t n_handshakes;
    uint32_t n_lingers;
    struct list lingers; /* of struct lingering */
    struct pool pool;
    struct churn churn;
    struct stock wires;         /* blocks of encrypted bytes on their way out */
    struct stock plains;        /* blocks of plain bytes that gather for one TLS record */
    uint8_t *scratch;           /* what sockets push from: IO_HEADROOM + IO_READ_MAX bytes */
    uint8_t *wire_in;           /* what tunnels read into: WIRE_SIZE bytes */
    uint8_t *plain_in;          /* decrypted: PLAIN_SIZE bytes */
    uint64_t random[2];         /* state of `worker_random` */
    _Atomic uint32_t n_tunnels; /* served here, for placing new ones */
};

/* Starts the thread. False without memory, descriptors or threads. */
bool worker_start(struct worker *worker, struct core *core, size_t index);

/* Frees what a worker whose thread has ended holds, but for its counters. */
void worker_clear(struct worker *worker);

/* A trace id that nobody else has, and a span id if this is the client's side. */
struct trace worker_trace(struct worker *worker, bool is_client);

/* Next number of a fast generator; for drawing hops and trace ids, not for secrets. */
uint64_t worker_random(struct worker *worker);

#endif
