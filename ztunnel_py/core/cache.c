/* SPDX-License-Identifier: Apache-2.0 */
/* The part of the flow table that remembers; see cache.h. */
#include "cache.h"

#define DEAD_LOOKED_AT 2 /* flows that one install may clear away because nobody can use them */

/* A verdict by its masked key. Guarded by its shard's lock. */
struct flow {
    struct map_node by_key;
    struct list used; /* in `share->flows`, ordered by `used_ns` */
    struct flow_share *share;
    struct verdict *verdict; /* a reference */
    enum key_kind kind;
    uint64_t installed_ns;
    uint64_t used_ns;
    size_t key_len;
    uint8_t key[]; /* masked by `verdict->uses` */
};

struct cache_key cache_key_of(const struct cache_rules *rules, struct flow_share *share,
                              enum key_kind kind, const uint8_t *bytes, size_t len) {
    struct cache_key key = {share, kind, bytes, len, 0};
    uint8_t seed[16] = {0};
    memcpy(seed, rules->seed, sizeof(seed));
    for (unsigned i = 0; i < sizeof(share->workload); i++) {
        seed[i] ^= (uint8_t)(share->workload >> (8 * i) & 0xff);
    }
    seed[15] ^= (uint8_t)kind;
    key.hash = key_hash(seed, bytes, len);
    return key;
}

bool cache_is_stale(const struct cache_rules *rules, const struct verdict *verdict) {
    return !verdict->is_own && (verdict->epoch.discovery != atomic_load(&rules->discovery) ||
                                verdict->epoch.policy != atomic_load(&rules->policy));
}

static void flow_drop(struct cache *cache, struct flow *flow) {
    struct flow_share *const share = flow->share;
    map_remove(&cache->flows, cache->rules->mem, &flow->by_key);
    list_remove(&flow->used);
    atomic_fetch_sub(&share->masks[flow->kind][flow->verdict->uses], 1);
    atomic_fetch_sub(&share->n_flows, 1);
    verdict_unref(flow->verdict);
    mem_free(cache->rules->mem, MEM_FLOW, flow);
}

/* Workers read the clock once a turn, so that one's "now" may be a little before another's. */
static uint64_t since(uint64_t now_ns, uint64_t then_ns) {
    return now_ns > then_ns ? now_ns - then_ns : 0;
}

static bool flow_is_expired(const struct cache *cache, const struct flow *flow, uint64_t now_ns) {
    return since(now_ns, flow->installed_ns) >= flow->verdict->ttl_ns ||
           since(now_ns, flow->used_ns) > cache->rules->limits.idle_ns;
}

static struct flow *flow_with_key(const struct cache *cache, const struct cache_key *masked) {
    struct map_node *node = map_first(&cache->flows, masked->hash);
    for (; node != NULL; node = map_next(node)) {
        struct flow *const flow = CONTAINER_OF(node, struct flow, by_key);
        if (flow->share == masked->share && flow->kind == masked->kind &&
            flow->key_len == masked->len && memcmp(flow->key, masked->bytes, masked->len) == 0) {
            return flow;
        }
    }
    return NULL;
}

/* The masked form of a key, written to `to`. False if it has none: no flow can be found by it. */
static bool mask(const struct cache *cache, const struct cache_key *key, unsigned uses,
                 uint8_t to[FLOW_KEY_MAX + 1], struct cache_key *masked) {
    if (key->len > FLOW_KEY_MAX) {
        return false;
    }
    const size_t len = key_mask(key->kind, key->bytes, key->len, uses, to);
    *masked = cache_key_of(cache->rules, key->share, key->kind, to, len);
    return len > 0;
}

struct verdict *cache_find(struct cache *cache, const struct cache_key *key, uint64_t now_ns) {
    uint8_t bytes[FLOW_KEY_MAX + 1];
    for (unsigned uses = 0; uses < FLOW_MASKS; uses++) {
        struct cache_key masked = {0};
        if (atomic_load(&key->share->masks[key->kind][uses]) == 0 ||
            !mask(cache, key, uses, bytes, &masked)) {
            continue;
        }
        struct flow *const flow = flow_with_key(cache, &masked);
        if (flow == NULL) {
            continue;
        }
        const bool is_stale = cache_is_stale(cache->rules, flow->verdict);
        if (!is_stale && !flow_is_expired(cache, flow, now_ns)) {
            flow->used_ns = now_ns;
            list_remove(&flow->used);
            list_push(&key->share->flows, &flow->used);
            stats_count_shared(cache->rules->events, EVENT_flow_hit);
            return verdict_ref(flow->verdict);
        }
        if (is_stale) {
            stats_count_shared(cache->rules->events, EVENT_flow_stale);
        }
        flow_drop(cache, flow);
    }
    stats_count_shared(cache->rules->events, EVENT_flow_miss);
    return NULL;
}

/* Makes room for one more flow of a workload: clears away what nobody can use, a little at a time,
 * and throws out the least recently used one if the share is full. */
static void make_room(struct cache *cache, struct flow_share *share, uint64_t now_ns) {
    for (unsigned i = 0; i < DEAD_LOOKED_AT && !list_is_empty(&share->flows); i++) {
        struct flow *const oldest = CONTAINER_OF(share->flows.next, struct flow, used);
        if (!flow_is_expired(cache, oldest, now_ns) &&
            !cache_is_stale(cache->rules, oldest->verdict)) {
            break;
        }
        flow_drop(cache, oldest);
    }
    if (atomic_load(&share->n_flows) >= cache->rules->limits.flows_per_workload) {
        flow_drop(cache, CONTAINER_OF(share->flows.next, struct flow, used));
        stats_count_shared(cache->rules->events, EVENT_flow_evicted);
    }
}

void cache_install(struct cache *cache, const struct cache_key *key, struct verdict *verdict,
                   uint64_t now_ns) {
    uint8_t bytes[FLOW_KEY_MAX + 1];
    struct cache_key masked = {0};
    if (!mask(cache, key, verdict->uses, bytes, &masked)) {
        return;
    }
    struct flow *const before = flow_with_key(cache, &masked);
    if (before != NULL) {
        flow_drop(cache, before);
    }
    make_room(cache, key->share, now_ns);
    struct flow *const flow = mem_alloc(cache->rules->mem, MEM_FLOW, sizeof(*flow) + masked.len);
    if (flow == NULL) {
        return;
    }
    flow->share = key->share;
    flow->verdict = verdict_ref(verdict);
    flow->kind = key->kind;
    flow->installed_ns = now_ns;
    flow->used_ns = now_ns;
    flow->key_len = masked.len;
    memcpy(flow->key, masked.bytes, masked.len);
    map_insert(&cache->flows, cache->rules->mem, &flow->by_key, masked.hash);
    list_push(&flow->share->flows, &flow->used);
    atomic_fetch_add(&flow->share->masks[flow->kind][verdict->uses], 1);
    atomic_fetch_add(&flow->share->n_flows, 1);
}

void cache_forget(struct cache *cache, struct flow_share *share) {
    while (!list_is_empty(&share->flows)) {
        flow_drop(cache, CONTAINER_OF(share->flows.next, struct flow, used));
    }
}

void cache_clear(struct cache *cache) {
    struct map_node *node = NULL;
    while ((node = map_any(&cache->flows)) != NULL) {
        struct flow *const flow = CONTAINER_OF(node, struct flow, by_key);
        map_remove(&cache->flows, cache->rules->mem, node);
        verdict_unref(flow->verdict);
        mem_free(cache->rules->mem, MEM_FLOW, flow);
    }
}
