/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes how a CONNECT becomes a key: h2_request.c, then key.c as inbound.c uses it.
 *
 * Input: whether the client has an identity, then headers: a digit for the name, the value,
 * newline. Of a name the first value counts, of baggage all do; the key packs, and says what was
 * asked.
 */
#include <stdlib.h>

#include "h2_request.h"
#include "key.h"

#define HEADERS_MOST 64

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static const char *const NAMES[] = {
    ":method", ":authority", "forwarded", "x-forwarded-network", "baggage",
    "baggag",  "Forwarded",  ":path",     "traceparent",         ""};

static struct mem mem;

static void demand(bool is_so) {
    if (!is_so) {
        abort();
    }
}

/* A header as it was sent. */
struct sent {
    size_t name;
    struct text value;
};

static size_t parse(const uint8_t *bytes, size_t len, struct sent *sent) {
    size_t n = 0;
    for (size_t at = 0; at < len && n < HEADERS_MOST; n++) {
        const uint8_t *const end = memchr(bytes + at, '\n', len - at);
        const size_t line = end == NULL ? len - at : (size_t)(end - bytes) - at;
        sent[n].name = line == 0 ? ARRAY_LEN(NAMES) - 1 : bytes[at] % ARRAY_LEN(NAMES);
        sent[n].value = line == 0 ? (struct text){"", 0}
                                  : (struct text){(const char *)bytes + at + 1, line - 1};
        at += line + 1;
    }
    return n;
}

/* The first value of that name, or none. */
static bool first(const struct sent *sent, size_t n, size_t name, struct text *value) {
    for (size_t i = 0; i < n; i++) {
        if (sent[i].name == name) {
            *value = sent[i].value;
            return true;
        }
    }
    return false;
}

static void same(const struct sent *sent, size_t n, size_t name, bool has, struct text kept) {
    struct text value = {"", 0};
    demand(first(sent, n, name, &value) == has && (!has || text_equal(value, kept)));
}

static void check(const struct sent *sent, size_t n, const struct h2_request *request) {
    size_t n_baggage = 0;
    same(sent, n, 0, request->has_method, request->method);
    same(sent, n, 1, request->has_authority, request->authority);
    same(sent, n, 2, request->has_forwarded, request->forwarded);
    same(sent, n, 3, request->has_network, request->network);
    struct text value = {"", 0};
    struct trace trace = {0};
    demand(request->has_trace == first(sent, n, 8, &value));
    (void)trace_parse(value, &trace);
    demand(memcmp(&trace, &request->trace, sizeof(trace)) == 0);
    char written[TRACE_SIZE];
    trace_format(&trace, written);
    demand(!trace_is_known(&trace) || memcmp(written, value.bytes, TRACE_SIZE - 3) == 0);
    for (size_t i = 0; i < n; i++) {
        if (sent[i].name == 4) {
            demand(n_baggage < request->n_baggage);
            demand(text_equal(request->baggage[n_baggage++], sent[i].value));
        }
    }
    demand(n_baggage == request->n_baggage);
}

/* As inbound.c does it. */
static void pack(const struct h2_request *request, bool has_identity) {
    const struct key_request from = {
        .local = {.ip = {10, 0, 0, 1}, .port = 15008, .family = 4},
        .src = {.ip = {0x20, 1, [15] = 1}, .port = 5, .family = 6},
        .identity = has_identity ? text_of("spiffe://td/ns/a/sa/a") : (struct text){"", 0},
        .authority = request->authority,
        .forwarded = request->forwarded,
        .has_network = request->has_network,
        .network = request->network,
        .baggage = request->baggage,
        .n_baggage = request->n_baggage,
    };
    const size_t size = key_request_size(&from);
    uint8_t *const key = malloc(size);
    uint8_t *const masked = malloc(size + 1);
    demand(key != NULL && masked != NULL);
    const size_t len = key_pack_request(&from, key, size);
    demand(len > 0 && len <= size);
    for (unsigned uses = 0; uses <= KEY_USES_ALL; uses++) {
        const size_t masked_len = key_mask(KEY_INBOUND, key, len, uses, masked);
        demand(masked_len > 0 && masked_len <= len + 1);
    }
    const struct text host = key_forwarded_host(request->forwarded);
    demand(host.len == 0 ||
           (host.bytes >= request->forwarded.bytes && host.len <= request->forwarded.len));
    free(key);
    free(masked);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len) {
    struct sent sent[HEADERS_MOST];
    if (len < 1) {
        return 0;
    }
    const size_t n = parse(bytes + 1, len - 1, sent);
    struct h2_request *const request = h2_request_create(&mem);
    demand(request != NULL);
    for (size_t i = 0; i < n; i++) {
        demand(h2_request_add(&mem, request, text_of(NAMES[sent[i].name]), sent[i].value));
    }
    check(sent, n, request);
    pack(request, (bytes[0] & 1) != 0);
    h2_request_free(&mem, request);
    demand(mem.live[MEM_OTHER] == 0);
    return 0;
}
