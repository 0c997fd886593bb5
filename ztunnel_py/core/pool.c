/* SPDX-License-Identifier: Apache-2.0 */
/* See pool.h. */
#include "pool.h"

#include "core_state.h"
#include "tunnel.h"

#define SATURATED 950 /* thousandths of a worker's time */
#define RELAXED 500

void pool_init(struct pool *pool) {
    for (size_t i = 0; i < POOL_BUCKETS; i++) {
        list_init(&pool->buckets[i]);
    }
    list_init(&pool->full);
}

static uint64_t mix(uint64_t hash, const void *bytes, size_t len) {
    const uint8_t *const from = bytes;
    for (size_t i = 0; i < len; i++) {
        hash = (hash ^ from[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

/* Keys are made by the decider, so the hash need not resist anybody. */
uint64_t pool_hash(const struct workload *workload, const struct hop *hop,
                   const struct addr *source) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    hash = mix(hash, &workload->id, sizeof(workload->id));
    hash = mix(hash, hop->address.ip, sizeof(hop->address.ip));
    hash = mix(hash, &hop->address.port, sizeof(hop->address.port));
    hash = mix(hash, source->ip, sizeof(source->ip));
    for (size_t i = 0; i < hop->n_sans; i++) {
        hash = mix(hash, hop->sans[i].bytes, hop->sans[i].len);
    }
    return hash ^ (hash >> 29);
}

static bool has_key(const struct tunnel *tunnel, const struct workload *workload,
                    const struct hop *hop, const struct addr *source) {
    if (tunnel->workload != workload || !addr_equal(&tunnel->remote, &hop->address) ||
        !addr_same_ip(&tunnel->source, source) || tunnel->hop->n_sans != hop->n_sans) {
        return false;
    }
    for (size_t i = 0; i < hop->n_sans; i++) {
        if (!text_equal(tunnel->hop->sans[i], hop->sans[i])) {
            return false;
        }
    }
    return true;
}

struct tunnel *pool_find(struct pool *pool, uint64_t hash, const struct workload *workload,
                         const struct hop *hop, const struct addr *source) {
    const struct list *const bucket = &pool->buckets[hash % POOL_BUCKETS];
    for (struct list *node = bucket->next; node != bucket; node = node->next) {
        struct tunnel *const tunnel = CONTAINER_OF(node, struct tunnel, pooled);
        if (tunnel->hash == hash && has_key(tunnel, workload, hop, source) &&
            tunnel_is_usable(tunnel) && tunnel->users < tunnel_capacity(tunnel)) {
            return tunnel;
        }
    }
    return NULL;
}

void pool_add(struct pool *pool, struct tunnel *tunnel) {
    list_push(&pool->buckets[tunnel->hash % POOL_BUCKETS], &tunnel->pooled);
}

void pool_sort(struct pool *pool, struct tunnel *tunnel) {
    const bool is_full = tunnel->users >= tunnel_capacity(tunnel);
    if (is_full != tunnel->is_full && !list_is_empty(&tunnel->pooled)) {
        tunnel->is_full = is_full;
        list_remove(&tunnel->pooled);
        list_push(is_full ? &pool->full : &pool->buckets[tunnel->hash % POOL_BUCKETS],
                  &tunnel->pooled);
    }
}

void pool_remove(struct tunnel *tunnel) {
    list_remove(&tunnel->pooled);
}

static uint32_t busy(const struct worker *worker) {
    return atomic_load_explicit(&worker->loop.busy_share, memory_order_relaxed);
}

struct worker *pool_worker(struct core *core, uint64_t hash) {
    struct worker *const home = &core->workers[(hash >> 8) % core->n_workers];
    if (busy(home) < SATURATED) {
        return home;
    }
    for (size_t i = 1; i < core->n_workers; i++) {
        struct worker *const other = &core->workers[((hash >> 8) + i) % core->n_workers];
        if (busy(other) < RELAXED) {
            stats_count_shared(&core->stats, EVENT_worker_recruited);
            return other;
        }
    }
    return home;
}
