/* SPDX-License-Identifier: Apache-2.0 */
/* The hash table; see map.h. */
#include "map.h"

#define BUCKETS_MIN 16

static struct map_node **bucket_of(struct map *map, uint64_t hash) {
    return map->n_buckets == 0 ? &map->only : &map->buckets[hash & (map->n_buckets - 1)];
}

static struct map_node *with_hash(struct map_node *node, uint64_t hash) {
    while (node != NULL && node->hash != hash) {
        node = node->next;
    }
    return node;
}

struct map_node *map_first(const struct map *map, uint64_t hash) {
    struct map_node *const first =
        map->n_buckets == 0 ? map->only : map->buckets[hash & (map->n_buckets - 1)];
    return with_hash(first, hash);
}

struct map_node *map_next(const struct map_node *node) {
    return with_hash(node->next, node->hash);
}

/* Moves every node of `from` to its new bucket. */
static void rehash(struct map *map, struct map_node *from) {
    while (from != NULL) {
        struct map_node *const next = from->next;
        struct map_node **const bucket = bucket_of(map, from->hash);
        from->next = *bucket;
        *bucket = from;
        from = next;
    }
}

/* Four times the buckets; as before if there is no memory for them. */
static void grow(struct map *map, struct mem *mem) {
    const size_t n_buckets = map->n_buckets == 0 ? BUCKETS_MIN : 4 * map->n_buckets;
    struct map_node **const buckets = mem_alloc(mem, MEM_CORE, n_buckets * sizeof(*buckets));
    if (buckets == NULL) {
        return;
    }
    struct map before = *map;
    map->buckets = buckets;
    map->n_buckets = n_buckets;
    map->only = NULL;
    rehash(map, before.only);
    for (size_t i = 0; i < before.n_buckets; i++) {
        rehash(map, before.buckets[i]);
    }
    mem_free(mem, MEM_CORE, before.buckets);
}

void map_insert(struct map *map, struct mem *mem, struct map_node *node, uint64_t hash) {
    node->hash = hash;
    if (map->n > map->n_buckets) {
        grow(map, mem);
    }
    struct map_node **const bucket = bucket_of(map, hash);
    node->next = *bucket;
    *bucket = node;
    map->n++;
}

void map_remove(struct map *map, struct mem *mem, struct map_node *node) {
    struct map_node **at = bucket_of(map, node->hash);
    while (*at != node) {
        at = &(*at)->next;
    }
    *at = node->next;
    node->next = NULL;
    map->n--;
    if (map->n == 0 && map->n_buckets > 0) {
        mem_free(mem, MEM_CORE, map->buckets);
        map->buckets = NULL;
        map->n_buckets = 0;
    }
}

struct map_node *map_any(const struct map *map) {
    struct map_node *found = map->only;
    for (size_t i = 0; i < map->n_buckets && found == NULL; i++) {
        found = map->buckets[i];
    }
    return found;
}
