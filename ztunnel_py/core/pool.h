/* SPDX-License-Identifier: Apache-2.0 */
/* A worker's client tunnels by key: workload, accepted identities in order, next hop, source ip.
 *
 * A container that knows no protocol: it finds tunnels, and says on which worker a key is at home.
 * Below saturation a key has one tunnel at a time, whatever the number of workers.
 */
#ifndef ZT_POOL_H
#define ZT_POOL_H

#include "base.h"

#define POOL_BUCKETS 256

struct addr;
struct core;
struct hop;
struct tunnel;
struct worker;
struct workload;

struct pool {
    struct list buckets[POOL_BUCKETS]; /* of struct tunnel, `pooled` */
    struct list full;                  /* those without room, which no search has to pass */
};

void pool_init(struct pool *pool);

/* Hash of a key. */
uint64_t pool_hash(const struct workload *workload, const struct hop *hop,
                   const struct addr *source);

/* A tunnel with room for one more stream, or NULL. */
struct tunnel *pool_find(struct pool *pool, uint64_t hash, const struct workload *workload,
                         const struct hop *hop, const struct addr *source);

void pool_add(struct pool *pool, struct tunnel *tunnel);

/* To be called when the number of users or the capacity of a tunnel may have changed. */
void pool_sort(struct pool *pool, struct tunnel *tunnel);
void pool_remove(struct tunnel *tunnel);

/* The worker that serves a key: its home, or another if that is saturated and the other is not. */
struct worker *pool_worker(struct core *core, uint64_t hash);

#endif
