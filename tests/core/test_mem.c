/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of mem.c: counts by kind, bytes of buffers, allocations that fail on demand. */
#include "mem.h"

#include "check.h"

TEST(memory_is_zeroed_and_counted_by_kind) {
    struct mem mem = {0};

    uint8_t *const bytes = mem_alloc(&mem, MEM_CONN, 100);

    CHECK(bytes != NULL);
    for (size_t i = 0; i < 100; i++) {
        CHECK_INT_EQ(bytes[i], 0);
    }
    CHECK_INT_EQ(mem.live[MEM_CONN], 1);
    CHECK_INT_EQ(mem.live[MEM_OTHER], 0);
    mem_free(&mem, MEM_CONN, bytes);
    CHECK_INT_EQ(mem.live[MEM_CONN], 0);
}

TEST(only_buffers_count_their_bytes) {
    struct mem mem = {0};

    void *const buffer = mem_alloc(&mem, MEM_BUFFER, 4096);
    void *const other = mem_alloc(&mem, MEM_OTHER, 4096);

    CHECK(mem.buffered >= 4096);
    CHECK(mem.buffered < 8192);
    mem_free(&mem, MEM_BUFFER, buffer);
    mem_free(&mem, MEM_OTHER, other);
    CHECK_INT_EQ(mem.buffered, 0);
}

TEST(nothing_can_be_freed_and_no_bytes_can_be_had) {
    struct mem mem = {0};

    mem_free(&mem, MEM_CONN, NULL);
    void *const nothing = mem_alloc(&mem, MEM_CONN, 0);

    CHECK(nothing != NULL);
    mem_free(&mem, MEM_CONN, nothing);
    CHECK_INT_EQ(mem.live[MEM_CONN], 0);
}

TEST(the_nth_allocation_fails_once_and_is_not_counted) {
    struct mem mem = {0};

    mem_fail_at(2);
    void *const first = mem_alloc(&mem, MEM_OTHER, 8);
    const bool had_failed = mem_has_failed();
    void *const second = mem_alloc(&mem, MEM_OTHER, 8);
    void *const third = mem_alloc(&mem, MEM_OTHER, 8);

    CHECK(first != NULL);
    CHECK(!had_failed);
    CHECK(second == NULL && mem_has_failed());
    CHECK(third != NULL);
    CHECK_INT_EQ(mem.live[MEM_OTHER], 2);
    mem_free(&mem, MEM_OTHER, first);
    mem_free(&mem, MEM_OTHER, third);
}

TEST(a_failure_that_did_not_come_yet_can_be_called_off) {
    struct mem mem = {0};

    mem_fail_at(1);
    mem_fail_at(0);
    void *const pointer = mem_alloc(&mem, MEM_OTHER, 8);

    CHECK(pointer != NULL);
    mem_free(&mem, MEM_OTHER, pointer);
}

TEST(every_kind_has_a_name) {
    for (int kind = 0; kind < MEM_KINDS; kind++) {
        CHECK(mem_kind_name((enum mem_kind)kind) != NULL);
    }
    CHECK_STR_EQ(mem_kind_name(MEM_WORKLOAD), "workloads");
    CHECK_STR_EQ(mem_kind_name(MEM_BUFFER), "buffers");
    CHECK_STR_EQ(mem_kind_name(MEM_OTHER), "others");
}
