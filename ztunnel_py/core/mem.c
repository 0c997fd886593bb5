/* SPDX-License-Identifier: Apache-2.0 */
/* Allocation with live counts by kind; see mem.h. */
#include "mem.h"

#include <malloc.h>
#include <stdlib.h>

/* Allocations until the one that fails; 0: none will. Shared by all threads of a test. */
static _Atomic uint64_t fail_countdown;

/* True if this allocation is the one that a test wants to fail. */
static bool is_failing(void) {
    uint64_t left = atomic_load_explicit(&fail_countdown, memory_order_relaxed);
    while (left != 0) {
        if (atomic_compare_exchange_weak(&fail_countdown, &left, left - 1)) {
            return left == 1;
        }
    }
    return false;
}

/* Bytes are asked from the allocator, so that nobody has to remember what was asked for. */
static void count_buffered(struct mem *mem, enum mem_kind kind, void *pointer, int64_t sign) {
    if (kind == MEM_BUFFER) {
        const int64_t size = (int64_t)malloc_usable_size(pointer);
        atomic_fetch_add_explicit(&mem->buffered, sign * size, memory_order_relaxed);
    }
}

void *mem_alloc(struct mem *mem, enum mem_kind kind, size_t size) {
    if (is_failing()) {
        return NULL;
    }
    void *pointer = calloc(1, size == 0 ? 1 : size);
    if (pointer == NULL) {
        return NULL;
    }
    atomic_fetch_add_explicit(&mem->live[kind], 1, memory_order_relaxed);
    count_buffered(mem, kind, pointer, 1);
    return pointer;
}

void mem_free(struct mem *mem, enum mem_kind kind, void *pointer) {
    if (pointer == NULL) {
        return;
    }
    atomic_fetch_sub_explicit(&mem->live[kind], 1, memory_order_relaxed);
    count_buffered(mem, kind, pointer, -1);
    free(pointer);
}

const char *mem_kind_name(enum mem_kind kind) {
    static const char *const NAMES[MEM_KINDS] = {
        [MEM_WORKLOAD] = "workloads", [MEM_LISTENER] = "listeners", [MEM_IDENTITY] = "identities",
        [MEM_CONN] = "connections",   [MEM_TUNNEL] = "tunnels",     [MEM_STREAM] = "streams",
        [MEM_FLOW] = "flows",         [MEM_VERDICT] = "verdicts",   [MEM_QUESTION] = "questions",
        [MEM_RECORD] = "records",     [MEM_BUFFER] = "buffers",     [MEM_OTHER] = "others",
        [MEM_CORE] = "core",
    };
    return NAMES[kind];
}

void mem_fail_at(uint64_t n) {
    atomic_store(&fail_countdown, n);
}

bool mem_has_failed(void) {
    return atomic_load(&fail_countdown) == 0;
}
