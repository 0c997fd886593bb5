/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of verdict.c: what is read from packed bytes, what is refused, references and release. */
#include "verdict.h"

#include <pthread.h>

#include "check.h"
#include "fake_verdict.h"
#include "stats.h"

static struct mem mem;
static struct released released;

static struct verdict *parse_bytes(const struct bytes *bytes, uint64_t tag) {
    released_init(&released);
    return verdict_parse(&mem, &released, bytes->at, bytes->len, tag);
}

static struct verdict *parse(const struct fake_verdict *fake, uint64_t tag) {
    static struct bytes bytes;
    bytes.len = 0;
    fake_verdict_pack(fake, &bytes);
    return parse_bytes(&bytes, tag);
}

static void check_text(struct text text, const char *expected) {
    CHECK_MEM_EQ(text.bytes, text.len, expected, strlen(expected));
}

static void check_refused(const struct fake_verdict *fake) {
    CHECK(parse(fake, 1) == NULL);
    CHECK_INT_EQ(mem.live[MEM_VERDICT], 0);
    uint64_t tag = 0;
    CHECK_INT_EQ(verdict_drain_released(&released, &tag, 1), 0);
}

/* With all there can be. */
static struct fake_verdict full(void) {
    return (struct fake_verdict){
        .action = VERDICT_FORWARD,
        .uses = KEY_USES_SOURCE | KEY_USES_CLAIMS,
        .ttl_ms = 60000,
        .epoch = {.discovery = UINT64_C(0x0102030405060708), .policy = 9},
        .detail = "because",
        .forwarded_host = "shop.example",
        .headers = {{"baggage", "k=v,\xc3\xa4"}, {"x-empty", ""}},
        .n_headers = 2,
        .has_preface = 1,
        .preface_target = {.ip = {10, 96, 0, 1}, .port = 80, .family = 4},
        .hops =
            {
                {.protocol = HOP_TCP, .keep_source = 1, .weight = 0, .slot = 7},
                {.protocol = HOP_HBONE,
                 .address = {.ip = {0x20, 1, [15] = 1}, .port = 15008, .family = 6},
                 .weight = 3,
                 .slot = STATS_SLOTS_MAX - 1,
                 .authority = "10.0.0.1:80",
                 .sans = {"spiffe://a", "spiffe://b"},
                 .n_sans = 2},
                {.protocol = HOP_DOUBLE_HBONE,
                 .weight = UINT32_MAX,
                 .authority = "gateway:15008",
                 .sans = {"spiffe://g"},
                 .n_sans = 1,
                 .inner_authority = "shop.example:80",
                 .inner_sans = {"spiffe://c", "spiffe://d", "spiffe://e"},
                 .n_inner_sans = 3},
            },
        .n_hops = 3,
    };
}

TEST(everything_packed_is_read) {
    const struct fake_verdict fake = full();

    struct verdict *const verdict = parse(&fake, 77);

    CHECK(verdict != NULL);
    CHECK_INT_EQ(verdict->action, VERDICT_FORWARD);
    CHECK_INT_EQ(verdict->reason, REASON_OK);
    CHECK(!verdict->is_own);
    CHECK_INT_EQ(verdict->uses, KEY_USES_SOURCE | KEY_USES_CLAIMS);
    CHECK_INT_EQ(verdict->ttl_ns, 60 * NS_PER_S);
    CHECK_INT_EQ(verdict->epoch.discovery, 0x0102030405060708);
    CHECK_INT_EQ(verdict->epoch.policy, 9);
    check_text(verdict->detail, "because");
    check_text(verdict->forwarded_host, "shop.example");
    CHECK_INT_EQ(verdict->n_headers, 2);
    check_text(verdict->headers[0].name, "baggage");
    check_text(verdict->headers[0].value, "k=v,\xc3\xa4");
    check_text(verdict->headers[1].name, "x-empty");
    check_text(verdict->headers[1].value, "");
    CHECK(verdict->has_preface);
    CHECK(addr_equal(&verdict->preface_target, &fake.preface_target));
    CHECK_INT_EQ(verdict->tag, 77);
    CHECK_INT_EQ(verdict->total_weight, UINT64_C(3) + UINT32_MAX);
    verdict_unref(verdict);
}

TEST(every_hop_is_read) {
    const struct fake_verdict fake = full();

    struct verdict *const verdict = parse(&fake, 0);

    CHECK_INT_EQ(verdict->n_hops, 3);
    CHECK_INT_EQ(verdict->hops[0].protocol, HOP_TCP);
    CHECK(verdict->hops[0].keep_source);
    CHECK_INT_EQ(verdict->hops[0].slot, 7);
    CHECK_INT_EQ(verdict->hops[0].n_sans, 0);
    CHECK_INT_EQ(verdict->hops[1].protocol, HOP_HBONE);
    CHECK(!verdict->hops[1].keep_source);
    CHECK_INT_EQ(verdict->hops[1].weight, 3);
    CHECK(addr_equal(&verdict->hops[1].address, &fake.hops[1].address));
    check_text(verdict->hops[1].authority, "10.0.0.1:80");
    CHECK_INT_EQ(verdict->hops[1].n_sans, 2);
    check_text(verdict->hops[1].sans[0], "spiffe://a");
    check_text(verdict->hops[1].sans[1], "spiffe://b");
    CHECK_INT_EQ(verdict->hops[2].protocol, HOP_DOUBLE_HBONE);
    check_text(verdict->hops[2].sans[0], "spiffe://g");
    check_text(verdict->hops[2].inner_authority, "shop.example:80");
    CHECK_INT_EQ(verdict->hops[2].n_inner_sans, 3);
    check_text(verdict->hops[2].inner_sans[2], "spiffe://e");
    verdict_unref(verdict);
}

TEST(the_bytes_are_copied) {
    struct fake_verdict fake = fake_forward(0, 0);
    fake.detail = "kept";
    static struct bytes bytes;
    fake_verdict_pack(&fake, &bytes);

    struct verdict *const verdict = parse_bytes(&bytes, 0);
    memset(bytes.at, 0xff, bytes.len);

    check_text(verdict->detail, "kept");
    verdict_unref(verdict);
}

TEST(denials_and_punts_are_read) {
    const struct fake_verdict early = {.action = VERDICT_DENY, .reason = REASON_NO_ROUTE};
    struct fake_verdict recorded = {.action = VERDICT_DENY, .reason = REASON_POLICY_DENIED};
    const struct fake_verdict punt = {.action = VERDICT_PUNT};
    recorded.n_hops = 1;

    struct verdict *const a = parse(&early, 0);
    struct verdict *const b = parse(&recorded, 0);
    struct verdict *const c = parse(&punt, 0);

    CHECK_INT_EQ(a->reason, REASON_NO_ROUTE);
    CHECK_INT_EQ(b->reason, REASON_POLICY_DENIED);
    CHECK_INT_EQ(b->n_hops, 1);
    CHECK_INT_EQ(c->action, VERDICT_PUNT);
    verdict_unref(a);
    verdict_unref(b);
    verdict_unref(c);
}

/* --- what is refused */

TEST(bytes_cut_short_or_continued_are_refused) {
    const struct fake_verdict fake = full();
    static struct bytes bytes;
    fake_verdict_pack(&fake, &bytes);
    const size_t len = bytes.len;

    for (bytes.len = 0; bytes.len < len; bytes.len++) {
        CHECK(parse_bytes(&bytes, 1) == NULL);
    }
    put_number(&bytes, 0, 1);
    CHECK(parse_bytes(&bytes, 1) == NULL);
    CHECK_INT_EQ(mem.live[MEM_VERDICT], 0);
}

TEST(numbers_out_of_their_range_are_refused) {
    struct fake_verdict fake = fake_forward(0, 0);
    struct fake_verdict wrong[8];
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        wrong[i] = fake;
    }
    wrong[0].action = VERDICT_PUNT + 1;
    wrong[1].reason = 255;
    wrong[2].uses = KEY_USES_ALL + 1;
    wrong[3].has_preface = 2;
    wrong[4].hops[0].protocol = HOP_DOUBLE_HBONE + 1;
    wrong[5].hops[0].keep_source = 2;
    wrong[6].hops[0].slot = STATS_SLOTS_MAX;
    wrong[7].hops[0].address.family = 5;

    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        check_refused(&wrong[i]);
    }
}

TEST(a_preface_without_an_address_is_refused) {
    struct fake_verdict fake = fake_forward(0, 0);
    fake.has_preface = 1;

    check_refused(&fake);
}

TEST(a_forward_to_nowhere_answers_who_asked_for_a_certificate) {
    const struct fake_verdict nowhere = {.action = VERDICT_FORWARD};

    struct verdict *const verdict = parse(&nowhere, 0);

    CHECK(verdict != NULL && verdict->n_hops == 0);
    CHECK(verdict_draw(verdict, 0) == NULL);
    verdict_unref(verdict);
}

TEST(parts_that_contradict_each_other_are_refused) {
    struct fake_verdict weightless = fake_forward(0, 0);
    struct fake_verdict forward_with_reason = fake_forward(0, 0);
    const struct fake_verdict deny_without_reason = {.action = VERDICT_DENY};
    const struct fake_verdict punt_with_reason = {.action = VERDICT_PUNT, .reason = REASON_IO};
    const struct fake_verdict early_with_hop = {
        .action = VERDICT_DENY, .reason = REASON_NO_ROUTE, .n_hops = 1};
    const struct fake_verdict deny_with_two_hops = {
        .action = VERDICT_DENY, .reason = REASON_POLICY_DENIED, .n_hops = 2};
    struct fake_verdict inner_without_double = fake_forward(0, 0);
    struct fake_verdict inner_sans_without_double = fake_forward(0, 0);
    weightless.hops[0].weight = 0;
    forward_with_reason.reason = REASON_IO;
    inner_without_double.hops[0].inner_authority = "x";
    inner_sans_without_double.hops[0].n_inner_sans = 1;
    inner_sans_without_double.hops[0].inner_sans[0] = "spiffe://x";

    check_refused(&weightless);
    check_refused(&forward_with_reason);
    check_refused(&deny_without_reason);
    check_refused(&punt_with_reason);
    check_refused(&early_with_hop);
    check_refused(&deny_with_two_hops);
    check_refused(&inner_without_double);
    check_refused(&inner_sans_without_double);
}

TEST(texts_that_cannot_stand_where_they_go_are_refused) {
    struct fake_verdict wrong[8];
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        wrong[i] = fake_forward(0, 0);
        wrong[i].n_headers = 1;
        wrong[i].headers[0][0] = "name";
        wrong[i].headers[0][1] = "value";
    }
    wrong[0].headers[0][0] = "";
    wrong[1].headers[0][0] = "Name";
    wrong[2].headers[0][0] = "na me";
    wrong[3].headers[0][0] = ":path";
    wrong[4].headers[0][1] = "a\r\nb: c";
    wrong[5].forwarded_host = "a\n";
    wrong[6].hops[0].authority = "a\x7f";
    wrong[7].hops[0].n_sans = 1; /* an identity without a name */

    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        check_refused(&wrong[i]);
    }
}

TEST(a_text_with_a_nul_is_refused) {
    struct fake_verdict fake = fake_forward(0, 0);
    static struct bytes bytes;
    fake.detail = "abc";
    fake_verdict_pack(&fake, &bytes);
    uint8_t *const b = memchr(bytes.at, 'b', bytes.len);
    *b = 0;

    CHECK(parse_bytes(&bytes, 1) == NULL);
}

TEST(more_hops_than_allowed_are_refused_before_they_are_read) {
    const struct fake_verdict fake = {.action = VERDICT_PUNT};
    static struct bytes bytes;
    fake_verdict_pack(&fake, &bytes);
    bytes.len -= 4;
    put_number(&bytes, VERDICT_HOPS_MAX + 1, 4);

    CHECK(parse_bytes(&bytes, 1) == NULL);
}

TEST(every_single_changed_byte_is_survived) {
    const struct fake_verdict fake = full();
    static struct bytes bytes, changed;
    fake_verdict_pack(&fake, &bytes);

    for (size_t i = 0; i < bytes.len; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            changed = bytes;
            changed.at[i] ^= (uint8_t)(1U << bit);
            verdict_unref(parse_bytes(&changed, 0));
        }
    }
    CHECK_INT_EQ(mem.live[MEM_VERDICT], 0);
}

/* --- memory, references, release */

TEST(parsing_fails_cleanly_without_memory) {
    const struct fake_verdict fake = full();
    struct verdict *verdict = NULL;
    unsigned tries = 0;

    while (verdict == NULL) {
        mem_fail_at(++tries);
        verdict = parse(&fake, 5);
        CHECK_INT_EQ(mem.live[MEM_VERDICT], verdict == NULL ? 0 : 1);
    }
    mem_fail_at(0);

    CHECK_INT_EQ(tries, 2);
    verdict_unref(verdict);
    uint64_t tag = 0;
    CHECK_INT_EQ(verdict_drain_released(&released, &tag, 1), 1);
}

TEST(the_last_reference_releases_the_tag) {
    const struct fake_verdict fake = fake_forward(0, 0);
    struct verdict *const verdict = parse(&fake, 42);
    uint64_t tags[2] = {0};

    CHECK(verdict_ref(verdict) == verdict);
    verdict_unref(verdict);
    CHECK_INT_EQ(verdict_drain_released(&released, tags, 2), 0);
    verdict_unref(verdict);

    CHECK_INT_EQ(mem.live[MEM_VERDICT], 1);
    CHECK_INT_EQ(verdict_drain_released(&released, tags, 2), 1);
    CHECK_INT_EQ(tags[0], 42);
    CHECK_INT_EQ(mem.live[MEM_VERDICT], 0);
    verdict_unref(NULL);
}

TEST(released_tags_are_drained_in_portions) {
    const struct fake_verdict fake = fake_forward(0, 0);
    static struct bytes bytes;
    uint64_t seen = 0, tags[2] = {0};
    fake_verdict_pack(&fake, &bytes);
    released_init(&released);
    for (uint64_t tag = 1; tag <= 5; tag++) {
        verdict_unref(verdict_parse(&mem, &released, bytes.at, bytes.len, tag));
    }

    size_t n = 0;
    while ((n = verdict_drain_released(&released, tags, 2)) > 0) {
        for (size_t i = 0; i < n; i++) {
            seen |= UINT64_C(1) << tags[i];
        }
    }

    CHECK_INT_EQ(seen, 0x3e);
    CHECK_INT_EQ(mem.live[MEM_VERDICT], 0);
}

TEST(a_denial_of_the_cores_own_has_no_tag_to_release) {
    uint64_t tag = 0;
    char detail[] = "connections";
    released_init(&released);

    struct verdict *const verdict = verdict_deny(&mem, &released, REASON_TOO_BUSY, detail);
    detail[0] = 'X';

    CHECK_INT_EQ(verdict->action, VERDICT_DENY);
    CHECK_INT_EQ(verdict->reason, REASON_TOO_BUSY);
    CHECK(verdict->is_own);
    CHECK_INT_EQ(verdict->n_hops, 0);
    CHECK_INT_EQ(verdict->ttl_ns, 0);
    check_text(verdict->detail, "connections");
    verdict_unref(verdict);
    CHECK_INT_EQ(verdict_drain_released(&released, &tag, 1), 0);
    CHECK_INT_EQ(mem.live[MEM_VERDICT], 0);
    mem_fail_at(1);
    CHECK(verdict_deny(&mem, &released, REASON_TOO_BUSY, "") == NULL);
}

static void *drop_references(void *verdict) {
    for (int i = 0; i < 10000; i++) {
        verdict_unref(verdict_ref(verdict));
    }
    verdict_unref(verdict);
    return NULL;
}

TEST(references_are_dropped_on_any_thread) {
    const struct fake_verdict fake = fake_forward(0, 0);
    struct verdict *const verdict = parse(&fake, 3);
    pthread_t threads[3];
    uint64_t tags[2] = {0};

    for (size_t i = 0; i < ARRAY_LEN(threads); i++) {
        CHECK_INT_EQ(pthread_create(&threads[i], NULL, drop_references, verdict_ref(verdict)), 0);
    }
    verdict_unref(verdict);
    for (size_t i = 0; i < ARRAY_LEN(threads); i++) {
        CHECK_INT_EQ(pthread_join(threads[i], NULL), 0);
    }

    CHECK_INT_EQ(verdict_drain_released(&released, tags, 2), 1);
    CHECK_INT_EQ(mem.live[MEM_VERDICT], 0);
}

/* --- drawing */

TEST(hops_are_drawn_by_weight) {
    struct fake_verdict fake = fake_forward(0, 0);
    fake.n_hops = 4;
    for (unsigned i = 0; i < 4; i++) {
        fake.hops[i].weight = i; /* 0, 1, 2, 3 */
    }
    struct verdict *const verdict = parse(&fake, 0);
    unsigned drawn[4] = {0};

    for (uint64_t i = 0; i < 6000; i++) {
        const struct hop *const hop = verdict_draw(verdict, i * (UINT64_MAX / 6000));
        drawn[hop - verdict->hops]++;
    }

    CHECK_INT_EQ(drawn[0], 0);
    CHECK(drawn[1] >= 999 && drawn[1] <= 1001);
    CHECK(drawn[2] >= 1999 && drawn[2] <= 2001);
    CHECK(drawn[3] >= 2999 && drawn[3] <= 3001);
    verdict_unref(verdict);
}

TEST(the_ends_of_the_range_draw_the_first_and_the_last) {
    struct fake_verdict fake = fake_forward(0, 0);
    fake.n_hops = 3;
    for (unsigned i = 0; i < 3; i++) {
        fake.hops[i].weight = UINT32_MAX;
    }
    struct verdict *const verdict = parse(&fake, 0);

    CHECK(verdict_draw(verdict, 0) == &verdict->hops[0]);
    CHECK(verdict_draw(verdict, UINT64_MAX) == &verdict->hops[2]);
    verdict_unref(verdict);
}

TEST(nothing_is_drawn_from_nothing) {
    const struct fake_verdict fake = {
        .action = VERDICT_DENY, .reason = REASON_POLICY_DENIED, .n_hops = 1};
    struct verdict *const verdict = parse(&fake, 0);

    CHECK(verdict_draw(verdict, 0) == NULL);
    CHECK(verdict_draw(verdict, UINT64_MAX) == NULL);
    verdict_unref(verdict);
}
