/* SPDX-License-Identifier: Apache-2.0 */
/* Allocation with live counts by kind, which can be told to fail.
 *
 * Everything the core allocates goes through here, so that a test can see that nothing is left and
 * can walk through every path of an allocation that fails. Counts belong to a `struct mem`; each
 * core has one, and what is allocated with it is freed with it, on any thread.
 */
#ifndef ZT_MEM_H
#define ZT_MEM_H

#include "base.h"

enum mem_kind {
    MEM_WORKLOAD,
    MEM_LISTENER,
    MEM_IDENTITY,
    MEM_CONN,
    MEM_TUNNEL,
    MEM_STREAM,
    MEM_FLOW,
    MEM_VERDICT,
    MEM_QUESTION,
    MEM_RECORD,
    MEM_BUFFER,
    MEM_OTHER, /* parts of the above */
    MEM_CORE,  /* the core's own structures, as long as it lives */
    MEM_KINDS,
};

struct mem {
    _Atomic int64_t live[MEM_KINDS]; /* objects that were allocated and not freed */
    _Atomic int64_t buffered;        /* bytes of MEM_BUFFER objects */
};

/* Zeroed memory, NULL if there is none. */
void *mem_alloc(struct mem *mem, enum mem_kind kind, size_t size);

/* Gives memory back; NULL is harmless. */
void mem_free(struct mem *mem, enum mem_kind kind, void *pointer);

/* Name of a kind, as `debug_counts` shows it: "workloads", "listeners", "identities",
 * "connections", "tunnels", "streams", "flows", "verdicts", "questions", "records", "buffers",
 * "others", "core". */
const char *mem_kind_name(enum mem_kind kind);

/* Tests: the n-th allocation from now (1 is the next) of any thread fails, once; 0 means none. */
void mem_fail_at(uint64_t n);

/* Tests: that allocation has failed (also true if none was to). */
bool mem_has_failed(void);

#endif
