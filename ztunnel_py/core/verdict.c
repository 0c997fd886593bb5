/* SPDX-License-Identifier: Apache-2.0 */
/* Reading, sharing and releasing verdicts; see verdict.h.
 *
 * A verdict is one allocation: the struct, its hops, headers and texts, and a copy of the packed
 * bytes that the texts point into. The bytes are walked twice by the same code: the first walk
 * checks them and counts what there is, the second, over the copy, fills it in.
 */
#include "verdict.h"

#include "stats.h"

/* Weights are 32 bits each, so that their sum cannot overflow. */
_Static_assert(VERDICT_HOPS_MAX <= UINT32_MAX, "the total weight fits into 64 bits");

/* --- reading numbers and texts */

/* Reads packed bytes; what is too short or not allowed makes it fail for good. */
struct reader {
    const uint8_t *at;
    size_t left;
    bool has_failed;
};

/* `len` bytes, NULL if there are not so many. */
static const uint8_t *take(struct reader *reader, size_t len) {
    if (reader->has_failed || len > reader->left) {
        reader->has_failed = true;
        return NULL;
    }
    const uint8_t *const bytes = reader->at;
    reader->at += len;
    reader->left -= len;
    return bytes;
}

static void demand(struct reader *reader, bool is_so) {
    if (!is_so) {
        reader->has_failed = true;
    }
}

/* A little endian number of `len` bytes, 0 if reading has failed. */
static uint64_t take_number(struct reader *reader, size_t len) {
    const uint8_t *const bytes = take(reader, len);
    uint64_t number = 0;
    for (size_t i = 0; bytes != NULL && i < len; i++) {
        number |= (uint64_t)bytes[i] << (8 * i);
    }
    return number;
}

/* A byte that may be `max` at most. */
static unsigned take_small(struct reader *reader, unsigned max) {
    const unsigned number = (unsigned)take_number(reader, 1);
    demand(reader, number <= max);
    return reader->has_failed ? 0 : number;
}

static bool take_bool(struct reader *reader) {
    return take_small(reader, 1) == 1;
}

static struct text take_text(struct reader *reader) {
    const size_t len = (size_t)take_number(reader, 2);
    const uint8_t *const bytes = take(reader, len);
    if (bytes == NULL || memchr(bytes, '\0', len) != NULL) {
        reader->has_failed = true;
        return (struct text){0};
    }
    return (struct text){(const char *)bytes, len};
}

/* A text that may stand in a header: what ends a line in HTTP/1 or confuses a log is not in it. */
static struct text take_header_text(struct reader *reader) {
    const struct text text = take_text(reader);
    for (size_t i = 0; i < text.len; i++) {
        const uint8_t c = (uint8_t)text.bytes[i];
        demand(reader, (c >= ' ' && c != 0x7f) || c == '\t');
    }
    return text;
}

/* The name of a header: a token in lower case, as HTTP/2 demands. */
static struct text take_header_name(struct reader *reader) {
    static const char ALLOWED[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
    const struct text text = take_text(reader);
    demand(reader, text.len > 0);
    for (size_t i = 0; i < text.len; i++) {
        demand(reader, strchr(ALLOWED, text.bytes[i]) != NULL);
    }
    return text;
}

static struct addr take_addr(struct reader *reader) {
    struct addr addr = {0};
    const uint8_t *const bytes = take(reader, ADDR_PACKED);
    demand(reader, bytes != NULL && addr_unpack(bytes, &addr));
    return addr;
}

/* --- reading a verdict */

/* Where hops, headers and texts go; all NULL while they are counted only. */
struct room {
    struct hop *hops;
    struct header *headers;
    struct text *texts;
    size_t n_texts; /* used so far */
};

/* A list of identities, in order. */
static const struct text *take_sans(struct reader *reader, struct room *room, size_t *n) {
    const struct text *const first = room->texts == NULL ? NULL : &room->texts[room->n_texts];
    *n = (size_t)take_number(reader, 2);
    for (size_t i = 0; i < *n && !reader->has_failed; i++) {
        const struct text san = take_text(reader);
        demand(reader, san.len > 0);
        if (room->texts != NULL) {
            room->texts[room->n_texts] = san;
        }
        room->n_texts++;
    }
    return first;
}

static struct hop take_hop(struct reader *reader, struct room *room) {
    struct hop hop = {.protocol = (enum hop_protocol)take_small(reader, HOP_DOUBLE_HBONE)};
    hop.keep_source = take_bool(reader);
    hop.address = take_addr(reader);
    hop.weight = (uint32_t)take_number(reader, 4);
    hop.slot = (uint32_t)take_number(reader, 4);
    demand(reader, hop.slot < STATS_SLOTS_MAX);
    hop.authority = take_header_text(reader);
    hop.sans = take_sans(reader, room, &hop.n_sans);
    hop.inner_authority = take_header_text(reader);
    hop.inner_sans = take_sans(reader, room, &hop.n_inner_sans);
    demand(reader, hop.protocol == HOP_DOUBLE_HBONE ||
                       (hop.inner_authority.len == 0 && hop.n_inner_sans == 0));
    return hop;
}

static void take_hops(struct reader *reader, struct room *room, struct verdict *verdict) {
    verdict->n_hops = (size_t)take_number(reader, 4);
    verdict->hops = room->hops;
    verdict->total_weight = 0;
    demand(reader, verdict->n_hops <= VERDICT_HOPS_MAX);
    for (size_t i = 0; i < verdict->n_hops && !reader->has_failed; i++) {
        const struct hop hop = take_hop(reader, room);
        verdict->total_weight += hop.weight;
        if (room->hops != NULL) {
            room->hops[i] = hop;
        }
    }
}

static void take_headers(struct reader *reader, struct room *room, struct verdict *verdict) {
    verdict->n_headers = (size_t)take_number(reader, 2);
    verdict->headers = room->headers;
    for (size_t i = 0; i < verdict->n_headers && !reader->has_failed; i++) {
        const struct text name = take_header_name(reader);
        const struct text value = take_header_text(reader);
        if (room->headers != NULL) {
            room->headers[i] = (struct header){name, value};
        }
    }
}

/* What the parts must be, taken together. */
static bool is_sound(const struct verdict *verdict) {
    switch (verdict->action) {
    case VERDICT_FORWARD:
        return verdict->reason == REASON_OK && (verdict->n_hops == 0 || verdict->total_weight > 0);
    case VERDICT_DENY:
        return verdict->reason != REASON_OK &&
               verdict->n_hops <= (reason_is_early(verdict->reason) ? 0U : 1U);
    case VERDICT_PUNT:
        return verdict->reason == REASON_OK;
    }
    return false;
}

/* One walk over all bytes. False if they are malformed. */
static bool take_verdict(struct reader *reader, struct room *room, struct verdict *verdict) {
    verdict->action = (enum verdict_action)take_small(reader, VERDICT_PUNT);
    demand(reader, reason_of((unsigned)take_number(reader, 1), &verdict->reason));
    verdict->uses = take_small(reader, KEY_USES_ALL);
    verdict->has_preface = take_bool(reader);
    verdict->ttl_ns = take_number(reader, 4) * NS_PER_MS;
    verdict->epoch.discovery = take_number(reader, 8);
    verdict->epoch.policy = take_number(reader, 8);
    verdict->detail = take_text(reader);
    verdict->forwarded_host = take_header_text(reader);
    take_headers(reader, room, verdict);
    if (verdict->has_preface) {
        verdict->preface_target = take_addr(reader);
    }
    take_hops(reader, room, verdict);
    return !reader->has_failed && reader->left == 0 && is_sound(verdict);
}

/* Makes `*size` larger by `n` objects of `each` bytes; false if that cannot be said. */
static bool grow(size_t *size, size_t n, size_t each) {
    return !__builtin_mul_overflow(n, each, &n) && !__builtin_add_overflow(*size, n, size);
}

struct verdict *verdict_parse(struct mem *mem, struct released *released, const uint8_t *bytes,
                              size_t len, uint64_t tag) {
    struct verdict counted = {0};
    struct room room = {0};
    struct reader reader = {.at = bytes, .left = len};
    size_t size = sizeof(counted);
    /* The order below keeps every part aligned: texts are the last that need it. */
    if (!take_verdict(&reader, &room, &counted) ||
        !grow(&size, counted.n_hops, sizeof(struct hop)) ||
        !grow(&size, counted.n_headers, sizeof(struct header)) ||
        !grow(&size, room.n_texts, sizeof(struct text)) || !grow(&size, len, 1)) {
        return NULL;
    }
    struct verdict *const verdict = mem_alloc(mem, MEM_VERDICT, size);
    if (verdict == NULL) {
        return NULL;
    }
    room.hops = (struct hop *)(void *)(verdict + 1);
    room.headers = (struct header *)(void *)(room.hops + counted.n_hops);
    room.texts = (struct text *)(void *)(room.headers + counted.n_headers);
    uint8_t *const copy = (uint8_t *)(room.texts + room.n_texts);
    memcpy(copy, bytes, len);
    room.n_texts = 0;
    reader = (struct reader){.at = copy, .left = len};
    if (!take_verdict(&reader, &room, verdict)) {
        /* Only if the caller's bytes changed while they were read. */
        mem_free(mem, MEM_VERDICT, verdict);
        return NULL;
    }
    verdict->tag = tag;
    verdict->mem = mem;
    verdict->released = released;
    atomic_init(&verdict->refs, 1);
    return verdict;
}

struct verdict *verdict_deny(struct mem *mem, struct released *released, enum reason reason,
                             const char *detail) {
    const size_t len = strlen(detail);
    struct verdict *const verdict = mem_alloc(mem, MEM_VERDICT, sizeof(*verdict) + len + 1);
    if (verdict == NULL) {
        return NULL;
    }
    char *const copy = (char *)(verdict + 1);
    memcpy(copy, detail, len + 1);
    verdict->action = VERDICT_DENY;
    verdict->reason = reason;
    verdict->is_own = true;
    verdict->uses = KEY_USES_ALL;
    verdict->detail = (struct text){copy, len};
    verdict->mem = mem;
    verdict->released = released;
    atomic_init(&verdict->refs, 1);
    return verdict;
}

/* --- sharing and releasing */

struct verdict *verdict_ref(struct verdict *verdict) {
    atomic_fetch_add_explicit(&verdict->refs, 1, memory_order_relaxed);
    return verdict;
}

void verdict_unref(struct verdict *verdict) {
    if (verdict == NULL ||
        atomic_fetch_sub_explicit(&verdict->refs, 1, memory_order_acq_rel) != 1 ||
        verdict->mem == NULL) {
        return;
    }
    if (verdict->tag == 0) {
        mem_free(verdict->mem, MEM_VERDICT, verdict);
        return;
    }
    struct released *const released = verdict->released;
    (void)pthread_mutex_lock(&released->lock);
    verdict->next_released = released->first;
    released->first = verdict;
    (void)pthread_mutex_unlock(&released->lock);
}

void released_init(struct released *released) {
    released->first = NULL;
    (void)pthread_mutex_init(&released->lock, NULL); /* cannot fail without attributes */
}

size_t verdict_drain_released(struct released *released, uint64_t *tags, size_t limit) {
    size_t n = 0;
    while (n < limit) {
        (void)pthread_mutex_lock(&released->lock);
        struct verdict *const verdict = released->first;
        if (verdict != NULL) {
            released->first = verdict->next_released;
        }
        (void)pthread_mutex_unlock(&released->lock);
        if (verdict == NULL) {
            break;
        }
        tags[n++] = verdict->tag;
        mem_free(verdict->mem, MEM_VERDICT, verdict);
    }
    return n;
}

const struct hop *verdict_draw(const struct verdict *verdict, uint64_t random) {
    /* The upper half of a 128-bit product: as even as a division, without its bias or its cost. */
    const unsigned __int128 product = (unsigned __int128)random * verdict->total_weight;
    uint64_t left = (uint64_t)(product >> 64);
    for (size_t i = 0; i < verdict->n_hops; i++) {
        if (left < verdict->hops[i].weight) {
            return &verdict->hops[i];
        }
        left -= verdict->hops[i].weight;
    }
    return NULL;
}
