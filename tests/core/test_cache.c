/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of cache.c through the flow table: which keys a flow serves, how long, how many there are.
 */
#include "flow_stage.h"

/* A connection of its own that asks, is answered at once and ends. */
static bool is_cached(uint16_t port) {
    struct asker asker = {0};
    if (ask(&asker, port)) {
        const bool is_denied = asker.verdict->is_own;
        verdict_unref(asker.verdict);
        return !is_denied;
    }
    CHECK(flow_cancel(&asker.waiter));
    return false;
}

/* Makes one flow. */
static void learn(uint16_t port) {
    struct asker asker = {0};
    CHECK(!ask(&asker, port));
    CHECK_INT_EQ(turn(), 1);
    CHECK_INT_EQ(asker.n_answers, 1);
    verdict_unref(asker.verdict);
}

/* --- which keys a flow serves */

TEST(the_second_connection_of_a_key_is_answered_at_once) {
    set_up(&LIMITS);
    learn(80);

    CHECK(is_cached(80));
    CHECK(!is_cached(81));

    CHECK_INT_EQ(event(EVENT_flow_hit), 1);
    CHECK_INT_EQ(event(EVENT_flow_miss), 2);
    CHECK_INT_EQ(shares[0].n_flows, 1);
    tear_down();
}

TEST(a_verdict_that_did_not_read_the_source_serves_all_sources) {
    struct asker other = {0};
    set_up(&LIMITS);
    rule.verdict.uses = 0;
    learn(80);

    CHECK(ask_from(&other, &shares[0], 80, 2));

    verdict_unref(other.verdict);
    tear_down();
}

TEST(a_verdict_that_read_the_source_serves_that_source_only) {
    struct asker other = {0};
    set_up(&LIMITS);
    rule.verdict.uses = KEY_USES_SOURCE;
    learn(80);

    CHECK(is_cached(80));
    CHECK(!ask_from(&other, &shares[0], 80, 2));

    CHECK(flow_cancel(&other.waiter));
    tear_down();
}

TEST(flows_of_several_masks_are_all_found) {
    set_up(&LIMITS);
    for (unsigned uses = 0; uses < FLOW_MASKS; uses++) {
        rule.verdict.uses = uses;
        learn((uint16_t)(80 + uses));
    }

    for (unsigned uses = 0; uses < FLOW_MASKS; uses++) {
        CHECK(is_cached((uint16_t)(80 + uses)));
    }
    tear_down();
}

TEST(a_workload_is_not_served_by_the_flows_of_another) {
    struct asker asker = {0};
    set_up(&LIMITS);
    learn(80);

    for (size_t i = 1; i < ARRAY_LEN(shares); i++) {
        CHECK(!ask_from(&asker, &shares[i], 80, 1));
        CHECK(flow_cancel(&asker.waiter));
    }
    tear_down();
}

TEST(a_key_is_not_served_by_a_flow_of_another_kind) {
    const struct addr src = {.ip = {10, 0, 0, 1}, .family = 4};
    const struct addr dst = {.ip = {10, 96, 0, 1}, .port = 80, .family = 4};
    uint8_t key[64];
    const size_t len = key_pack_captured(&src, &dst, key, sizeof(key));
    struct asker asker = {.waiter = {.loop = &loop, .answered = answered}};
    set_up(&LIMITS);
    learn(80);

    CHECK(flow_ask(flows, &shares[0], KEY_PASSTHROUGH, key, len, now_ns, &asker.waiter) == NULL);

    CHECK_INT_EQ(turn(), 1);
    verdict_unref(asker.verdict);
    CHECK_INT_EQ(shares[0].n_flows, 2);
    tear_down();
}

TEST(a_new_verdict_replaces_the_one_for_the_same_masked_key) {
    struct asker a = {0}, b = {0};
    set_up(&LIMITS);
    rule.verdict.uses = 0;
    CHECK(!ask_from(&a, &shares[0], 80, 1));
    CHECK(!ask_from(&b, &shares[0], 80, 2));

    CHECK_INT_EQ(turn(), 2);

    CHECK_INT_EQ(shares[0].n_flows, 1);
    CHECK_INT_EQ(shares[0].masks[KEY_OUTBOUND][0], 1);
    verdict_unref(a.verdict);
    verdict_unref(b.verdict);
    tear_down();
}

TEST(denials_of_the_decider_are_kept_too) {
    set_up(&LIMITS);
    rule.verdict =
        (struct fake_verdict){.action = VERDICT_DENY, .reason = REASON_NO_ROUTE, .ttl_ms = 1000};
    learn(80);

    CHECK(is_cached(80));
    tear_down();
}

/* --- what is not kept */

TEST(a_verdict_for_one_connection_is_not_kept) {
    set_up(&LIMITS);
    rule.verdict.ttl_ms = 0;
    learn(80);

    CHECK(!is_cached(80));
    CHECK_INT_EQ(shares[0].n_flows, 0);
    tear_down();
}

TEST(nothing_is_kept_with_the_cache_off) {
    struct flow_limits limits = LIMITS;
    limits.flows_per_workload = 0;
    set_up(&limits);
    learn(80);

    CHECK(!is_cached(80));
    CHECK_INT_EQ(shares[0].n_flows, 0);
    CHECK_INT_EQ(event(EVENT_flow_miss), 0);
    tear_down();
}

TEST(a_stale_verdict_is_not_kept) {
    set_up(&LIMITS);
    rule.manner = FAKE_STALE;
    learn(80);

    CHECK(!is_cached(80));
    CHECK_INT_EQ(event(EVENT_flow_stale_reply), 1);
    tear_down();
}

TEST(a_broken_reply_is_not_kept) {
    set_up(&LIMITS);
    rule.manner = FAKE_BROKEN;
    learn(80);

    CHECK(!is_cached(80));
    tear_down();
}

TEST(keys_beyond_a_size_are_not_kept) {
    static char long_text[FLOW_KEY_MAX];
    static uint8_t key[KEY_MAX];
    const struct addr addr = {.ip = {10, 0, 0, 1}, .family = 4};
    memset(long_text, 'x', sizeof(long_text));
    const struct key_request request = {
        .local = addr, .src = addr, .authority = {long_text, sizeof(long_text)}};
    const size_t len = key_pack_request(&request, key, sizeof(key));
    struct asker asker = {.waiter = {.loop = &loop, .answered = answered}};
    set_up(&LIMITS);

    for (int i = 0; i < 2; i++) {
        CHECK(flow_ask(flows, &shares[0], KEY_INBOUND, key, len, now_ns, &asker.waiter) == NULL);
        CHECK_INT_EQ(turn(), 1);
        verdict_unref(asker.verdict);
    }

    CHECK_INT_EQ(shares[0].n_flows, 0);
    tear_down();
}

TEST(without_memory_a_verdict_is_used_but_not_kept) {
    struct asker asker = {0};
    struct upcall question;
    set_up(&LIMITS);
    CHECK(!ask(&asker, 80));
    CHECK_INT_EQ(upcalls_take(upcalls, &question, 1), 1);
    struct verdict *const verdict = fake_decider_verdict(&decider, &rule.verdict);

    mem_fail_at(1);
    CHECK(flow_reply(flows, question.id, verdict, now_ns));

    loop_turn(&loop, 0);
    CHECK(asker.verdict == verdict);
    CHECK(!is_cached(80));
    upcall_free(upcalls, &question);
    verdict_unref(asker.verdict);
    tear_down();
}

/* --- how long */

TEST(a_flow_ends_with_its_ttl) {
    set_up(&LIMITS);
    rule.verdict.ttl_ms = 1000;
    learn(80);

    now_ns += NS_PER_S - 1;
    CHECK(is_cached(80));
    now_ns += 1;
    CHECK(!is_cached(80));

    CHECK_INT_EQ(shares[0].n_flows, 0);
    CHECK_INT_EQ(event(EVENT_flow_stale), 0);
    tear_down();
}

TEST(a_flow_that_is_not_used_ends) {
    struct flow_limits limits = LIMITS;
    limits.idle_ns = 10 * NS_PER_S;
    set_up(&limits);
    learn(80);

    for (int i = 0; i < 3; i++) {
        now_ns += 10 * NS_PER_S;
        CHECK(is_cached(80));
    }
    now_ns += 10 * NS_PER_S + 1;
    CHECK(!is_cached(80));

    CHECK_INT_EQ(shares[0].n_flows, 0);
    tear_down();
}

TEST(a_clock_that_is_a_little_behind_ends_nothing) {
    set_up(&LIMITS);
    learn(80);

    now_ns -= NS_PER_MS;

    CHECK(is_cached(80));
    tear_down();
}

TEST(a_flow_ends_with_its_epoch) {
    set_up(&LIMITS);
    for (unsigned i = 0; i < 2; i++) {
        learn(80);
        CHECK(is_cached(80));

        flow_epoch_bump(flows, i == 0, i == 1);

        CHECK(!is_cached(80));
        CHECK_INT_EQ(event(EVENT_flow_stale), i + 1);
        CHECK_INT_EQ(shares[0].n_flows, 0);
    }
    tear_down();
}

TEST(epochs_count_their_bumps) {
    set_up(&LIMITS);

    flow_epoch_bump(flows, true, false);
    flow_epoch_bump(flows, true, true);

    CHECK_INT_EQ(flow_epoch(flows).discovery, 2);
    CHECK_INT_EQ(flow_epoch(flows).policy, 1);
    tear_down();
}

/* --- how many */

TEST(a_full_share_throws_out_the_least_recently_used_flow) {
    struct flow_limits limits = LIMITS;
    limits.flows_per_workload = 3;
    set_up(&limits);
    learn(80);
    learn(81);
    learn(82);
    CHECK(is_cached(80));

    learn(83);

    CHECK_INT_EQ(shares[0].n_flows, 3);
    CHECK_INT_EQ(event(EVENT_flow_evicted), 1);
    CHECK(is_cached(80));
    CHECK(!is_cached(81));
    CHECK(is_cached(82));
    CHECK(is_cached(83));
    tear_down();
}

TEST(a_full_share_costs_no_other_workload_a_flow) {
    struct flow_limits limits = LIMITS;
    struct asker other = {0};
    limits.flows_per_workload = 2;
    set_up(&limits);
    CHECK(!ask_from(&other, &shares[1], 80, 1));
    CHECK_INT_EQ(turn(), 1);
    verdict_unref(other.verdict);

    for (uint16_t port = 80; port < 90; port++) {
        learn(port);
    }

    CHECK(ask_from(&other, &shares[1], 80, 1));
    CHECK_INT_EQ(shares[0].n_flows, 2);
    verdict_unref(other.verdict);
    tear_down();
}

TEST(flows_that_nobody_can_use_make_room_first) {
    struct flow_limits limits = LIMITS;
    limits.flows_per_workload = 3;
    set_up(&limits);
    learn(80);
    learn(81);
    flow_epoch_bump(flows, false, true);
    learn(82);

    CHECK_INT_EQ(shares[0].n_flows, 1);
    CHECK_INT_EQ(event(EVENT_flow_evicted), 0);
    tear_down();
}

TEST(thousands_of_flows_are_found_and_forgotten) {
    struct flow_limits limits = LIMITS;
    limits.flows_per_workload = 5000;
    set_up(&limits);
    for (uint16_t port = 1; port <= 5000; port++) {
        learn(port);
    }

    for (uint16_t port = 1; port <= 5000; port++) {
        CHECK(is_cached(port));
    }
    CHECK_INT_EQ(mem.live[MEM_FLOW], 5000);
    flow_forget(flows, &shares[0]);

    CHECK_INT_EQ(mem.live[MEM_FLOW], 0);
    CHECK(!is_cached(1));
    tear_down();
}

TEST(forgetting_a_workload_releases_its_verdicts_and_no_others) {
    struct asker other = {0};
    uint64_t tags[4] = {0};
    set_up(&LIMITS);
    learn(80);
    CHECK(!ask_from(&other, &shares[1], 80, 1));
    CHECK_INT_EQ(turn(), 1);
    verdict_unref(other.verdict);

    flow_forget(flows, &shares[0]);

    CHECK_INT_EQ(verdict_drain_released(&released, tags, 4), 1);
    CHECK_INT_EQ(tags[0], 1);
    CHECK_INT_EQ(shares[1].n_flows, 1);
    tear_down();
}

TEST(flows_that_are_left_go_with_their_table) {
    uint64_t tags[4] = {0};
    set_up(&LIMITS);
    learn(80);
    learn(81);
    memset(shares, 0xff, sizeof(shares));

    flows_destroy(flows);

    CHECK_INT_EQ(verdict_drain_released(&released, tags, 4), 2);
    upcalls_destroy(upcalls);
    loop_close(&loop);
    for (int kind = 0; kind < MEM_KINDS; kind++) {
        CHECK_INT_EQ(mem.live[kind], 0);
    }
}
