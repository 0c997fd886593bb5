/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of record.c: order, bounds, announcing, what is given back, two threads at once. */
#include "record.h"

#include <poll.h>
#include <pthread.h>

#include "check.h"

static struct mem mem;

static bool is_readable(const struct records *records) {
    struct pollfd fd = {.fd = records_fd(records), .events = POLLIN};
    return poll(&fd, 1, 0) == 1;
}

static bool put(struct records *records, size_t ring, uint64_t conn) {
    const struct record record = {.conn = conn};
    return records_put(records, ring, &record);
}

static char *owned(const char *text) {
    char *const copy = mem_alloc(&mem, MEM_RECORD, strlen(text) + 1);
    return strcpy(copy, text);
}

TEST(records_come_out_in_the_order_of_their_ring) {
    struct records *const records = records_create(&mem, 1);
    struct record to[100];
    for (uint64_t conn = 0; conn < 100; conn++) {
        CHECK(put(records, 0, conn));
    }

    CHECK_INT_EQ(records_take(records, to, 70), 70);
    CHECK_INT_EQ(records_take(records, to + 70, 100), 30);

    for (uint64_t conn = 0; conn < 100; conn++) {
        CHECK_INT_EQ(to[conn].conn, conn);
    }
    records_destroy(records);
}

TEST(what_was_read_is_given_back) {
    struct records *const records = records_create(&mem, 2);
    struct record to[256];
    for (uint64_t conn = 0; conn < 100; conn++) {
        CHECK(put(records, conn % 2, conn));
    }
    CHECK(mem.live[MEM_RECORD] > 0);

    CHECK_INT_EQ(records_take(records, to, 256), 100);

    CHECK_INT_EQ(mem.live[MEM_RECORD], 0);
    records_destroy(records);
    CHECK_INT_EQ(mem.live[MEM_OTHER], 0);
}

TEST(the_descriptor_is_readable_while_records_wait) {
    struct records *const records = records_create(&mem, 2);
    struct record to[4];

    CHECK(!is_readable(records));
    CHECK(put(records, 0, 1));
    CHECK(put(records, 1, 2));
    CHECK(is_readable(records));
    CHECK_INT_EQ(records_take(records, to, 1), 1);
    CHECK(is_readable(records));
    CHECK_INT_EQ(records_take(records, to, 1), 1);
    CHECK(!is_readable(records));
    CHECK_INT_EQ(records_take(records, to, 1), 0);
    CHECK(put(records, 0, 3));
    CHECK(is_readable(records));
    records_destroy(records);
}

TEST(the_descriptor_is_written_once_until_it_is_read) {
    struct records *const records = records_create(&mem, 1);
    uint64_t written = 0;

    for (uint64_t conn = 0; conn < 10; conn++) {
        CHECK(put(records, 0, conn));
    }

    CHECK_INT_EQ(read(records_fd(records), &written, sizeof(written)), sizeof(written));
    CHECK_INT_EQ(written, 1);
    records_destroy(records);
}

TEST(no_ring_starves_another) {
    struct records *const records = records_create(&mem, 3);
    struct record to[4];
    unsigned from[3] = {0};
    for (uint64_t conn = 0; conn < 30; conn++) {
        CHECK(put(records, conn % 3, conn % 3));
    }

    for (unsigned i = 0; i < 3; i++) {
        CHECK_INT_EQ(records_take(records, to, 2), 2);
        from[to[0].conn]++;
    }

    for (unsigned i = 0; i < 3; i++) {
        CHECK_INT_EQ(from[i], 1);
    }
    records_destroy(records);
}

TEST(a_full_ring_loses_the_newest_and_gives_its_parts_back) {
    struct records *const records = records_create(&mem, 2);
    static struct record to[RECORD_RING];
    for (uint64_t conn = 0; conn < RECORD_RING; conn++) {
        CHECK(put(records, 0, conn));
    }
    const int64_t live = mem.live[MEM_RECORD];
    struct record lost = {.conn = 1, .detail = owned("x"), .authority = owned("y")};

    CHECK(!records_put(records, 0, &lost));
    CHECK_INT_EQ(mem.live[MEM_RECORD], live);
    CHECK(put(records, 1, 7));
    CHECK_INT_EQ(records_take(records, to, 1), 1);
    CHECK(put(records, 0, RECORD_RING));
    CHECK(!put(records, 0, RECORD_RING + 1));
    CHECK_INT_EQ(records_take(records, to, RECORD_RING), RECORD_RING);
    CHECK_INT_EQ(records_take(records, to, RECORD_RING), 1);
    CHECK_INT_EQ(mem.live[MEM_RECORD], 0);
    records_destroy(records);
}

TEST(releasing_a_record_drops_its_verdict_and_texts) {
    struct records *const records = records_create(&mem, 1);
    struct verdict *const verdict = verdict_deny(&mem, NULL, REASON_IO, "x");
    const struct record record = {
        .verdict = verdict_ref(verdict), .detail = owned("detail"), .authority = owned("a:1")};
    struct record to;

    CHECK(records_put(records, 0, &record));
    CHECK_INT_EQ(records_take(records, &to, 1), 1);
    CHECK_STR_EQ(to.detail, "detail");
    CHECK_STR_EQ(to.authority, "a:1");
    CHECK(to.verdict == verdict);
    record_release(records, &to);

    CHECK_INT_EQ(verdict->refs, 1);
    CHECK_INT_EQ(mem.live[MEM_RECORD], 0);
    verdict_unref(verdict);
    records_destroy(records);
}

TEST(records_that_nobody_read_are_freed_with_their_rings) {
    struct records *const records = records_create(&mem, 2);
    struct record to;
    for (uint64_t conn = 0; conn < 200; conn++) {
        const struct record record = {
            .conn = conn,
            .verdict = verdict_deny(&mem, NULL, REASON_IO, "x"),
            .detail = owned("detail"),
        };
        CHECK(records_put(records, conn % 2, &record));
    }
    CHECK_INT_EQ(records_take(records, &to, 1), 1);
    record_release(records, &to);

    records_destroy(records);

    for (int kind = 0; kind < MEM_KINDS; kind++) {
        CHECK_INT_EQ(mem.live[kind], 0);
    }
    records_destroy(NULL);
}

TEST(without_memory_records_are_lost_and_nothing_else) {
    struct records *const records = records_create(&mem, 1);
    struct record to[2];
    bool is_put = false;
    unsigned tries = 0;

    while (!is_put) {
        struct record record = {.detail = owned("x")};
        mem_fail_at(++tries);
        is_put = records_put(records, 0, &record);
        CHECK(is_put || mem.live[MEM_RECORD] == 0);
    }
    mem_fail_at(0);

    CHECK_INT_EQ(tries, 2);
    CHECK_INT_EQ(records_take(records, to, 2), 1);
    CHECK(!is_readable(records));
    record_release(records, &to[0]);
    records_destroy(records);
    mem_fail_at(1);
    CHECK(records_create(&mem, 1) == NULL);
    CHECK_INT_EQ(mem.live[MEM_OTHER], 0);
}

/* --- two threads */

#define MANY 30000
#define RINGS 2

struct producer {
    struct records *records;
    size_t ring;
};

static void *produce(void *argument) {
    const struct producer *const producer = argument;
    for (uint64_t conn = 0; conn < MANY;) {
        struct record record = {.conn = conn, .workload = (uint32_t)producer->ring};
        record.detail = owned("x");
        conn += records_put(producer->records, producer->ring, &record) ? 1 : 0;
    }
    return NULL;
}

TEST(a_consumer_that_sleeps_until_told_gets_every_record_once_and_in_order) {
    struct records *const records = records_create(&mem, RINGS);
    struct producer producers[RINGS];
    pthread_t threads[RINGS];
    uint64_t next[RINGS] = {0};
    struct record to[64];
    for (size_t i = 0; i < RINGS; i++) {
        producers[i] = (struct producer){records, i};
        CHECK_INT_EQ(pthread_create(&threads[i], NULL, produce, &producers[i]), 0);
    }

    for (size_t left = (size_t)MANY * RINGS; left > 0;) {
        struct pollfd fd = {.fd = records_fd(records), .events = POLLIN};
        CHECK_INT_EQ(poll(&fd, 1, -1), 1);
        const size_t n = records_take(records, to, ARRAY_LEN(to));
        for (size_t i = 0; i < n; i++) {
            CHECK_INT_EQ(to[i].conn, next[to[i].workload]++);
            record_release(records, &to[i]);
        }
        left -= n;
    }

    for (size_t i = 0; i < RINGS; i++) {
        CHECK_INT_EQ(pthread_join(threads[i], NULL), 0);
    }
    CHECK_INT_EQ(mem.live[MEM_RECORD], 0);
    records_destroy(records);
}
