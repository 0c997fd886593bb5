/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of flow.c: who waits for which question, who is answered with what, bounds. */
#include "flow_stage.h"

static void check_denied(const struct asker *asker, enum reason reason) {
    CHECK(asker->verdict != NULL);
    CHECK_INT_EQ(asker->verdict->action, VERDICT_DENY);
    CHECK_INT_EQ(asker->verdict->reason, reason);
    CHECK(!flow_is_stale(flows, asker->verdict));
    verdict_unref(asker->verdict);
}

/* --- asking and answering */

TEST(a_miss_is_a_question_and_its_answer_wakes_the_waiter) {
    struct asker asker = {0};
    set_up(&LIMITS);

    CHECK(!ask(&asker, 80));
    CHECK_INT_EQ(shares[0].n_questions, 1);
    CHECK_INT_EQ(fake_decider_turn(&decider), 1);
    CHECK_INT_EQ(asker.n_answers, 0);
    loop_turn(&loop, 0);

    CHECK_INT_EQ(asker.n_answers, 1);
    CHECK_INT_EQ(asker.verdict->action, VERDICT_FORWARD);
    CHECK_INT_EQ(shares[0].n_questions, 0);
    verdict_unref(asker.verdict);
    tear_down();
}

TEST(a_thundering_herd_is_one_question) {
    static struct asker herd[500];
    set_up(&LIMITS);
    for (size_t i = 0; i < ARRAY_LEN(herd); i++) {
        CHECK(!ask(&herd[i], 80));
    }

    CHECK_INT_EQ(turn(), 1);

    CHECK_INT_EQ(turn(), 0);
    CHECK_INT_EQ(event(EVENT_flow_joined), ARRAY_LEN(herd) - 1);
    for (size_t i = 0; i < ARRAY_LEN(herd); i++) {
        CHECK_INT_EQ(herd[i].n_answers, 1);
        CHECK(herd[i].verdict == herd[0].verdict);
    }
    for (size_t i = 0; i < ARRAY_LEN(herd); i++) {
        verdict_unref(herd[i].verdict);
    }
    tear_down();
}

TEST(keys_that_differ_are_questions_of_their_own) {
    struct asker a = {0}, b = {0}, c = {0};
    set_up(&LIMITS);

    CHECK(!ask_from(&a, &shares[0], 80, 1));
    CHECK(!ask_from(&b, &shares[0], 80, 2));
    CHECK(!ask_from(&c, &shares[1], 80, 1));

    CHECK_INT_EQ(turn(), 3);
    verdict_unref(a.verdict);
    verdict_unref(b.verdict);
    verdict_unref(c.verdict);
    tear_down();
}

TEST(with_the_cache_off_every_connection_asks) {
    struct flow_limits limits = LIMITS;
    struct asker askers[3] = {{.n_answers = 0}};
    limits.flows_per_workload = 0;
    set_up(&limits);
    for (size_t i = 0; i < 3; i++) {
        CHECK(!ask(&askers[i], 80));
    }

    CHECK_INT_EQ(turn(), 3);

    CHECK_INT_EQ(event(EVENT_flow_joined), 0);
    for (size_t i = 0; i < 3; i++) {
        CHECK_INT_EQ(askers[i].n_answers, 1);
        verdict_unref(askers[i].verdict);
    }
    tear_down();
}

TEST(a_late_answer_is_an_answer) {
    struct asker asker = {0};
    set_up(&LIMITS);
    rule.manner = FAKE_LATE;
    CHECK(!ask(&asker, 80));
    CHECK_INT_EQ(turn(), 1);
    CHECK_INT_EQ(asker.n_answers, 0);

    fake_decider_catch_up(&decider);
    loop_turn(&loop, 0);

    CHECK_INT_EQ(asker.n_answers, 1);
    verdict_unref(asker.verdict);
    tear_down();
}

TEST(a_second_answer_is_ignored_and_its_tag_released) {
    struct asker asker = {0};
    uint64_t tags[4] = {0};
    set_up(&LIMITS);
    rule.manner = FAKE_TWICE;
    CHECK(!ask(&asker, 80));

    CHECK_INT_EQ(turn(), 1);

    CHECK_INT_EQ(asker.n_answers, 1);
    CHECK_INT_EQ(decider.n_accepted, 1);
    CHECK_INT_EQ(decider.n_ignored, 1);
    CHECK_INT_EQ(verdict_drain_released(&released, tags, 4), 1);
    CHECK_INT_EQ(tags[0], 2);
    verdict_unref(asker.verdict);
    tear_down();
}

TEST(answers_to_questions_that_never_were_are_ignored) {
    struct asker asker = {0};
    set_up(&LIMITS);
    CHECK(!ask(&asker, 80));

    CHECK(!flow_reply(flows, 0, fake_decider_verdict(&decider, &rule.verdict), now_ns));
    CHECK(!flow_reply(flows, UINT64_MAX, fake_decider_verdict(&decider, &rule.verdict), now_ns));
    CHECK(!flow_reply(flows, 12345, NULL, now_ns));

    CHECK(flow_cancel(&asker.waiter));
    tear_down();
}

TEST(a_question_may_be_answered_before_it_is_taken) {
    struct asker asker = {0};
    set_up(&LIMITS);
    CHECK(!ask(&asker, 80));
    const uint64_t id = asker.waiter.pending->id;

    CHECK(flow_reply(flows, id, fake_decider_verdict(&decider, &rule.verdict), now_ns));

    CHECK_INT_EQ(turn(), 0);
    CHECK_INT_EQ(asker.n_answers, 1);
    verdict_unref(asker.verdict);
    tear_down();
}

TEST(a_broken_reply_denies_all_who_wait) {
    struct asker askers[3] = {{.n_answers = 0}};
    set_up(&LIMITS);
    rule.manner = FAKE_BROKEN;
    for (size_t i = 0; i < 3; i++) {
        CHECK(!ask(&askers[i], 80));
    }

    CHECK_INT_EQ(turn(), 1);

    for (size_t i = 0; i < 3; i++) {
        check_denied(&askers[i], REASON_DECIDER_ERROR);
    }
    tear_down();
}

TEST(a_stale_reply_goes_to_all_who_see_it_and_ask_again) {
    struct asker askers[3] = {{.n_answers = 0}};
    set_up(&LIMITS);
    rule.manner = FAKE_STALE;
    rule.verdict.ttl_ms = 0;
    for (size_t i = 0; i < 3; i++) {
        CHECK(!ask(&askers[i], 80));
    }

    CHECK_INT_EQ(turn(), 1);

    CHECK_INT_EQ(event(EVENT_flow_stale_reply), 1);
    rule.manner = FAKE_AT_ONCE;
    rule.verdict.ttl_ms = 1000;
    for (size_t i = 0; i < 3; i++) {
        CHECK_INT_EQ(askers[i].n_answers, 1);
        CHECK(flow_is_stale(flows, askers[i].verdict));
        verdict_unref(askers[i].verdict);
        CHECK(!ask(&askers[i], 80));
    }
    CHECK_INT_EQ(turn(), 1);
    for (size_t i = 0; i < 3; i++) {
        CHECK_INT_EQ(askers[i].n_answers, 2);
        CHECK(!flow_is_stale(flows, askers[i].verdict));
        verdict_unref(askers[i].verdict);
    }
    tear_down();
}

TEST(a_verdict_is_stale_once_an_epoch_moved) {
    set_up(&LIMITS);
    struct verdict *const verdict = fake_decider_verdict(&decider, &rule.verdict);

    CHECK(!flow_is_stale(flows, verdict));
    flow_epoch_bump(flows, false, false);
    CHECK(!flow_is_stale(flows, verdict));
    flow_epoch_bump(flows, true, false);
    CHECK(flow_is_stale(flows, verdict));

    verdict_unref(verdict);
    tear_down();
}

TEST(acknowledged_means_taken) {
    struct asker asker = {0};
    set_up(&LIMITS);
    rule.manner = FAKE_LATE;
    CHECK(!ask(&asker, 80));

    CHECK(!flow_is_acknowledged(&asker.waiter));
    CHECK_INT_EQ(fake_decider_turn(&decider), 1);
    CHECK(flow_is_acknowledged(&asker.waiter));
    fake_decider_catch_up(&decider);
    CHECK(flow_is_acknowledged(&asker.waiter));
    loop_turn(&loop, 0);
    CHECK(flow_is_acknowledged(&asker.waiter));

    verdict_unref(asker.verdict);
    tear_down();
}

/* --- verdicts for one connection */

TEST(a_verdict_for_one_connection_lets_the_others_ask_for_themselves) {
    struct asker askers[4] = {{.n_answers = 0}};
    set_up(&LIMITS);
    rule.verdict.ttl_ms = 0;
    for (size_t i = 0; i < 4; i++) {
        CHECK(!ask(&askers[i], 80));
    }

    CHECK_INT_EQ(turn(), 1);

    CHECK_INT_EQ(askers[0].n_answers, 1);
    CHECK_INT_EQ(askers[1].n_answers, 0);
    CHECK_INT_EQ(shares[0].n_questions, 3);
    CHECK(flow_is_acknowledged(&askers[1].waiter));
    CHECK_INT_EQ(turn(), 3);
    CHECK_INT_EQ(shares[0].n_questions, 0);
    for (size_t i = 0; i < 4; i++) {
        CHECK_INT_EQ(askers[i].n_answers, 1);
        for (size_t k = 0; k < i; k++) {
            CHECK(askers[i].verdict != askers[k].verdict);
        }
    }
    for (size_t i = 0; i < 4; i++) {
        verdict_unref(askers[i].verdict);
    }
    tear_down();
}

TEST(newcomers_do_not_join_a_question_that_was_split_off) {
    struct asker askers[3] = {{.n_answers = 0}};
    set_up(&LIMITS);
    rule.verdict.ttl_ms = 0;
    CHECK(!ask(&askers[0], 80));
    CHECK(!ask(&askers[1], 80));
    CHECK_INT_EQ(turn(), 1);
    verdict_unref(askers[0].verdict);

    CHECK(!ask(&askers[2], 80));

    CHECK_INT_EQ(turn(), 2);
    CHECK_INT_EQ(askers[1].n_answers, 1);
    CHECK_INT_EQ(askers[2].n_answers, 1);
    verdict_unref(askers[1].verdict);
    verdict_unref(askers[2].verdict);
    tear_down();
}

TEST(questions_split_off_are_bounded_too) {
    struct flow_limits limits = LIMITS;
    struct asker askers[5] = {{.n_answers = 0}};
    limits.questions_per_workload = 2;
    set_up(&limits);
    rule.verdict.ttl_ms = 0;
    for (size_t i = 0; i < 5; i++) {
        CHECK(!ask(&askers[i], 80));
    }

    CHECK_INT_EQ(turn(), 1);

    CHECK_INT_EQ(askers[0].n_answers, 1);
    CHECK_INT_EQ(askers[1].n_answers, 0);
    CHECK_INT_EQ(askers[2].n_answers, 0);
    check_denied(&askers[3], REASON_TOO_BUSY);
    check_denied(&askers[4], REASON_TOO_BUSY);
    CHECK_INT_EQ(event(EVENT_questions_refused), 2);
    CHECK_INT_EQ(turn(), 2);
    for (size_t i = 0; i < 3; i++) {
        verdict_unref(askers[i].verdict);
    }
    tear_down();
}

TEST(who_was_split_off_can_cancel) {
    struct asker askers[2] = {{.n_answers = 0}};
    set_up(&LIMITS);
    rule.verdict.ttl_ms = 0;
    CHECK(!ask(&askers[0], 80));
    CHECK(!ask(&askers[1], 80));
    CHECK_INT_EQ(turn(), 1);

    CHECK(flow_cancel(&askers[1].waiter));

    CHECK_INT_EQ(turn(), 0);
    CHECK_INT_EQ(askers[1].n_answers, 0);
    verdict_unref(askers[0].verdict);
    tear_down();
}

/* --- certificates */

static bool ask_identity(struct asker *asker) {
    asker->waiter.loop = &loop;
    asker->waiter.answered = answered;
    asker->verdict = flow_ask(flows, &shares[0], KEY_IDENTITY, NULL, 0, now_ns, &asker->waiter);
    return asker->verdict != NULL;
}

TEST(whoever_needs_a_certificate_shares_one_question_and_its_answer) {
    struct flow_limits limits = LIMITS;
    for (uint32_t i = 0; i < 2; i++) {
        struct asker askers[3] = {{.n_answers = 0}};
        limits.flows_per_workload = i * 100;
        set_up(&limits);
        rule.verdict = (struct fake_verdict){.action = VERDICT_PUNT};
        for (size_t k = 0; k < 3; k++) {
            CHECK(!ask_identity(&askers[k]));
        }

        CHECK_INT_EQ(turn(), 1);

        for (size_t k = 0; k < 3; k++) {
            CHECK_INT_EQ(askers[k].n_answers, 1);
            verdict_unref(askers[k].verdict);
        }
        tear_down();
    }
}

TEST(answers_about_certificates_are_never_kept) {
    struct asker asker = {0};
    set_up(&LIMITS);
    for (int i = 0; i < 2; i++) {
        CHECK(!ask_identity(&asker));
        CHECK_INT_EQ(turn(), 1);
        verdict_unref(asker.verdict);
    }

    CHECK_INT_EQ(shares[0].n_flows, 0);
    CHECK_INT_EQ(event(EVENT_flow_miss), 0);
    tear_down();
}

/* --- bounds */

TEST(a_full_share_denies_its_workload_only) {
    struct flow_limits limits = LIMITS;
    struct asker askers[3] = {{.n_answers = 0}}, other = {0}, joined = {0};
    limits.questions_per_workload = 2;
    set_up(&limits);
    CHECK(!ask(&askers[0], 80));
    CHECK(!ask(&askers[1], 81));

    CHECK(ask(&askers[2], 82));
    check_denied(&askers[2], REASON_TOO_BUSY);
    CHECK_INT_EQ(event(EVENT_questions_refused), 1);
    CHECK(!ask(&joined, 81));
    CHECK(!ask_from(&other, &shares[1], 80, 1));

    CHECK_INT_EQ(turn(), 3);
    CHECK(!ask(&askers[2], 82));
    CHECK(flow_cancel(&askers[2].waiter));
    verdict_unref(askers[0].verdict);
    verdict_unref(askers[1].verdict);
    verdict_unref(joined.verdict);
    verdict_unref(other.verdict);
    tear_down();
}

TEST(a_question_has_room_for_so_many_waiters) {
    struct flow_limits limits = LIMITS;
    struct asker askers[3] = {{.n_answers = 0}};
    limits.waiters_per_question = 2;
    set_up(&limits);
    CHECK(!ask(&askers[0], 80));
    CHECK(!ask(&askers[1], 80));

    CHECK(ask(&askers[2], 80));

    check_denied(&askers[2], REASON_TOO_BUSY);
    CHECK(flow_cancel(&askers[1].waiter));
    CHECK(!ask(&askers[2], 80));
    CHECK(flow_cancel(&askers[0].waiter));
    CHECK(flow_cancel(&askers[2].waiter));
    tear_down();
}

TEST(a_denied_waiter_does_not_wait) {
    struct flow_limits limits = LIMITS;
    struct asker asker = {0};
    limits.questions_per_workload = 0;
    set_up(&limits);

    CHECK(ask(&asker, 80));

    check_denied(&asker, REASON_TOO_BUSY);
    CHECK(flow_cancel(&asker.waiter));
    CHECK(flow_is_acknowledged(&asker.waiter));
    tear_down();
}

TEST(the_detail_of_a_refusal_completes_its_text) {
    struct flow_limits limits = LIMITS;
    struct asker asker = {0};
    limits.questions_per_workload = 0;
    set_up(&limits);

    CHECK(ask(&asker, 80));

    CHECK(text_equal(asker.verdict->detail, text_of("questions")));
    verdict_unref(asker.verdict);
    tear_down();
}

/* --- cancelling */

TEST(who_cancelled_is_not_answered) {
    struct asker asker = {0};
    uint64_t tags[2] = {0};
    set_up(&LIMITS);
    rule.manner = FAKE_LATE;
    CHECK(!ask(&asker, 80));
    CHECK_INT_EQ(turn(), 1);

    CHECK(flow_cancel(&asker.waiter));
    fake_decider_catch_up(&decider);
    loop_turn(&loop, 0);

    CHECK_INT_EQ(asker.n_answers, 0);
    CHECK_INT_EQ(decider.n_ignored, 1);
    CHECK_INT_EQ(shares[0].n_questions, 0);
    CHECK_INT_EQ(verdict_drain_released(&released, tags, 2), 1);
    tear_down();
}

TEST(a_question_that_nobody_waits_for_is_not_asked) {
    struct asker asker = {0};
    set_up(&LIMITS);
    CHECK(!ask(&asker, 80));

    CHECK(flow_cancel(&asker.waiter));

    CHECK_INT_EQ(turn(), 0);
    CHECK_INT_EQ(mem.live[MEM_QUESTION], 0);
    tear_down();
}

TEST(the_others_still_get_their_answer) {
    struct asker askers[3] = {{.n_answers = 0}};
    set_up(&LIMITS);
    for (size_t i = 0; i < 3; i++) {
        CHECK(!ask(&askers[i], 80));
    }

    CHECK(flow_cancel(&askers[0].waiter));
    CHECK(flow_cancel(&askers[2].waiter));

    CHECK_INT_EQ(turn(), 1);
    CHECK_INT_EQ(askers[0].n_answers, 0);
    CHECK_INT_EQ(askers[1].n_answers, 1);
    CHECK_INT_EQ(askers[2].n_answers, 0);
    verdict_unref(askers[1].verdict);
    tear_down();
}

TEST(cancelling_while_the_answer_is_under_way_lets_it_arrive_empty) {
    struct asker asker = {0};
    uint64_t tags[2] = {0};
    set_up(&LIMITS);
    rule.verdict.ttl_ms = 0;
    CHECK(!ask(&asker, 80));
    CHECK_INT_EQ(fake_decider_turn(&decider), 1);

    CHECK(!flow_cancel(&asker.waiter));
    CHECK(!flow_cancel(&asker.waiter));
    loop_turn(&loop, 0);

    CHECK_INT_EQ(asker.n_answers, 1);
    CHECK(asker.verdict == NULL);
    CHECK_INT_EQ(verdict_drain_released(&released, tags, 2), 1);
    CHECK(flow_cancel(&asker.waiter));
    tear_down();
}

TEST(a_waiter_that_cancelled_may_ask_again) {
    struct asker asker = {0};
    set_up(&LIMITS);
    CHECK(!ask(&asker, 80));
    CHECK(flow_cancel(&asker.waiter));
    CHECK(!ask(&asker, 80));
    CHECK_INT_EQ(fake_decider_turn(&decider), 1);
    CHECK(!flow_cancel(&asker.waiter));
    loop_turn(&loop, 0);
    CHECK(asker.verdict == NULL);

    CHECK(ask(&asker, 80));

    CHECK_INT_EQ(asker.verdict->action, VERDICT_FORWARD);
    verdict_unref(asker.verdict);
    tear_down();
}

/* --- running out of memory */

/* Three connections ask, two of them for the same; the n-th allocation fails. True if there were
 * fewer. */
static bool survive_failure(uint64_t n, uint32_t ttl_ms) {
    struct asker askers[3] = {{.n_answers = 0}};
    set_up(&LIMITS);
    rule.verdict.ttl_ms = ttl_ms;

    mem_fail_at(n);
    for (size_t i = 0; i < 3; i++) {
        (void)ask(&askers[i], i == 2 ? 81 : 80);
    }
    while (turn() > 0) {
    }
    void *const one_more = mem_alloc(&mem, MEM_OTHER, 1);
    mem_fail_at(0);

    for (size_t i = 0; i < 3; i++) {
        CHECK_INT_EQ(askers[i].n_answers, 1);
        CHECK(askers[i].verdict->action == VERDICT_FORWARD ||
              askers[i].verdict->reason == REASON_TOO_BUSY ||
              askers[i].verdict->reason == REASON_DECIDER_ERROR);
        verdict_unref(askers[i].verdict);
    }
    mem_free(&mem, MEM_OTHER, one_more);
    tear_down();
    return one_more == NULL;
}

TEST(running_out_of_memory_denies_and_leaves_nothing) {
    for (uint32_t ttl_ms = 0; ttl_ms <= 1000; ttl_ms += 1000) {
        uint64_t n = 1;
        while (!survive_failure(n, ttl_ms)) {
            n++;
        }
        CHECK(n > 4);
    }
}

TEST(there_is_no_table_without_memory) {
    mem_fail_at(1);

    CHECK(flows_create(&mem, &LIMITS, NULL, NULL) == NULL);

    flows_destroy(NULL);
}
