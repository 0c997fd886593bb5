/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of buf.c: queues of bytes that wait, stocks of blocks. */
#include "buf.h"

#include "check.h"

#define BIG ((size_t)1000000)

static struct mem mem;
static struct queue queue;

/* Bytes that say where they are. */
static uint8_t *pattern(void) {
    static uint8_t bytes[BIG];
    for (size_t i = 0; i < BIG; i++) {
        bytes[i] = (uint8_t)(i * 7 + i / 256);
    }
    return bytes;
}

/* Takes the queue's bytes off in steps, and compares. */
static void drain(const uint8_t *expected, size_t len, size_t step) {
    struct iovec iov[3];
    size_t at = 0;
    while (queue.len > 0) {
        const int n = queue_peek(&queue, iov, 3);
        CHECK(n > 0);
        size_t taken = 0;
        for (int i = 0; i < n && taken < step; i++) {
            const size_t left = step - taken;
            const size_t take = iov[i].iov_len < left ? iov[i].iov_len : left;
            CHECK(at + taken + take <= len);
            CHECK(memcmp(iov[i].iov_base, expected + at + taken, take) == 0);
            taken += take;
        }
        queue_drop(&mem, &queue, taken);
        at += taken;
    }
    CHECK_INT_EQ(at, len);
}

static void nothing_is_left(void) {
    CHECK_INT_EQ(queue.len, 0);
    CHECK_INT_EQ(mem.live[MEM_BUFFER], 0);
    CHECK_INT_EQ(mem.buffered, 0);
}

TEST(an_empty_queue_holds_nothing) {
    struct iovec iov;

    CHECK_INT_EQ(queue_peek(&queue, &iov, 1), 0);
    queue_clear(&mem, &queue);

    nothing_is_left();
}

TEST(bytes_come_out_in_order_whatever_the_steps) {
    const uint8_t *const bytes = pattern();
    for (size_t step = 1; step < BIG; step = step * 5 + 1) {
        for (size_t at = 0; at < 50000; at += 5000) {
            CHECK(queue_add(&mem, &queue, bytes + at, 5000));
        }

        drain(bytes, 50000, step);

        nothing_is_left();
    }
}

TEST(much_comes_out_as_it_went_in) {
    const uint8_t *const bytes = pattern();
    CHECK(queue_add(&mem, &queue, bytes, 1));
    CHECK(queue_add(&mem, &queue, bytes + 1, BIG - 1));

    drain(bytes, BIG, 123457);

    nothing_is_left();
}

TEST(small_pieces_share_memory) {
    for (int i = 0; i < 1000; i++) {
        CHECK(queue_add(&mem, &queue, "x", 1));
    }

    CHECK_INT_EQ(mem.live[MEM_BUFFER], 1);
    queue_clear(&mem, &queue);
    nothing_is_left();
}

TEST(memory_is_in_proportion_to_the_bytes) {
    const uint8_t *const bytes = pattern();

    CHECK(queue_add(&mem, &queue, bytes, BIG));

    CHECK(mem.buffered >= (int64_t)BIG);
    CHECK(mem.buffered < (int64_t)(BIG + BIG / 8));
    queue_clear(&mem, &queue);
    nothing_is_left();
}

TEST(nothing_is_added_without_memory) {
    const uint8_t *const bytes = pattern();
    CHECK(queue_add(&mem, &queue, bytes, 100));
    uint64_t tries = 0;
    bool is_added = false;

    while (!is_added) {
        mem_fail_at(++tries);
        is_added = queue_add(&mem, &queue, bytes + 100, BIG - 100);
        CHECK_INT_EQ(queue.len, is_added ? BIG : 100);
    }
    mem_fail_at(0);

    CHECK(tries > 2);
    drain(bytes, BIG, BIG);
    nothing_is_left();
}

TEST(a_block_can_be_written_in_front_of) {
    struct stock stock = {.block_size = 100};

    struct block *const block = stock_take(&mem, &stock);

    CHECK(block != NULL && block->size == 100);
    CHECK(block->bytes - block->headroom >= BLOCK_HEADROOM);
    stock_give(&mem, &stock, block);
    stock_clear(&mem, &stock);
    nothing_is_left();
}

TEST(a_stock_keeps_some_blocks_and_gives_them_out_empty) {
    struct stock stock = {.block_size = 64};
    struct block *blocks[STOCK_KEPT + 4];
    for (size_t i = 0; i < ARRAY_LEN(blocks); i++) {
        blocks[i] = stock_take(&mem, &stock);
        CHECK(blocks[i] != NULL);
        blocks[i]->start = 3;
        blocks[i]->end = 9;
    }

    for (size_t i = 0; i < ARRAY_LEN(blocks); i++) {
        stock_give(&mem, &stock, blocks[i]);
    }
    stock_give(&mem, &stock, NULL);

    CHECK_INT_EQ(mem.live[MEM_BUFFER], STOCK_KEPT);
    struct block *const again = stock_take(&mem, &stock);
    CHECK_INT_EQ(mem.live[MEM_BUFFER], STOCK_KEPT);
    CHECK(again->start == 0 && again->end == 0 && again->next == NULL);
    stock_give(&mem, &stock, again);
    stock_clear(&mem, &stock);
    nothing_is_left();
}

TEST(there_is_no_block_without_memory) {
    struct stock stock = {.block_size = 64};

    mem_fail_at(1);

    CHECK(stock_take(&mem, &stock) == NULL);
    nothing_is_left();
}
