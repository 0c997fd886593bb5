/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the whole core without memory: each allocation of a scenario fails once. Then nothing
 * crashes, nothing is left, and every connection comes to an end. */
#define CHECK_TIMEOUT_S 240

#include "core_stage.h"

#define DEADLINE_NS (NS_PER_S / 2)

/* Not every connection is served now; those who say on which error it ended are not asked. */
static void end_somehow(void) {
    turn_until_nobody_talks();
    crowd_leave(&crowd);
}

/* Runs the scenario with the first allocation failing, then the second, until none has. Cores begin
 * with one worker: the order of allocations is more of the same then. */
static void walk(void (*scenario)(void)) {
    struct core_config config = STAGE_CONFIG;
    bool has_failed = true;
    config.n_workers = 1;
    config.handshake_timeout_ns = DEADLINE_NS;
    config.connect_timeout_ns = DEADLINE_NS;
    stage_prepare();
    uint64_t n = 0;
    while (has_failed) {
        mem_fail_at(++n);
        const uint64_t start = loop_clock_ns();
        if (stage_start(&config)) {
            const bool is_served = stage_listen() && stage_identify(CLIENT, &client_leaf) &&
                                   stage_identify(SERVER, &server_leaf);
            if (is_served) {
                scenario();
            }
            has_failed = mem_has_failed();
            mem_fail_at(0);
            if (loop_clock_ns() - start > DEADLINE_NS) {
                (void)printf("# slow: allocation %" PRIu64 "\n", n); /* only a deadline ended it */
            }
            stage_stop();
        }
        mem_fail_at(0);
    }
    CHECK(n > 20);
    stage_clear();
}

static void join(uint64_t length, enum user_way way) {
    (void)crowd_add(&crowd, &outbound, 0, length, way);
}

static void tunnel(void) {
    join(100, USER_ENDS);
    end_somehow();
}

TEST(a_tunnelled_connection) {
    walk(tunnel);
}

static void plain(void) {
    (void)crowd_add(&crowd, &passthrough, 0, 100, USER_ENDS);
    end_somehow();
}

TEST(a_plaintext_connection) {
    walk(plain);
}

static void reuse(void) {
    join(100, USER_ENDS);
    turn_until_nobody_talks();
    join(50000, USER_ENDS);
    join(50000, USER_RESETS);
    join(0, USER_LEAVES);
    end_somehow();
}

TEST(connections_that_share_a_tunnel) {
    walk(reuse);
}

/* The application is slower than the user, so bytes wait. */
static void stall(void) {
    join(6 << 20, USER_LEAVES);
    end_somehow();
}

TEST(bytes_that_wait) {
    walk(stall);
}

static void kill_some(void) {
    struct core_conn_view *views = NULL;
    uint64_t ids[8];
    join(UINT64_C(1) << 40, USER_ENDS);
    join(UINT64_C(1) << 40, USER_ENDS);
    for (int i = 0; i < 10; i++) {
        turn(1);
    }
    const size_t n = core_connections(core, &views);
    for (size_t i = 0; i < n && i < ARRAY_LEN(ids); i++) {
        ids[i] = views[i].id;
    }
    core_connections_free(core, views, n);
    core_conn_kill(core, ids, n < 2 ? n : 2, REASON_POLICY_CHANGED);
    core_drain(core, SERVER, false);
    core_workload_remove(core, CLIENT);
    end_somehow();
}

TEST(ends_from_above) {
    walk(kill_some);
}

static void deny(void) {
    rules[RULE_INBOUND].verdict.action = VERDICT_DENY;
    rules[RULE_INBOUND].verdict.reason = REASON_POLICY_DENIED;
    join(100, USER_ENDS);
    end_somehow();
}

TEST(a_denied_connection) {
    walk(deny);
}
