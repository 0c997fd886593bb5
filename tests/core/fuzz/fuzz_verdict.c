/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes verdict.c: any bytes are read or refused, and what is read is sound and all there. */
#include <stdlib.h>

#include "stats.h"
#include "verdict.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void demand(bool is_so) {
    if (!is_so) {
        abort();
    }
}

/* Reads all of a text, so that the sanitizer sees a bad one. */
static void visit_text(struct text text) {
    demand(text.len == 0 || memchr(text.bytes, '\0', text.len) == NULL);
}

static void visit_sans(const struct text *sans, size_t n) {
    for (size_t i = 0; i < n; i++) {
        demand(sans[i].len > 0);
        visit_text(sans[i]);
    }
}

static void visit_hop(const struct hop *hop) {
    demand(hop->protocol <= HOP_DOUBLE_HBONE && hop->slot < STATS_SLOTS_MAX);
    demand(hop->address.family == 4 || hop->address.family == 6);
    demand(hop->protocol == HOP_DOUBLE_HBONE ||
           (hop->inner_authority.len == 0 && hop->n_inner_sans == 0));
    visit_text(hop->authority);
    visit_sans(hop->sans, hop->n_sans);
    visit_text(hop->inner_authority);
    visit_sans(hop->inner_sans, hop->n_inner_sans);
}

static void visit(const struct verdict *verdict) {
    enum reason reason = REASON_OK;
    uint64_t weight = 0;
    demand(verdict->action <= VERDICT_PUNT && verdict->uses <= KEY_USES_ALL);
    demand(reason_of(verdict->reason, &reason) && !verdict->is_own);
    demand((verdict->reason == REASON_OK) == (verdict->action != VERDICT_DENY));
    visit_text(verdict->detail);
    visit_text(verdict->forwarded_host);
    for (size_t i = 0; i < verdict->n_headers; i++) {
        demand(verdict->headers[i].name.len > 0);
        visit_text(verdict->headers[i].name);
        visit_text(verdict->headers[i].value);
    }
    for (size_t i = 0; i < verdict->n_hops; i++) {
        visit_hop(&verdict->hops[i]);
        weight += verdict->hops[i].weight;
    }
    demand(weight == verdict->total_weight);
    demand(weight > 0 || verdict->n_hops == 0 || verdict->action != VERDICT_FORWARD);
    demand((verdict_draw(verdict, 0) != NULL) == (weight > 0));
    demand((verdict_draw(verdict, UINT64_MAX) != NULL) == (weight > 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len) {
    static struct mem mem;
    struct released released;
    uint64_t tag = 0;
    released_init(&released);
    struct verdict *const verdict = verdict_parse(&mem, &released, bytes, len, 1);
    if (verdict != NULL) {
        visit(verdict);
        verdict_unref(verdict);
        demand(verdict_drain_released(&released, &tag, 1) == 1 && tag == 1);
    }
    demand(mem.live[MEM_VERDICT] == 0);
    return 0;
}
