/* SPDX-License-Identifier: Apache-2.0 */
/* Counters: traffic by slot, events by name.
 *
 * Each worker has pages of its own with one writer, itself; readers add them up with relaxed loads.
 * A slot is an index that the decider maps to a set of labels. Nothing ever counts backwards.
 */
#ifndef ZT_STATS_H
#define ZT_STATS_H

#include "mem.h"
#include "reason.h"

#define STATS_SLOTS_MAX 65536

enum stats_column {
    STATS_OPENED,
    STATS_RECEIVED, /* client to upstream, bytes */
    STATS_SENT,     /* upstream to client, bytes */
    STATS_CLOSED,   /* by flag: STATS_CLOSED + reason_flag() */
    STATS_COLUMNS = STATS_CLOSED + REASON_FLAGS,
};

enum stats_event {
#define EVENT(name) EVENT_##name,
#include "stats.def"
#undef EVENT
    STATS_EVENTS,
};

/* One thread's counters. A `struct stats` that several threads write (the flow table's) counts with
 * `stats_count_shared`. */
struct stats {
    struct mem *mem;
    _Atomic uint64_t events[STATS_EVENTS];
    _Atomic(_Atomic uint64_t *) pages[STATS_SLOTS_MAX / 256]; /* 256 slots each, made on use */
};

void stats_init(struct stats *stats, struct mem *mem);
void stats_clear(struct stats *stats);

/* Adds to a slot's column. Owner thread. Without memory for the page the count is lost, and
 * counted as `counts_lost`. */
void stats_add(struct stats *stats, uint32_t slot, unsigned column, uint64_t n);

/* Counts an event. Owner thread. */
static inline void stats_count(struct stats *stats, enum stats_event event) {
    uint64_t n = atomic_load_explicit(&stats->events[event], memory_order_relaxed);
    atomic_store_explicit(&stats->events[event], n + 1, memory_order_relaxed);
}

/* Counts an event. Any thread. */
void stats_count_shared(struct stats *stats, enum stats_event event);

/* Adds this thread's columns of slots 0..n_slots-1 to `sums`, which has n_slots * STATS_COLUMNS
 * numbers. Any thread. */
void stats_sum_slots(const struct stats *stats, uint64_t *sums, size_t n_slots);

/* Adds this thread's events to `sums` (STATS_EVENTS numbers). Any thread. */
void stats_sum_events(const struct stats *stats, uint64_t *sums);

const char *stats_event_name(enum stats_event event);

#endif
