/* SPDX-License-Identifier: Apache-2.0 */
/* What the core consists of, for its own files. */
#ifndef ZT_CORE_STATE_H
#define ZT_CORE_STATE_H

#include "revocation.h"
#include "workload.h"
#include "worker.h"

struct core {
    struct core_config config;
    struct mem mem;
    struct released released;
    struct upcalls *upcalls;
    struct flows *flows;
    struct records *records;
    struct stats stats; /* of threads that are no workers: flow table, decider */
    struct worker *workers;
    size_t n_workers; /* that run */
    int idle_fd;
    _Atomic bool is_idle_wanted; /* somebody looks at `idle_fd` */
    struct revocation revocation;
    struct workload **workloads; /* one reference each; the decider's thread only */
    size_t n_workloads, workloads_size;
    _Atomic uint64_t next_id; /* of connections and tunnels */
    _Atomic bool report_opened;
};

/* A workload became idle. Any thread. */
void core_became_idle(struct core *core);

/* A new id for a connection or tunnel. Any thread. */
uint64_t core_next_id(struct core *core);

#endif
