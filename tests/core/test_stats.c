/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of stats.c: columns of slots, events, pages made on use, many readers. */
#include "stats.h"

#include <pthread.h>

#include "check.h"

static struct mem mem;
static struct stats stats;

static uint64_t slot_sum(uint32_t slot, unsigned column) {
    uint64_t *const sums = calloc((size_t)(slot + 1) * STATS_COLUMNS, sizeof(*sums));
    stats_sum_slots(&stats, sums, slot + 1);
    const uint64_t sum = sums[(size_t)slot * STATS_COLUMNS + column];
    free(sums);
    return sum;
}

TEST(counts_are_kept_by_slot_and_column) {
    stats_init(&stats, &mem);

    stats_add(&stats, 0, STATS_OPENED, 1);
    stats_add(&stats, 0, STATS_RECEIVED, 1000);
    stats_add(&stats, 0, STATS_RECEIVED, UINT64_C(1) << 40);
    stats_add(&stats, 1, STATS_CLOSED + REASON_FLAGS - 1, 2);
    stats_add(&stats, STATS_SLOTS_MAX - 1, STATS_SENT, 3);

    CHECK_INT_EQ(slot_sum(0, STATS_OPENED), 1);
    CHECK_INT_EQ(slot_sum(0, STATS_RECEIVED), (UINT64_C(1) << 40) + 1000);
    CHECK_INT_EQ(slot_sum(0, STATS_SENT), 0);
    CHECK_INT_EQ(slot_sum(1, STATS_CLOSED + REASON_FLAGS - 1), 2);
    CHECK_INT_EQ(slot_sum(STATS_SLOTS_MAX - 1, STATS_SENT), 3);
    CHECK_INT_EQ(mem.live[MEM_CORE], 2);
    stats_clear(&stats);
    CHECK_INT_EQ(mem.live[MEM_CORE], 0);
}

TEST(sums_are_added_to_what_is_there) {
    uint64_t sums[2 * STATS_COLUMNS] = {[STATS_OPENED] = 10};
    stats_init(&stats, &mem);
    stats_add(&stats, 0, STATS_OPENED, 1);

    stats_sum_slots(&stats, sums, 2);
    stats_sum_slots(&stats, sums, 2);

    CHECK_INT_EQ(sums[STATS_OPENED], 12);
    stats_clear(&stats);
}

TEST(only_the_slots_asked_for_are_written) {
    uint64_t sums[2 * STATS_COLUMNS] = {0};
    stats_init(&stats, &mem);
    stats_add(&stats, 0, STATS_OPENED, 1);
    stats_add(&stats, 1, STATS_OPENED, 1);

    stats_sum_slots(&stats, sums, 1);
    stats_sum_slots(&stats, sums, 0);

    CHECK_INT_EQ(sums[STATS_OPENED], 1);
    CHECK_INT_EQ(sums[STATS_COLUMNS + STATS_OPENED], 0);
    stats_clear(&stats);
}

TEST(counts_without_a_place_are_lost_and_counted) {
    uint64_t events[STATS_EVENTS] = {0};
    stats_init(&stats, &mem);

    mem_fail_at(1);
    stats_add(&stats, 0, STATS_OPENED, 1);
    stats_add(&stats, STATS_SLOTS_MAX, STATS_OPENED, 1);
    stats_add(&stats, 0, STATS_COLUMNS, 1);
    stats_add(&stats, 0, STATS_OPENED, 1);

    stats_sum_events(&stats, events);
    CHECK_INT_EQ(events[EVENT_counts_lost], 3);
    CHECK_INT_EQ(slot_sum(0, STATS_OPENED), 1);
    stats_clear(&stats);
}

TEST(events_are_counted_by_name) {
    uint64_t events[STATS_EVENTS] = {0};
    stats_init(&stats, &mem);

    stats_count(&stats, EVENT_flow_hit);
    stats_count(&stats, EVENT_flow_hit);
    stats_count_shared(&stats, EVENT_punted);

    stats_sum_events(&stats, events);
    CHECK_INT_EQ(events[EVENT_flow_hit], 2);
    CHECK_INT_EQ(events[EVENT_punted], 1);
    CHECK_INT_EQ(events[EVENT_flow_miss], 0);
    CHECK_STR_EQ(stats_event_name(EVENT_flow_hit), "flow_hit");
    CHECK_STR_EQ(stats_event_name((enum stats_event)0), "sockets_opened_source");
    stats_clear(&stats);
}

#define ROUNDS 20000

static void *count_rounds(void *unused) {
    (void)unused;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        stats_add(&stats, i % 1024, STATS_OPENED, 1);
        stats_count_shared(&stats, EVENT_flow_miss);
    }
    return NULL;
}

TEST(readers_see_numbers_that_only_grow) {
    static uint64_t before[1024 * STATS_COLUMNS], after[1024 * STATS_COLUMNS];
    uint64_t events[STATS_EVENTS] = {0};
    pthread_t writer;
    stats_init(&stats, &mem);
    CHECK_INT_EQ(pthread_create(&writer, NULL, count_rounds, NULL), 0);

    for (int round = 0; round < 20; round++) {
        memset(after, 0, sizeof(after));
        stats_sum_slots(&stats, after, 1024);
        stats_count_shared(&stats, EVENT_flow_miss);
        for (size_t i = 0; i < ARRAY_LEN(after); i++) {
            CHECK(after[i] >= before[i]);
        }
        memcpy(before, after, sizeof(before));
    }

    CHECK_INT_EQ(pthread_join(writer, NULL), 0);
    stats_sum_events(&stats, events);
    CHECK_INT_EQ(events[EVENT_flow_miss], ROUNDS + 20);
    CHECK_INT_EQ(slot_sum(1023, STATS_OPENED), ROUNDS / 1024);
    stats_clear(&stats);
}
