/* SPDX-License-Identifier: Apache-2.0 */
/* Verdicts by masked key: the part of one shard that remembers; see flow.h for its rules.
 *
 * The caller holds the shard's lock for every call. A flow belongs to the share of its workload,
 * which bounds how many there are and orders them by use.
 */
#ifndef ZT_CACHE_H
#define ZT_CACHE_H

#include "flow.h"
#include "map.h"
#include "stats.h"

/* What all shards have in common. */
struct cache_rules {
    struct mem *mem;
    struct stats *events; /* written by all threads */
    struct flow_limits limits;
    uint8_t seed[16];           /* of hashes; nobody outside knows it */
    _Atomic uint64_t discovery; /* the epochs */
    _Atomic uint64_t policy;
};

struct cache {
    const struct cache_rules *rules;
    struct map flows; /* of struct flow by masked key */
};

/* A key with all that belongs to looking it up. */
struct cache_key {
    struct flow_share *share;
    enum key_kind kind;
    const uint8_t *bytes;
    size_t len;
    uint64_t hash;
};

/* A key, complete or masked, with its hash. */
struct cache_key cache_key_of(const struct cache_rules *rules, struct flow_share *share,
                              enum key_kind kind, const uint8_t *bytes, size_t len);

/* The verdict is of another epoch than now, and not one of the core's own. */
bool cache_is_stale(const struct cache_rules *rules, const struct verdict *verdict);

/* The verdict of a flow that serves this key, with a reference; NULL is a miss. Flows that are met
 * and cannot be used any more are dropped. */
struct verdict *cache_find(struct cache *cache, const struct cache_key *key, uint64_t now_ns);

/* Keeps a verdict for later connections; not without memory. May throw out another of the
 * workload. */
void cache_install(struct cache *cache, const struct cache_key *key, struct verdict *verdict,
                   uint64_t now_ns);

/* Drops all flows of a workload. */
void cache_forget(struct cache *cache, struct flow_share *share);

/* Drops everything without a look at the shares, which may be gone. */
void cache_clear(struct cache *cache);

#endif
