/* SPDX-License-Identifier: Apache-2.0 */
/* A hash table of nodes that are embedded in what they are about.
 *
 * Inserting never fails: without memory for more buckets their chains grow longer. An empty table
 * holds no memory. The caller hashes and compares; whoever shares a table between threads locks it.
 */
#ifndef ZT_MAP_H
#define ZT_MAP_H

#include "mem.h"

struct map_node {
    struct map_node *next; /* in its bucket */
    uint64_t hash;
};

struct map {
    struct map_node **buckets; /* `n_buckets` chains, NULL while `only` serves as the one bucket */
    struct map_node *only;
    size_t n_buckets; /* a power of two; 0 while there are none */
    size_t n;         /* nodes */
};

/* The first node with that hash, NULL if there is none. */
struct map_node *map_first(const struct map *map, uint64_t hash);

/* The next one with the same hash. */
struct map_node *map_next(const struct map_node *node);

/* Adds a node that is in no table. */
void map_insert(struct map *map, struct mem *mem, struct map_node *node, uint64_t hash);

/* Takes a node out of the table that it is in. */
void map_remove(struct map *map, struct mem *mem, struct map_node *node);

/* Any node, NULL if the table is empty. */
struct map_node *map_any(const struct map *map);

#endif
