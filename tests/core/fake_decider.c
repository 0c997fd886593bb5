/* SPDX-License-Identifier: Apache-2.0 */
/* A decider that answers by a table; see fake_decider.h. */
#include "fake_decider.h"

#define BATCH 64

static const struct fake_rule *rule_for(const struct fake_decider *decider,
                                        const struct upcall *question) {
    for (size_t i = 0; i < decider->n_rules; i++) {
        const struct fake_rule *const rule = &decider->rules[i];
        if ((rule->kind == KEY_KINDS || rule->kind == question->kind) &&
            rule->key.len <= question->key_len &&
            (rule->key.len == 0 || memcmp(rule->key.bytes, question->key, rule->key.len) == 0)) {
            return rule;
        }
    }
    return NULL;
}

static struct verdict *make(struct fake_decider *decider, const struct fake_verdict *fake,
                            struct epoch epoch) {
    struct bytes *const bytes = calloc(1, sizeof(*bytes));
    struct fake_verdict of_epoch = *fake;
    if (bytes == NULL) {
        abort(); /* a test without memory of its own cannot go on */
    }
    of_epoch.epoch = epoch;
    fake_verdict_pack(&of_epoch, bytes);
    struct verdict *const verdict =
        verdict_parse(decider->mem, decider->released, bytes->at, bytes->len, ++decider->last_tag);
    free(bytes);
    return verdict;
}

struct verdict *fake_decider_verdict(struct fake_decider *decider,
                                     const struct fake_verdict *fake) {
    return make(decider, fake, flow_epoch(decider->flows));
}

static void reply(struct fake_decider *decider, uint64_t id, struct verdict *verdict) {
    const bool is_open = flow_reply(decider->flows, id, verdict, decider->now_ns);
    *(is_open ? &decider->n_accepted : &decider->n_ignored) += 1;
}

/* Answers one question by its rule; false if it is to be answered later. */
static bool answer(struct fake_decider *decider, const struct fake_rule *rule, uint64_t id) {
    struct epoch over = flow_epoch(decider->flows);
    over.policy--;
    switch (rule->manner) {
    case FAKE_AT_ONCE:
        reply(decider, id, fake_decider_verdict(decider, &rule->verdict));
        return true;
    case FAKE_TWICE:
        reply(decider, id, fake_decider_verdict(decider, &rule->verdict));
        reply(decider, id, fake_decider_verdict(decider, &rule->verdict));
        return true;
    case FAKE_STALE:
        reply(decider, id, make(decider, &rule->verdict, over));
        return true;
    case FAKE_BROKEN:
        reply(decider, id, NULL);
        return true;
    case FAKE_LATE:
        return decider->n_late == FAKE_LATE_MOST;
    case FAKE_NEVER:
        return true;
    }
    return true;
}

size_t fake_decider_turn(struct fake_decider *decider) {
    struct upcall questions[BATCH];
    const size_t n = upcalls_take(decider->upcalls, questions, BATCH);
    for (size_t i = 0; i < n; i++) {
        const struct fake_rule *const rule = rule_for(decider, &questions[i]);
        if (rule == NULL || answer(decider, rule, questions[i].id)) {
            upcall_free(decider->upcalls, &questions[i]);
        } else {
            decider->late[decider->n_late++] = questions[i];
        }
    }
    decider->n_taken += n;
    return n;
}

void fake_decider_catch_up(struct fake_decider *decider) {
    for (size_t i = 0; i < decider->n_late; i++) {
        const struct fake_rule *const rule = rule_for(decider, &decider->late[i]);
        reply(decider, decider->late[i].id, fake_decider_verdict(decider, &rule->verdict));
        upcall_free(decider->upcalls, &decider->late[i]);
    }
    decider->n_late = 0;
}
