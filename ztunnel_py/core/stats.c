/* SPDX-License-Identifier: Apache-2.0 */
/* Counters: pages with one writer and any number of readers; see stats.h. */
#include "stats.h"

#define PAGE_SLOTS 256
#define PAGE_COUNTS ((size_t)PAGE_SLOTS * STATS_COLUMNS)

_Static_assert(STATS_SLOTS_MAX % PAGE_SLOTS == 0, "the last page is a whole one");

static _Atomic uint64_t *page_of(const struct stats *stats, size_t index) {
    return atomic_load_explicit(&stats->pages[index], memory_order_acquire);
}

/* Adds without a locked instruction: there is no other writer. */
static void add_single_writer(_Atomic uint64_t *count, uint64_t n) {
    const uint64_t before = atomic_load_explicit(count, memory_order_relaxed);
    atomic_store_explicit(count, before + n, memory_order_relaxed);
}

void stats_init(struct stats *stats, struct mem *mem) {
    memset(stats, 0, sizeof(*stats));
    stats->mem = mem;
}

void stats_clear(struct stats *stats) {
    for (size_t i = 0; i < ARRAY_LEN(stats->pages); i++) {
        mem_free(stats->mem, MEM_CORE, (void *)page_of(stats, i));
        atomic_store_explicit(&stats->pages[i], NULL, memory_order_relaxed);
    }
    for (size_t i = 0; i < STATS_EVENTS; i++) {
        atomic_store_explicit(&stats->events[i], 0, memory_order_relaxed);
    }
}

void stats_add(struct stats *stats, uint32_t slot, unsigned column, uint64_t n) {
    if (slot >= STATS_SLOTS_MAX || column >= STATS_COLUMNS) {
        stats_count(stats, EVENT_counts_lost);
        return;
    }
    _Atomic uint64_t *page = page_of(stats, slot / PAGE_SLOTS);
    if (page == NULL) {
        page = mem_alloc(stats->mem, MEM_CORE, PAGE_COUNTS * sizeof(*page));
        if (page == NULL) {
            stats_count(stats, EVENT_counts_lost);
            return;
        }
        /* Readers see the zeros of the page, not what the memory held before. */
        atomic_store_explicit(&stats->pages[slot / PAGE_SLOTS], page, memory_order_release);
    }
    add_single_writer(&page[(size_t)(slot % PAGE_SLOTS) * STATS_COLUMNS + column], n);
}

void stats_count_shared(struct stats *stats, enum stats_event event) {
    atomic_fetch_add_explicit(&stats->events[event], 1, memory_order_relaxed);
}

void stats_sum_slots(const struct stats *stats, uint64_t *sums, size_t n_slots) {
    const size_t n = n_slots < STATS_SLOTS_MAX ? n_slots : STATS_SLOTS_MAX;
    for (size_t first = 0; first < n; first += PAGE_SLOTS) {
        _Atomic uint64_t *const page = page_of(stats, first / PAGE_SLOTS);
        if (page == NULL) {
            continue;
        }
        const size_t here = n - first < PAGE_SLOTS ? n - first : PAGE_SLOTS;
        for (size_t i = 0; i < here * STATS_COLUMNS; i++) {
            sums[first * STATS_COLUMNS + i] += atomic_load_explicit(&page[i], memory_order_relaxed);
        }
    }
}

void stats_sum_events(const struct stats *stats, uint64_t *sums) {
    for (size_t i = 0; i < STATS_EVENTS; i++) {
        sums[i] += atomic_load_explicit(&stats->events[i], memory_order_relaxed);
    }
}

const char *stats_event_name(enum stats_event event) {
    static const char *const NAMES[STATS_EVENTS] = {
#define EVENT(name) #name,
#include "stats.def"
#undef EVENT
    };
    return NAMES[event];
}
