/* SPDX-License-Identifier: Apache-2.0 */
/* Verdicts: what to do with the connections of one key. Immutable once parsed, reference counted,
 * shared between threads.
 *
 * Python packs a verdict into bytes (ztunnel_py/dataplane/packing.py); they are checked here as if
 * they came from the network. Numbers are little endian, str16 as in key.h:
 *
 *   u8 action, u8 reason number, u8 uses (enum key_use), u8 has preface
 *   u32 ttl ms (0: never reused for another connection)
 *   u64 discovery epoch, u64 policy epoch
 *   str16 detail, str16 forwarded host
 *   u16 headers, each: str16 name, str16 value
 *   preface target (ADDR_PACKED), only if it has a preface
 *   u32 hops, each:
 *     u8 protocol, u8 keep source, address (ADDR_PACKED), u32 weight, u32 slot
 *     str16 authority, u16 sans, each: str16
 *     str16 inner authority, u16 inner sans, each: str16   (DOUBLE_HBONE; else empty and 0)
 *   and nothing behind that
 *
 * FORWARD needs a hop with a positive weight (or none at all: the answer to an IDENTITY question);
 * DENY has at most one hop, none if its reason is early. DENY has a reason, the others have OK. No
 * text has a NUL; what goes into a header has no control characters (values: but tab), the name of
 * one is a lower-case token, and no identity is empty.
 *
 * `tag` is the decider's own name for the verdict. When the last reference goes, a verdict with a
 * tag is put on the list of released ones; whoever drains that list learns the tag and frees the
 * verdict. One without a tag (0) is freed at once.
 */
#ifndef ZT_VERDICT_H
#define ZT_VERDICT_H

#include <pthread.h>

#include "addr.h"
#include "key.h"
#include "mem.h"
#include "reason.h"

enum verdict_action { VERDICT_FORWARD, VERDICT_DENY, VERDICT_PUNT };

enum hop_protocol { HOP_TCP, HOP_HBONE, HOP_DOUBLE_HBONE };

#define VERDICT_HOPS_MAX 65536

struct header {
    struct text name; /* lower case */
    struct text value;
};

/* One possible next step. */
struct hop {
    struct addr address; /* dialled */
    enum hop_protocol protocol;
    bool keep_source;        /* dial with the client's address */
    uint32_t weight;         /* relative chance; 0 is never drawn */
    uint32_t slot;           /* counters of its labels */
    struct text authority;   /* of the CONNECT */
    const struct text *sans; /* identities accepted from the server, in order */
    size_t n_sans;
    struct text inner_authority; /* of the CONNECT inside (DOUBLE_HBONE) */
    const struct text *inner_sans;
    size_t n_inner_sans;
};

/* Versions of what a verdict was decided from. */
struct epoch {
    uint64_t discovery;
    uint64_t policy;
};

/* Verdicts that nobody refers to any more, until `verdict_drain_released`. Any thread. */
struct released {
    pthread_mutex_t lock;  /* guards `first` */
    struct verdict *first; /* linked by `next_released` */
};

struct verdict {
    _Atomic uint32_t refs; /* whoever holds the last one gives it up for good */
    enum verdict_action action;
    enum reason reason;
    bool is_own;     /* made by the core: no epoch, never stale */
    unsigned uses;   /* enum key_use */
    uint64_t ttl_ns; /* 0: for one connection only */
    struct epoch epoch;
    struct text detail;           /* completes the reason's text */
    struct text forwarded_host;   /* for the `forwarded` header of a CONNECT */
    const struct header *headers; /* of the CONNECT (outbound), of its 200 response (inbound) */
    size_t n_headers;
    bool has_preface;
    struct addr preface_target; /* destination in the PROXY header, if it has a preface */
    const struct hop *hops;
    size_t n_hops;
    uint64_t total_weight;         /* of all hops */
    uint64_t tag;                  /* the decider's name for it, 0: none */
    struct mem *mem;               /* what it was allocated with, NULL: it is static */
    struct released *released;     /* where it goes in the end */
    struct verdict *next_released; /* in that list */
};

/* Parses packed bytes (copied). NULL if they are malformed or there is no memory; the tag is then
 * not taken. The result has one reference. */
struct verdict *verdict_parse(struct mem *mem, struct released *released, const uint8_t *bytes,
                              size_t len, uint64_t tag);

/* A denial that the core makes by itself: no hop, ttl 0, tag 0. `detail` is copied. NULL without
 * memory. */
struct verdict *verdict_deny(struct mem *mem, struct released *released, enum reason reason,
                             const char *detail);

struct verdict *verdict_ref(struct verdict *verdict);

/* Drops a reference; NULL is harmless. */
void verdict_unref(struct verdict *verdict);

/* One hop, drawn by weight with `random` from anywhere in 0..2^64-1. NULL if none has a weight. */
const struct hop *verdict_draw(const struct verdict *verdict, uint64_t random);

void released_init(struct released *released);

/* Frees up to `limit` released verdicts, writing the tags other than 0; returns how many tags. */
size_t verdict_drain_released(struct released *released, uint64_t *tags, size_t limit);

#endif
