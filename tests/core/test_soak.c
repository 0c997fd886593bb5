/* SPDX-License-Identifier: Apache-2.0 */
/* Many connections, opened and ended at random, leave no descriptor and no object behind.
 *
 * Ends after SOAK_CONNECTIONS (10,000) or SOAK_SECONDS (10), whatever comes first; both are
 * variables of the environment.
 */
#define CHECK_TIMEOUT_S 300

#include "core_stage.h"

#define TALKING_MOST 100

static uint64_t state = UINT64_C(88172645463325252);

static uint64_t draw(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static uint64_t from_environment(const char *name, uint64_t without) {
    const char *const value = getenv(name);
    return value == NULL ? without : strtoull(value, NULL, 10);
}

static void open_one(void) {
    static const uint64_t LENGTHS[] = {0, 1, 100, 5000, 70000, 400000};
    const enum user_way way = (enum user_way)draw(4);
    const uint64_t length =
        draw(LENGTHS[draw(ARRAY_LEN(LENGTHS))] + 1) + (way == USER_WAITS ? 1 : 0);
    const uint32_t source = INADDR_LOOPBACK + (uint32_t)draw(8);
    (void)crowd_add(&crowd, draw(8) == 0 ? &passthrough : &outbound, source, length, way);
}

/* Some users leave in the middle of a word, one way or the other. */
static void leave_some(void) {
    struct user *const user = &crowd.users[draw(crowd.n)];
    if (user->state == USER_UNUSED || user->fd < 0) {
        return;
    }
    if (draw(2) == 0) {
        tcp_reset(user->fd);
        user->fd = -1;
        user->state = USER_CUT;
    } else {
        user_close(user, USER_CUT);
    }
}

static void kill_some(void) {
    struct core_conn_view *views = NULL;
    const size_t n = core_connections(core, &views);
    if (n > 0) {
        core_conn_kill(core, &views[draw(n)].id, 1, REASON_POLICY_CHANGED);
    }
    core_connections_free(core, views, n);
}

/* A client's workload that comes, is used, and goes. */
static void come_and_go(uint32_t id) {
    struct core_listen listen = {.role = CORE_OUTBOUND, .at = {.ip = {127, 0, 0, 1}, .family = 4}};
    size_t failed = 0;
    CHECK_INT_EQ(core_workload_add(core, id, -1, &listen, 1, &failed), 0);
    core_workload_serve(core, id);
    CHECK(stage_identify(id, &client_leaf));
    const struct sockaddr_in at = stage_sockaddr(&listen.bound);
    (void)crowd_add(&crowd, &at, 0, 1 + draw(100000), (enum user_way)draw(4));
    turn(1);
    core_workload_remove(core, id);
}

TEST(connections_at_random_leave_nothing) {
    const uint64_t n_most = from_environment("SOAK_CONNECTIONS", 10000);
    const uint64_t end_ns = loop_clock_ns() + from_environment("SOAK_SECONDS", 10) * NS_PER_S;
    uint64_t n = 0;
    set_up();

    for (; n < n_most && loop_clock_ns() < end_ns; n++) {
        open_one();
        if (draw(10) == 0) {
            leave_some();
        }
        if (draw(50) == 0) {
            kill_some();
        }
        if (draw(50) == 0) {
            core_epoch_bump(core, draw(2) == 0, draw(2) == 0);
        }
        if (draw(500) == 0) {
            come_and_go(10 + (uint32_t)n);
        }
        turn(0);
        TURN_UNTIL(crowd_count(&crowd, USER_TALKING) < TALKING_MOST &&
                   crowd_count(&crowd, USER_DONE) < CROWD_MOST);
        for (size_t i = 0; i < crowd.n; i++) { /* those who have heard all and stay */
            if (crowd.users[i].state == USER_DONE && crowd.users[i].fd >= 0 && draw(20) == 0) {
                user_close(&crowd.users[i], USER_DONE);
            }
        }
    }
    turn_until_nobody_talks();
    crowd_leave(&crowd);
    TURN_UNTIL(live(MEM_CONN) == 0 && live(MEM_STREAM) == 0);

    CHECK(core_is_idle(core, CLIENT));
    (void)printf("# %" PRIu64 " connections, %" PRIu64 " tunnels, %" PRIu64 " ends\n", n,
                 event(EVENT_pool_opened), ends());
    tear_down();
}
