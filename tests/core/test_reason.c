/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of reason.c: the table that both languages share, as seen from C. */
#include "reason.h"

#include "check.h"

TEST(status_flag_and_name_are_those_of_the_table) {
    CHECK_INT_EQ(reason_status(REASON_OK), 200);
    CHECK_INT_EQ(reason_status(REASON_POLICY_DENIED), 401);
    CHECK_INT_EQ(reason_status(REASON_BAD_METHOD), 400);
    CHECK_INT_EQ(reason_status(REASON_TOO_BUSY), 503);
    CHECK_INT_EQ(reason_flag(REASON_OK), 0);
    CHECK_INT_EQ(reason_flag(REASON_POLICY_DENIED), 1);
    CHECK_INT_EQ(reason_flag(REASON_CERT_REVOKED), REASON_FLAGS - 1);
    CHECK_STR_EQ(reason_name(REASON_POLICY_DENIED), "POLICY_DENIED");
}

TEST(early_reasons_have_no_flag) {
    CHECK(reason_is_early(REASON_DECISION_TIMEOUT));
    CHECK(reason_is_early(REASON_DECIDER_ERROR));
    CHECK(!reason_is_early(REASON_OK));
    CHECK(!reason_is_early(REASON_DRAINED));
    for (unsigned number = 0; number < REASONS; number++) {
        enum reason reason = REASON_OK;
        if (reason_of(number, &reason) && reason_is_early(reason)) {
            CHECK_INT_EQ(reason_flag(reason), 0);
        }
    }
}

TEST(numbers_are_reasons_or_refused) {
    enum reason reason = REASON_OK;

    CHECK(reason_of(REASON_DRAINED, &reason));
    CHECK_INT_EQ(reason, REASON_DRAINED);
    CHECK(!reason_of(REASONS, &reason));
    CHECK(!reason_of(255, &reason));
    CHECK(!reason_of(UINT32_MAX, &reason));
    CHECK_INT_EQ(reason, REASON_DRAINED);
}
