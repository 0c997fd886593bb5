/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the whole core, three workers and no Python: traffic, ends, drains, removals. */
#define CHECK_TIMEOUT_S 60

#include "core_stage.h"

static struct user *join(uint64_t length, enum user_way way) {
    return crowd_add(&crowd, &outbound, 0, length, way);
}

static void all_are(enum user_state state) {
    for (size_t i = 0; i < crowd.n; i++) {
        CHECK_INT_EQ(crowd.users[i].state, state);
    }
}

/* --- traffic --- */

TEST(a_connection_goes_through_both_halves) {
    set_up();

    (void)join(100, USER_ENDS);
    turn_until_nobody_talks();
    TURN_UNTIL(ends() == 2);

    all_are(USER_DONE);
    CHECK_INT_EQ(n_ended[REASON_OK], 2);
    CHECK_INT_EQ(n_opened, 2);
    CHECK(n_up == 200 && n_down == 200);
    CHECK_INT_EQ(event(EVENT_pool_opened), 1);
    tear_down();
}

TEST(plaintext_passes_through) {
    set_up();

    (void)crowd_add(&crowd, &passthrough, 0, 1000, USER_ENDS);
    turn_until_nobody_talks();
    TURN_UNTIL(ends() == 1);

    all_are(USER_DONE);
    CHECK_INT_EQ(n_ended[REASON_OK], 1);
    tear_down();
}

TEST(a_user_who_says_nothing_is_served) {
    set_up();

    (void)join(0, USER_ENDS);
    turn_until_nobody_talks();

    all_are(USER_DONE);
    tear_down();
}

TEST(bulk_arrives_as_it_was_sent) {
    set_up();

    for (int i = 0; i < 6; i++) {
        (void)join((4 << 20) + (uint64_t)i, USER_ENDS);
    }
    turn_until_nobody_talks();
    TURN_UNTIL(ends() == 12);

    all_are(USER_DONE);
    CHECK_INT_EQ(n_ended[REASON_OK], 12);
    tear_down();
}

TEST(many_short_connections) {
    set_up();

    for (int i = 0; i < 600; i++) {
        (void)join((uint64_t)i % 50, USER_ENDS);
        TURN_UNTIL(crowd_count(&crowd, USER_TALKING) < 32);
    }
    turn_until_nobody_talks();
    TURN_UNTIL(ends() == 1200);

    CHECK_INT_EQ(n_ended[REASON_OK], 1200);
    CHECK(event(EVENT_pool_opened) <= 1 + event(EVENT_worker_recruited));
    tear_down();
}

TEST(every_way_to_end_leaves_nothing) {
    set_up();

    for (int i = 0; i < 200; i++) {
        (void)join((uint64_t)i * 100, (enum user_way)(i % 4));
    }
    turn_until_nobody_talks();
    crowd_leave(&crowd);
    TURN_UNTIL(live(MEM_CONN) == 0);

    tear_down();
}

/* --- the pool --- */

TEST(connections_that_miss_together_are_one_question_and_one_tunnel) {
    set_up();
    rules[RULE_OUTBOUND].manner = FAKE_LATE;

    for (int i = 0; i < 100; i++) {
        (void)join(10, USER_ENDS);
    }
    TURN_UNTIL(live(MEM_CONN) == 100 && decider.n_taken > 0);
    CHECK_INT_EQ(decider.n_taken, 1);
    fake_decider_catch_up(&decider);
    turn_until_nobody_talks();

    all_are(USER_DONE);
    CHECK_INT_EQ(event(EVENT_pool_opened), 1);
    tear_down();
}

TEST(a_key_has_one_tunnel_whatever_the_workers) {
    set_up();

    for (uint32_t round = 0; round < 10; round++) {
        for (uint32_t source = 0; source < 20; source++) {
            (void)crowd_add(&crowd, &outbound, INADDR_LOOPBACK + 1 + source, 10, USER_ENDS);
        }
        turn_until_nobody_talks();
    }

    CHECK(event(EVENT_pool_opened) <= 20 + event(EVENT_worker_recruited));
    CHECK(event(EVENT_pool_reused) >= 180 - event(EVENT_worker_recruited));
    tear_down();
}

TEST(a_tunnel_that_fails_is_the_end_of_all_who_wait_for_it) {
    set_up();
    rules[RULE_OUTBOUND].verdict.hops[0].sans[0] = "spiffe://td/ns/b/sa/another";

    for (int i = 0; i < 50; i++) {
        (void)join(10, USER_ENDS);
    }
    turn_until_nobody_talks();
    TURN_UNTIL(n_ended[REASON_IO] == 50);

    all_are(USER_CUT);
    CHECK(event(EVENT_pool_opened) < 50);
    tear_down();
}

TEST(more_streams_than_a_tunnel_takes_open_another) {
    struct core_config config = STAGE_CONFIG;
    config.pool_max_streams = 10;
    set_up_with(&config);

    for (int i = 0; i < 45; i++) {
        (void)join(10, USER_WAITS);
    }
    turn_until_nobody_talks();

    all_are(USER_DONE);
    CHECK(event(EVENT_pool_opened) >= 5);
    tear_down();
}

/* --- decisions --- */

TEST(a_certificate_that_comes_late_is_waited_for) {
    stage_prepare();
    CHECK(stage_start(&STAGE_CONFIG) && stage_listen());
    rules[RULE_IDENTITY].manner = FAKE_LATE;

    (void)join(10, USER_ENDS);
    TURN_UNTIL(decider.n_late > 0);
    CHECK(stage_identify(CLIENT, &client_leaf) && stage_identify(SERVER, &server_leaf));
    rules[RULE_IDENTITY].manner = FAKE_AT_ONCE;
    fake_decider_catch_up(&decider);
    turn_until_nobody_talks();

    all_are(USER_DONE);
    tear_down();
}

TEST(a_certificate_that_cannot_be_had_ends_who_waits) {
    stage_prepare();
    CHECK(stage_start(&STAGE_CONFIG) && stage_listen());
    rules[RULE_IDENTITY].verdict =
        (struct fake_verdict){.action = VERDICT_DENY, .reason = REASON_SIGNING, .detail = "no CA"};

    (void)join(10, USER_ENDS);
    turn_until_nobody_talks();
    TURN_UNTIL(n_ended[REASON_IDENTITY] == 1);

    all_are(USER_CUT);
    tear_down();
}

TEST(bad_answers_are_denials) {
    static const enum fake_manner MANNERS[] = {FAKE_BROKEN, FAKE_TWICE, FAKE_STALE};
    for (size_t i = 0; i < ARRAY_LEN(MANNERS); i++) {
        set_up();
        rules[RULE_OUTBOUND].manner = MANNERS[i];

        (void)join(10, USER_ENDS);
        if (MANNERS[i] == FAKE_STALE) { /* asked again until the answer is of today */
            TURN_UNTIL(decider.n_taken > 2);
            rules[RULE_OUTBOUND].manner = FAKE_AT_ONCE;
        }
        turn_until_nobody_talks();

        all_are(MANNERS[i] == FAKE_BROKEN ? USER_CUT : USER_DONE);
        tear_down();
    }
}

TEST(a_denied_stream_is_a_denied_connection) {
    set_up();
    rules[RULE_INBOUND].verdict.action = VERDICT_DENY;
    rules[RULE_INBOUND].verdict.reason = REASON_POLICY_DENIED;
    rules[RULE_INBOUND].verdict.hops[0].weight = 1;

    (void)join(10, USER_ENDS);
    turn_until_nobody_talks();
    TURN_UNTIL(ends() == 2);

    all_are(USER_CUT);
    CHECK(n_ended[REASON_POLICY_DENIED] == 1 && n_ended[REASON_BAD_STATUS] == 1);
    CHECK_INT_EQ(echo.n_accepted, 0);
    tear_down();
}

TEST(without_an_answer_connections_end_in_time) {
    struct core_config config = STAGE_CONFIG;
    config.has_manual_time = true;
    set_up_with(&config);
    rules[RULE_OUTBOUND].manner = FAKE_NEVER;

    for (int i = 0; i < 10; i++) {
        (void)join(10, USER_ENDS);
    }
    TURN_UNTIL(live(MEM_CONN) == 10);
    core_advance(core, 6 * NS_PER_S); /* it was taken: the decider works on it */
    CHECK_INT_EQ(ends(), 0);
    core_advance(core, 25 * NS_PER_S);
    turn_until_nobody_talks();
    TURN_UNTIL(n_ended[REASON_DECISION_TIMEOUT] == 10);

    all_are(USER_CUT);
    tear_down();
}

/* --- ends from above --- */

static bool all_have_heard(void) {
    for (size_t i = 0; i < crowd.n; i++) {
        if (crowd.users[i].heard == 0) {
            return false;
        }
    }
    return true;
}

static void talk_forever(unsigned n) {
    for (unsigned i = 0; i < n; i++) {
        (void)join(UINT64_C(1) << 40, USER_ENDS);
    }
    TURN_UNTIL(all_have_heard());
    CHECK_INT_EQ(crowd_count(&crowd, USER_TALKING), n);
}

TEST(connections_are_killed_while_they_talk) {
    set_up();
    talk_forever(20);
    struct core_conn_view *views = NULL;
    uint64_t ids[64];
    const size_t n = core_connections(core, &views);
    CHECK_INT_EQ(n, 40);
    for (size_t i = 0; i < n; i++) {
        ids[i] = views[i].id;
        CHECK_STR_EQ(views[i].state, "relaying");
    }
    core_connections_free(core, views, n);

    core_conn_kill(core, ids, n / 2, REASON_POLICY_CHANGED);
    core_conn_kill(core, ids, n, REASON_POLICY_CHANGED);
    turn_until_nobody_talks();

    all_are(USER_CUT);
    CHECK(n_ended[REASON_POLICY_CHANGED] >= 20);
    tear_down();
}

TEST(a_policy_that_changed_ends_those_it_denies) {
    set_up();
    talk_forever(10);
    struct core_live *keys = NULL;
    core_epoch_bump(core, false, true);
    rules[RULE_INBOUND].verdict.action = VERDICT_DENY;
    rules[RULE_INBOUND].verdict.reason = REASON_POLICY_DENIED;

    const size_t n = core_live_keys(core, SERVER, &keys);
    CHECK_INT_EQ(n, 10);
    uint64_t ids[16];
    for (size_t i = 0; i < n; i++) {
        ids[i] = keys[i].conn;
        CHECK_INT_EQ(keys[i].kind, KEY_INBOUND);
    }
    core_live_free(core, keys, n);
    core_conn_kill(core, ids, n, REASON_POLICY_CHANGED);
    turn_until_nobody_talks();
    (void)join(10, USER_ENDS);
    turn_until_nobody_talks();

    all_are(USER_CUT);
    CHECK_INT_EQ(n_ended[REASON_POLICY_DENIED], 1);
    tear_down();
}

TEST(a_graceful_drain_lets_what_runs_finish) {
    set_up();
    for (int i = 0; i < 10; i++) {
        (void)join(8 << 20, USER_ENDS);
    }
    TURN_UNTIL(event(EVENT_pool_reused) + event(EVENT_pool_opened) > 0 && echo.n_accepted == 10);

    core_drain(core, CORE_ALL, false);
    CHECK(!core_is_idle(core, CORE_ALL));
    turn_until_nobody_talks();
    TURN_UNTIL(core_is_idle(core, CORE_ALL));

    all_are(USER_DONE);
    CHECK_INT_EQ(n_ended[REASON_OK], 20);
    tear_down();
}

TEST(an_immediate_drain_ends_what_runs) {
    set_up();
    talk_forever(20);

    core_drain(core, CORE_ALL, true);
    TURN_UNTIL(core_is_idle(core, CORE_ALL));
    turn_until_nobody_talks();

    all_are(USER_CUT);
    CHECK_INT_EQ(ends(), 40);
    CHECK(n_ended[REASON_DRAINED] >= 20); /* one workload after the other */
    tear_down();
}

TEST(the_clients_workload_goes_while_it_talks) {
    set_up();
    talk_forever(20);

    core_workload_remove(core, CLIENT);
    turn_until_nobody_talks();
    TURN_UNTIL(ends() == 40);

    all_are(USER_CUT);
    CHECK_INT_EQ(n_ended[REASON_DRAINED], 20);
    tear_down();
}

TEST(the_servers_workload_goes_while_it_talks) {
    set_up();
    talk_forever(20);

    core_workload_remove(core, SERVER);
    turn_until_nobody_talks();
    TURN_UNTIL(live(MEM_CONN) == 0);

    all_are(USER_CUT);
    CHECK_INT_EQ(n_ended[REASON_DRAINED], 20);
    tear_down();
}

TEST(workloads_come_and_go_while_others_talk) {
    set_up();
    (void)join(UINT64_C(1) << 40, USER_ENDS);
    for (uint32_t i = 0; i < 30; i++) {
        struct core_listen listen = {.role = CORE_OUTBOUND,
                                     .at = {.ip = {127, 0, 0, 1}, .family = 4}};
        size_t failed = 0;
        CHECK_INT_EQ(core_workload_add(core, 10 + i, -1, &listen, 1, &failed), 0);
        core_workload_serve(core, 10 + i);
        CHECK(stage_identify(10 + i, &client_leaf));
        const struct sockaddr_in at = stage_sockaddr(&listen.bound);
        struct user *const user = crowd_add(&crowd, &at, 0, 1000, USER_ENDS);
        if (i % 2 == 0) {
            TURN_UNTIL(user->state != USER_TALKING);
            CHECK_INT_EQ(user->state, USER_DONE);
        } else {
            turn(1);
        }
        core_workload_remove(core, 10 + i);
    }
    crowd_leave(&crowd);
    tear_down();
}

TEST(stopping_in_the_middle_of_everything_leaves_nothing) {
    set_up();
    for (int i = 0; i < 100; i++) {
        (void)join((uint64_t)i * 10000, (enum user_way)(i % 4));
        if (i % 10 == 0) {
            turn(0);
        }
    }

    tear_down();
}

TEST(everything_can_be_looked_at_while_it_runs) {
    uint64_t sums[8 * STATS_COLUMNS];
    set_up();
    for (int i = 0; i < 200; i++) {
        (void)join((uint64_t)i * 1000, (enum user_way)(i % 4));
        TURN_UNTIL(crowd_count(&crowd, USER_TALKING) < 32);
        struct core_conn_view *conns = NULL;
        struct core_tunnel_view *tunnels = NULL;
        const size_t n_conns = core_connections(core, &conns);
        const size_t n_tunnels = core_tunnels(core, &tunnels);
        core_connections_free(core, conns, n_conns);
        core_tunnels_free(core, tunnels, n_tunnels);
        core_slots(core, sums, 8);
        (void)event(EVENT_flow_hit);
        (void)live(MEM_CONN);
        core_report_opened(core, i % 2 == 0);
        core_epoch_bump(core, i % 10 == 0, false);
    }
    turn_until_nobody_talks();
    crowd_leave(&crowd);
    tear_down();
}

/* --- floods --- */

TEST(handshakes_that_do_not_begin_are_bounded) {
    struct core_config config = STAGE_CONFIG;
    config.handshakes_at_once = 30;
    set_up_with(&config);
    const struct sockaddr_in hbone = stage_sockaddr(&rules[RULE_OUTBOUND].verdict.hops[0].address);

    for (int i = 0; i < 200; i++) {
        (void)crowd_add(&crowd, &hbone, 0, 0, USER_WAITS);
    }
    TURN_UNTIL(event(EVENT_handshakes_refused) >= 170);

    TURN_UNTIL(live(MEM_TUNNEL) <= 30 + 3); /* what a turn ended is freed at its end */
    (void)join(10, USER_ENDS);
    TURN_UNTIL(echo.n_accepted == 1);
    tear_down();
}
