/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of revocation.c: which chains are revoked by which lists. */
#include "revocation.h"

#include <pthread.h>

#include "certificates.h"

static struct mem mem;
static struct revocation revocation;
static struct certified root, between, leaf, other;

static void set_up(void) {
    root = certify(NULL, &(struct certificate_traits){0});
    between = certify(&root, &(struct certificate_traits){.is_between = true});
    leaf = certify(&between, &(struct certificate_traits){0});
    other = certify(&between, &(struct certificate_traits){0});
    revocation_init(&revocation, &mem);
}

static void tear_down(void) {
    revocation_clear(&revocation);
    certified_free(&root);
    certified_free(&between);
    certified_free(&leaf);
    certified_free(&other);
    CHECK_INT_EQ(mem.live[MEM_CORE], 0);
    CHECK_INT_EQ(ERR_peek_error(), 0);
}

/* Uses lists, which it frees. */
static void use(struct text *lists, size_t n) {
    char error[128] = "";
    CHECK(revocation_load(&revocation, lists, n, error, sizeof(error)));
    revocation_apply(&revocation);
    for (size_t i = 0; i < n; i++) {
        certificate_text_free(lists[i]);
    }
}

static void use_one(struct text list) {
    use(&list, 1);
}

static enum revocation_verdict judge(const struct certified *one) {
    STACK_OF(X509) *const chain = sk_X509_new_null();
    CHECK(sk_X509_push(chain, one->certificate) && sk_X509_push(chain, between.certificate) &&
          sk_X509_push(chain, root.certificate));
    const enum revocation_verdict verdict = revocation_check(&revocation, chain);
    sk_X509_free(chain);
    return verdict;
}

TEST(without_lists_nothing_is_revoked) {
    set_up();

    CHECK_INT_EQ(judge(&leaf), REVOCATION_CLEAR);
    use(NULL, 0);
    CHECK_INT_EQ(judge(&leaf), REVOCATION_CLEAR);

    tear_down();
}

TEST(a_leaf_that_is_listed_is_revoked) {
    set_up();

    use_one(certificate_crl(&between, &leaf, &between));

    CHECK_INT_EQ(judge(&leaf), REVOCATION_REVOKED);
    CHECK_INT_EQ(judge(&other), REVOCATION_CLEAR);
    tear_down();
}

TEST(who_is_below_an_intermediate_that_is_listed_is_revoked) {
    set_up();

    use_one(certificate_crl(&root, &between, &root));

    CHECK_INT_EQ(judge(&leaf), REVOCATION_REVOKED);
    tear_down();
}

TEST(an_anchor_is_not_looked_for) {
    set_up();

    use_one(certificate_crl(&root, &root, &root));

    CHECK_INT_EQ(judge(&leaf), REVOCATION_CLEAR);
    tear_down();
}

TEST(a_list_of_somebody_else_is_nobodys) {
    set_up();

    use_one(certificate_crl(&other, &leaf, &other));

    CHECK_INT_EQ(judge(&leaf), REVOCATION_CLEAR);
    tear_down();
}

TEST(a_list_with_the_wrong_signature_is_no_list) {
    set_up();

    use_one(certificate_crl(&between, &leaf, &root));

    CHECK_INT_EQ(judge(&leaf), REVOCATION_UNSIGNED);
    CHECK_INT_EQ(judge(&leaf), REVOCATION_UNSIGNED); /* as remembered */
    CHECK_INT_EQ(judge(&other), REVOCATION_UNSIGNED);
    tear_down();
}

TEST(a_list_counts_beside_one_with_the_wrong_signature) {
    set_up();
    struct text lists[] = {certificate_crl(&between, NULL, &root),
                           certificate_crl(&between, &leaf, &between)};

    use(lists, 2);

    CHECK_INT_EQ(judge(&leaf), REVOCATION_REVOKED);
    CHECK_INT_EQ(judge(&other), REVOCATION_CLEAR);
    tear_down();
}

TEST(an_intermediate_may_sign_lists_if_its_certificate_says_so) {
    set_up();
    certified_free(&between);
    certified_free(&leaf);
    between = certify(&root, &(struct certificate_traits){.is_between = true,
                                                          .key_usage = "critical,keyCertSign"});
    leaf = certify(&between, &(struct certificate_traits){0});

    use_one(certificate_crl(&between, &leaf, &between));

    CHECK_INT_EQ(judge(&leaf), REVOCATION_UNSIGNED);
    tear_down();
}

TEST(an_anchor_may_sign_lists_whatever_it_says) {
    set_up();
    certified_free(&root);
    certified_free(&between);
    root = certify(NULL, &(struct certificate_traits){.key_usage = "critical,keyCertSign"});
    between = certify(&root, &(struct certificate_traits){.is_between = true});

    use_one(certificate_crl(&root, &between, &root));

    CHECK_INT_EQ(judge(&leaf), REVOCATION_REVOKED);
    tear_down();
}

TEST(lists_count_from_when_they_are_applied) {
    set_up();
    char error[128] = "";
    const struct text list = certificate_crl(&between, &leaf, &between);

    CHECK(revocation_load(&revocation, &list, 1, error, sizeof(error)));
    CHECK_INT_EQ(judge(&leaf), REVOCATION_CLEAR);
    CHECK(revocation_load(&revocation, &list, 1, error, sizeof(error))); /* the last one counts */
    revocation_apply(&revocation);
    CHECK_INT_EQ(judge(&leaf), REVOCATION_REVOKED);
    revocation_apply(&revocation); /* nothing new */
    CHECK_INT_EQ(judge(&leaf), REVOCATION_REVOKED);

    certificate_text_free(list);
    tear_down();
}

TEST(lists_that_cannot_be_read_leave_those_of_before) {
    set_up();
    char error[128] = "";
    const struct text good = certificate_crl(&between, &leaf, &between);
    const struct text bad[] = {good, {good.bytes, good.len - 1}, {"garbage", 7}, {"", 0}};
    use_one(certificate_crl(&between, &leaf, &between));

    for (size_t i = 1; i < ARRAY_LEN(bad); i++) {
        const struct text lists[] = {good, bad[i]};
        CHECK(!revocation_load(&revocation, lists, 2, error, sizeof(error)));
        CHECK_STR_EQ(error, "revocation list 2 cannot be parsed");
    }
    revocation_apply(&revocation);

    CHECK_INT_EQ(judge(&leaf), REVOCATION_REVOKED);
    certificate_text_free(good);
    tear_down();
}

TEST(memory_may_run_out) {
    set_up();
    char error[128] = "";
    mem_fail_at(1);

    CHECK(!revocation_load(&revocation, NULL, 0, error, sizeof(error)));

    mem_fail_at(0);
    CHECK_STR_EQ(error, "out of memory");
    tear_down();
}

/* --- threads --- */

#define ROUNDS 200

static void *ask(void *argument) {
    (void)argument;
    for (int i = 0; i < ROUNDS * 5; i++) {
        CHECK(judge(&leaf) == REVOCATION_REVOKED && judge(&other) == REVOCATION_CLEAR);
    }
    return NULL;
}

TEST(lists_change_while_workers_ask) {
    pthread_t threads[3];
    char error[128] = "";
    set_up();
    const struct text list = certificate_crl(&between, &leaf, &between);
    CHECK(revocation_load(&revocation, &list, 1, error, sizeof(error)));
    revocation_apply(&revocation);

    for (size_t i = 0; i < ARRAY_LEN(threads); i++) {
        CHECK_INT_EQ(pthread_create(&threads[i], NULL, ask, NULL), 0);
    }
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(revocation_load(&revocation, &list, 1, error, sizeof(error)));
        revocation_apply(&revocation);
    }
    for (size_t i = 0; i < ARRAY_LEN(threads); i++) {
        pthread_join(threads[i], NULL);
    }

    certificate_text_free(list);
    tear_down();
}
