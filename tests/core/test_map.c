/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of map.c: nodes by hash, growing with and without memory, an empty table holds nothing. */
#include "map.h"

#include "check.h"

#define MANY 10000

static struct mem mem;
static struct map map;
static struct map_node nodes[MANY];

/* Two nodes share each hash. */
static uint64_t hash(size_t i) {
    return (i / 2) * UINT64_C(0x9e3779b97f4a7c15);
}

static bool is_found(size_t i) {
    struct map_node *node = map_first(&map, hash(i));
    while (node != NULL && node != &nodes[i]) {
        CHECK_INT_EQ(node->hash, hash(i));
        node = map_next(node);
    }
    return node != NULL;
}

static void insert_many(void) {
    for (size_t i = 0; i < MANY; i++) {
        map_insert(&map, &mem, &nodes[i], hash(i));
    }
    CHECK_INT_EQ(map.n, MANY);
}

static void check_all_found_and_removed(void) {
    for (size_t i = 0; i < MANY; i++) {
        CHECK(is_found(i));
    }
    for (size_t i = 0; i < MANY; i++) {
        map_remove(&map, &mem, &nodes[i]);
        CHECK(!is_found(i));
        CHECK(i + 1 == MANY || is_found(MANY - 1));
    }
}

TEST(nodes_are_found_by_their_hash_until_they_are_removed) {
    insert_many();

    check_all_found_and_removed();

    CHECK(map_first(&map, 0) == NULL);
}

TEST(chains_stay_short) {
    insert_many();

    CHECK(map.n_buckets >= MANY / 4);
    CHECK(map.n_buckets <= 4 * MANY);

    check_all_found_and_removed();
}

TEST(an_empty_table_holds_no_memory) {
    insert_many();
    CHECK_INT_EQ(mem.live[MEM_CORE], 1);

    check_all_found_and_removed();

    CHECK_INT_EQ(mem.live[MEM_CORE], 0);
}

TEST(one_node_needs_no_memory) {
    map_insert(&map, &mem, &nodes[0], hash(0));

    CHECK(is_found(0));
    CHECK_INT_EQ(mem.live[MEM_CORE], 0);
}

TEST(without_memory_it_is_slower_and_still_right) {
    for (uint64_t n = 1; n < 4; n++) {
        mem_fail_at(n);
        insert_many();
        mem_fail_at(0);
        check_all_found_and_removed();
    }
}

TEST(any_node_is_one_of_them) {
    CHECK(map_any(&map) == NULL);
    insert_many();

    while (map.n > 0) {
        struct map_node *const node = map_any(&map);
        CHECK(node >= nodes && node < nodes + MANY);
        map_remove(&map, &mem, node);
        node->hash = UINT64_MAX;
    }

    for (size_t i = 0; i < MANY; i++) {
        CHECK_INT_EQ(nodes[i].hash, UINT64_MAX);
    }
}
