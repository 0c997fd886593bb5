/* SPDX-License-Identifier: Apache-2.0 */
/* Records: one event of a connection's life, on its way to whoever writes it down.
 *
 * Each worker has a ring with one producer, itself, and one consumer. A ring holds RECORD_RING
 * records and grows in chunks, which are given back as they are read; over it the newest is lost
 * and counted by the caller, traffic never waits. All rings announce through one eventfd, written
 * only when the consumer may be asleep.
 */
#ifndef ZT_RECORD_H
#define ZT_RECORD_H

#include <pthread.h>

#include "addr.h"
#include "mem.h"
#include "reason.h"
#include "trace.h"
#include "verdict.h"

#define RECORD_RING 65536

enum record_kind { RECORD_OPENED, RECORD_CLOSED, RECORD_DENIED };

enum record_step { STEP_ACCEPTED, STEP_DECIDED, STEP_TUNNEL, STEP_CONNECTED, STEP_CLOSED, STEPS };

struct record {
    uint64_t conn; /* connection id */
    struct trace trace;
    uint32_t workload; /* id */
    uint32_t hop;      /* index of the hop in the verdict */
    uint8_t kind;      /* enum record_kind */
    uint8_t reason;    /* enum reason */
    bool is_inbound;
    bool has_hop;         /* labels and log fields are those of `verdict` and `hop` */
    int8_t tunnel_reused; /* -1: there is no tunnel */
    uint8_t protocol;     /* enum hop_protocol, as the log names it */
    struct addr src, dst, original_dst, app;
    uint64_t upstream_bytes, downstream_bytes;
    uint64_t steps_ns[STEPS]; /* 0: not reached */
    struct verdict *verdict;  /* a reference, or NULL */
    char *detail;             /* terminated, owned (a MEM_RECORD), or NULL */
    char *authority;          /* terminated, owned (a MEM_RECORD), or NULL */
};

struct records; /* all rings and their descriptor */

struct records *records_create(struct mem *mem, size_t n_rings);
void records_destroy(struct records *records);
int records_fd(const struct records *records);

/* Hands a record to ring `ring`: the references and texts in it now belong to the ring. False if it
 * was lost (they are released). Owner thread of the ring. */
bool records_put(struct records *records, size_t ring, const struct record *record);

/* Takes up to `limit` records, oldest of each ring first; release each with `record_release`.
 * Re-arms the descriptor if some are left. One consumer. */
size_t records_take(struct records *records, struct record *to, size_t limit);
void record_release(struct records *records, struct record *record);

#endif
