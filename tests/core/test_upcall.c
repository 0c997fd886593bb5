/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of upcall.c: turns of the workloads, announcing, keys that outlive their question. */
#include "upcall.h"

#include <poll.h>
#include <pthread.h>

#include "check.h"

static struct mem mem;
static struct upcalls *upcalls;
static struct flow_share shares[3];

static void set_up(void) {
    upcalls = upcalls_create(&mem);
    CHECK(upcalls != NULL);
    for (uint32_t i = 0; i < ARRAY_LEN(shares); i++) {
        flow_share_init(&shares[i], i);
    }
}

static void tear_down(void) {
    upcalls_destroy(upcalls);
    for (int kind = 0; kind < MEM_KINDS; kind++) {
        CHECK_INT_EQ(mem.live[kind], 0);
    }
}

static struct pending *question(size_t share, uint64_t id, const char *key) {
    struct pending *const pending = mem_alloc(&mem, MEM_QUESTION, sizeof(*pending) + strlen(key));
    list_init(&pending->queued);
    list_init(&pending->waiters);
    pending->share = &shares[share];
    pending->id = id;
    pending->kind = KEY_PASSTHROUGH;
    pending->refs = 1;
    pending->key_len = strlen(key);
    memcpy(pending->key, key, strlen(key));
    return pending;
}

/* Asks and rings as flow.c does. */
static struct pending *ask(size_t share, uint64_t id) {
    struct pending *const pending = question(share, id, "key");
    if (upcalls_push(upcalls, pending)) {
        upcalls_ring(upcalls);
    }
    return pending;
}

static void close_question(struct pending *pending) {
    upcalls_remove(upcalls, pending);
    upcalls_unref(upcalls, pending);
}

static bool is_readable(void) {
    struct pollfd fd = {.fd = upcalls_fd(upcalls), .events = POLLIN};
    return poll(&fd, 1, 0) == 1;
}

TEST(a_question_is_seen_with_all_that_it_has) {
    struct upcall taken[2];
    set_up();
    struct pending *const pending = ask(2, 77);

    CHECK_INT_EQ(upcalls_take(upcalls, taken, 2), 1);

    CHECK_INT_EQ(taken[0].id, 77);
    CHECK_INT_EQ(taken[0].workload, 2);
    CHECK_INT_EQ(taken[0].kind, KEY_PASSTHROUGH);
    CHECK_MEM_EQ(taken[0].key, taken[0].key_len, "key", 3);
    CHECK_INT_EQ(upcalls_take(upcalls, taken + 1, 1), 0);
    upcall_free(upcalls, &taken[0]);
    close_question(pending);
    tear_down();
}

TEST(workloads_take_turns_oldest_question_first) {
    static const uint64_t EXPECTED[] = {10, 20, 30, 11, 21, 12, 13};
    struct pending *pending[7];
    struct upcall taken[7];
    size_t n = 0;
    set_up();
    for (uint64_t id = 10; id < 14; id++) {
        pending[n++] = ask(0, id);
    }
    pending[n++] = ask(1, 20);
    pending[n++] = ask(1, 21);
    pending[n++] = ask(2, 30);

    CHECK_INT_EQ(upcalls_take(upcalls, taken, 2), 2);
    CHECK_INT_EQ(upcalls_take(upcalls, taken + 2, 5), 5);

    for (size_t i = 0; i < n; i++) {
        CHECK_INT_EQ(taken[i].id, EXPECTED[i]);
        upcall_free(upcalls, &taken[i]);
        close_question(pending[i]);
    }
    tear_down();
}

TEST(taking_a_question_acknowledges_it) {
    struct upcall taken;
    set_up();
    struct pending *const first = ask(0, 1);
    struct pending *const second = ask(0, 2);

    CHECK(!first->is_acknowledged);
    CHECK_INT_EQ(upcalls_take(upcalls, &taken, 1), 1);

    CHECK(first->is_acknowledged);
    CHECK(!second->is_acknowledged);
    upcall_free(upcalls, &taken);
    close_question(first);
    close_question(second);
    tear_down();
}

TEST(the_descriptor_is_readable_while_questions_wait) {
    struct upcall taken[2];
    struct pending *pending[3];
    set_up();

    CHECK(!is_readable());
    for (uint64_t i = 0; i < 3; i++) {
        pending[i] = ask(0, i);
    }
    CHECK(is_readable());
    CHECK_INT_EQ(upcalls_take(upcalls, taken, 2), 2);
    CHECK(is_readable());
    upcall_free(upcalls, &taken[0]);
    upcall_free(upcalls, &taken[1]);
    CHECK_INT_EQ(upcalls_take(upcalls, taken, 2), 1);
    CHECK(!is_readable());
    upcall_free(upcalls, &taken[0]);
    for (size_t i = 0; i < 3; i++) {
        close_question(pending[i]);
    }
    tear_down();
}

TEST(the_descriptor_is_written_once_until_it_is_read) {
    struct pending *pending[3];
    uint64_t written = 0;
    set_up();

    for (uint64_t i = 0; i < 3; i++) {
        pending[i] = ask(i, i);
    }

    CHECK_INT_EQ(read(upcalls_fd(upcalls), &written, sizeof(written)), sizeof(written));
    CHECK_INT_EQ(written, 1);
    for (size_t i = 0; i < 3; i++) {
        close_question(pending[i]);
    }
    tear_down();
}

TEST(a_closed_question_is_not_asked) {
    struct upcall taken[2];
    set_up();
    struct pending *const first = ask(0, 1);
    struct pending *const second = ask(0, 2);
    struct pending *const third = ask(1, 3);

    close_question(first);
    close_question(third);

    CHECK_INT_EQ(upcalls_take(upcalls, taken, 2), 1);
    CHECK_INT_EQ(taken[0].id, 2);
    CHECK(list_is_empty(&shares[0].turn));
    CHECK(list_is_empty(&shares[1].turn));
    upcall_free(upcalls, &taken[0]);
    close_question(second);
    tear_down();
}

TEST(the_key_stays_until_the_decider_is_done_with_it) {
    struct upcall taken;
    set_up();
    struct pending *const pending = ask(0, 1);
    CHECK_INT_EQ(upcalls_take(upcalls, &taken, 1), 1);

    close_question(pending);

    CHECK_INT_EQ(mem.live[MEM_QUESTION], 1);
    CHECK_MEM_EQ(taken.key, taken.key_len, "key", 3);
    upcall_free(upcalls, &taken);
    CHECK_INT_EQ(mem.live[MEM_QUESTION], 0);
    upcall_free(upcalls, &taken);
    tear_down();
}

TEST(an_empty_key_is_lent_too) {
    struct upcall taken;
    set_up();
    struct pending *const pending = question(0, 1, "");
    CHECK(upcalls_push(upcalls, pending));

    CHECK_INT_EQ(upcalls_take(upcalls, &taken, 1), 1);

    CHECK_INT_EQ(taken.key_len, 0);
    upcall_free(upcalls, &taken);
    close_question(pending);
    tear_down();
}

TEST(there_is_no_queue_without_memory) {
    mem_fail_at(1);
    CHECK(upcalls_create(&mem) == NULL);
    upcalls_destroy(NULL);
}

/* --- threads */

#define MANY 20000

static _Atomic bool is_over;

/* Asks, and takes every third question back. */
static void *ask_many(void *argument) {
    const size_t share = (size_t)(uintptr_t)argument;
    static _Atomic uint64_t id;
    for (int i = 0; i < MANY; i++) {
        struct pending *const pending = ask(share, ++id);
        if (i % 3 == 0) {
            close_question(pending);
        } else {
            while (!pending->is_acknowledged) {
                sched_yield();
            }
            close_question(pending);
        }
    }
    return NULL;
}

static void *take_all(void *unused) {
    struct upcall taken[8];
    (void)unused;
    while (!is_over) {
        struct pollfd fd = {.fd = upcalls_fd(upcalls), .events = POLLIN};
        (void)poll(&fd, 1, 100); /* the end is not announced */
        const size_t n = upcalls_take(upcalls, taken, ARRAY_LEN(taken));
        for (size_t i = 0; i < n; i++) {
            upcall_free(upcalls, &taken[i]);
        }
    }
    return NULL;
}

TEST(no_question_is_forgotten_when_threads_ask_and_withdraw_at_once) {
    pthread_t askers[2], decider;
    set_up();
    CHECK_INT_EQ(pthread_create(&decider, NULL, take_all, NULL), 0);
    for (uintptr_t i = 0; i < ARRAY_LEN(askers); i++) {
        CHECK_INT_EQ(pthread_create(&askers[i], NULL, ask_many, (void *)i), 0);
    }

    for (size_t i = 0; i < ARRAY_LEN(askers); i++) {
        CHECK_INT_EQ(pthread_join(askers[i], NULL), 0);
    }

    is_over = true;
    CHECK_INT_EQ(pthread_join(decider, NULL), 0);
    tear_down();
}
