/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of flow.c with threads: three loops ask and cancel, a decider answers, epochs move. */
#include <poll.h>
#include <pthread.h>

#include "flow_stage.h"

#define ASKERS 200
#define ROUNDS 4000

struct crowd {
    struct loop loop;
    pthread_t thread;
    uint64_t random;
    struct crowd_asker {
        struct flow_waiter waiter;
        struct crowd *crowd;
        bool is_waiting;
        bool has_cancelled; /* an empty answer is to come */
    } askers[ASKERS];
    unsigned n_verdicts;
    unsigned n_cancelled;
};

static struct crowd crowds[3];
static _Atomic unsigned n_asking; /* crowds that are not done */

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void crowd_answered(struct flow_waiter *waiter, struct verdict *verdict) {
    struct crowd_asker *const asker = CONTAINER_OF(waiter, struct crowd_asker, waiter);
    CHECK(asker->is_waiting);
    CHECK_INT_EQ(verdict == NULL, asker->has_cancelled);
    asker->is_waiting = false;
    asker->has_cancelled = false;
    asker->crowd->n_verdicts += verdict == NULL ? 0 : 1;
    verdict_unref(verdict);
}

static void crowd_ask(struct crowd_asker *asker, uint64_t random) {
    const struct addr src = {.ip = {10, 0, 0, (uint8_t)(random % 3)}, .family = 4};
    const struct addr dst = {.ip = {10, 96}, .port = (uint16_t)(random >> 8 & 15), .family = 4};
    struct flow_share *const share = &shares[random >> 16 & 1];
    uint8_t key[64];
    const size_t len = key_pack_captured(&src, &dst, key, sizeof(key));
    asker->waiter.loop = &asker->crowd->loop;
    asker->waiter.answered = crowd_answered;
    asker->is_waiting = true;
    const bool is_identity = (random >> 24 & 15) == 0;
    struct verdict *const verdict =
        flow_ask(flows, share, is_identity ? KEY_IDENTITY : KEY_OUTBOUND, key,
                 is_identity ? 0 : len, now_ns, &asker->waiter);
    if (verdict != NULL) {
        crowd_answered(&asker->waiter, verdict);
    }
}

static void crowd_step(struct crowd *crowd) {
    const uint64_t random = next_random(&crowd->random);
    struct crowd_asker *const asker = &crowd->askers[(random >> 32) % ASKERS];
    if (!asker->is_waiting) {
        crowd_ask(asker, random);
    } else if (!asker->has_cancelled && (random & 1) == 0) {
        (void)flow_is_acknowledged(&asker->waiter);
        if (flow_cancel(&asker->waiter)) {
            asker->is_waiting = false;
        } else {
            asker->has_cancelled = true;
        }
        crowd->n_cancelled++;
    }
}

static bool crowd_is_waiting(const struct crowd *crowd) {
    for (size_t i = 0; i < ASKERS; i++) {
        if (crowd->askers[i].is_waiting) {
            return true;
        }
    }
    return false;
}

static void *crowd_run(void *argument) {
    struct crowd *const crowd = argument;
    for (unsigned i = 0; i < ROUNDS; i++) {
        crowd_step(crowd);
        if (i % 16 == 0) {
            loop_turn(&crowd->loop, 0);
        }
    }
    while (crowd_is_waiting(crowd)) {
        loop_turn(&crowd->loop, 10);
    }
    n_asking--;
    return NULL;
}

/* The decider: takes a few, answers in its own way, moves the epochs now and then. */
static void decide_until_done(void) {
    uint64_t random = 88172645463325252U;
    while (n_asking > 0) {
        struct upcall taken[8];
        struct pollfd fd = {.fd = upcalls_fd(upcalls), .events = POLLIN};
        (void)poll(&fd, 1, 10); /* the end is not announced */
        const size_t n = upcalls_take(upcalls, taken, ARRAY_LEN(taken));
        for (size_t i = 0; i < n; i++) {
            const uint64_t how = next_random(&random);
            struct fake_verdict fake = fake_forward(how >> 8 & 1 ? 60000 : 0, how >> 16 & 7);
            struct verdict *const verdict = fake_decider_verdict(&decider, &fake);
            if ((how >> 24 & 7) == 0) {
                flow_epoch_bump(flows, true, false); /* the verdict is stale now */
            }
            if ((how >> 32 & 31) == 0) {
                flow_forget(flows, &shares[how & 1]);
            }
            (void)flow_reply(flows, taken[i].id, verdict, now_ns); /* may be closed by now */
            upcall_free(upcalls, &taken[i]);
        }
    }
}

static void run_crowds(const struct flow_limits *limits) {
    unsigned n_verdicts = 0;
    unsigned n_cancelled = 0;
    set_up(limits);
    n_asking = ARRAY_LEN(crowds);
    for (size_t i = 0; i < ARRAY_LEN(crowds); i++) {
        CHECK(loop_open(&crowds[i].loop, &mem, true));
        crowds[i].random = 0x9e3779b97f4a7c15U * (i + 1);
        for (size_t k = 0; k < ASKERS; k++) {
            crowds[i].askers[k].crowd = &crowds[i];
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(crowds); i++) {
        CHECK_INT_EQ(pthread_create(&crowds[i].thread, NULL, crowd_run, &crowds[i]), 0);
    }

    decide_until_done();

    for (size_t i = 0; i < ARRAY_LEN(crowds); i++) {
        CHECK_INT_EQ(pthread_join(crowds[i].thread, NULL), 0);
        n_verdicts += crowds[i].n_verdicts;
        n_cancelled += crowds[i].n_cancelled;
        loop_close(&crowds[i].loop);
    }
    CHECK(n_verdicts > 0);
    CHECK(n_cancelled > 0);
    tear_down();
}

TEST(threads_may_ask_cancel_and_answer_at_once) {
    const struct flow_limits limits = {
        .flows_per_workload = 20,
        .questions_per_workload = 200,
        .waiters_per_question = 50,
        .idle_ns = 600 * NS_PER_S,
    };
    run_crowds(&limits);
}

TEST(threads_may_do_so_with_the_cache_off_and_little_room) {
    const struct flow_limits limits = {
        .flows_per_workload = 0,
        .questions_per_workload = 10,
        .waiters_per_question = 5,
        .idle_ns = 600 * NS_PER_S,
    };
    run_crowds(&limits);
}
