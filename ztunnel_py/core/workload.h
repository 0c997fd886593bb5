/* SPDX-License-Identifier: Apache-2.0 */
/* A local workload: what all workers share about it.
 *
 * Created and removed by the decider's thread, reference counted, so that connections that outlive
 * its removal still find it. Counts are atomic; the identity is swapped under a lock.
 */
#ifndef ZT_WORKLOAD_H
#define ZT_WORKLOAD_H

#include <pthread.h>

#include "core.h"
#include "flow.h"
#include "ident.h"

struct workload;

/* A listening socket, shared by all workers: each has a watch on it. */
struct listener {
    struct workload *workload;
    enum core_role role;
    int fd; /* -1: closed */
    struct addr bound;
    bool is_transparent;
    bool is_serving;
    struct accepting *accepting; /* one per worker, see accept.c */
};

struct workload {
    uint32_t id;
    _Atomic uint32_t refs;
    struct core *core;
    struct mem *mem;
    int netns;                             /* where its sockets are; -1: where we are */
    struct listener listeners[CORE_ROLES]; /* `fd` is -1 for those it has not */
    struct flow_share share;
    pthread_mutex_t lock;     /* guards `ident` */
    struct ident *ident;      /* NULL: to be asked for */
    _Atomic uint32_t n_live;  /* connections, handshakes and served tunnels */
    _Atomic uint32_t n_conns; /* connections */
    _Atomic int64_t buffered; /* bytes that wait for stalled readers of its streams */
    _Atomic bool is_draining;
    _Atomic bool is_gone; /* whatever still arrives ends with REASON_DRAINED */
};

/* Duplicates `netns`, if it is not -1. NULL with errno. */
struct workload *workload_create(struct core *core, struct mem *mem, uint32_t id, int netns);
struct workload *workload_ref(struct workload *workload);
void workload_unref(struct workload *workload);

/* A reference to the newest certificate, or NULL. Any thread. */
struct ident *workload_ident(struct workload *workload);

/* Takes the reference; NULL forgets the certificate. Any thread. */
void workload_set_ident(struct workload *workload, struct ident *ident);

/* Something lives on its behalf, or no longer. Any thread. */
void workload_enter(struct workload *workload);
void workload_leave(struct workload *workload);

#endif
