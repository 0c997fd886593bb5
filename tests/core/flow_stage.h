/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of the flow table stand on: a table, a loop, a decider, connections that ask. */
#ifndef ZT_FLOW_STAGE_H
#define ZT_FLOW_STAGE_H

#include "check.h"
#include "fake_decider.h"
#include "flow.h"
#include "stats.h"
#include "upcall.h"

/* A connection that waits for its verdict. */
struct asker {
    struct flow_waiter waiter;
    struct verdict *verdict; /* a reference, NULL: none, or the answer was that it had cancelled */
    unsigned n_answers;      /* at once or later */
};

static struct mem mem;
static struct released released;
static struct upcalls *upcalls;
static struct stats events;
static struct flows *flows;
static struct loop loop;
static struct flow_share shares[3];
static struct fake_decider decider;
static uint64_t now_ns = 1000 * NS_PER_S;

static const struct flow_limits LIMITS = {
    .flows_per_workload = 100,
    .questions_per_workload = 100,
    .waiters_per_question = 1000,
    .idle_ns = 600 * NS_PER_S,
};

/* One rule for every question. */
static struct fake_rule rule;

static inline void set_up(const struct flow_limits *limits) {
    released_init(&released);
    stats_init(&events, &mem);
    upcalls = upcalls_create(&mem);
    flows = flows_create(&mem, limits, upcalls, &events);
    CHECK(upcalls != NULL && flows != NULL && loop_open(&loop, &mem, true));
    for (uint32_t i = 0; i < ARRAY_LEN(shares); i++) {
        /* The first two are in one shard, the third is elsewhere. */
        flow_share_init(&shares[i], i == 1 ? 64 : i);
    }
    rule = (struct fake_rule){.kind = KEY_KINDS, .verdict = fake_forward(60000, KEY_USES_ALL)};
    decider = (struct fake_decider){
        .mem = &mem,
        .released = &released,
        .flows = flows,
        .upcalls = upcalls,
        .rules = &rule,
        .n_rules = 1,
        .now_ns = now_ns,
    };
}

/* Nothing is left of anything; all tags that were given come back. */
static inline void tear_down(void) {
    uint64_t tags[64];
    for (size_t i = 0; i < ARRAY_LEN(shares); i++) {
        flow_forget(flows, &shares[i]);
        CHECK_INT_EQ(shares[i].n_flows, 0);
        CHECK_INT_EQ(shares[i].n_questions, 0);
        for (size_t kind = 0; kind < KEY_KINDS; kind++) {
            for (size_t mask = 0; mask < FLOW_MASKS; mask++) {
                CHECK_INT_EQ(shares[i].masks[kind][mask], 0);
            }
        }
    }
    flows_destroy(flows);
    upcalls_destroy(upcalls);
    loop_close(&loop);
    while (verdict_drain_released(&released, tags, ARRAY_LEN(tags)) > 0) {
    }
    for (int kind = 0; kind < MEM_KINDS; kind++) {
        CHECK_INT_EQ(mem.live[kind], 0);
    }
}

static inline void answered(struct flow_waiter *waiter, struct verdict *verdict) {
    struct asker *const asker = CONTAINER_OF(waiter, struct asker, waiter);
    asker->verdict = verdict;
    asker->n_answers++;
}

/* Asks for the key of a destination port and a source; true if the verdict is there at once. */
static inline bool ask_from(struct asker *asker, struct flow_share *share, uint16_t port,
                            uint8_t source) {
    const struct addr src = {.ip = {10, 0, 0, source}, .family = 4};
    const struct addr dst = {.ip = {10, 96, 0, 1}, .port = port, .family = 4};
    uint8_t key[64];
    const size_t len = key_pack_captured(&src, &dst, key, sizeof(key));
    asker->waiter.loop = &loop;
    asker->waiter.answered = answered;
    asker->verdict = flow_ask(flows, share, KEY_OUTBOUND, key, len, now_ns, &asker->waiter);
    asker->n_answers += asker->verdict == NULL ? 0 : 1;
    return asker->verdict != NULL;
}

static inline bool ask(struct asker *asker, uint16_t port) {
    return ask_from(asker, &shares[0], port, 1);
}

/* Lets the decider answer what is asked, and the answers arrive. */
static inline size_t turn(void) {
    decider.now_ns = now_ns;
    const size_t n = fake_decider_turn(&decider);
    loop_turn(&loop, 0);
    return n;
}

static inline uint64_t event(enum stats_event which) {
    return events.events[which];
}

#endif
