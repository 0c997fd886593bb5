/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the whole core when certificates become revoked: what lives ends, on every worker. */
#define CHECK_TIMEOUT_S 60

#include "core_stage.h"

/* Revokes one leaf of the root, or nobody. Returns how many tunnels that ended. */
static size_t revoke_one(const struct certified *leaf) {
    char error[IDENT_ERROR_SIZE] = "";
    const struct text list = certificate_crl(&root, leaf, &root);
    CHECK(core_revocations_load(core, &list, 1, error, sizeof(error)));
    certificate_text_free(list);
    return core_revocations_apply(core);
}

static struct user *join(void) {
    return crowd_add(&crowd, &outbound, 0, UINT64_MAX, USER_ENDS);
}

TEST(a_client_that_is_revoked_loses_its_tunnel) {
    set_up();
    for (int i = 0; i < 20; i++) {
        (void)join();
    }
    TURN_UNTIL(live(MEM_STREAM) == 40 && n_opened == 40);

    CHECK_INT_EQ(revoke_one(&client_leaf), 1);
    TURN_UNTIL(ends() == 40);

    CHECK_INT_EQ(n_ended[REASON_CERT_REVOKED],
                 20); /* those of the server, who refuses the client */
    CHECK_INT_EQ(event(EVENT_crl_rejections_destination), 1);
    CHECK_INT_EQ(event(EVENT_crl_rejections_source), 0);
    tear_down();
}

TEST(a_server_that_is_revoked_is_left_and_not_believed_again) {
    set_up();
    for (int i = 0; i < 20; i++) {
        (void)join();
    }
    TURN_UNTIL(live(MEM_STREAM) == 40 && n_opened == 40);

    CHECK_INT_EQ(revoke_one(&server_leaf), 1);
    TURN_UNTIL(ends() == 40);
    CHECK_INT_EQ(n_ended[REASON_CERT_REVOKED], 20);
    (void)join();
    TURN_UNTIL(n_ended[REASON_IO] == 1);

    CHECK_INT_EQ(event(EVENT_crl_rejections_source), 2);
    tear_down();
}

TEST(nobody_ends_when_nobody_is_revoked) {
    set_up();
    (void)join();
    TURN_UNTIL(n_opened == 2);

    CHECK_INT_EQ(revoke_one(NULL), 0);
    turn(20);

    CHECK_INT_EQ(ends(), 0);
    tear_down();
}

TEST(revocation_at_random_moments_leaves_nothing) {
    set_up();
    for (int round = 0; round < 30; round++) {
        for (int i = 0; i < 10; i++) {
            (void)crowd_add(&crowd, &outbound, 0, 2000, USER_ENDS);
        }
        for (int i = 0; i < round % 7; i++) {
            turn(0);
        }
        (void)revoke_one(round % 2 == 0 ? &client_leaf : &server_leaf);
        (void)revoke_one(NULL);
    }
    turn_until_nobody_talks();
    TURN_UNTIL(live(MEM_CONN) == 0);

    const struct user *const last = crowd_add(&crowd, &outbound, 0, 2000, USER_ENDS);
    turn_until_nobody_talks();
    CHECK_INT_EQ(last->state, USER_DONE);
    tear_down();
}
