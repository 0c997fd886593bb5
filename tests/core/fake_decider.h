/* SPDX-License-Identifier: Apache-2.0 */
/* Stands in for Python: takes questions and answers them by a table, well or badly.
 *
 * The first rule that matches a question says how it is answered; a question that none matches is
 * never answered. Verdicts are made for the epoch of the moment and tagged 1, 2, 3, ..
 */
#ifndef ZT_FAKE_DECIDER_H
#define ZT_FAKE_DECIDER_H

#include "fake_verdict.h"
#include "flow.h"
#include "upcall.h"

#define FAKE_LATE_MOST 64

enum fake_manner {
    FAKE_AT_ONCE,
    FAKE_LATE, /* with `fake_decider_catch_up` */
    FAKE_NEVER,
    FAKE_TWICE,  /* the second answer comes too late */
    FAKE_STALE,  /* of an epoch that is over */
    FAKE_BROKEN, /* with bytes that are no verdict */
};

struct fake_rule {
    enum key_kind kind; /* KEY_KINDS: any */
    struct text key;    /* how the key begins; empty: any */
    enum fake_manner manner;
    struct fake_verdict verdict;
};

struct fake_decider {
    struct mem *mem;
    struct released *released;
    struct flows *flows;
    struct upcalls *upcalls;
    const struct fake_rule *rules;
    size_t n_rules;
    uint64_t now_ns;
    uint64_t last_tag;
    size_t n_taken;    /* questions, of all time */
    size_t n_accepted; /* answers to questions that were open */
    size_t n_ignored;  /* answers to others */
    struct upcall late[FAKE_LATE_MOST];
    size_t n_late;
};

/* Takes what is asked, 64 questions at most, and answers by the table. Returns how many. */
size_t fake_decider_turn(struct fake_decider *decider);

/* Answers all that is late. */
void fake_decider_catch_up(struct fake_decider *decider);

/* One verdict of the moment, tagged; NULL without memory. */
struct verdict *fake_decider_verdict(struct fake_decider *decider, const struct fake_verdict *fake);

#endif
