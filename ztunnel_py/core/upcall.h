/* SPDX-License-Identifier: Apache-2.0 */
/* Questions on their way to the decider: a queue that a descriptor announces.
 *
 * Served round-robin over workloads, so that one workload with thousands of questions delays no
 * other's. It is bounded by the questions that a workload may have open, see flow.h. Questions are
 * made and closed by flow.c; this queue links them and lends their keys to the decider.
 * Shared: one mutex. The descriptor is an eventfd, readable while questions wait.
 */
#ifndef ZT_UPCALL_H
#define ZT_UPCALL_H

#include <pthread.h>

#include "flow.h"
#include "map.h"

/* A question as the decider sees it. */
struct upcall {
    uint64_t id;
    uint32_t workload;
    enum key_kind kind;
    uint8_t *key; /* freed with `upcall_free` */
    size_t key_len;
};

struct upcalls;

struct upcalls *upcalls_create(struct mem *mem);
void upcalls_destroy(struct upcalls *upcalls);
int upcalls_fd(const struct upcalls *upcalls);

/* Takes up to `limit` questions, oldest of each workload first, workloads in turn; taking one
 * acknowledges it. Re-arms the descriptor if some are left. */
size_t upcalls_take(struct upcalls *upcalls, struct upcall *to, size_t limit);
void upcall_free(struct upcalls *upcalls, struct upcall *upcall);

/* --- for flow.c */

/* An open question. Guarded by its shard's lock, but for what is said otherwise. */
struct pending {
    struct map_node by_id;  /* among the open ones of its shard */
    struct map_node by_key; /* among the ones that may be joined, if `is_joinable` */
    struct list queued;     /* in `share->questions` until it is taken; the queue's lock */
    struct list waiters;    /* of struct flow_waiter, longest first */
    uint32_t n_waiters;
    struct flow_share *share; /* whose question it is; not to be followed once it is closed */
    uint64_t id;
    enum key_kind kind;
    bool is_joinable;             /* others with the same key may wait for the same answer */
    _Atomic bool is_acknowledged; /* the decider took it, or the one that it was split from */
    _Atomic uint32_t refs;        /* one while it is open, one for each `upcall` with its key */
    size_t key_len;
    uint8_t key[];
};

/* Appends an open question. True if `upcalls_ring` has to be called, best without any lock. */
bool upcalls_push(struct upcalls *upcalls, struct pending *pending);
void upcalls_ring(struct upcalls *upcalls);

/* Takes a closed question out, wherever it is. Its share is not touched afterwards. */
void upcalls_remove(struct upcalls *upcalls, struct pending *pending);

/* Drops a reference to a question, see `refs`. */
void upcalls_unref(struct upcalls *upcalls, struct pending *pending);

#endif
