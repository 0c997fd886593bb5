/* SPDX-License-Identifier: Apache-2.0 */
/* Verdicts as the decider packs them, sound or not: written field by field from a struct. */
#ifndef ZT_FAKE_VERDICT_H
#define ZT_FAKE_VERDICT_H

#include "bytes.h"
#include "verdict.h"

#define FAKE_MOST 4 /* headers, hops, identities of a hop */

struct fake_hop {
    unsigned protocol; /* enum hop_protocol */
    unsigned keep_source;
    struct addr address; /* without a family: 10.0.0.5:15008 */
    uint32_t weight;
    uint32_t slot;
    const char *authority; /* texts that are NULL are empty */
    const char *sans[FAKE_MOST];
    unsigned n_sans;
    const char *inner_authority;
    const char *inner_sans[FAKE_MOST];
    unsigned n_inner_sans;
};

struct fake_verdict {
    unsigned action; /* enum verdict_action */
    unsigned reason;
    unsigned uses;
    uint32_t ttl_ms;
    struct epoch epoch;
    const char *detail;
    const char *forwarded_host;
    const char *headers[FAKE_MOST][2];
    unsigned n_headers;
    unsigned has_preface;
    struct addr preface_target;
    struct fake_hop hops[FAKE_MOST];
    unsigned n_hops;
};

static inline void fake_put_text(struct bytes *to, const char *text) {
    put_text(to, text == NULL ? "" : text);
}

static inline void fake_put_sans(struct bytes *to, const char *const *sans, unsigned n) {
    put_number(to, n, 2);
    for (unsigned i = 0; i < n; i++) {
        fake_put_text(to, sans[i]);
    }
}

static inline void fake_put_hop(struct bytes *to, const struct fake_hop *hop) {
    static const struct addr SOMEWHERE = {.ip = {10, 0, 0, 5}, .port = 15008, .family = 4};
    put_number(to, hop->protocol, 1);
    put_number(to, hop->keep_source, 1);
    put_addr(to, hop->address.family == 0 ? &SOMEWHERE : &hop->address);
    put_number(to, hop->weight, 4);
    put_number(to, hop->slot, 4);
    fake_put_text(to, hop->authority);
    fake_put_sans(to, hop->sans, hop->n_sans);
    fake_put_text(to, hop->inner_authority);
    fake_put_sans(to, hop->inner_sans, hop->n_inner_sans);
}

/* Appends the packed form. */
static inline void fake_verdict_pack(const struct fake_verdict *verdict, struct bytes *to) {
    put_number(to, verdict->action, 1);
    put_number(to, verdict->reason, 1);
    put_number(to, verdict->uses, 1);
    put_number(to, verdict->has_preface, 1);
    put_number(to, verdict->ttl_ms, 4);
    put_number(to, verdict->epoch.discovery, 8);
    put_number(to, verdict->epoch.policy, 8);
    fake_put_text(to, verdict->detail);
    fake_put_text(to, verdict->forwarded_host);
    put_number(to, verdict->n_headers, 2);
    for (unsigned i = 0; i < verdict->n_headers; i++) {
        fake_put_text(to, verdict->headers[i][0]);
        fake_put_text(to, verdict->headers[i][1]);
    }
    if (verdict->has_preface == 1) {
        put_addr(to, &verdict->preface_target);
    }
    put_number(to, verdict->n_hops, 4);
    for (unsigned i = 0; i < verdict->n_hops; i++) {
        fake_put_hop(to, &verdict->hops[i]);
    }
}

/* A forward to one plain hop. */
static inline struct fake_verdict fake_forward(uint32_t ttl_ms, unsigned uses) {
    return (struct fake_verdict){
        .action = VERDICT_FORWARD,
        .uses = uses,
        .ttl_ms = ttl_ms,
        .hops = {{.protocol = HOP_TCP, .weight = 1}},
        .n_hops = 1,
    };
}

#endif
